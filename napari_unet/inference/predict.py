"""Prediction slab by slab: some acquired planes at a time, tiled within the plane, blended with a Gaussian window.

A slab needs nothing but its own planes (and, in 3D, a halo of neighbours), so slabs may run in any order, memory grows
with the slab and not with the volume, and the one on screen can go first.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.settings import InferenceSettings, ModelSettings
from napari_unet.inference.slabs import Slab, SlabResult
from napari_unet.networks.heads import class_logits
from napari_unet.networks.unet import UNet

# Planes on each side of a 3D slab that are predicted for their neighbours' sake.
_HALO = 16
# Voxels in one forward pass: beyond this CPU caches and small GPUs suffer.
_TILE_VOXELS = {2: 512 * 512, 3: 96 * 96 * 96}


def predict(
    network: UNet,
    image: NDArray[np.float32],
    settings: ModelSettings,
    compute: ResolvedCompute,
    slabs: Sequence[Slab],
    zoom: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Generator[SlabResult, None, None]:
    """Predict slabs of a prepared scan in the order given.

    Parameters
    ----------
    network : UNet
        In any mode; it is set to evaluation.
    image : (C, S, H, W) float32 array
        From :func:`napari_unet.patches.prepare.prepare`.
    settings : ModelSettings
        Tiles, overlap, averaging over flips.
    compute : ResolvedCompute
        Device and precision.
    slabs : sequence of Slab
        What to predict, first things first.
    zoom : tuple of float
        Spacing of the network's voxels over that of the image's (:func:`napari_unet.patches.spacing.zoom_of`).

    Yields
    ------
    SlabResult
        One per slab.
    """
    network.to(compute.device).eval()
    for slab in slabs:
        probability = predict_slab(network, image, settings, compute, slab, zoom)
        confidence, classes = probability.max(0)
        yield SlabResult(
            slab,
            classes.to(torch.uint8).cpu().numpy(),
            (confidence * 255).round().to(torch.uint8).cpu().numpy(),
        )


@torch.inference_mode()
def predict_slab(
    network: UNet,
    image: NDArray[np.float32],
    settings: ModelSettings,
    compute: ResolvedCompute,
    slab: Slab,
    zoom: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Tensor:
    """Return class probabilities ``(K, n, h, w)`` of one slab, float32 on the device."""
    if settings.network.dimensions == 2:
        planes = torch.from_numpy(np.ascontiguousarray(image[:, slab.start : slab.stop])).movedim(1, 0)
        return torch.stack(
            [_resampled(network, plane[None].to(compute.device), settings, compute, zoom[1:])[0] for plane in planes], 1
        )
    halo = round(_HALO * zoom[0]) if slab.stop - slab.start < image.shape[1] else 0
    start, stop = max(0, slab.start - halo), min(image.shape[1], slab.stop + halo)
    volume = torch.from_numpy(np.ascontiguousarray(image[:, start:stop])).to(compute.device)
    probability = _resampled(network, volume[None], settings, compute, zoom)[0]
    return probability[:, slab.start - start : slab.stop - start]


def _resampled(
    network: UNet, x: Tensor, settings: ModelSettings, compute: ResolvedCompute, zoom: tuple[float, ...]
) -> Tensor:
    """Return probabilities on the grid of ``x``, computed at the network's spacing."""
    if all(z == 1 for z in zoom):
        return _tiled(network, x, settings, compute)
    mode = "bilinear" if len(zoom) == 2 else "trilinear"
    shape = [max(1, round(n / z)) for n, z in zip(x.shape[2:], zoom, strict=True)]
    seen = F.interpolate(x, shape, mode=mode, align_corners=False)
    # Probabilities go back, not labels: borders then fall between the network's voxels where they belong.
    return F.interpolate(_tiled(network, seen, settings, compute), x.shape[2:], mode=mode, align_corners=False)


