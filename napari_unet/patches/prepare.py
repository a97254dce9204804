"""Intensities of a scan to network input: colour, clipping, equalisation, normalisation, smoothing.

The acquired grid stays: resampling to the planned spacing is part of the one resampling that cuts a patch or a tile.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

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
# What is measured of a scan is measured in pieces of so many voxels.
_PIECE_VOXELS = 1 << 24
# What tells one kind of scan from another, whatever its units: from so many planes and voxels of a scan.
_QUANTILES = (1, 10, 25, 50, 75, 90, 99)
_MEASURED_PLANES, _QUANTILE_SAMPLE = 16, 100_000
# Layers of chunks that are kept of each channel of a scan on the disk, and their largest size.
_LAYERS, _LAYER_BYTES = 2, 1 << 27

_Step = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class PreparedScan:
    """A scan as network input in acquired planes, made where it is indexed.

    It reads like an array of shape ``(channels, slices, height, width)``, float32: ``prepared[:, 3]`` and
    ``prepared[:, 3:9]`` are made of these planes alone, so that memory grows with what is asked for. What the whole
    scan decides (percentiles, mean, histogram) is measured once, at first, piece by piece.

    Parameters
    ----------
    scan : Scan
        2D or 3D, any dtype, with or without channels; one that is larger than the memory is read where it is needed.
    settings : PreparationSettings
        Clipping, equalisation, normalisation, colour. Each channel is treated by itself. Where the planned spacing is
        coarser than the scan's, planes are smoothed, so that reading every so many voxels of them shows no patterns
        that are not there.
    """

    def __init__(self, scan: Scan, settings: PreparationSettings) -> None:
        channels = scan.channels_first()
        self._grey = scan.is_rgb and settings.colour == "grey"
        # Opacity is no colour.
        self._sources = [scan.to_planes(channel) for channel in (channels[:3] if scan.is_rgb else channels)]
        self._reach = settings.context_slices
        slices, height, width = self._sources[0].shape
        self._n_slices, self._piece = slices, max(1, _PIECE_VOXELS // (height * width))
        self._layers: OrderedDict[tuple[int, int], NDArray] = OrderedDict()
        self._layer = _layer_of(self._sources[0])
        # Within the plane the zoom is the same for every network.
        self._zoom = zoom_of(scan, ModelSettings(preparation=settings))[1:]
        self._steps = [self._measured(channel, settings) for channel in range(1 if self._grey else len(self._sources))]
        self._repeats = 3 if settings.colour == "rgb" and len(self._steps) == 1 else 1
        self.shape = (len(self._steps) * self._repeats * (2 * self._reach + 1), slices, height, width)

    def __getitem__(self, key: tuple[Any, ...]) -> NDArray[np.float32]:
        """Return planes: ``[:, index]`` or ``[:, start:stop]``, and what of them after that."""
        channels, where, *rest = key
        if channels != slice(None):
            raise IndexError("All channels of a prepared scan are made at once: index it as [:, planes].")
        if not isinstance(where, slice):
            return self._planes(int(where), int(where) + 1)[(slice(None), 0, *rest)]
        start, stop, step = where.indices(self._n_slices)
        if step != 1:
            raise IndexError("A prepared scan is indexed by planes that follow one another.")
        return self._planes(start, stop)[(slice(None), slice(None), *rest)]

    def _planes(self, start: int, stop: int) -> NDArray[np.float32]:
        first, last = max(0, start - self._reach), min(self._n_slices, stop + self._reach)
        made = np.stack([self._made(channel, first, last) for channel in range(len(self._steps))])
        if self._repeats > 1:
            made = np.repeat(made, self._repeats, axis=0)
        made = _smooth(made, *self._zoom)
        if self._reach == 0:
            return made
        # 2.5D: the neighbours of each slice as channels; beyond the first and last slice these go on.
        own = np.arange(start, stop)
        offsets = range(-self._reach, self._reach + 1)
        return np.concatenate([made[:, np.clip(own + by, 0, self._n_slices - 1) - first] for by in offsets])

    def _raw(self, channel: int, start: int, stop: int) -> NDArray[np.float32]:
        """Return planes of a channel as they are in the scan."""
        if not self._grey:
            return np.ascontiguousarray(self._read(channel, start, stop), np.float32)
        red, green, blue = (np.asarray(self._read(each, start, stop), np.float32) for each in range(3))
        return np.ascontiguousarray(_LUMINANCE[0] * red + _LUMINANCE[1] * green + _LUMINANCE[2] * blue)

    def _read(self, channel: int, start: int, stop: int) -> NDArray:
        """Return voxels of a channel; of a scan on the disk by whole layers of chunks, the last of which are kept."""
        source, stop = self._sources[channel], min(stop, self._n_slices)
        if isinstance(source, np.ndarray):
            return source[start:stop]
        if self._layer == 1:
            return np.asarray(source[start:stop])
        parts = []
        for first in range(start - start % self._layer, stop, self._layer):
            key = (channel, first)
            if key not in self._layers:
                self._layers[key] = np.asarray(source[first : first + self._layer])
                while len(self._layers) > _LAYERS * len(self._sources):
                    self._layers.popitem(last=False)
            parts.append(self._layers[key][max(0, start - first) : stop - first])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _made(self, channel: int, start: int, stop: int) -> NDArray[np.float32]:
        return _through(self._steps[channel], self._raw(channel, start, stop))

    def _measured(self, channel: int, settings: PreparationSettings) -> list[_Step]:
        """Return what is done to the planes of a channel, one thing after the other."""
        steps: list[_Step] = []

        def pieces() -> Iterator[NDArray[np.float32]]:
            for start in range(0, self._n_slices, self._piece):
                yield _through(steps, self._raw(channel, start, start + self._piece))

        if settings.window is not None:
            low, high = settings.window
            steps.append(partial(_clip, low=low, high=high))
            if settings.equalise != "none":
                steps.append(_equaliser(settings.equalise, low, high, pieces()))
                low, high = 0.0, 1.0
            # Width 4, as of a normal distribution's bulk, so that augmentation in standard deviations stays in
            # proportion.
            steps.append(partial(_shift_and_scale, centre=(low + high) / 2, extent=(high - low) / 4))
            return steps
        if settings.clip_percentiles is not None:
            low, high = np.percentile(self._sample(channel), settings.clip_percentiles)
            # A mostly empty scan may have equal percentiles; clipping it there would erase what little it shows.
            if high > low:
                steps.append(partial(_clip, low=low, high=high))
        if settings.equalise != "none":
            steps.append(_equaliser(settings.equalise, *_extremes(pieces()), pieces()))
        if settings.normalisation == "none":
            return steps
        if settings.normalisation == "zscore":
            centre, extent = _moments(pieces())
        else:
            low, high = _extremes(pieces())
            unit = settings.normalisation == "unit"
            centre, extent = (low, high - low) if unit else ((low + high) / 2, (high - low) / 2)
        steps.append(partial(_shift_and_scale, centre=centre, extent=extent) if extent > 0 else np.zeros_like)
        return steps

    def _sample(self, channel: int) -> NDArray[np.float32]:
        """Return voxels of a channel, evenly spread."""
        height, width = self._sources[channel].shape[1:]
        step = max(1, self._n_slices * height * width // _PERCENTILE_SAMPLE)
        found = []
        for start in range(0, self._n_slices, self._piece):
            piece = self._raw(channel, start, start + self._piece).reshape(-1)
            found.append(piece[-(start * height * width) % step :: step].copy())
        return np.concatenate(found)


def _layer_of(source: Any) -> int:
    """Return how many planes of a scan on the disk are read together; 1 if in memory, or where they are too large."""
    if isinstance(source, np.ndarray):
        return 1
    planes = max(source.chunks[0])
    return int(planes) if planes * math.prod(source.shape[1:]) * source.dtype.itemsize <= _LAYER_BYTES else 1


def prepare(scan: Scan, settings: PreparationSettings) -> NDArray[np.float32]:
    """Return a whole scan as network input: all of a :class:`PreparedScan`.

    Parameters
    ----------
    scan : Scan
        2D or 3D, any dtype, with or without channels.
    settings : PreparationSettings
        Clipping, equalisation, normalisation, colour.

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
    return PreparedScan(scan, settings)[:, :]


