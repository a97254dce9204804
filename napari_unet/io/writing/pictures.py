"""Masks as TIFF (pictures and stacks) and PNG (pictures): values as they are, spacing where TIFF can say it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from napari_unet.domain.scan import Scan
from napari_unet.io.tiff import spacing_mm
from napari_unet.io.writing.replacing import MaskFile


def tiff_mask(labels: NDArray, scan: Scan) -> MaskFile:
    """Return how labels become a TIFF file, which ImageJ understands in millimetres where the spacing is known."""
    axes = "ZYX"[-labels.ndim :]
    spacing = scan.geometry.spacing

    def write(path: Path) -> None:
        if spacing is None:
            tifffile.imwrite(path, labels, photometric="minisblack", compression="zlib", metadata={"axes": axes})
            return
        calibration = {"axes": axes, "unit": "mm"} | ({"spacing": spacing[0]} if labels.ndim == 3 else {})
        tifffile.imwrite(
            path,
            labels,
            imagej=True,
            photometric="minisblack",
            compression="zlib",
            resolution=(1 / spacing[-1], 1 / spacing[-2]),
            metadata=calibration,
        )

    def is_sound(path: Path) -> bool:
        with tifffile.TiffFile(path) as file:
            back, stated = file.asarray(), spacing_mm(file, with_z=labels.ndim == 3)
        if (stated is None) != (spacing is None):
            return False
        same_steps = stated is None or spacing is None or np.allclose(stated, spacing, rtol=1e-6, atol=0)
        return back.dtype == labels.dtype and same_steps and np.array_equal(np.squeeze(back), np.squeeze(labels))

    return MaskFile(write, is_sound)


def png_mask(labels: NDArray) -> MaskFile:
    """Return how the labels of a picture become a PNG file with one grey value per class."""

    def is_sound(path: Path) -> bool:
        with Image.open(path) as image:
            return np.array_equal(np.asarray(image), labels)

    return MaskFile(lambda path: Image.fromarray(labels).save(path), is_sound)
