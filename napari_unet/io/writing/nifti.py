"""Masks as NIfTI: with the source's own position fields where it is NIfTI, else on its acquired grid in millimetres."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray

from napari_unet.domain.errors import ScanError
from napari_unet.domain.geometry import LPS_FROM_RAS
from napari_unet.domain.scan import Scan
from napari_unet.io.formats import NIFTI
from napari_unet.io.nifti import grid_and_affine, read_header, unplaced_axis_map, with_sane_pixdim
from napari_unet.io.writing.acquired import acquired_grid
from napari_unet.io.writing.replacing import MaskFile

_POSITION_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


def nifti_mask(labels: NDArray, scan: Scan, intent: str = "label") -> MaskFile:
    """Return how the labels of a scan, or other values on its axes as loaded, become a NIfTI file.

    ``intent`` is NIfTI's word for what the values are.
    """
    array, header = _on_source_grid(labels, scan) or _on_own_grid(labels, scan)
    header.set_data_dtype(labels.dtype)
    header.set_data_shape(array.shape)
    header.set_intent(intent)
    header["cal_min"], header["cal_max"] = 0, labels.max()
    # The affine stands in the header's fields; handing it over again would make nibabel rewrite them.
    image = nib.Nifti1Image if type(header) is Nifti1Header else nib.Nifti2Image
    affine = header.get_best_affine()

    def is_sound(path: Path) -> bool:
        back = cast(nib.Nifti1Image, nib.load(path))
        return bool(
            back.get_data_dtype() == labels.dtype
            and np.array_equal(np.asanyarray(back.dataobj), array)
            and np.allclose(back.affine, affine, rtol=0, atol=1e-6)
        )

    return MaskFile(lambda path: nib.save(image(array, None, header), path), is_sound)


def _on_source_grid(labels: NDArray, scan: Scan) -> tuple[NDArray, Nifti1Header] | None:
    """Return labels and a fresh header with the source's position, or None where the source is not (any more) it."""
    if scan.source is None or not scan.source.name.lower().endswith(NIFTI.suffixes):
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
    """Return labels on the acquired grid, axes as in the file, and a header in millimetres."""
    header = Nifti1Header()
    array, lps, spacing = acquired_grid(labels, scan)
    if lps is not None:
        ras = LPS_FROM_RAS @ lps
        header.set_data_shape(array.shape)
        header.set_sform(ras, code="scanner")
        header["pixdim"][1:4] = np.linalg.norm(ras[:3, :3], axis=0)
    else:
        axis_map = unplaced_axis_map(labels.ndim)
        array = axis_map.to_source(labels)
        array = array.reshape(*array.shape, 1) if array.ndim == 2 else array
        steps = scan.geometry.spacing or (1.0,) * labels.ndim
        header.set_data_shape(array.shape)
        header["pixdim"][1 : labels.ndim + 1] = [steps[axis_map.permutation.index(axis)] for axis in range(labels.ndim)]
    header.set_xyzt_units("mm" if spacing is not None else "unknown")
    return array, header
