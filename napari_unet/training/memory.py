"""How much memory a training step needs, estimated from the settings alone, so that a plan can be made to fit.

No torch, and no measuring: the window's process asks before anything is built. What is counted is what autograd keeps
of the network in ``networks``, level by level; tests hold it against what it really keeps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from napari_unet.domain.settings import ModelSettings, NetworkSettings

# Everything in float32: mixed precision needs less, and is decided after the plan.
_BYTES = 4
# Feature maps that autograd keeps of two convolutions: the result of each, which its norm needs, and what comes out of
# the activation, which the next convolution needs.
_TWO_CONVOLUTIONS = 4.0
# A residual block whose width changes keeps the projection of its input too.
_PROJECTION = 1.0
# Of a transformer layer, per token and feature: two norms, query, key and value, the heads, their projection, and the
# hidden layer of four times the width before and after its activation.
_TRANSFORMER_LAYER = 16.0
# Max pooling keeps 64-bit places beside its result.
_POOLED = 3.0
# Maps per logit that the losses keep: the logits, their logarithm, probabilities, truth and masked copies.
_PER_LOGIT = 8.0
# Feature maps of full size that live for a moment on the way back: gradients, and copies in the library's own layout.
_PASSING_MAPS = 5.0
# So do copies of the largest convolution's weights and of their gradient.
_PASSING_WEIGHTS = 3.0
# What the libraries load and cache with the first step.
_FIRST_STEP_BYTES = 30_000_000
# ResNets: blocks of each stage, and whether these are bottlenecks.
_RESNETS = {
    "resnet10": ((1, 1, 1, 1), False),
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
}
_STEM_WIDTH = 64


@dataclass(frozen=True)
class StepMemory:
    """Bytes that live at the peak of a training step.

    Parameters
    ----------
    weights : int
        The network, its gradients, the optimiser's moments and averages.
    activations : int
        What is kept on the way forward for the way back.
    passing : int
        What lives for a moment on the way back, or comes with the first step.
    """

    weights: int
    activations: int
    passing: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.activations + self.passing


def step_memory(settings: ModelSettings) -> StepMemory:
    """Return the estimated peak of one training step in float32.

    Parameters
    ----------
    settings : ModelSettings
        Network, patch, batch, optimiser; ``training.patch_size`` must be set.

    Returns
    -------
    StepMemory
        Without the scans themselves, and without what Python and torch take before they compute anything.

    Raises
    ------
    ValueError
        No patch size.
    """
    network, training = settings.network, settings.training
    if training.patch_size is None:
        raise ValueError("the memory of a step depends on training.patch_size")
    taught = training.consistency_weight > 0
    moments = 1 if training.optimiser == "sgd" else 2
    copies = 2 + moments + (training.ema_decay > 0) + taught
    # A Mean Teacher's patches come on top of the batch.
    patches = training.batch_size * (2 if taught else 1)
    together = math.ceil(patches / training.accumulate)
    voxels = math.prod(training.patch_size)
    kept = [part for level in _levels(network, training.patch_size) for part in level.parts]
    if training.activation_checkpointing:
        maps = sum(part.result for part in kept) + max(part.inside + part.result for part in kept)
    else:
        maps = sum(part.result + part.inside for part in kept)
    # The loss looks at the whole batch, however it is computed.
    ends = voxels * patches * (network.in_channels + _PER_LOGIT * network.n_logits * _logit_maps(network))
    sizes = list(_convolutions(network))
    return StepMemory(
        weights=_BYTES * copies * sum(sizes),
        activations=int(_BYTES * (together * maps + ends)),
        passing=_FIRST_STEP_BYTES
        + int(_BYTES * (together * voxels * _PASSING_MAPS * network.base_channels + _PASSING_WEIGHTS * max(sizes))),
    )


def n_parameters(network: NetworkSettings) -> int:
    """Return about how many weights a network has, without building it."""
    return sum(_convolutions(network))


@dataclass(frozen=True)
class _Kept:
    """Values per patch that a part of the network keeps: its result, and what the way back through it needs."""

    result: float
    inside: float


@dataclass(frozen=True)
class _Level:
    """One scale: channels of encoder and decoder, voxels per patch, and what each keeps (the bottom only encodes)."""

    skip: int
    width: int
    parts: tuple[_Kept, ...]


def _widths(network: NetworkSettings) -> tuple[list[int], list[int]]:
    """Return the channels that encoder and decoder give at each level."""
    widths = [min(network.base_channels * 2**level, network.max_channels) for level in range(len(network.strides) + 1)]
    if network.encoder != "pretrained":
        return widths, widths
    growth = 4 if _RESNETS[network.backbone][1] else 1
    stages = [_STEM_WIDTH, *(_STEM_WIDTH * growth * 2**i for i in range(4))]
    return [widths[0], *stages][: len(widths)], widths


def _levels(network: NetworkSettings, patch: tuple[int, ...]) -> Iterator[_Level]:
    skips, widths = _widths(network)
    bottom = len(network.strides)
    voxels, above = float(math.prod(patch)), network.in_channels
    for level, (skip, width) in enumerate(zip(skips, widths, strict=True)):
        voxels /= math.prod(network.strides[level - 1]) if level else 1
        encoder = (_maps_of_encoder(network, level, above != skip) - 1) * skip * voxels
        if level and network.encoder != "pretrained":
            encoder += _POOLED * above * voxels
        if level == bottom and network.bottleneck == "transformer":
            encoder += network.transformer_layers * _TRANSFORMER_LAYER * skip * voxels
        parts = [_Kept(skip * voxels, encoder)]
        if level < bottom:
            # The skip and what came from below lie side by side, as one.
            parts.append(_Kept(width * voxels, (skip + width + (_TWO_CONVOLUTIONS - 1) * width) * voxels))
        yield _Level(skip, width, tuple(parts))
        above = skip


def _maps_of_encoder(network: NetworkSettings, level: int, widens: bool) -> float:
    """Return how many maps of its own width a level of the encoder keeps."""
    if network.encoder == "residual":
        return _TWO_CONVOLUTIONS + (_PROJECTION if widens else 0)
    if network.encoder == "plain" or level == 0:
        return _TWO_CONVOLUTIONS
    if level == 1:
        return _TWO_CONVOLUTIONS / 2
    depths, bottlenecks = _RESNETS[network.backbone]
    # A bottleneck computes most of its maps at a quarter of its width.
    return depths[level - 2] * (_TWO_CONVOLUTIONS - 1 if bottlenecks else _TWO_CONVOLUTIONS) + _PROJECTION


def _logit_maps(network: NetworkSettings) -> float:
    """Return how many voxels' logits the loss sees, per voxel: coarser scales add theirs."""
    share, total = 1.0, 1.0
    for stride in network.strides[:-1] if network.deep_supervision else ():
        share /= math.prod(stride)
        total += share
    return total


