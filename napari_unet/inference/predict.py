"""Prediction slab by slab: some acquired planes at a time, tiled within the plane, blended with a Gaussian window.

A slab needs nothing but its own planes (and, in 3D, a halo of neighbours), so slabs may run in any order, memory grows
with the slab and not with the volume, and the one on screen can go first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.settings import ModelSettings
from napari_unet.inference.runner import Runner
from napari_unet.inference.runtimes import GraphNetwork
from napari_unet.inference.slabs import Slab, SlabResult
from napari_unet.networks.pixel_head import PixelHead, pixel_head_of
from napari_unet.networks.unet import UNet
from napari_unet.patches.filters import plane_features
from napari_unet.patches.prepare import PreparedScan

# Planes on each side of a 3D slab that are predicted for their neighbours' sake.
_HALO = 16


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
    network: UNet | GraphNetwork | Runner,
    image: NDArray[np.float32] | PreparedScan,
    settings: ModelSettings,
    compute: ResolvedCompute,
    slabs: Sequence[Slab],
    zoom: tuple[float, float, float] = (1.0, 1.0, 1.0),
    pixels: PixelShare | None = None,
) -> Generator[SlabResult, None, None]:
    """Predict slabs of a prepared scan in the order given.

    Parameters
    ----------
    network : UNet, GraphNetwork or Runner
        In any mode; it is set to evaluation. A runner keeps what it learnt about the device for the next call.
    image : (C, S, H, W) float32 array, or PreparedScan
        From :mod:`napari_unet.patches.prepare`.
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
        One per slab. Where the memory is too small the passes, then the tiles are halved, then the CPU takes over; and
        so it does where the GPU stops answering. The slab's note says so.
    """
    runner = network if isinstance(network, Runner) else Runner(network, settings, compute)
    for slab in slabs:
        yield runner.attempt(partial(_result, runner, image, settings, compute, slab, zoom, pixels))


@torch.inference_mode()
def _result(
    runner: Runner,
    image: NDArray[np.float32] | PreparedScan,
    settings: ModelSettings,
    compute: ResolvedCompute,
    slab: Slab,
    zoom: tuple[float, float, float],
    pixels: PixelShare | None,
) -> SlabResult:
    probability = predict_slab(runner, image, settings, compute, slab, zoom, pixels)
    confidence, classes = _chosen(probability, settings.inference.thresholds)
    found = (classes.to(torch.uint8).cpu().numpy(), _as_bytes(confidence), _as_bytes(entropy(probability)))
    note, runner.note = runner.note, ""
    return SlabResult(slab, *found, note)


def _chosen(probability: Tensor, thresholds: tuple[float, ...] | None) -> tuple[Tensor, Tensor]:
    """Return the class of each voxel, and its probability."""
    if thresholds is None:
        return probability.max(0)
    # Of several classes that reach their threshold, the one that is the most above it in proportion.
    least = probability.new_tensor(thresholds).view(-1, *(1,) * (probability.ndim - 1))
    most, classes = (probability[1:] / least).max(0)
    classes = (classes + 1) * (most >= 1)
    return probability.gather(0, classes[None])[0], classes


def _as_bytes(shares: Tensor) -> NDArray[np.uint8]:
    return (shares * 255).round_().to(torch.uint8).cpu().numpy()


def entropy(probability: Tensor) -> Tensor:
    """Return how unsure each voxel is: the entropy of its class probabilities over the largest there is, 0 to 1.

    Parameters
    ----------
    probability : (K, *spatial) float Tensor
        Averaged over poses, so that it holds what they disagree about too (Wang et al. 2019).
    """
    return torch.special.entr(probability).sum(0).div_(math.log(len(probability))).clamp_(0, 1)


@torch.inference_mode()
def predict_slab(
    network: UNet | GraphNetwork | Runner,
    image: NDArray[np.float32] | PreparedScan,
    settings: ModelSettings,
    compute: ResolvedCompute,
    slab: Slab,
    zoom: tuple[float, float, float] = (1.0, 1.0, 1.0),
    pixels: PixelShare | None = None,
) -> Tensor:
    """Return class probabilities ``(K, n, h, w)`` of one slab, float32 on the device."""
    runner = network if isinstance(network, Runner) else Runner(network, settings, compute)
    predicted = _planes if settings.network.dimensions == 2 else _solid
    return runner.attempt(lambda: predicted(runner, image, settings, slab, zoom, pixels))


def _solid(
    runner: Runner,
    image: NDArray[np.float32] | PreparedScan,
    settings: ModelSettings,
    slab: Slab,
    zoom: tuple[float, float, float],
    pixels: PixelShare | None,
) -> Tensor:
    """Return class probabilities ``(K, n, h, w)`` of a 3D network."""
    halo = round(_HALO * zoom[0]) if slab.stop - slab.start < image.shape[1] else 0
    start, stop = max(0, slab.start - halo), min(image.shape[1], slab.stop + halo)
    volume = runner.put(image[:, start:stop])
    probability = tiled(runner, on_network_grid(volume[None], zoom))
    return _on_acquired_grid(probability, tuple(volume.shape[1:]))[0, :, slab.start - start : slab.stop - start]


def _planes(
    runner: Runner,
    image: NDArray[np.float32] | PreparedScan,
    settings: ModelSettings,
    slab: Slab,
    zoom: tuple[float, float, float],
    pixels: PixelShare | None,
) -> Tensor:
    """Return class probabilities ``(K, n, h, w)`` of a 2D network, planes together."""
    planes = runner.put(np.moveaxis(image[:, slab.start : slab.stop], 1, 0))
    seen = on_network_grid(planes, zoom[1:])
    share = 0.0 if pixels is None else pixels.share
    # Whose share is nothing is not asked.
    probability = tiled(runner, seen) if share < 1 else seen.new_zeros(())
    if pixels is not None and share > 0:
        head = runner.beside(pixels.head)
        own = []
        for plane, index in zip(seen, range(slab.start, slab.stop), strict=True):
            features = torch.from_numpy(plane_features(plane.cpu().numpy(), image.shape[1], index, settings))
            logits = head(features.to(seen.device).flatten(1).T)
            own.append(logits.softmax(1).T.reshape(-1, *seen.shape[2:]))
        probability = (1 - share) * probability + share * torch.stack(own)
    return _on_acquired_grid(probability, tuple(planes.shape[2:])).transpose(0, 1)


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


def tiled(runner: Runner, x: Tensor) -> Tensor:
    """Return probabilities ``(B, K, *spatial)`` of inputs, whole where they fit, else tile by tile."""
    spatial = tuple(x.shape[2:])
    tile = runner.tile_shape(spatial)
    inference = runner.settings.inference
    padded = tuple(max(s, t) for s, t in zip(spatial, tile, strict=True))
    x = _pad(x, padded)
    corners = list(itertools.product(*(_starts(p, t, inference.overlap) for p, t in zip(padded, tile, strict=True))))
    if len(corners) == 1:
        total = runner.probability(x)
    else:
        window = torch.from_numpy(_gaussian(tile)).to(x.device)
        total = x.new_zeros((len(x), runner.settings.network.out_channels, *padded))
        weight = x.new_zeros(padded)
        for corner in corners:
            box = (slice(None), slice(None), *(slice(c, c + t) for c, t in zip(corner, tile, strict=True)))
            total[box] += runner.probability(x[box]).mul_(window)
            weight[box[2:]] += window
        total /= weight
    return total[(slice(None), slice(None), *(slice(0, s) for s in spatial))]


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
