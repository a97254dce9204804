"""Connected pieces of a class: which one lies at a point, which stay, and where one is cut in two.

As in after-care, what touches at a corner is connected.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import SettingsError
from napari_unet.editing.grids import box_around, distance_inside, voxel_widths

# Of a depth of 50 voxels that is a hundredth of a voxel.
_HALVINGS = 12


def piece_at(labels: NDArray, point: Sequence[int]) -> NDArray[np.bool_]:
    """Return the connected voxels of one label around a voxel: what a click accepts, rejects or recolours.

    Parameters
    ----------
    labels : integer or bool array
        On background (0), the piece is the background around it.
    point : sequence of int
        Index along each axis.

    Raises
    ------
    SettingsError
        The point lies outside.
    """
    from skimage.segmentation import flood

    where = tuple(int(at) for at in point)
    if len(where) != labels.ndim or not all(0 <= at < n for at, n in zip(where, labels.shape, strict=True)):
        raise SettingsError(f"The point {where} lies outside the scan: click inside.")
    return flood(labels, where, connectivity=labels.ndim)


def numbered(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the pieces of a mask as 1, 2, ... from the largest on, and how many voxels each has.

    For islands as classes of their own. Of equal ones the first in C order comes first.
    """
    from scipy.ndimage import label

    found = np.zeros(mask.shape, np.int32)
    box = box_around(mask)
    if box is None:
        return found, np.zeros(0, np.int64)
    pieces, n = label(mask[box], np.ones((3,) * mask.ndim))
    sizes = np.bincount(pieces.ravel(), minlength=n + 1)[1:]
    order = np.argsort(-sizes, kind="stable")
    rank = np.zeros(n + 1, np.int32)
    rank[order + 1] = np.arange(1, n + 1)
    found[box] = rank[pieces]
    return found, sizes[order]


def keep_largest(mask: NDArray[np.bool_], n: int = 1) -> NDArray[np.bool_]:
    """Return the ``n`` largest pieces of a mask."""
    pieces, _ = numbered(mask)
    return (pieces > 0) & (pieces <= n)


def remove_small(mask: NDArray[np.bool_], smallest: float, spacing: Sequence[float] | None = None) -> NDArray[np.bool_]:
    """Return a mask without the pieces that are smaller than so many mm3, mm2 on a plane.

    Parameters
    ----------
    mask : bool array
    smallest : float
        Pieces of this size stay.
    spacing : sequence of float or None
        In mm per axis; None: sizes are in voxels.
    """
    pieces, sizes = numbered(mask)
    size = float(np.prod(voxel_widths(spacing, mask.ndim)))
    # A size that equals the limit but for rounding is as large.
    return (pieces > 0) & (pieces <= np.count_nonzero(sizes * size >= smallest * (1 - 1e-9)))


def fill_holes(mask: NDArray[np.bool_], axis: int | None = None) -> NDArray[np.bool_]:
    """Return a mask with what it encloses on all sides.

    Parameters
    ----------
    mask : bool array
    axis : int or None
        Fill each slice across this axis by itself, which also closes tunnels; None: only what is enclosed in all
        directions.
    """
    if axis is None:
        return _filled(mask)
    planes = [_filled(plane) for plane in np.moveaxis(mask, axis, 0)]
    return np.moveaxis(np.stack(planes), 0, axis) if planes else mask.copy()


