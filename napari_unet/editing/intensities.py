"""Ranges of grey values: what is typical of some voxels, and painting by threshold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Turns the median absolute deviation into the standard deviation of a normal distribution.
_NORMAL = 1.4826


def typical_range(values: NDArray, deviations: float = 2.5) -> tuple[float, float]:
    """Return the range of grey values around a median, a few voxels of something else disregarded.

    Parameters
    ----------
    values : array
        Grey values of voxels known to be of a structure; what is not finite is left out.
    deviations : float
        Half the width, in robust standard deviations (1.4826 times the median absolute deviation).

    Returns
    -------
    (float, float)
        Both ends belong to it; an empty range (1, 0) where there are no values.
    """
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return 1.0, 0.0
    middle = float(np.median(finite))
    half = deviations * _NORMAL * float(np.median(np.abs(finite - middle)))
    return middle - half, middle + half


def in_range(image: NDArray, low: float, high: float) -> NDArray[np.bool_]:
    """Return where grey values are from ``low`` to ``high``, both included; never where they are not a number."""
    return (image >= low) & (image <= high)


def threshold_paint(image: NDArray, footprint: NDArray[np.bool_], low: float, high: float) -> NDArray[np.bool_]:
    """Return the voxels of a footprint (a stroke, a slice, a box) whose grey value is in a range, ends included."""
    return footprint & in_range(image, low, high)
