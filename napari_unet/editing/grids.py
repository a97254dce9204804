"""Small matters of boxes and millimetres that the tools share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import SettingsError


def voxel_widths(spacing: Sequence[float] | None, ndim: int) -> tuple[float, ...]:
    """Return the width of a voxel along each axis: the spacing in mm, or 1 where it is not known.

    Raises
    ------
    SettingsError
        The spacing has another number of axes, or is not positive.
    """
    if spacing is None:
        return (1.0,) * ndim
    widths = tuple(float(step) for step in spacing)
    if len(widths) != ndim or not all(0 < step < np.inf for step in widths):
        raise SettingsError(f"A spacing of {widths} does not fit {ndim} axes: give one positive width per axis.")
    return widths


def box_around(mask: NDArray[np.bool_], margin: Sequence[int] | int = 0) -> tuple[slice, ...] | None:
    """Return the smallest box that holds a mask, wider by so many voxels inside the array; None where it is empty."""
    if not mask.any():
        return None
    margins = (margin,) * mask.ndim if isinstance(margin, int) else tuple(margin)
    box = []
    for axis, (more, n) in enumerate(zip(margins, mask.shape, strict=True)):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(max(0, int(hit[0]) - more), min(n, int(hit[-1]) + 1 + more)))
    return tuple(box)


def distance_inside(mask: NDArray[np.bool_], widths: Sequence[float]) -> NDArray[np.float64]:
    """Return from each voxel of a mask the distance to the nearest voxel outside it (centre to centre), else 0.

    What lies beyond the array is not outside; where nothing is, the distance is endless.
    """
    from scipy.ndimage import distance_transform_edt

    if mask.all():
        return np.full(mask.shape, np.inf)
    return distance_transform_edt(mask, sampling=widths)
