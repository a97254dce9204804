"""A body that learnt elsewhere, cut to fit a new task: other channels, other classes, fewer levels.

What it learnt from, and when a task starts from it, is decided elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.errors import ModelError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.settings import ModelSettings

#: What a body cannot change: its weights are for this and nothing else.
_SHAPE = (
    *("dimensions", "base_channels", "max_channels", "encoder", "bottleneck", "attention_gates"),
    *("norm", "activation", "activation_first", "upsampling"),
)
_HEADS = ("head.", "coarse_heads.")
#: Convolutions that see the image itself.
_FIRST = ("encoder.0.0.weight", "encoder.0.branch.0.weight", "encoder.0.shortcut.0.weight")


def shape_of(body: ModelSettings) -> dict[str, Any]:
    """Return the settings that a plan must keep so that a body's weights fit, by dotted key."""
    return {f"network.{key}": getattr(body.network, key) for key in _SHAPE}


def fits(own: ModelSettings, wanted: ModelSettings) -> bool:
    """Return whether the weights of a body with settings ``own`` can be cut to the network that is wanted."""
    try:
        _refuse_other_shapes(own, wanted)
    except ModelError:
        return False
    return True


def adapt_weights(
    weights: dict[str, NDArray], own: ModelSettings, wanted: ModelSettings, seed: int
) -> dict[str, NDArray]:
    """Return weights for another network: the body's as far as it reaches, a new head.

    Parameters
    ----------
    weights : dict of array
        Of the body, in any precision.
    own, wanted : ModelSettings
        What the body is, and what is to be made of it. They may differ in channels, neighbouring slices, classes,
        head and deep supervision; ``wanted`` may have fewer levels, which leaves out the deepest.
    seed : int
        Of the new head.

    Returns
    -------
    dict of float32 array
        A picture shown as equal neighbours, or as equal colours, gives the same features as before.

    Raises
    ------
    ModelError
        The network that is wanted is of another kind, or deeper.
    """
    from napari_unet.networks.factory import build, weights_of

    _refuse_other_shapes(own, wanted)
    adapted = weights_of(build(wanted.network, seed=seed))
    for name, fresh in adapted.items():
        if name.startswith(_HEADS):
            continue
        given = np.asarray(weights[name], fresh.dtype)
        adapted[name] = _other_channels(given, own, wanted) if name in _FIRST else given
    return adapted


def started(body: Checkpoint, settings: ModelSettings, schema: LabelSchema) -> Checkpoint:
    """Return a checkpoint that a task starts from: a body cut to the planned settings, which has learnt no task.

    Parameters
    ----------
    body : Checkpoint
        Such as ``starter``.
    settings : ModelSettings
        Planned for the task; :func:`shape_of` says what the plan must keep.
    schema : LabelSchema
        Classes of the task.

    Raises
    ------
    ModelError
        The planned network is of another kind, or deeper.
    """
    card = body.card
    return Checkpoint(
        adapt_weights(body.weights, card.settings, settings, settings.training.seed),
        ModelCard(
            name=card.name,
            settings=settings,
            label_schema=schema,
            parent=body.id,
            seen=card.seen,
            looked_at=card.looked_at,
            notes=card.notes,
        ),
    )


def _refuse_other_shapes(own: ModelSettings, wanted: ModelSettings) -> None:
    for key, value in shape_of(own).items():
        asked = shape_of(wanted)[key]
        if asked != value:
            raise ModelError(
                f"The starting weights are for {key} = {value} and the plan says {asked}: leave it to the plan, or "
                "start from scratch."
            )
    levels, strides = own.network.strides, wanted.network.strides
    wide = own.network.kernels != wanted.network.kernels and any(
        width != 3 for kernel in wanted.network.kernels or () for width in kernel
    )
    if strides != levels[: len(strides)] or wide:
        raise ModelError(
            f"The starting weights are for up to {len(levels)} levels that halve every axis, with kernels of 3, and "
            "the plan has others: leave network.strides and network.kernels to the plan, or start from scratch."
        )


def _other_channels(weight: NDArray, own: ModelSettings, wanted: ModelSettings) -> NDArray:
    """Return a first convolution for other channels, which lie slice by slice, and within a slice colour by colour.

    The weights of slices that are no longer shown go to the outermost one that is, as a scan's last slice goes on
    beyond its end; those of slices that are new begin at 0. Colours share a slice's weights equally.
    """
    before, after = own.preparation.context_slices, wanted.preparation.context_slices
    n_out, kernel = weight.shape[0], weight.shape[2:]
    per_slice = weight.reshape(n_out, 2 * before + 1, -1, *kernel).sum(2)
    found = np.zeros((n_out, 2 * after + 1, *kernel), weight.dtype)
    for offset in range(-before, before + 1):
        found[:, np.clip(offset, -after, after) + after] += per_slice[:, offset + before]
    colours = wanted.network.in_channels // (2 * after + 1)
    return np.repeat(found / weight.dtype.type(colours), colours, axis=1)
