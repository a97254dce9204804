"""One scan on the grid of another, by where their files place them; nothing is registered."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import ScanError
from napari_unet.domain.scan import Scan

_TOLERANCE_MM = 1e-3
_LATTICE = 24


def voxel_to_voxel(fixed: Scan, moving: Scan) -> NDArray[np.float64]:
    """Return the matrix from voxels of one scan to the voxels of another at the same place in the patient.

    Parameters
    ----------
    fixed, moving : Scan
        Volumes with a known affine.

    Returns
    -------
    (4, 4) array
        Maps ``[z, y, x, 1]`` of ``fixed`` to that of ``moving``.

    Raises
    ------
    ScanError
        Where one of them stands is not known, or they do not overlap.
    """
    if fixed.geometry.affine is None or moving.geometry.affine is None:
        one = "This scan" if fixed.geometry.affine is None else "The second series"
        raise ScanError(
            f"{one} does not say where it stands in the patient: choose series that do, such as DICOM or NIfTI."
        )
    matrix: NDArray[np.float64] = np.linalg.solve(moving.geometry.affine, fixed.geometry.affine).astype(np.float64)
    if not (_reaches(matrix, fixed, moving) or _reaches(np.linalg.inv(matrix).astype(np.float64), moving, fixed)):
        raise ScanError("The second series shows another part of the body than this scan: choose one that overlaps.")
    return matrix


def has_same_grid(fixed: Scan, moving: Scan) -> bool:
    """Return whether the voxels of two scans lie in the same places, to a micrometre."""
    one, other = fixed.geometry.affine, moving.geometry.affine
    if one is None or other is None or fixed.spatial_shape != moving.spatial_shape:
        return False
    corners = np.array([(*index, 1) for index in np.ndindex(2, 2, 2)], float)
    corners[:, :3] *= np.array(fixed.spatial_shape) - 1
    return bool(np.abs(corners @ (one - other).T).max() < _TOLERANCE_MM)


def resample_planes(fixed: Scan, moving: Scan, out: NDArray[np.float32]) -> Iterator[float]:
    """Fill an array with the intensities of another scan on this one's grid, by linear interpolation, plane by plane.

    Parameters
    ----------
    fixed : Scan
        Gives the grid.
    moving : Scan
        Gives the intensities; one channel.
    out : float32 array
        Of the shape of ``fixed``. Outside of ``moving`` it becomes its smallest intensity.

    Yields
    ------
    float
        How much is done, from 0 to 1.

    Raises
    ------
    ScanError
        As :func:`voxel_to_voxel`.
    """
    from scipy.ndimage import affine_transform

    matrix = voxel_to_voxel(fixed, moving)
    source = np.asarray(moving.data, np.float32)
    darkest = float(source.min())
    for z in range(len(out)):
        start = matrix[:3, 3] + z * matrix[:3, 0]
        # A plane as a volume of one slice: scipy keeps the number of axes.
        out[z] = affine_transform(
            source, matrix[:3, :3], start, (1, *out.shape[1:]), order=1, mode="grid-constant", cval=darkest
        )[0]
        yield (z + 1) / len(out)


def _reaches(matrix: NDArray[np.float64], one: Scan, other: Scan) -> bool:
    """Return whether any voxel of a lattice over one scan falls inside another."""
    lattice = [np.unique(np.linspace(0, n - 1, min(n, _LATTICE))) for n in one.spatial_shape]
    points = np.stack([axis.ravel() for axis in np.meshgrid(*lattice, indexing="ij")], axis=1)
    found = points @ matrix[:3, :3].T + matrix[:3, 3]
    return bool(((found >= 0) & (found <= np.array(other.spatial_shape) - 1)).all(axis=1).any())