def _filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask with the background that does not reach the edge of its box; in one pass over the voxels."""
    from scipy.ndimage import label

    found = mask.copy()
    box = box_around(mask)
    if box is None:
        return found
    # A rim of background around the box, through which all that is outside hangs together.
    pieces, _ = label(np.pad(~mask[box], 1, constant_values=True))
    outside = pieces[(slice(1, -1),) * mask.ndim] == pieces.flat[0]
    found[box] = ~outside
    return found


def split_in(mask: NDArray[np.bool_], n: int, spacing: Sequence[float] | None = None) -> NDArray[np.int32]:
    """Return a mask cut into ``n`` parts at its narrowest places.

    A watershed on the distance to the border (Beucher and Lantuejoul 1979), flooded from its ``n`` most prominent
    maxima. Pieces that are apart already are parts.

    Parameters
    ----------
    mask : bool array
    n : int
    spacing : sequence of float or None
        In mm per axis; None: voxels are as wide in all directions.

    Returns
    -------
    int32 array
        Parts 1 to ``n``, the largest first; 0 outside the mask.

    Raises
    ------
    SettingsError
        The mask has fewer bulges than ``n``, or more pieces.
    """
    pieces, sizes = numbered(mask)
    if n < 1 or n < len(sizes):
        raise SettingsError(f"It already has {len(sizes)} pieces: ask for at least as many parts.")
    if n == len(sizes):
        return pieces
    box = box_around(mask, 1)
    if box is None:
        raise SettingsError("There is nothing to split: choose a class that has voxels here.")
    depth = _depth(mask[box], spacing)
    seeds = _most_prominent(depth, n)
    if seeds.max() < n:
        raise SettingsError(f"It has {seeds.max()} bulges, too few for {n} parts: mark the parts by hand.")
    parts = np.zeros(mask.shape, np.int32)
    parts[box] = _by_size(_flooded(mask[box], depth, seeds))
    return parts


def split_by(mask: NDArray[np.bool_], markers: NDArray, spacing: Sequence[float] | None = None) -> NDArray[np.int32]:
    """Return a mask shared out to markers, cut at its narrowest places between them.

    Parameters
    ----------
    mask : bool array
    markers : integer array of the same shape
        One value per part; 0 where nothing was marked. Marks outside the mask do not count.
    spacing : sequence of float or None
        In mm per axis.

    Returns
    -------
    int32 array
        Each voxel of the mask has the value of a marker; pieces without one have 0.
    """
    return _flooded(mask, _depth(mask, spacing), np.where(mask, markers, 0).astype(np.int32))


def _depth(mask: NDArray[np.bool_], spacing: Sequence[float] | None) -> NDArray[np.float64]:
    return np.nan_to_num(distance_inside(mask, voxel_widths(spacing, mask.ndim)), posinf=1.0)


def _most_prominent(depth: NDArray[np.float64], n: int) -> NDArray[np.int32]:
    """Return numbered maxima: at least ``n`` where there are so many, those that rise highest above their passes.

    By bisection of the height, since the number of maxima falls with it.
    """
    from scipy.ndimage import label
    from skimage.morphology import h_maxima

    connected = np.ones((3,) * depth.ndim)
    deepest = float(depth.max())
    low, high, best = 0.0, deepest, None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found, count = label(h_maxima(depth, middle), connected)
        if count >= n:
            low, best = middle, found
        else:
            high = middle
        if count == n:
            break
    if best is None:
        best, _ = label(h_maxima(depth, 1e-6 * deepest), connected)
    if best.max() <= n:
        return best
    # Equally prominent ones: the deepest.
    from scipy.ndimage import maximum

    numbers = np.arange(1, best.max() + 1)
    order = np.argsort(-np.asarray(maximum(depth, best, numbers)), kind="stable")[:n]
    rank = np.zeros(best.max() + 1, np.int32)
    rank[numbers[order]] = np.arange(1, n + 1)
    return rank[best]


def _flooded(mask: NDArray[np.bool_], depth: NDArray[np.float64], seeds: NDArray[np.int32]) -> NDArray[np.int32]:
    from skimage.segmentation import watershed

    return watershed(-depth, seeds, connectivity=mask.ndim, mask=mask).astype(np.int32)


def _by_size(parts: NDArray[np.int32]) -> NDArray[np.int32]:
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    rank = np.zeros(len(sizes), np.int32)
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 0]
    rank[order] = np.arange(1, len(order) + 1)
    return rank[parts]
