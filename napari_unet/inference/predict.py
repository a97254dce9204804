"""Prediction slab by slab: some acquired planes at a time, tiled within the plane, blended with a Gaussian window.

A slab needs nothing but its own planes (and, in 3D, a halo of neighbours), so slabs may run in any order, memory grows
with the slab and not with the volume, and the one on screen can go first.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.settings import InferenceSettings, ModelSettings
from napari_unet.inference.slabs import Slab, SlabResult
from napari_unet.networks.heads import class_logits
from napari_unet.networks.pixel_head import PixelHead, pixel_head_of
from napari_unet.networks.unet import UNet
from napari_unet.patches.filters import plane_features

# Planes on each side of a 3D slab that are predicted for their neighbours' sake.
_HALO = 16
# Voxels in one forward pass: beyond this CPU caches and small GPUs suffer.
_TILE_VOXELS = {2: 512 * 512, 3: 96 * 96 * 96}


@dataclass(frozen=True, eq=False)
class PixelShare:
    """A classifier of single pixels that has a say beside a 2D network: its share of the mixed probabilities."""

    head: PixelHead
    share: float

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> PixelShare | None:
        """Return the one in a checkpoint; None where the network is alone."""
        if not checkpoint.pixels or checkpoint.card.pixel_share == 0:
            return None
        return cls(pixel_head_of(checkpoint.pixels), checkpoint.card.pixel_share)


def predict(
    network: UNet,
    image: NDArray[np.float32],
    settings: ModelSettings,
    compute: ResolvedCompute,
    slabs: Sequence[Slab],
    zoom: tuple[float, float, float] = (1.0, 1.0, 1.0),
    pixels: PixelShare | None = None,
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
    pixels : PixelShare, optional
        What has a say beside a 2D network.

    Yields
    ------
    SlabResult
        One per slab.
    """
    network.to(compute.device).eval()
    for slab in slabs:
        probability = predict_slab(network, image, settings, compute, slab, zoom, pixels)
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
    pixels: PixelShare | None = None,
) -> Tensor:
    """Return class probabilities ``(K, n, h, w)`` of one slab, float32 on the device."""
    if settings.network.dimensions == 2:
        return torch.stack(
            [
                _plane(network, image, index, settings, compute, zoom[1:], pixels)
                for index in range(slab.start, slab.stop)
            ],
            dim=1,
        )
    halo = round(_HALO * zoom[0]) if slab.stop - slab.start < image.shape[1] else 0
    start, stop = max(0, slab.start - halo), min(image.shape[1], slab.stop + halo)
    volume = torch.from_numpy(np.ascontiguousarray(image[:, start:stop])).to(compute.device)
    probability = tiled(network, on_network_grid(volume[None], zoom), settings, compute)
    return _on_acquired_grid(probability, tuple(volume.shape[1:]))[0, :, slab.start - start : slab.stop - start]


def _plane(
    network: UNet,
    image: NDArray[np.float32],
    index: int,
    settings: ModelSettings,
    compute: ResolvedCompute,
    zoom: tuple[float, ...],
    pixels: PixelShare | None,
) -> Tensor:
    """Return class probabilities ``(K, h, w)`` of one plane."""
    plane = torch.from_numpy(np.ascontiguousarray(image[:, index])).to(compute.device)
    seen = on_network_grid(plane[None], zoom)
    share = 0.0 if pixels is None else pixels.share
    # Whose share is nothing is not asked.
    probability = tiled(network, seen, settings, compute) if share < 1 else seen.new_zeros(())
    if pixels is not None and share > 0:
        features = torch.from_numpy(plane_features(seen[0].cpu().numpy(), image.shape[1], index, settings))
        logits = pixels.head.to(compute.device)(features.to(compute.device).flatten(1).T)
        own = logits.softmax(1).T.reshape(1, -1, *seen.shape[2:])
        probability = (1 - share) * probability + share * own
    return _on_acquired_grid(probability, tuple(plane.shape[1:]))[0]


def on_network_grid(x: Tensor, zoom: Sequence[float]) -> Tensor:
    """Return ``(B, C, *spatial)`` at the network's spacing, ``zoom`` times as coarse."""
    if all(z == 1 for z in zoom):
        return x
    shape = [max(1, round(n / z)) for n, z in zip(x.shape[2:], zoom, strict=True)]
    return F.interpolate(x, shape, mode="bilinear" if len(zoom) == 2 else "trilinear", align_corners=False)


def _on_acquired_grid(probability: Tensor, shape: tuple[int, ...]) -> Tensor:
    # Probabilities go back, not labels: borders then fall between the network's voxels where they belong.
    if tuple(probability.shape[2:]) == shape:
        return probability
    return F.interpolate(probability, shape, mode="bilinear" if len(shape) == 2 else "trilinear", align_corners=False)


def tiled(network: UNet, x: Tensor, settings: ModelSettings, compute: ResolvedCompute) -> Tensor:
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
    """Return softmax probabilities, averaged over the poses that are asked for."""
    poses = _poses(settings)
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(compute.precision)
    total: Tensor | None = None
    with torch.autocast(torch.device(compute.device).type, dtype or torch.bfloat16, enabled=dtype is not None):
        for flip, turned in poses:
            seen = x.transpose(-2, -1) if turned else x
            seen = seen.flip(flip) if flip else seen
            out = class_logits(network(seen).float(), settings.network).softmax(1)
            out = out.flip(flip) if flip else out
            out = out.transpose(-2, -1) if turned else out
            total = out if total is None else total.add_(out)
    assert total is not None
    return total / len(poses)


def _poses(settings: ModelSettings) -> list[tuple[tuple[int, ...], bool]]:
    """Return the axes flipped, and whether rows and columns change places first, of each pose to average over.

    A transposition and the two flips make the eight poses of a square, the quarter turns among them.
    """
    augmentation, inference = settings.augmentation, settings.inference
    axes = [axis + 2 for axis in augmentation.mirror] if inference.mirror else []
    flips = [flip for n in range(len(axes) + 1) for flip in itertools.combinations(axes, n)]
    network = settings.network
    # What treats rows and columns unlike cannot be shown one for the other.
    alike = all(size[0] == size[-1] for size in (*network.strides, *(network.kernels or ())))
    turns = inference.turns and network.dimensions == 2 and augmentation.rotation_degrees == 180 and len(axes) == 2
    return [(flip, turned) for turned in ((False, True) if turns and alike else (False,)) for flip in flips]


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
