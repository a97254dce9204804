"""Bodies cut to fit another task."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.errors import ModelError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.settings import ModelSettings
from napari_unet.networks.adapting import adapt_weights, shape_of, started
from napari_unet.networks.factory import build, load_weights, weights_of

SMALL = {"network.base_channels": 4, "network.max_channels": 16, "network.strides": ((2, 2), (2, 2))}
#: As starters are: a slice between its neighbours.
OWN = ModelSettings().with_values({**SMALL, "network.in_channels": 3, "preparation.context_slices": 1})


def features(settings: ModelSettings, weights: dict[str, np.ndarray], image: torch.Tensor) -> torch.Tensor:
    """What the head is given."""
    network = build(settings.network, seed=0)
    load_weights(network, weights)
    found = []
    network.head.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    with torch.no_grad():
        network.eval()(image)
    return found[0]


@pytest.fixture(scope="module")
def body() -> dict[str, np.ndarray]:
    return weights_of(build(OWN.network, seed=3))


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    return torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("channels", "context"), [(1, 0), (3, 0), (4, 0), (3, 1), (5, 2), (9, 1)], ids=str)
def test_a_picture_without_neighbours_or_colours_keeps_its_features(channels, context, body, picture):
    wanted = OWN.with_values({"network.in_channels": channels, "preparation.context_slices": context})
    adapted = adapt_weights(body, OWN, wanted, seed=1)
    before = features(OWN, body, picture.expand(-1, 3, -1, -1))
    after = features(wanted, adapted, picture.expand(-1, channels, -1, -1))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_farther_neighbours_count_for_nothing_at_first(body):
    stack = torch.randn(1, 5, 16, 16, generator=torch.Generator().manual_seed(1))
    wanted = OWN.with_values({"network.in_channels": 5, "preparation.context_slices": 2})
    adapted = adapt_weights(body, OWN, wanted, seed=1)
    torch.testing.assert_close(
        features(wanted, adapted, stack), features(OWN, body, stack[:, 1:4]), rtol=1e-4, atol=1e-5
    )


def test_classes_get_a_head_of_their_own(body):
    wanted = OWN.with_values({"network.out_channels": 4})
    adapted = adapt_weights(body, OWN, wanted, seed=1)
    assert adapted["head.weight"].shape[0] == 4
    assert np.array_equal(adapted["head.weight"], adapt_weights(body, OWN, wanted, seed=1)["head.weight"])
    assert not np.array_equal(adapted["head.weight"], adapt_weights(body, OWN, wanted, seed=2)["head.weight"])
    same = [name for name in body if not name.startswith("head.")]
    assert all(np.array_equal(adapted[name], body[name]) for name in same)


def test_fewer_levels_leave_out_the_deepest_and_more_are_refused(body):
    shallow = OWN.with_values({"network.strides": ((2, 2),)})
    adapted = adapt_weights(body, OWN, shallow, seed=1)
    load_weights(build(shallow.network), adapted)
    assert np.array_equal(adapted["decoder.0.0.weight"], body["decoder.0.0.weight"])
    for strides in (((2, 2),) * 3, ((1, 2),)):
        with pytest.raises(ModelError, match=r"network\.strides"):
            adapt_weights(body, OWN, OWN.with_values({"network.strides": strides}), seed=1)


@pytest.mark.parametrize(
    ("key", "value"), [("base_channels", 8), ("encoder", "residual"), ("norm", "batch"), ("upsampling", "transposed")]
)
def test_another_kind_of_network_is_refused(key, value, body):
    with pytest.raises(ModelError, match=rf"network\.{key}.*scratch"):
        adapt_weights(body, OWN, OWN.with_values({f"network.{key}": value}), seed=1)


def test_wider_kernels_are_refused_and_named_ones_of_three_are_not(body):
    three = OWN.with_values({"network.kernels": ((3, 3),) * 3})
    load_weights(build(three.network), adapt_weights(body, OWN, three, seed=1))
    with pytest.raises(ModelError, match=r"network\.kernels"):
        adapt_weights(body, OWN, OWN.with_values({"network.kernels": ((5, 5), (3, 3), (3, 3))}), seed=1)


def test_a_task_starts_without_steps_and_keeps_what_was_seen(body):
    half = {name: array.astype(np.float16) for name, array in body.items()}
    schema = LabelSchema.of("a", "b")
    starter = Checkpoint(
        half,
        ModelCard(name="starter", settings=OWN, label_schema=LabelSchema.of("x"), seen=("1", "2"), notes="credits"),
    )
    planned = ModelSettings().with_values({**shape_of(OWN), "network.strides": ((2, 2),), "network.out_channels": 3})
    task = started(starter, planned, schema)
    assert task.card.steps == 0
    assert task.card.seen == ("1", "2")
    assert task.card.notes == "credits"
    assert task.card.label_schema == schema
    assert task.card.parent == starter.id
    assert {array.dtype for array in task.weights.values()} == {np.dtype(np.float32)}
    load_weights(build(planned.network), task.weights)