def intensity_quantiles(image: NDArray[np.float32] | PreparedScan) -> NDArray[np.float64]:
    """Return how the intensities of a prepared scan are spread: seven of their quantiles, from a few planes.

    Parameters
    ----------
    image : (C, S, H, W) float32 array, or PreparedScan
    """
    n_slices, height, width = image.shape[1:]
    planes = np.unique(np.linspace(0, n_slices - 1, _MEASURED_PLANES).round().astype(int))
    step = max(1, len(planes) * height * width // _QUANTILE_SAMPLE)
    values = np.concatenate([image[:, int(index)].reshape(-1)[::step] for index in planes])
    return np.percentile(values, _QUANTILES)


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


def _through(steps: Sequence[_Step], planes: NDArray[np.float32]) -> NDArray[np.float32]:
    for step in steps:
        planes = step(planes)
    return planes


def _clip(planes: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    return np.clip(planes, np.float32(low), np.float32(high))


def _shift_and_scale(planes: NDArray[np.float32], centre: float, extent: float) -> NDArray[np.float32]:
    shifted = planes - np.float32(centre)
    shifted *= np.float32(1 / extent)
    return shifted


def _extremes(pieces: Iterator[NDArray[np.float32]]) -> tuple[float, float]:
    found = [(float(piece.min()), float(piece.max())) for piece in pieces]
    return min(low for low, _ in found), max(high for _, high in found)


def _moments(pieces: Iterator[NDArray[np.float32]]) -> tuple[float, float]:
    """Return mean and standard deviation, put together piece by piece (Chan et al. 1983)."""
    count, mean, squares = 0, 0.0, 0.0
    for piece in pieces:
        # float64 sums: raw MR intensities reach 1e6 and their squares lose float32's digits.
        own = float(piece.mean(dtype=np.float64))
        rest = piece - np.float64(own)
        total = count + piece.size
        squares += float(np.vdot(rest, rest)) + (own - mean) ** 2 * count * piece.size / total
        mean += (own - mean) * piece.size / total
        count = total
    return mean, float(np.sqrt(squares / count))


def _equaliser(kind: str, low: float, high: float, pieces: Iterator[NDArray[np.float32]]) -> _Step:
    """Return what brings planes from between ``low`` and ``high`` to [0, 1] and spreads their intensities there.

    ``histogram`` makes one curve for the whole scan. ``clahe`` works plane by plane (Zuiderveld 1994) and leaves each
    its own part of the range, so that an empty plane is not blown up to full contrast.
    """
    if kind == "clahe":
        if not high > low:
            return np.zeros_like
        return partial(_clahe, low=low, high=high)
    edges = np.linspace(0, 1, _BINS + 1)
    counts = np.zeros(_BINS, np.int64)
    for piece in pieces:
        counts += np.histogram(_between(piece, low, high), edges)[0]
    ranks = counts.cumsum()
    filled = np.flatnonzero(counts)
    if len(filled) < 2:
        return np.zeros_like
    # Less the lowest bin, unlike scikit-image's equalize_hist: air filling half a scan would take half the range.
    lowest = ranks[filled[0]]
    shares = np.maximum(ranks - lowest, 0) / (ranks[-1] - lowest)
    return partial(_equalise, low=low, high=high, centres=(edges[:-1] + edges[1:]) / 2, shares=shares)


def _between(planes: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    # Bins between 1000000 and 1000004 would lie closer than float32's digits: first [0, 1], plane by plane in float64.
    spread = np.zeros_like(planes)
    if high > low:
        for source, plane in zip(planes, spread, strict=True):
            plane[...] = (source - np.float64(low)) / (high - low)
    return spread


def _equalise(
    planes: NDArray[np.float32], low: float, high: float, centres: NDArray[np.float64], shares: NDArray[np.float64]
) -> NDArray[np.float32]:
    spread = _between(planes, low, high)
    for plane in spread:
        plane[...] = np.interp(plane, centres, shares)
    return spread


def _clahe(planes: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    from skimage import exposure

    spread = _between(planes, low, high)
    for plane in spread:
        bottom, top = plane.min(), plane.max()
        if top > bottom:
            region = tuple(max(_SMALLEST_REGION, side // 8) for side in plane.shape)
            clear = exposure.equalize_adapthist((plane - bottom) / (top - bottom), kernel_size=region)
            plane[...] = clear * (top - bottom) + bottom
    return spread
