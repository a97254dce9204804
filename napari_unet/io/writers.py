"""The one door for writing masks: which formats there are, and what must hold before any of them is written.

Only labels are written here; scans are not, and a source is never overwritten. How each format is written stands in
a module of its own, and how a file takes its place in :mod:`napari_unet.io.writing.replacing`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import ExportError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.io.formats import NIFTI
from napari_unet.io.masks import distinct_values
from napari_unet.io.registry import reader_of
from napari_unet.io.writing.replacing import MaskFile, put_in_place

#: Who drew a mask, in DICOM's words.
Algorithm = Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"]

_SUFFIX_OF = {
    **{"nifti": ".nii.gz", "dicom-seg": ".dcm", "seg-nrrd": ".seg.nrrd"},
    **{"tiff": ".tif", "ome-zarr": ".ome.zarr", "png": ".png"},
}
#: What write_mask takes, longest first, and the suffix of the temporary file.
_WRITTEN = {
    **{".seg.nrrd": ".seg.nrrd", ".ome.zarr": ".ome.zarr", ".nii.gz": ".nii.gz", ".nii": ".nii"},
    **{".tiff": ".tif", ".tif": ".tif", ".png": ".png", ".dcm": ".dcm"},
}


def require_format(name: str) -> None:
    """Refuse a format that masks are not written in.

    Raises
    ------
    ExportError
        Names those there are.
    """
    if name not in _SUFFIX_OF:
        raise ExportError(f"There is no format {name!r}: take one of {', '.join(_SUFFIX_OF)}.")


def mask_suffix(format_name: str | None, scan: Scan) -> str:
    """Return the suffix of a scan's mask.

    Parameters
    ----------
    format_name : str or None
        ``nifti``, ``dicom-seg``, ``seg-nrrd``, ``tiff``, ``ome-zarr`` or ``png``; None: like the source's.
    scan : Scan
        The source.

    Raises
    ------
    ExportError
        Unknown, or a volume as PNG.
    """
    if format_name is None:
        reader = reader_of(scan.source) if scan.source is not None else None
        suffix = ".nii.gz" if reader is None else reader.mask_suffix
    else:
        require_format(format_name)
        suffix = _SUFFIX_OF[format_name]
    _refuse_volume_as_picture(suffix, scan)
    return suffix


def format_of(path: Path | str) -> str | None:
    """Return the name of the format that a mask's suffix stands for, such as ``seg-nrrd``; None if for none."""
    written = _WRITTEN.get(_suffix(Path(path)), "")
    written = ".nii.gz" if written == ".nii" else written
    return next((name for name, suffix in _SUFFIX_OF.items() if suffix == written), None)


def write_mask(
    labels: NDArray,
    scan: Scan,
    path: Path | str,
    schema: LabelSchema,
    *,
    algorithm: Algorithm = "SEMIAUTOMATIC",
    model_name: str | None = None,
    labelmap: bool = False,
) -> None:
    """Write the labels of a scan; the suffix names the format.

    Parameters
    ----------
    labels : integer array
        Over the scan's spatial axes, as loaded; 0 is background.
    scan : Scan
        The scan they belong to. The mask goes on the grid that was acquired; NIfTI masks of NIfTI scans get the very
        same position fields.
    path : Path or str
        ``.nii.gz``, ``.nii``, ``.seg.nrrd``, ``.ome.zarr`` (a folder), ``.tif``, ``.tiff``, ``.png`` (2D) or ``.dcm``
        (DICOM-SEG, of scans that are DICOM). Folders are made; an older mask is replaced in one step after the new
        one was read back and found equal.
    schema : LabelSchema
        The classes; ids up to 255 are written as uint8, else uint16.
    algorithm : {"AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"}
        Who drew it, in DICOM's words; stands in DICOM-SEG.
    model_name : str, optional
        The model that proposed; stands in DICOM-SEG.
    labelmap : bool
        DICOM-SEG as one label map (Supplement 243) instead of a binary segment per class; few programs read it yet.

    Raises
    ------
    ExportError
        Unknown format, another shape, labels outside the schema, the source's own path, or the disk refuses.
    """
    path = Path(path)
    if labels.shape != scan.spatial_shape:
        raise ExportError(f"The mask's shape {labels.shape} is not the scan's, {scan.spatial_shape}.")
    unknown = distinct_values(labels) - {0, *schema.ids}
    if unknown:
        raise ExportError(f"The mask holds labels that have no class: {', '.join(map(str, sorted(unknown)))}.")
    suffix = _suffix(path)
    _refuse_volume_as_picture(suffix, scan)
    _refuse_source(path, scan)
    labels = labels.astype(np.uint8 if max(schema.ids) <= 255 else np.uint16, copy=False)
    if suffix == ".dcm":
        from napari_unet.io.dicom.segmentation import write_dicom_seg

        write_dicom_seg(labels, scan, path, schema, labelmap=labelmap, algorithm=algorithm, model_name=model_name)
        return
    put_in_place(path, _WRITTEN.get(suffix, suffix), _mask_file(suffix, labels, scan, path, schema))


