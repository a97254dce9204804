"""Intensities of a scan to network input: colour, clipping, normalisation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import ScanError
from napari_unet.domain.scan import TOO_LARGE, Scan
from napari_unet.domain.settings import PreparationSettings

# ITU-R BT.601, as Pillow and scikit-image turn colour into grey.
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
# Percentiles of at most so many voxels: their error is far below the noise of any scan.
_PERCENTILE_SAMPLE = 1_000_000


def prepare(scan: Scan, settings: PreparationSettings) -> NDArray[np.float32]:
    """Return a scan as network input in acquired planes.

    Parameters
    ----------
    scan : Scan
        2D or 3D, any dtype, with or without channels.
    settings : PreparationSettings
        Clipping, normalisation, colour. Each channel is treated by itself, over the whole scan.

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
    return _with_context(planes, settings.context_slices)


def n_input_channels(scan: Scan, settings: PreparationSettings) -> int:
    """Return how many channels :func:`prepare` makes of a scan."""
    colours = 3 if settings.colour == "rgb" else 1
    return (colours if scan.is_rgb or scan.n_channels == 1 else scan.n_channels) * (2 * settings.context_slices + 1)


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
        # Width 4, as of a normal distribution's bulk, so that augmentation in standard deviations stays in proportion.
        return (np.clip(values, np.float32(low), np.float32(high)) - np.float32((low + high) / 2)) * np.float32(
            4 / (high - low)
        )
    if settings.clip_percentiles is not None:
        step = max(1, values.size // _PERCENTILE_SAMPLE)
        low, high = np.percentile(values.reshape(-1)[::step], settings.clip_percentiles)
        # A mostly empty scan may have equal percentiles; clipping it there would erase what little it shows.
        if high > low:
            values = np.clip(values, np.float32(low), np.float32(high))
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
