"""Masks to files: on the acquired grid, checked after writing, and never half-written.

Only labels are written here; scans are not, and a source is never overwritten.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
import tifffile
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray
from PIL import Image

from napari_unet.domain.errors import ExportError, ScanError
from napari_unet.domain.geometry import LPS_FROM_RAS
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.io import nifti
from napari_unet.io.masks import distinct_values
from napari_unet.io.nifti import grid_and_affine, read_header, unplaced_axis_map, with_sane_pixdim
from napari_unet.io.registry import reader_of

_SUFFIX_OF = {"nifti": ".nii.gz", "tiff": ".tif", "png": ".png"}
_NOT_YET = ("dicom-seg", "seg-nrrd", "ome-zarr")
_POSITION_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


def mask_suffix(format_name: str | None, scan: Scan) -> str:
    """Return the suffix of a scan's mask.

    Parameters
    ----------
    format_name : str or None
        ``nifti``, ``tiff`` or ``png``; None: like the source's.
    scan : Scan
        The source.

    Raises
    ------
    ExportError
        Unknown, not available yet, or a volume as PNG.
    """
    if format_name is None:
        reader = reader_of(scan.source) if scan.source is not None else None
        suffix = ".nii.gz" if reader is None else reader.mask_suffix
    elif format_name in _NOT_YET:
        raise ExportError(f"Format {format_name} is not available yet: take one of {', '.join(_SUFFIX_OF)}.")
    elif format_name not in _SUFFIX_OF:
        raise ExportError(f"There is no format {format_name!r}: take one of {', '.join(_SUFFIX_OF)}.")
    else:
        suffix = _SUFFIX_OF[format_name]
    _refuse_volume_as_picture(suffix, scan)
    return suffix


def write_mask(labels: NDArray, scan: Scan, path: Path | str, schema: LabelSchema) -> None:
    """Write the labels of a scan; the suffix names the format.

    Parameters
    ----------
    labels : integer array
        Over the scan's spatial axes, as loaded; 0 is background.
    scan : Scan
        The scan they belong to. NIfTI masks of NIfTI scans get its axes and the very same position fields.
    path : Path or str
        ``.nii.gz``, ``.nii``, ``.tif``, ``.tiff`` or ``.png`` (2D). Folders are made; an older mask is replaced
        in one step after the new one was read back and found equal.
    schema : LabelSchema
        The classes; ids up to 255 are written as uint8, else uint16.

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
    labels = labels.astype(np.uint8 if max(schema.ids) <= 255 else np.uint16)
    lower = path.name.lower()
    if lower.endswith(nifti.SUFFIXES):
        suffix, write = next(s for s in nifti.SUFFIXES if lower.endswith(s)), _nifti_writer(labels, scan)
    elif lower.endswith((".tif", ".tiff")):
        suffix, write = ".tif", _tiff_writer(labels, scan)
    elif lower.endswith(".png"):
        suffix, write = ".png", _png_writer(labels)
        _refuse_volume_as_picture(suffix, scan)
    else:
        raise ExportError(f"{path.name} names no format that masks are written in: .nii.gz, .nii, .tif or .png.")
    if scan.source is not None and _same_file(path, scan.source):
        raise ExportError(f"{path.name} is the scan itself: choose another folder for the masks.")
    _write_atomically(path, suffix, write)


def _refuse_volume_as_picture(suffix: str, scan: Scan) -> None:
    if suffix == ".png" and len(scan.spatial_shape) == 3:
        raise ExportError("A PNG holds one slice and this is a volume: write it as nifti or tiff.")


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))
    except OSError:
        return False


def _write_atomically(path: Path, suffix: str, write: Callable[[Path], None]) -> None:
    """Write beside the target, make sure that it lies on the disk, then put it in place."""
    # Short and hidden: the target's own name may already be as long as the file system allows.
    temporary = path.parent / f".{secrets.token_hex(6)}{suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ExportError(f"{path.name} could not be written to {path.parent}: {error.strerror or error}.") from error


def _confirm(same: bool) -> None:
    if not same:
        raise ExportError("The mask read back from the disk is not the one written: check the disk and try again.")


