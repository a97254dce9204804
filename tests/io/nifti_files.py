"""Small NIfTI files for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def save_nifti(path: Path, array: NDArray, affine: NDArray | None = None, **fields: object) -> Path:
    """Write with nibabel; ``fields`` are header fields set at the end."""
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def poke(path: Path, offset: int, value: bytes) -> Path:
    """Overwrite bytes of a plain .nii, for headers that nibabel would not write."""
    data = bytearray(path.read_bytes())
    data[offset : offset + len(value)] = value
    path.write_bytes(bytes(data))
    return path


def placed_affine(
    spacing: tuple[float, float, float] = (0.9, 1.1, 2.5),
    offset: tuple[float, float, float] = (-12.5, 30.25, 7.0),
    degrees: tuple[float, float, float] = (0, 0, 0),
    codes: str = "RAS",
    shape: tuple[int, int, int] = (5, 6, 7),
) -> NDArray:
    """Return a RAS affine whose axes run as ``codes`` say, turned about x, y, z."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(spacing)
    matrix[:3, 3] = offset
    ornt = nib.orientations.axcodes2ornt(codes)
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), ornt)
    return matrix @ nib.orientations.inv_ornt_aff(back, shape)


def random_array(shape: tuple[int, ...], dtype: object = np.int16, seed: int = 0) -> NDArray:
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