def _convolutions(network: NetworkSettings) -> Iterator[int]:
    """Yield the number of weights of each convolution and linear layer, the small ones left out."""
    skips, widths = _widths(network)
    n, bottom = network.dimensions, len(network.strides)
    kernels = [math.prod(kernel) for kernel in network.kernels or ((3,) * n,) * (bottom + 1)]
    above = network.in_channels
    for level, (skip, kernel) in enumerate(zip(skips, kernels, strict=True)):
        if network.encoder != "pretrained" or level == 0:
            yield from (kernel * above * skip, kernel * skip * skip)
            if network.encoder == "residual":
                yield above * skip
        elif level == 1:
            yield 7**n * network.in_channels * skip
        else:
            yield from _stage(network, level - 2, above, skip)
        above = skip
    if network.bottleneck == "transformer":
        yield from (12 * skips[-1] ** 2,) * network.transformer_layers
    below = [*widths[1:-1], skips[-1]] if bottom else []
    for level, (skip, width, coarse) in enumerate(zip(skips, widths, below, strict=False)):
        yield coarse * width * (math.prod(network.strides[level]) if network.upsampling == "transposed" else 1)
        yield from (kernels[level] * (skip + width) * width, kernels[level] * width * width)
        if network.attention_gates:
            yield skip // 2 * (skip * math.prod(network.strides[level]) + coarse)
    yield widths[0] * network.n_logits


def _stage(network: NetworkSettings, stage: int, above: int, width: int) -> Iterator[int]:
    depths, bottlenecks = _RESNETS[network.backbone]
    kernel = 3**network.dimensions
    for block in range(depths[stage]):
        entry = width if block else above
        if bottlenecks:
            inner = width // 4
            yield from (entry * inner, kernel * inner * inner, inner * width)
        else:
            yield from (kernel * entry * width, kernel * width * width)
        if entry != width:
            yield entry * width