def _nifti_writer(labels: NDArray, scan: Scan) -> Callable[[Path], None]:
    array, header = _on_source_grid(labels, scan) or _on_own_grid(labels, scan)
    header.set_data_dtype(labels.dtype)
    header.set_data_shape(array.shape)
    header.set_intent("label")
    header["cal_min"], header["cal_max"] = 0, labels.max()
    # The affine stands in the header's fields; handing it over again would make nibabel rewrite them.
    image = nib.Nifti1Image if type(header) is Nifti1Header else nib.Nifti2Image
    affine = header.get_best_affine()

    def write(path: Path) -> None:
        nib.save(image(array, None, header), path)
        back = cast(nib.Nifti1Image, nib.load(path))
        _confirm(
            back.get_data_dtype() == labels.dtype
            and np.array_equal(np.asanyarray(back.dataobj), array)
            and np.allclose(back.affine, affine, rtol=0, atol=1e-6)
        )

    return write


def _on_source_grid(labels: NDArray, scan: Scan) -> tuple[NDArray, Nifti1Header] | None:
    """Return labels and a fresh header with the source's position, or None where the source is not (any more) it."""
    if scan.source is None or not scan.source.name.lower().endswith(nifti.SUFFIXES):
        return None
    try:
        source = with_sane_pixdim(read_header(scan.source))
        shape, affine = grid_and_affine(source, scan.source)
    except ScanError:
        return None
    ours, axis_map = scan.geometry.source_affine, scan.geometry.axis_map
    same_position = affine is ours if affine is None or ours is None else np.array_equal(affine, ours)
    array = axis_map.to_source(labels)
    if not same_position or (*array.shape, 1)[:3] != shape:
        return None
    # Only what says where the voxels stand: descriptions and extensions can carry a patient's name.
    header = type(source)()
    for name in _POSITION_FIELDS:
        header[name] = source[name]
    header["pixdim"][4:] = 1
    return array.reshape(shape if source["dim"][0] > 2 else shape[:2]), header


def _on_own_grid(labels: NDArray, scan: Scan) -> tuple[NDArray, Nifti1Header]:
    """Return labels with axes x, y, z and a header in millimetres."""
    header = Nifti1Header()
    affine, spacing = scan.geometry.affine, scan.geometry.spacing
    if affine is not None:
        array = labels.transpose()
        ras = LPS_FROM_RAS @ affine @ np.eye(4)[[2, 1, 0, 3]]
        header.set_data_shape(array.shape)
        header.set_sform(ras, code="scanner")
        header["pixdim"][1:4] = np.linalg.norm(ras[:3, :3], axis=0)
    else:
        axis_map = unplaced_axis_map(labels.ndim)
        array = axis_map.to_source(labels)
        array = array.reshape(*array.shape, 1) if array.ndim == 2 else array
        steps = spacing or (1.0,) * labels.ndim
        header.set_data_shape(array.shape)
        header["pixdim"][1 : labels.ndim + 1] = [steps[axis_map.permutation.index(axis)] for axis in range(labels.ndim)]
    header.set_xyzt_units("mm" if spacing is not None else "unknown")
    return array, header


def _tiff_writer(labels: NDArray, scan: Scan) -> Callable[[Path], None]:
    axes = "ZYX"[-labels.ndim :]
    spacing = scan.geometry.spacing

    def write(path: Path) -> None:
        if spacing is None:
            tifffile.imwrite(path, labels, photometric="minisblack", compression="zlib", metadata={"axes": axes})
        else:
            calibration = {"axes": axes, "unit": "mm"} | ({"spacing": spacing[0]} if labels.ndim == 3 else {})
            resolution = (1 / spacing[-1], 1 / spacing[-2])
            tifffile.imwrite(
                path,
                labels,
                imagej=True,
                photometric="minisblack",
                compression="zlib",
                resolution=resolution,
                metadata=calibration,
            )
        back = tifffile.imread(path)
        _confirm(back.dtype == labels.dtype and np.array_equal(np.squeeze(back), np.squeeze(labels)))

    return write


def _png_writer(labels: NDArray) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        Image.fromarray(labels).save(path)
        with Image.open(path) as image:
            _confirm(np.array_equal(np.asarray(image), labels))

    return write
