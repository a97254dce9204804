"""Where voxels stand: grids, boxes, and the way between a file's axes and the array as loaded.

Pure arithmetic on small arrays; nothing here reads a file or resamples an image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

#: RAS millimetres (NIfTI) to LPS millimetres (DICOM, ITK) and back.
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
LPS_FROM_RAS.setflags(write=False)

_POSITIVE = "LPS"
_NEGATIVE = "RAI"


def orientation_codes(affine: NDArray[np.float64]) -> str:
    """Return the anatomical direction in which each array axis increases.

    Parameters
    ----------
    affine : (4, 4) array
        Maps array indices (in array axis order) to LPS millimetres.

    Returns
    -------
    str
        Three letters out of ``LRPASI``, one per array axis, in array axis order.
    """
    directions = np.asarray(affine, float)[:3, :3]
    norms = np.linalg.norm(directions, axis=0)
    cosines = np.divide(directions, norms, out=np.zeros_like(directions), where=norms > 0)
    strength = np.abs(cosines)
    codes = [""] * 3
    # The largest cosine is settled first, so that two axes never claim one direction.
    for _ in range(3):
        world, axis = np.unravel_index(np.argmax(strength), (3, 3))
        codes[axis] = _POSITIVE[world] if cosines[world, axis] >= 0 else _NEGATIVE[world]
        strength[world, :] = -1
        strength[:, axis] = -1
    return "".join(codes)


def obliquity_degrees(affine: NDArray[np.float64]) -> float:
    """Return the largest angle, in degrees, between an array axis and its nearest patient axis."""
    directions = np.asarray(affine, float)[:3, :3]
    cosines = np.abs(directions / np.linalg.norm(directions, axis=0))
    return float(np.degrees(np.arccos(np.clip(cosines.max(axis=0), -1.0, 1.0))).max())


def corner_distance(one: NDArray[np.float64], other: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Return the largest distance between the places that two affines give to the corners of a volume.

    Parameters
    ----------
    one, other : (4, 4) arrays
        From array indices to millimetres, in one convention.
    shape : tuple of int
        Of the volume, in the axis order of the affines.
    """
    corners = np.array([(*index, 1) for index in np.ndindex(2, 2, 2)], float)
    corners[:, :3] *= np.array(shape) - 1
    return float(np.linalg.norm(corners @ (one - other).T, axis=1).max())


@dataclass(frozen=True)
class AxisMap:
    """The flips and the permutation that lead from a file's spatial axes to the axes as loaded.

    ``loaded = flip(transpose(source, permutation), axes where flips)``. Never a resampling, so that a mask
    goes back to the acquired grid to the voxel.

    Parameters
    ----------
    permutation : tuple of int
        Loaded axis ``i`` is the source's axis ``permutation[i]``.
    flips : tuple of bool
        Whether loaded axis ``i`` runs against the source's.
    """

    permutation: tuple[int, ...]
    flips: tuple[bool, ...]

    @classmethod
    def identity(cls, ndim: int) -> AxisMap:
        """Return the map that changes nothing."""
        return cls(tuple(range(ndim)), (False,) * ndim)

    def to_loaded(self, array: NDArray) -> NDArray:
        """Bring an array from the source's axes to the loaded ones; trailing axes (channels) stay last."""
        n = len(self.permutation)
        moved = np.transpose(array, self.permutation + tuple(range(n, array.ndim)))
        return moved[tuple(slice(None, None, -1 if f else 1) for f in self.flips)]

    def to_source(self, array: NDArray) -> NDArray:
        """Bring an array from the loaded axes back to the source's; trailing axes (channels) stay last."""
        n = len(self.permutation)
        unflipped = array[tuple(slice(None, None, -1 if f else 1) for f in self.flips)]
        return np.transpose(
            unflipped, tuple(int(i) for i in np.argsort(self.permutation)) + tuple(range(n, array.ndim))
        )

    def index_matrix(self, loaded_shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Return the homogeneous matrix that maps loaded indices to source indices."""
        n = len(self.permutation)
        matrix = np.zeros((n + 1, n + 1))
        matrix[n, n] = 1
        for loaded_axis, (source_axis, flip) in enumerate(zip(self.permutation, self.flips, strict=True)):
            matrix[source_axis, loaded_axis] = -1 if flip else 1
            if flip:
                matrix[source_axis, n] = loaded_shape[loaded_axis] - 1
        return matrix


@dataclass(frozen=True, eq=False)
class Geometry:
    """The grid of a scan as loaded.

    Parameters
    ----------
    spacing : tuple of float or None
        Millimetres between voxel centres, one per spatial axis as loaded (``z, y, x`` or ``y, x``); None where
        the file does not say (then everything is in pixels).
    affine : (4, 4) array or None
        Maps ``[z, y, x, 1]`` as loaded to LPS millimetres; None for 2D pictures and unknown positions.
    axis_map : AxisMap
        The way back to the file's axes.
    source_affine : (4, 4) array or None
        The file's own matrix, in the file's own convention, kept to the bit for writing masks.
    source_orientation : str or None
        The file's codes in file order, such as ``"RAS"``.
    """

    spacing: tuple[float, ...] | None
    affine: NDArray[np.float64] | None = None
    axis_map: AxisMap = field(default_factory=lambda: AxisMap.identity(2))
    source_affine: NDArray[np.float64] | None = None
    source_orientation: str | None = None

    def is_same(self, other: Geometry) -> bool:
        """Return whether voxels lie in the same places, to the bit."""
        if self.spacing != other.spacing or (self.affine is None) != (other.affine is None):
            return False
        return self.affine is None or other.affine is None or bool(np.array_equal(self.affine, other.affine))

    @property
    def voxel_volume(self) -> float | None:
        """Cubic millimetres of a voxel, or square ones of a picture's pixel; None where the spacing is not known.

        Where a tilted gantry has sheared the grid that is less than the product of the spacing.
        """
        if self.affine is not None:
            return abs(float(np.linalg.det(self.affine[:3, :3])))
        return None if self.spacing is None else math.prod(self.spacing)

    @property
    def translation(self) -> tuple[float, ...] | None:
        """LPS position of the first voxel along each loaded axis (z, y, x), in mm; None where unknown."""
        if self.affine is None:
            return None
        return tuple(float(v) for v in self.affine[:3, 3][::-1])


@dataclass(frozen=True, order=True)
class Box:
    """A half-open box of array indices: ``start[i] <= index < stop[i]``."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @classmethod
    def around(cls, shape: tuple[int, ...]) -> Box:
        """Return the box of a whole array."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent along each axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index into an array."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