def uncertainty_path(mask_path: Path | str, scan: Scan) -> Path:
    """Return where the uncertainty of a mask lies: beside it, a PNG for a picture that is no NIfTI, else NIfTI."""
    mask_path = Path(mask_path)
    picture = len(scan.spatial_shape) == 2 and mask_path.suffix.lower() in (".png", ".tif", ".tiff")
    stem = mask_path.name[: len(mask_path.name) - len(_suffix(mask_path))]
    return mask_path.with_name(f"{stem}-uncertainty{'.png' if picture else '.nii.gz'}")


def write_uncertainty(uncertainty: NDArray[np.uint8], scan: Scan, path: Path) -> None:
    """Write how unsure a model is of each voxel.

    Parameters
    ----------
    uncertainty : uint8 array
        Over the scan's spatial axes, as loaded; 255 = all classes alike.
    scan : Scan
        As for :func:`write_mask`.
    path : Path
        From :func:`uncertainty_path`: a PNG holds the bytes, a NIfTI file float32 from 0 to 1.

    Raises
    ------
    ExportError
        The disk refuses.
    """
    _refuse_source(path, scan)
    if path.suffix == ".png":
        from napari_unet.io.writing.pictures import png_mask

        put_in_place(path, ".png", png_mask(uncertainty))
        return
    from napari_unet.io.writing.nifti import nifti_mask

    put_in_place(path, ".nii.gz", nifti_mask(np.divide(uncertainty, 255, dtype=np.float32), scan, "estimate"))


def _mask_file(suffix: str, labels: NDArray, scan: Scan, path: Path, schema: LabelSchema) -> MaskFile:
    if suffix in NIFTI.suffixes:
        from napari_unet.io.writing.nifti import nifti_mask

        return nifti_mask(labels, scan)
    if suffix == ".seg.nrrd":
        from napari_unet.io.writing.nrrd import seg_nrrd_mask

        return seg_nrrd_mask(labels, scan, schema)
    if suffix == ".ome.zarr":
        from napari_unet.io.writing.ome_zarr import ome_zarr_mask, refuse_foreign_folder

        refuse_foreign_folder(path)
        return ome_zarr_mask(labels, scan, schema)
    if suffix in (".tif", ".tiff"):
        from napari_unet.io.writing.pictures import tiff_mask

        return tiff_mask(labels, scan)
    if suffix == ".png":
        from napari_unet.io.writing.pictures import png_mask

        return png_mask(labels)
    written = [".nii.gz", ".nii", ".seg.nrrd", ".ome.zarr", ".dcm", ".tif"]
    raise ExportError(f"{path.name} names no format that masks are written in: {', '.join(written)} or .png.")


def _suffix(path: Path) -> str:
    lower = path.name.lower()
    return next((suffix for suffix in _WRITTEN if lower.endswith(suffix)), "")


def _refuse_volume_as_picture(suffix: str, scan: Scan) -> None:
    if suffix == ".png" and len(scan.spatial_shape) == 3:
        raise ExportError("A PNG holds one slice and this is a volume: write it as nifti or tiff.")


def _refuse_source(path: Path, scan: Scan) -> None:
    sources = [source for source in (scan.source, *scan.source_files) if source is not None]
    if any(_same_file(path, source) for source in sources):
        raise ExportError(f"{path.name} is the scan itself: choose another folder for the masks.")
    for source in sources:
        # A mask that is a folder takes the place of all that is in it; one inside a zarr folder would spoil that.
        for around, inside in ((path, source), (source, path)):
            if around.suffix.lower() == ".zarr" and around.resolve() in inside.resolve().parents:
                raise ExportError(f"{path.name} and the scan lie in one another: choose another folder for the masks.")


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))
    except OSError:
        return False
