"""A narrower U-Net made of a trained one: whole channels are left out, the same share on every level.

What remains is a U-Net of fewer features, described by the same settings, so that it trains, judges, predicts and is
exported like any other. Arithmetic on plain arrays.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.errors import ModelError
from napari_unet.domain.settings import ModelSettings, NetworkSettings

_FEWEST_BASE, _FEWEST_MAX = 4, 16
_Weights = dict[str, NDArray]


def pruned_settings(settings: ModelSettings, fraction: float) -> ModelSettings:
    """Return settings of a network with so much fewer features on each level.

    Parameters
    ----------
    settings : ModelSettings
    fraction : float
        Share of the channels that goes, between 0 and 1; the features at full resolution are rounded to whole ones.

    Raises
    ------
    ModelError
        Too little would remain, or the network has parts whose channels hang together in other ways.
    """
    network = settings.network
    if (network.encoder, network.bottleneck, network.attention_gates) != ("plain", "convolution", False):
        raise ModelError(
            "Only a plain U-Net can be pruned: residual and pretrained encoders, attention gates and transformers tie "
            "their channels together; export this model without pruning, or with INT8."
        )
    base = round(network.base_channels * (1 - fraction))
    if not 0 < fraction < 1 or base < _FEWEST_BASE or base >= network.base_channels:
        least, most = 1 / network.base_channels, 1 - _FEWEST_BASE / network.base_channels
        raise ModelError(
            f"A share of {fraction:g} cannot be pruned from {network.base_channels} features: choose one between "
            f"{least:.2f} and {most:.2f}."
        )
    largest = max(_FEWEST_MAX, round(network.max_channels * base / network.base_channels))
    return settings.with_values({"network.base_channels": base, "network.max_channels": largest})


def prune(checkpoint: Checkpoint, fraction: float) -> Checkpoint:
    """Return a checkpoint with a share of its channels left out; it has still to recover by training.

    A channel counts by the scale of its normalisation (Liu et al. 2017, "Network Slimming"; the norm makes the size of
    the convolution before it meaningless) times the sum of the absolute weights that read it (Li et al. 2017, "Pruning
    Filters for Efficient ConvNets"). What is read in several places (a level's features go down, and across by the
    skip) is left out in all of them.

    Parameters
    ----------
    checkpoint : Checkpoint
        Of a plain U-Net; not changed.
    fraction : float
        As for :func:`pruned_settings`.

    Raises
    ------
    ModelError
        See :func:`pruned_settings`.
    """
    if checkpoint.graph is not None:
        raise ModelError("An exported model cannot be pruned: prune the checkpoint that it was made of.")
    settings = pruned_settings(checkpoint.card.settings, fraction)
    new = _widths(settings.network)
    weights = _output_first(checkpoint.weights, settings.network)
    late = settings.network.activation_first
    for level, width in enumerate(new):
        _prune_level(weights, level, width, len(new) - 1, late)
    weights = _output_first(weights, settings.network)
    card = checkpoint.card.model_copy(update={"settings": settings, "parent": checkpoint.id})
    return replace(checkpoint, weights=weights, card=card)


def _widths(network: NetworkSettings) -> list[int]:
    levels = range(len(network.strides) + 1)
    return [min(network.base_channels * 2**level, network.max_channels) for level in levels]


def _output_first(weights: _Weights, network: NetworkSettings) -> _Weights:
    """Return weights in float32, the channels that are made before those that are read; twice: as they were."""
    turned = network.upsampling == "transposed"
    return {
        name: np.asarray(array, np.float32).swapaxes(0, 1)
        if turned and name.startswith("up.") and name.endswith("weight")
        else np.asarray(array, np.float32)
        for name, array in weights.items()
    }


def _prune_level(weights: _Weights, level: int, width: int, bottom: int, late: bool) -> None:
    """Narrow all that one level makes: in the encoder, by enlarging, in the decoder."""
    first, second, norms = ("0", "3", ("2", "5")) if late else ("0", "3", ("1", "4"))
    encoder, decoder = f"encoder.{level}", f"decoder.{level}"
    _choose(weights, width, f"{encoder}.{first}", f"{encoder}.{norms[0]}", [(f"{encoder}.{second}", 0)])
    # What a level gives: down to the next, and across. In the decoder the skip comes first, then what was enlarged.
    readers = [(f"encoder.{level + 1}.{first}", 0)] if level < bottom else []
    readers += [(f"{decoder}.{first}", 0)] if level < bottom else [(f"up.{level - 1}.up", 0)]
    _choose(weights, width, f"{encoder}.{second}", f"{encoder}.{norms[1]}", readers)
    if level == bottom:
        return
    # The skip has been narrowed already.
    _choose(weights, width, f"up.{level}.up", None, [(f"{decoder}.{first}", width)])
    _choose(weights, width, f"{decoder}.{first}", f"{decoder}.{norms[0]}", [(f"{decoder}.{second}", 0)])
    above = [(f"up.{level - 1}.up", 0)] if level > 0 else [("head", 0)]
    heads = [(f"coarse_heads.{level - 1}", 0)] if f"coarse_heads.{level - 1}.weight" in weights else []
    _choose(weights, width, f"{decoder}.{second}", f"{decoder}.{norms[1]}", above + heads)


def _choose(weights: _Weights, width: int, maker: str, norm: str | None, readers: list[tuple[str, int]]) -> None:
    """Keep the channels that count most in what makes, normalises and reads them (from a channel of its input on)."""
    made = weights[f"{maker}.weight"]
    n = len(made)
    scale = np.abs(made).reshape(n, -1).sum(1) if norm is None else np.abs(weights[f"{norm}.weight"])
    read = sum(_size_by_input(weights[f"{name}.weight"])[start : start + n] for name, start in readers)
    kept = np.sort(np.argsort(-(scale * read), kind="stable")[:width])
    names = [f"{maker}.weight", f"{maker}.bias"]
    names += [f"{norm}.{key}" for key in ("weight", "bias", "running_mean", "running_var") if norm is not None]
    for name in names:
        if name in weights:
            weights[name] = weights[name][kept]
    for name, start in readers:
        array = weights[f"{name}.weight"]
        chosen = np.concatenate([np.arange(start), start + kept, np.arange(start + n, array.shape[1])])
        weights[f"{name}.weight"] = array[:, chosen]


def _size_by_input(array: NDArray) -> NDArray:
    return np.abs(np.moveaxis(array, 1, 0)).reshape(array.shape[1], -1).sum(1)
