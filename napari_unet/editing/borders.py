"""The border of a mask: moved by millimetres, or smoothed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import SettingsError
from napari_unet.editing.grids import box_around, distance_inside, voxel_widths

#: A distance that equals the margin but for rounding (3 x 0.1 against 0.3) counts as within it.
_ROUNDING = 1e-6


def margin(mask: NDArray[np.bool_], by_mm: float, spacing: Sequence[float] | None = None) -> NDArray[np.bool_]:
    """Return a mask grown by a margin, or shrunk where it is negative; exact, also on anisotropic voxels.

    Parameters
    ----------
    mask : bool array
    by_mm : float
        Grown: every voxel whose centre is at most so far from that of a voxel of the mask. Shrunk: the same of what is
        outside. What lies beyond the scan is neither, so that a mask does not shrink away from its edge.
    spacing : sequence of float or None
        In mm per axis; None: the margin is in voxels.
    """
    widths = voxel_widths(spacing, mask.ndim)
    reach = abs(by_mm) + _ROUNDING
    box = box_around(mask, [1 + int(reach / width) for width in widths])
    found = np.zeros_like(mask)
    if box is None:
        return found
    part = mask[box]
    if by_mm >= 0:
        found[box] = distance_inside(~part, widths) <= reach
    else:
        found[box] = distance_inside(part, widths) > reach
    return found


def smooth(
    mask: NDArray[np.bool_],
    by_mm: float,
    spacing: Sequence[float] | None = None,
    method: Literal["gaussian", "median"] = "gaussian",
) -> NDArray[np.bool_]:
    """Return a mask with a smooth border.

    Parameters
    ----------
    mask : bool array
    by_mm : float
        Standard deviation of the Gaussian, or radius of the median's ball.
    spacing : sequence of float or None
        In mm per axis; None: in voxels.
    method : {"gaussian", "median"}
        ``gaussian`` keeps the number of voxels, but for ties: as many as the mask had, those with most of the mask
        around them. ``median`` takes the majority in the ball; it removes what is thinner than that.

    Raises
    ------
    SettingsError
        There is no such method, or the size is negative.
    """
    if method not in ("gaussian", "median") or not 0 <= by_mm < np.inf:
        raise SettingsError(
            f"Smoothing by {method!r} of {by_mm:g} mm is unknown: choose gaussian or median, and 0 mm or more."
        )
    widths = voxel_widths(spacing, mask.ndim)
    reach = 4 * by_mm if method == "gaussian" else 2 * by_mm
    box = box_around(mask, [1 + int(np.ceil(reach / width)) for width in widths])
    found = mask.copy()
    if box is None or by_mm == 0:
        return found
    blur = _kept_volume if method == "gaussian" else _majority
    found[box] = blur(mask[box], by_mm, widths)
    return found


def _kept_volume(mask: NDArray[np.bool_], deviation: float, widths: Sequence[float]) -> NDArray[np.bool_]:
    from scipy.ndimage import gaussian_filter

    share = gaussian_filter(mask.astype(np.float64), [deviation / width for width in widths], mode="nearest")
    # Equal places must not differ by rounding.
    share = share.round(9)
    n = int(np.count_nonzero(mask))
    threshold = np.partition(share.ravel(), share.size - n)[share.size - n]
    with_ties, without = share >= threshold, share > threshold
    return with_ties if np.count_nonzero(with_ties) - n <= n - np.count_nonzero(without) else without


def _majority(mask: NDArray[np.bool_], radius: float, widths: Sequence[float]) -> NDArray[np.bool_]:
    from scipy.signal import fftconvolve

    reach = [int((radius + _ROUNDING) / width) for width in widths]
    steps = np.ogrid[tuple(slice(-r, r + 1) for r in reach)]
    squares = sum((step * width) ** 2 for step, width in zip(steps, widths, strict=True))
    ball = np.asarray(squares <= (radius + _ROUNDING) ** 2)
    padded = np.pad(mask, [(r, r) for r in reach], mode="edge").astype(np.float64)
    # Counts are whole numbers: the transform's rounding is taken back. A ball has an odd number of voxels.
    return np.rint(fftconvolve(padded, ball.astype(np.float64), mode="valid")) * 2 > ball.sum()
