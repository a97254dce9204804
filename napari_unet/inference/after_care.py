"""What is done to a proposed mask as a whole: small pieces, holes, rough borders. No torch here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.settings import AfterCareSettings


def after_care(labels: NDArray, spacing: Sequence[float] | None, settings: AfterCareSettings) -> NDArray:
    """Return a mask with smooth borders, without holes, and with the pieces that are wanted; in this order.

    Parameters
    ----------
    labels : integer array ``[z, y, x]`` or ``[y, x]``
        0 is background. It is not changed.
    spacing : sequence of float or None
        In mm per axis; None: all voxels count as 1 mm wide.
    settings : AfterCareSettings

    Returns
    -------
    array of the same shape and dtype
        Each class is treated by itself; no class takes voxels from another but by smoothing. What is removed becomes
        background.
    """
    widths = tuple(spacing) if spacing is not None else (1.0,) * labels.ndim
    found = labels.copy()
    if settings.smooth_mm > 0:
        found = _smoothed(found, widths, settings.smooth_mm)
    if settings.fill_holes:
        _fill_holes(found)
    if settings.keep_largest or settings.smallest_mm3 > 0:
        _drop_pieces(found, settings.smallest_mm3 / float(np.prod(widths)), settings.keep_largest)
    return found


def _boxes(labels: NDArray, margin: Sequence[int]) -> list[tuple[int, tuple[slice, ...]]]:
    """Return each class and the box around it, wider by a margin."""
    from scipy.ndimage import find_objects

    boxes = []
    for value, box in enumerate(find_objects(labels), start=1):
        if box is not None:
            wide = (slice(max(0, side.start - m), side.stop + m) for side, m in zip(box, margin, strict=True))
            boxes.append((value, tuple(wide)))
    return boxes


def _smoothed(labels: NDArray, widths: Sequence[float], radius_mm: float) -> NDArray:
    """Return at each voxel the class, or background, of which there is most around it, weighed by a Gaussian."""
    from scipy.ndimage import gaussian_filter

    sigma = [radius_mm / width for width in widths]
    shares = {}
    best = np.ones(labels.shape, np.float32)
    for value, box in _boxes(labels, [int(np.ceil(4 * s)) for s in sigma]):
        share = gaussian_filter((labels[box] == value).astype(np.float32), sigma, mode="nearest", truncate=4)
        shares[value] = box, share
        best[box] -= share
    found = np.zeros_like(labels)
    for value, (box, share) in shares.items():
        won = share > best[box]
        found[box][won] = value
        best[box][won] = share[won]
    return found


def _fill_holes(labels: NDArray) -> None:
    """Give each class the background that it encloses on all sides."""
    from scipy.ndimage import binary_fill_holes

    for value, box in _boxes(labels, (0,) * labels.ndim):
        part = labels[box]
        part[binary_fill_holes(part == value) & (part == 0)] = value


def _drop_pieces(labels: NDArray, fewest_voxels: float, keep_largest: bool) -> None:
    """Remove connected pieces of each class; what touches at a corner is connected."""
    from skimage.measure import label

    for value, box in _boxes(labels, (0,) * labels.ndim):
        part = labels[box]
        pieces = label(part == value, connectivity=labels.ndim)
        sizes = np.bincount(pieces.reshape(-1))
        sizes[0] = 0
        keep = sizes >= max(1.0, fewest_voxels)
        if keep_largest:
            keep &= np.arange(len(sizes)) == sizes.argmax()
        part[(pieces > 0) & ~keep[pieces]] = 0
