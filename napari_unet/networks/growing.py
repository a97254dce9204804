"""More classes for a model that knows some: its head grows, and what it knew stays as it was.

Arithmetic on plain arrays and settings, without torch, so that the window may ask as well. How the new classes are
then learnt is training's business.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.errors import ModelError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.settings import ModelSettings

#: How much less likely than the background a new class begins, in nats: a hundredth. Proposals stay as they were, and
#: the cross entropy still pulls with nearly its whole strength where the class is taught.
_MARGIN = float(np.log(100))
_HEADS = ("head.", "coarse_heads.")
_LAST_LAYER = ("layers.4.weight", "layers.4.bias")


def can_grow(known: LabelSchema, wanted: LabelSchema) -> bool:
    """Return whether a model of ``known`` classes can go on with the ``wanted``: the same, or more of them at the end.

    Ids count, not names: renaming is free, leaving out or re-ordering is not.
    """
    return wanted.ids[: len(known.ids)] == known.ids


def grown_settings(settings: ModelSettings, n_classes: int) -> ModelSettings:
    """Return settings for more foreground classes; each new one of a sigmoid head is a region by itself.

    Parameters
    ----------
    settings : ModelSettings
        Of a model with fewer, or as many.
    n_classes : int
        Foreground classes there are to be.
    """
    network, weights = settings.network, settings.training.class_weights
    new = range(network.out_channels, n_classes + 1)
    if not new:
        return settings
    # What was chosen for the classes there were says nothing about one more.
    values: dict[str, object] = {"network.out_channels": n_classes + 1, "inference.thresholds": None}
    if network.regions is not None:
        values["network.regions"] = (*network.regions, *((k,) for k in new))
    if weights is not None:
        values["training.class_weights"] = (*weights, *[float(np.mean(weights[1:]))] * len(new))
    return settings.with_values(values)


def grow(checkpoint: Checkpoint, schema: LabelSchema) -> Checkpoint:
    """Return a checkpoint that tells more classes apart, the new ones not learnt yet.

    The rows of the known classes are kept to the bit, in the head and in the heads of deep supervision. New rows of a
    softmax head begin as the background's, a hundredth as likely; those of a sigmoid head as 1 % everywhere.

    Parameters
    ----------
    checkpoint : Checkpoint
        Not changed.
    schema : LabelSchema
        The known classes, and more behind them.

    Returns
    -------
    Checkpoint
        ``checkpoint`` itself where there is nothing to add.

    Raises
    ------
    ModelError
        The wanted classes do not begin with those that the model knows.
    """
    known = checkpoint.card.label_schema
    if len(schema.ids) <= len(known.ids):
        return checkpoint
    if not can_grow(known, schema):
        raise ModelError(
            f"The model knows classes with the values {list(known.ids)} and not {list(schema.ids)}: classes can be "
            "added behind those it knows; to leave some out or change their order, start from scratch."
        )
    settings = grown_settings(checkpoint.card.settings, len(schema.ids))
    n_new = settings.network.n_logits - checkpoint.card.settings.network.n_logits
    weights = {
        name: _more_rows(name, array, settings.network.head, n_new) if name.startswith(_HEADS) else array
        for name, array in checkpoint.weights.items()
    }
    # The pixel classifier tells classes apart whatever the network's head does.
    pixels = {
        name: _more_rows(name, array, "softmax", len(schema.ids) - len(known.ids)) if name in _LAST_LAYER else array
        for name, array in checkpoint.pixels.items()
    }
    card = checkpoint.card.model_copy(update={"settings": settings, "label_schema": schema})
    return replace(checkpoint, weights=weights, pixels=pixels, card=card)


def _more_rows(name: str, array: NDArray, head: str, n: int) -> NDArray:
    row = array[:1] if head == "softmax" else np.zeros_like(array[:1])
    if name.endswith("bias"):
        row = row - np.asarray(_MARGIN, array.dtype)
    return np.concatenate([array, np.repeat(row, n, axis=0)])