def _tiled(network: UNet, x: Tensor, settings: ModelSettings, compute: ResolvedCompute) -> Tensor:
    """Return probabilities ``(1, K, *spatial)`` of one input, whole where it fits, else tile by tile."""
    spatial = tuple(x.shape[2:])
    tile = _tile_shape(spatial, settings.inference, network.divisor)
    padded = tuple(max(s, t) for s, t in zip(spatial, tile, strict=True))
    x = _pad(x, padded)
    corners = list(
        itertools.product(*(_starts(p, t, settings.inference.overlap) for p, t in zip(padded, tile, strict=True)))
    )
    if len(corners) == 1:
        total = _probability(network, x, settings, compute)
    else:
        window = torch.from_numpy(_gaussian(tile)).to(x.device)
        total = x.new_zeros((1, settings.network.out_channels, *padded))
        weight = x.new_zeros(padded)
        for corner in corners:
            box = (slice(None), slice(None), *(slice(c, c + t) for c, t in zip(corner, tile, strict=True)))
            total[box] += _probability(network, x[box], settings, compute) * window
            weight[box[2:]] += window
        total /= weight
    return total[(slice(None), slice(None), *(slice(0, s) for s in spatial))]


def _probability(network: UNet, x: Tensor, settings: ModelSettings, compute: ResolvedCompute) -> Tensor:
    """Return softmax probabilities, averaged over flips where asked for."""
    axes = [axis + 2 for axis in settings.augmentation.mirror] if settings.inference.mirror else []
    flips = [flip for n in range(len(axes) + 1) for flip in itertools.combinations(axes, n)]
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(compute.precision)
    total: Tensor | None = None
    with torch.autocast(torch.device(compute.device).type, dtype or torch.bfloat16, enabled=dtype is not None):
        for flip in flips:
            out = class_logits(network(x.flip(flip) if flip else x).float(), settings.network).softmax(1)
            out = out.flip(flip) if flip else out
            total = out if total is None else total.add_(out)
    assert total is not None
    return total / len(flips)


def _tile_shape(spatial: tuple[int, ...], settings: InferenceSettings, divisor: tuple[int, ...]) -> tuple[int, ...]:
    wished = settings.tile
    if wished is None:
        wished = spatial
        # Halve the longest side until a tile fits.
        while np.prod(wished) > _TILE_VOXELS[len(spatial)]:
            longest = int(np.argmax(wished))
            wished = tuple(-(-w // 2) if i == longest else w for i, w in enumerate(wished))
    tile = tuple(-(-min(w, s) // d) * d for w, s, d in zip(wished, spatial, divisor, strict=True))
    # A single deepest feature has no deviation to normalise by.
    return tuple(2 * d for d in divisor) if tile == divisor else tile


def _starts(size: int, tile: int, overlap: float) -> list[int]:
    """Return tile starts along one axis: evenly spread, at least ``overlap`` of a tile in common."""
    if size <= tile:
        return [0]
    n = int(np.ceil((size - tile) / max(1, tile * (1 - overlap)))) + 1
    return [round(i * (size - tile) / (n - 1)) for i in range(n)]


def _pad(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    missing = [p - s for p, s in zip(shape, x.shape[2:], strict=True)]
    if not any(missing):
        return x
    # As in training: beyond the scan its border goes on.
    return F.pad(x, [v for m in reversed(missing) for v in (0, m)], mode="replicate")


@lru_cache(maxsize=8)
def _gaussian(tile: tuple[int, ...]) -> NDArray[np.float32]:
    """Return nnU-Net's window (Isensee et al. 2021): a Gaussian of deviation 1/8 of the tile, never zero."""
    window = np.ones((), np.float32)
    for t in tile:
        x = (np.arange(t) - (t - 1) / 2) / (t / 8)
        window = np.multiply.outer(window, np.exp(-0.5 * x**2))
    window = window / window.max()
    return np.maximum(window, window[window > 0].min()).astype(np.float32)
