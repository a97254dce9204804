"""Which formats are read: one entry each. What a format needs is imported when a file of it is met.

A new format is one module and one entry here; callers do not change.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from napari_unet.io.reading import Reader


def _later(module: str, function: str) -> Callable[..., Any]:
    """Return a function of a module of this room that is imported at the first call."""

    def call(*args: Any) -> Any:
        return getattr(import_module(f"napari_unet.io.{module}"), function)(*args)

    return call


NIFTI = Reader("NIfTI", (".nii.gz", ".nii"), _later("nifti", "read_nifti"), ".nii.gz")
NRRD = Reader("NRRD", (".seg.nrrd", ".nrrd", ".nhdr"), _later("nrrd", "read_nrrd"), ".seg.nrrd")
METAIMAGE = Reader("MetaImage", (".mha", ".mhd"), _later("metaimage", "read_metaimage"), ".nii.gz")
OME_ZARR = Reader(
    "OME-Zarr",
    (".ome.zarr", ".zarr"),
    _later("ome_zarr", "read_ome_zarr"),
    ".ome.zarr",
    _later("ome_zarr", "is_zarr_folder"),
)
DICOM = Reader(
    "DICOM",
    (".dcm", ".dicom", ".ima"),
    _later("dicom.reader", "read_dicom"),
    ".nii.gz",
    _later("dicom.reader", "recognises"),
)
TIFF = Reader("TIFF", (".ome.tiff", ".ome.tif", ".tiff", ".tif"), _later("tiff", "read_tiff"), ".tif")
PICTURE = Reader("picture", (".png", ".jpg", ".jpeg", ".bmp", ".gif"), _later("raster", "read_raster"), ".png")

READERS: tuple[Reader, ...] = (NIFTI, NRRD, METAIMAGE, OME_ZARR, DICOM, TIFF, PICTURE)
