"""A head that grows: what was known stays as it was, to the bit where that can be had."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.errors import ModelError
from napari_unet.domain.labels import LabelClass, LabelSchema
from napari_unet.domain.settings import ModelSettings
from napari_unet.networks.factory import build, load_weights, weights_of
from napari_unet.networks.growing import can_grow, grow, grown_settings
from napari_unet.networks.heads import class_logits
from napari_unet.networks.pixel_head import PixelHead, pixel_head_of

TWO, FOUR = LabelSchema.of("a", "b"), LabelSchema.of("a", "b", "c", "d")
NETWORKS = {
    "softmax": {},
    "softmax in 3D": {"dimensions": 3, "strides": ((1, 2, 2), (2, 2, 2))},
    "deep supervision": {"deep_supervision": True},
    "sigmoid": {"head": "sigmoid"},
    "regions": {"head": "sigmoid", "regions": ((1, 2), (2,)), "deep_supervision": True},
}


def with_ids(*ids):
    return LabelSchema(classes=tuple(LabelClass(id=i, name=str(i), colour=(1, 0, 0)) for i in ids))


def checkpoint_of(network=None):
    values = {"base_channels": 4, "out_channels": 3, "strides": ((2, 2), (2, 2)), **(network or {})}
    settings = ModelSettings.model_validate({"network": values})
    return Checkpoint(
        weights_of(build(settings.network, seed=1)),
        ModelCard(name="v1", settings=settings, label_schema=TWO, steps=9),
        weights_of(PixelHead(5, 3)),
    )


@torch.no_grad()
def logits_of(checkpoint):
    settings = checkpoint.card.settings.network
    network = build(settings, seed=0)
    load_weights(network, checkpoint.weights)
    x = torch.randn(2, 1, *(8, 16, 16)[-settings.dimensions :], generator=torch.Generator().manual_seed(3))
    return class_logits(network.eval()(x), settings)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_was_known_is_proposed_as_before(name):
    old = checkpoint_of(NETWORKS[name])
    before = logits_of(old)
    assert len(before.argmax(1).unique()) == 3, "or there is nothing to see"
    new = grow(old, FOUR)
    after = logits_of(new)
    assert after.shape[1] == 5
    torch.testing.assert_close(after[:, :3], before)
    assert torch.equal(after.argmax(1), before.argmax(1))
    probability = after.softmax(1)
    assert (probability[:, 3:] <= 0.0101 * probability[:, :1]).all()
    assert (probability[:, 3:] > 0).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_are_kept_and_nothing_else_changes(name):
    old = checkpoint_of(NETWORKS[name])
    copy = Checkpoint({n: a.copy() for n, a in old.weights.items()}, old.card, old.pixels).id
    new = grow(old, FOUR)
    heads = [n for n in old.weights if new.weights[n].shape != old.weights[n].shape]
    assert {n.split(".")[0] for n in heads} <= {"head", "coarse_heads"}
    assert len(heads) == (4 if old.card.settings.network.deep_supervision else 2)
    for n, array in old.weights.items():
        np.testing.assert_array_equal(new.weights[n][: len(array)], array)
        assert new.weights[n].dtype == array.dtype
    assert Checkpoint(old.weights, old.card, old.pixels).id == copy
    assert (new.card.label_schema, new.card.steps) == (FOUR, 9)


def test_the_pixel_classifier_grows_along():
    old = checkpoint_of()
    new = grow(old, FOUR)
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = pixel_head_of(old.pixels)(x), pixel_head_of(new.pixels)(x)
    torch.testing.assert_close(after[:, :3], before)
    assert torch.equal(after.argmax(1), before.argmax(1))
    assert grow(Checkpoint(old.weights, old.card), FOUR).pixels == {}


def test_settings_that_speak_of_classes_speak_of_the_new_ones_too():
    regions = checkpoint_of(NETWORKS["regions"]).card.settings
    assert grown_settings(regions, 4).network.regions == ((1, 2), (2,), (3,), (4,))
    weighted = checkpoint_of().card.settings.with_values({"training.class_weights": (0.1, 1.0, 2.0)})
    assert grown_settings(weighted, 4).training.class_weights == (0.1, 1.0, 2.0, 1.5, 1.5)
    assert grown_settings(weighted, 2) is weighted


def test_only_more_classes_at_the_end_can_be_had():
    assert can_grow(TWO, TWO)
    assert can_grow(TWO, FOUR)
    for other in (with_ids(1), with_ids(2, 1), with_ids(2, 1, 3), with_ids(1, 3, 2)):
        assert not can_grow(TWO, other)
    old = checkpoint_of()
    assert grow(old, TWO) is old
    with pytest.raises(ModelError, match="from scratch"):
        grow(old, with_ids(2, 1, 3))
