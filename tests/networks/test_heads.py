"""Classes and overlapping regions, against a count of all possibilities."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from napari_unet.domain.settings import NetworkSettings
from napari_unet.networks.heads import class_logits, region_targets


@st.composite
def sigmoid_heads(draw) -> NetworkSettings:
    """Any regions that tell all classes, and the background, from one another."""
    classes = draw(st.integers(1, 5))
    if draw(st.booleans()):
        return NetworkSettings(head="sigmoid", out_channels=classes + 1)
    bits = st.lists(
        st.lists(st.booleans(), min_size=4, max_size=4).filter(any), min_size=classes, max_size=classes, unique_by=tuple
    )
    columns = draw(bits)
    rows = [tuple(k + 1 for k, column in enumerate(columns) if column[r]) for r in range(4)]
    return NetworkSettings(head="sigmoid", out_channels=classes + 1, regions=tuple(row for row in rows if row))


def brute(logits: np.ndarray, settings: NetworkSettings) -> np.ndarray:
    """Probability of each class at one voxel, given that some class, or the background, is there."""
    inside = 1 / (1 + np.exp(-logits.astype(float)))
    likelihood = [
        np.prod([p if k in region else 1 - p for p, region in zip(inside, settings.members, strict=True)])
        for k in range(settings.out_channels)
    ]
    return np.array(likelihood) / np.sum(likelihood)


@given(sigmoid_heads(), st.integers(0, 999))
def test_class_logits_are_how_likely_each_combination_of_regions_is(settings, seed):
    logits = torch.randn(2, settings.n_logits, 3, 2, generator=torch.Generator().manual_seed(seed)) * 3
    found = class_logits(logits, settings)
    assert found.shape == (2, settings.out_channels, 3, 2)
    probability = found.softmax(1)
    for b, i, j in np.ndindex(2, 3, 2):
        expected = brute(logits[b, :, i, j].numpy(), settings)
        np.testing.assert_allclose(probability[b, :, i, j], expected, rtol=1e-3, atol=1e-6)


def test_of_exclusive_regions_the_likeliest_above_even_wins():
    settings = NetworkSettings(head="sigmoid", out_channels=4)
    logits = torch.tensor([[-1.0, -2.0, -0.1], [0.1, -2.0, -3.0], [1.0, 5.0, 2.0], [-3.0, -3.0, 0.2]])
    assert class_logits(logits, settings).argmax(1).tolist() == [0, 1, 2, 3]


def test_a_softmax_head_is_the_classes_already():
    logits = torch.randn(2, 3, 4, 4)
    assert class_logits(logits, NetworkSettings(out_channels=3)) is logits


def test_class_logits_let_gradients_through_and_keep_the_precision():
    settings = NetworkSettings(head="sigmoid", out_channels=4, regions=((1, 2, 3), (2, 3), (3,)))
    logits = torch.randn(1, 3, 4, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    found = class_logits(logits, settings)
    assert found.dtype == torch.bfloat16
    found.float().sum().backward()
    assert logits.grad[0, :, 0, 0, 0].tolist() == [3, 2, 1]


@given(sigmoid_heads(), st.integers(0, 999), st.sampled_from([(3, 4), (2, 3, 2)]))
def test_region_targets_unite_their_classes(settings, seed, spatial):
    chance = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, settings.out_channels, (2, *spatial), generator=chance)
    found = region_targets(labels, settings)
    assert found.dtype == torch.bool
    assert found.shape == (2, settings.n_logits, *spatial)
    for r, region in enumerate(settings.members):
        assert np.array_equal(found[:, r].numpy(), np.isin(labels.numpy(), region))


@given(sigmoid_heads(), st.integers(0, 999))
def test_certain_regions_give_their_class_back(settings, seed):
    labels = torch.randint(0, settings.out_channels, (1, 5, 5), generator=torch.Generator().manual_seed(seed))
    certain = torch.where(region_targets(labels, settings), 20.0, -20.0)
    assert torch.equal(class_logits(certain, settings).argmax(1), labels)
