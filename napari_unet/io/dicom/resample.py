"""Slices that form no regular grid, interpolated onto one; and labels drawn there, brought back to the slices.

Arithmetic on arrays and positions; no file is opened here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_unet.domain.errors import ScanError
from napari_unet.io.dicom.grid import Stack

_MOST_SLICES = 8  # times as many as were acquired


def resample(frames: NDArray, stack: Stack) -> tuple[NDArray, NDArray[np.float64]]:
    """Interpolate linearly between slices, and within them where they are shifted sideways.

    Planes stay parallel to the acquired ones, pixels keep their size. Rows and columns are added so that nothing is
    cut off; what no slice covers gets the lowest value of the scan.

    Parameters
    ----------
    frames : (n, rows, columns) array
        Sorted along the normal.
    stack : Stack
        Where they stand.

    Returns
    -------
    array : (m, rows, columns) array
        The dtype of ``frames``; integers are rounded.
    affine : (4, 4) array
        From ``[slice, row, column, 1]`` to LPS mm, at right angles.

    Raises
    ------
    ScanError
        Colours, or gaps so large that most slices would be invented.
    """
    if frames.ndim != 3:
        raise ScanError("Colour slices that form no regular grid cannot be resampled: load them as untrusted.")
    height = float(stack.heights[-1])
    m = round(height / float(np.median(np.diff(stack.heights)))) + 1
    if m > _MOST_SLICES * len(frames):
        raise ScanError("The slices are too far apart to be resampled: most of the result would be invented.")
    heights = np.linspace(0, height, m)
    low = np.floor(stack.offsets.min(axis=0) + 1e-6).astype(int)
    high = np.ceil(stack.offsets.max(axis=0) - 1e-6).astype(int)
    canvas = np.array(frames.shape[1:]) + high - low
    lowest = frames.min()
    result = np.empty((m, *canvas), frames.dtype)
    cached: dict[int, NDArray[np.float64]] = {}
    for index, level in enumerate(heights):
        upper = int(np.clip(np.searchsorted(stack.heights, level), 1, len(frames) - 1))
        for number in (upper - 1, upper):
            if number not in cached:
                cached[number] = _moved(frames[number], stack.offsets[number] - low, canvas, float(lowest))
        cached = {number: cached[number] for number in (upper - 1, upper)}
        share = (level - stack.heights[upper - 1]) / (stack.heights[upper] - stack.heights[upper - 1])
        mixed = cached[upper - 1] * (1 - share) + cached[upper] * share
        result[index] = np.rint(mixed) if frames.dtype.kind in "iu" else mixed
    affine = stack.affine.copy()
    normal = np.cross(affine[:3, 2], affine[:3, 1])
    affine[:3, 0] = normal / np.linalg.norm(normal) * height / (m - 1)
    affine[:3, 3] += affine[:3, 1:3] @ low
    return result, affine


def _moved(
    frame: NDArray, offset: NDArray[np.float64], canvas: NDArray[np.int64], lowest: float
) -> NDArray[np.float64]:
    padded = np.full(canvas, lowest, np.float64)
    padded[: frame.shape[0], : frame.shape[1]] = frame
    if np.abs(offset).max() < 1e-6:
        return padded
    return ndimage.shift(padded, offset, order=1, mode="constant", cval=lowest)


def labels_on_planes(
    labels: NDArray, affine: NDArray[np.float64], planes: list[NDArray[np.float64]], shape: tuple[int, int]
) -> NDArray:
    """Look up which label a volume has at each pixel of some planes; outside of it there is background.

    Parameters
    ----------
    labels : (z, y, x) integer array
    affine : (4, 4) array
        Of ``labels``: from ``[z, y, x, 1]`` to LPS mm.
    planes : list of (4, 4) arrays
        From ``[slice, row, column, 1]`` to LPS mm, with slice 0 the plane.
    shape : (rows, columns)

    Returns
    -------
    array
        ``(len(planes), rows, columns)``: the nearest voxel's label.
    """
    pixels = np.stack([np.zeros(shape), *np.indices(shape, float), np.ones(shape)]).reshape(4, -1)
    result = np.zeros((len(planes), *shape), labels.dtype)
    for frame, plane in zip(result, planes, strict=True):
        index = np.rint((np.linalg.inv(affine) @ plane @ pixels)[:3]).astype(int)
        inside = ((index >= 0) & (labels.shape > index.T).T).all(axis=0)
        frame.reshape(-1)[inside] = labels[tuple(index[:, inside])]
    return result
