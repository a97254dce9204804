"""Brushes: what a stroke covers, in millimetres, and a brush that stops at edges."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import SettingsError
from napari_unet.editing.grids import voxel_widths
from napari_unet.editing.intensities import in_range, typical_range

# The smart brush's numbers, chosen by Dice on strokes over real scans (benchmarks/editing.py).
_CORE = 0.4  # of the radius: surely meant
_BEYOND = 1.25  # times the radius: taken to be outside, unless nothing separates it
_BLUR = 0.1  # of the radius, and at least:
_LEAST_BLUR = 0.7  # of the smallest voxel width
_ALIKE = 1.5  # robust standard deviations


def stroke_mask(
    shape: Sequence[int], path: NDArray, radius_mm: float, spacing: Sequence[float] | None = None
) -> NDArray[np.bool_]:
    """Return the voxels that a round brush covers along a path: discs on a plane, balls in a volume.

    For a disc on a slice of a volume, pass the slice (:meth:`~napari_unet.editing.regions.Region.cut`).

    Parameters
    ----------
    shape : sequence of int
        Of the plane or volume.
    path : (n, ndim) array
        Where the brush went, in voxels along each axis, straight from point to point; it may leave the array.
    radius_mm : float
        A voxel is covered if its centre is at most so far from the path; those that the path goes through always are.
    spacing : sequence of float or None
        In mm per axis; None: the radius is in voxels.

    Raises
    ------
    SettingsError
        The path has other axes than the shape, or the radius is negative.
    """
    box, away = _distance_to_path(shape, path, radius_mm, voxel_widths(spacing, len(shape)))
    covered = np.zeros(tuple(shape), bool)
    covered[box] = away <= radius_mm
    return covered


def smart_stroke(
    image: NDArray,
    path: NDArray,
    radius_mm: float,
    spacing: Sequence[float] | None = None,
    limits: tuple[float, float] | None = None,
) -> NDArray[np.bool_]:
    """Return what a stroke covers as far as the structure goes that the brush's middle goes along.

    Inside the stroke a watershed on the gradient of the grey values (Meyer 1994), flooded from the inner part of the
    stroke and from beyond its rim, finds the strongest edge between the two. Voxels across it stay out, unless they
    look like those of the inner part: then the edge was none. What is left is connected to the middle, and its holes
    are filled. Of edges beyond the brush nothing is seen, so that a stroke inside a structure covers all it reaches.

    Parameters
    ----------
    image : array ``[y, x]`` or ``[z, y, x]``
        Grey values.
    path, radius_mm, spacing
        As for :func:`stroke_mask`.
    limits : (float, float) or None
        Darkest and brightest grey value that may be covered.

    Returns
    -------
    bool array of the image's shape
        Part of the stroke's mask.

    Raises
    ------
    SettingsError
        As for :func:`stroke_mask`.
    """
    widths = voxel_widths(spacing, image.ndim)
    # A few voxels more than needed, so that there is something beyond the rim.
    box, away = _distance_to_path(image.shape, path, _BEYOND * radius_mm + 2 * max(widths), widths)
    found = np.zeros(image.shape, bool)
    if (away <= radius_mm).any():
        found[box] = _up_to_edges(np.asarray(image[box], np.float32), away, radius_mm, widths)
        if limits is not None:
            found[box] &= in_range(image[box], *limits)
    return found


def _up_to_edges(
    image: NDArray[np.float32], away: NDArray[np.float64], radius: float, widths: Sequence[float]
) -> NDArray[np.bool_]:
    """Return the part of a stroke that no edge parts from its middle; see :func:`smart_stroke`."""
    from scipy.ndimage import gaussian_filter
    from skimage.segmentation import watershed

    blur = max(_BLUR * radius, _LEAST_BLUR * min(widths))
    image = np.nan_to_num(image)
    smooth = gaussian_filter(image, [blur / width for width in widths], mode="nearest")
    footprint, core = away <= radius, away <= _CORE * radius
    markers = core + 2 * (away > _BEYOND * radius).astype(np.int32)
    inside = watershed(_steepness(smooth, widths), markers, mask=np.isfinite(away)) == 1
    alike = in_range(smooth, *typical_range(smooth[core], _ALIKE))
    kept = _touching((inside | alike) & footprint, core)
    # What does not hang together with the rim is a hole; quicker than filling by dilation, step by step.
    return footprint & ~_touching(~kept, ~footprint)


def _steepness(image: NDArray[np.float32], widths: Sequence[float]) -> NDArray[np.float32]:
    """Return the length of the gradient, per mm."""
    squares = np.zeros_like(image)
    for axis, width in enumerate(widths):
        if image.shape[axis] > 1:
            squares += np.gradient(image, width, axis=axis) ** 2
    return np.sqrt(squares)


def _touching(mask: NDArray[np.bool_], core: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pieces of a mask that hold a voxel of another one."""
    from scipy.ndimage import label

    pieces, n = label(mask)
    wanted = np.zeros(n + 1, bool)
    wanted[pieces[core]] = True
    wanted[0] = False
    return wanted[pieces]


