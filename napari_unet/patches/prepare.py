"""Intensities of a scan to network input: colour, clipping, equalisation, normalisation, smoothing.

The acquired grid stays: resampling to the planned spacing is part of the one resampling that cuts a patch or a tile.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import ScanError
from napari_unet.domain.scan import TOO_LARGE, Scan
from napari_unet.domain.settings import ModelSettings, PreparationSettings
from napari_unet.patches.spacing import zoom_of

# ITU-R BT.601, as Pillow and scikit-image turn colour into grey.
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
# As fine as the steps of a CT; uint8 pictures need fewer, and a few empty bins change nothing.
_BINS = 4096
# CLAHE's regions are an eighth of the plane, as in scikit-image, but never so small that their histogram is chance.
_SMALLEST_REGION = 16
# Percentiles of at most so many voxels: their error is far below the noise of any scan.
_PERCENTILE_SAMPLE = 1_000_000


def prepare(scan: Scan, settings: PreparationSettings) -> NDArray[np.float32]:
    """Return a scan as network input in acquired planes.

    Parameters
    ----------
    scan : Scan
        2D or 3D, any dtype, with or without channels.
    settings : PreparationSettings
        Clipping, equalisation, normalisation, colour. Each channel is treated by itself, over the whole scan. Where
        the planned spacing is coarser than the scan's, planes are smoothed, so that reading every so many voxels of
        them shows no patterns that are not there.

    Returns
    -------
    (channels, slices, height, width) float32 array
        One slice in 2D. A constant scan becomes zeros.

    Raises
    ------
    ScanError
        The scan is larger than the memory.
    """
    if scan.is_lazy:
        raise ScanError(TOO_LARGE)
    channels = scan.channels_first()
    if scan.is_rgb:
        channels = channels[:3]
        if settings.colour == "grey":
            channels = np.tensordot(_LUMINANCE, channels, axes=1)[np.newaxis]
    elif settings.colour == "rgb" and len(channels) == 1:
        channels = np.repeat(channels, 3, axis=0)
    planes = np.stack([_normalise(scan.to_planes(channel), settings) for channel in channels])
    # Within the plane the zoom is the same for every network.
    _, rows, columns = zoom_of(scan, ModelSettings(preparation=settings))
    return _with_context(_smooth(planes, rows, columns), settings.context_slices)


def n_input_channels(scan: Scan, settings: PreparationSettings) -> int:
    """Return how many channels :func:`prepare` makes of a scan."""
    colours = 3 if settings.colour == "rgb" else 1
    return (colours if scan.is_rgb or scan.n_channels == 1 else scan.n_channels) * (2 * settings.context_slices + 1)


def _smooth(planes: NDArray[np.float32], rows: float, columns: float) -> NDArray[np.float32]:
    """Take out of (C, S, H, W) planes what voxels so many times larger cannot show; slices are not mixed.

    The Gaussian with which scikit-image's ``resize`` avoids aliasing.
    """
    from scipy.ndimage import gaussian_filter

    sigma = (max(0.0, (rows - 1) / 2), max(0.0, (columns - 1) / 2))
    return gaussian_filter(planes, (0, 0, *sigma), mode="nearest") if any(sigma) else planes


def _with_context(planes: NDArray[np.float32], reach: int) -> NDArray[np.float32]:
    """Add the neighbours of each slice as channels (2.5D); beyond the first and last slice these go on."""
    if reach == 0:
        return planes
    n = planes.shape[1]
    neighbours = [planes[:, np.clip(np.arange(n) + offset, 0, n - 1)] for offset in range(-reach, reach + 1)]
    return np.concatenate(neighbours)


def _normalise(channel: NDArray, settings: PreparationSettings) -> NDArray[np.float32]:
    values = np.ascontiguousarray(channel, np.float32)
    if settings.window is not None:
        low, high = settings.window
        values = np.clip(values, np.float32(low), np.float32(high))
        if settings.equalise != "none":
            values, low, high = _equalise(values, settings.equalise, low, high), 0.0, 1.0
        # Width 4, as of a normal distribution's bulk, so that augmentation in standard deviations stays in proportion.
        return (values - np.float32((low + high) / 2)) * np.float32(4 / (high - low))
    if settings.clip_percentiles is not None:
        step = max(1, values.size // _PERCENTILE_SAMPLE)
        low, high = np.percentile(values.reshape(-1)[::step], settings.clip_percentiles)
        # A mostly empty scan may have equal percentiles; clipping it there would erase what little it shows.
        if high > low:
            values = np.clip(values, np.float32(low), np.float32(high))
    if settings.equalise != "none":
        values = _equalise(values, settings.equalise, float(values.min()), float(values.max()))
    if settings.normalisation == "none":
        return values
    if settings.normalisation == "zscore":
        # float64 sums: raw MR intensities reach 1e6 and their squares lose float32's digits.
        centre, extent = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    else:
        low, high = float(values.min()), float(values.max())
        centre, extent = (low, high - low) if settings.normalisation == "unit" else ((low + high) / 2, (high - low) / 2)
    if not extent > 0:
        return np.zeros_like(values)
    return ((values - np.float32(centre)) / np.float32(extent)).astype(np.float32, copy=False)


def _equalise(planes: NDArray[np.float32], kind: str, low: float, high: float) -> NDArray[np.float32]:
    """Bring (S, H, W) planes from between ``low`` and ``high`` to [0, 1] and spread their intensities there.

    ``histogram`` makes one curve for the whole scan. ``clahe`` works plane by plane (Zuiderveld 1994) and leaves each
    its own part of the range, so that an empty plane is not blown up to full contrast.
    """
    from skimage import exposure

    spread = np.zeros_like(planes)
    if planes.min() == planes.max():
        return spread
    # Bins between 1000000 and 1000004 would lie closer than float32's digits: first [0, 1], plane by plane in float64.
    for source, plane in zip(planes, spread, strict=True):
        plane[...] = (source - np.float64(low)) / (high - low)
    if kind == "histogram":
        counts, centres = exposure.histogram(spread.reshape(-1), _BINS)
        ranks = counts.cumsum()
        # Less the lowest bin, unlike scikit-image's equalize_hist: air filling half a scan would take half the range.
        shares = (ranks - ranks[0]) / (ranks[-1] - ranks[0])
        for plane in spread:
            plane[...] = np.interp(plane, centres, shares)
        return spread
    for plane in spread:
        bottom, top = plane.min(), plane.max()
        if top > bottom:
            region = tuple(max(_SMALLEST_REGION, side // 8) for side in plane.shape)
            clear = exposure.equalize_adapthist((plane - bottom) / (top - bottom), kernel_size=region)
            plane[...] = clear * (top - bottom) + bottom
    return spread