def _distance_to_path(
    shape: Sequence[int], path: NDArray, reach: float, widths: Sequence[float]
) -> tuple[tuple[slice, ...], NDArray[np.float64]]:
    """Return the box that a reach in mm around a path touches, and in it the distance of voxel centres to the path.

    Endless beyond the reach, 0 where the path goes through.
    """
    points = np.asarray(path, float)
    if points.ndim != 2 or points.shape[1:] != (len(shape),) or not len(points) or not np.isfinite(points).all():
        raise SettingsError(f"A path of shape {points.shape} does not fit {len(shape)} axes: give points of the scan.")
    if not 0 <= reach < np.inf:
        raise SettingsError(f"A brush of radius {reach:g} paints nothing: choose a radius of 0 mm or more.")
    steps = np.asarray(widths)
    box = _box_along(points.min(axis=0), points.max(axis=0), reach / steps, shape)
    corner = np.array([side.start for side in box])
    away = np.full([side.stop - side.start for side in box], np.inf)
    if away.size:
        local = points - corner
        for start, end in pairwise(local) if len(local) > 1 else [(local[0], local[0])]:
            _note_segment(away, start, end, reach, steps)
        away[away > reach] = np.inf
        passed = _voxels_passed(points) - corner
        away[tuple(passed[((passed >= 0) & (passed < away.shape)).all(axis=1)].T)] = 0
    return box, away


def _box_along(
    low: NDArray[np.float64], high: NDArray[np.float64], reach: NDArray[np.float64], shape: Sequence[int]
) -> tuple[slice, ...]:
    """Return the box of all voxels that are, along each axis, within a reach of two corners; at least the nearest."""
    starts, stops = np.floor(low - reach).astype(int).tolist(), np.ceil(high + reach).astype(int).tolist()
    return tuple(
        slice(min(max(start, 0), n), min(max(stop + 1, 0), n))
        for start, stop, n in zip(starts, stops, shape, strict=True)
    )


def _note_segment(
    away: NDArray[np.float64], start: NDArray, end: NDArray, reach: float, widths: NDArray[np.float64]
) -> None:
    """Write the distance to a straight line where it is less than what stands there, within the reach."""
    box = _box_along(np.minimum(start, end), np.maximum(start, end), reach / widths, away.shape)
    axes = np.ogrid[box]
    offsets = [(axis - at) * width for axis, at, width in zip(axes, start, widths, strict=True)]
    way = (end - start) * widths
    length = float(way @ way)
    if length:
        along = sum(o * w for o, w in zip(offsets, way, strict=True)) / length
        along = np.minimum(np.maximum(along, 0), 1)
        offsets = [o - along * w for o, w in zip(offsets, way, strict=True)]
    distance = np.sqrt(sum(o * o for o in offsets))
    np.minimum(away[box], distance, out=away[box])


def _voxels_passed(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the voxels along a path, without gaps."""
    passed = [points[:1]]
    for start, end in pairwise(points):
        steps = max(1, int(np.ceil(2 * np.abs(end - start).max())))
        passed.append(start + np.arange(1, steps + 1)[:, None] / steps * (end - start))
    # Not rint: it rounds halves to even numbers, so that a moved path would pass through other voxels.
    return np.unique(np.floor(np.concatenate(passed) + 0.5).astype(np.int64), axis=0)
