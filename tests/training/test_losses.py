"""Losses over reviewed voxels and nothing else."""

from __future__ import annotations

import pytest
import torch

from napari_unet.training.losses import masked_cross_entropy, masked_soft_dice

LOSSES = [masked_cross_entropy, masked_soft_dice]
each_loss = pytest.mark.parametrize("loss", LOSSES)


def random_case(spatial=(6, 7), classes=3, batch=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, *spatial, generator=rng).requires_grad_()
    labels = torch.randint(0, classes, (batch, *spatial), generator=rng)
    reviewed = torch.rand(batch, *spatial, generator=rng) < 0.5
    return logits, labels, reviewed


@each_loss
@pytest.mark.parametrize("spatial", [(6, 7), (3, 6, 7)])
def test_the_gradient_is_exactly_zero_where_nothing_is_known(loss, spatial):
    logits, labels, reviewed = random_case(spatial)
    loss(logits, labels, reviewed).backward()
    unknown = ~reviewed.unsqueeze(1).expand_as(logits)
    assert (logits.grad[unknown] == 0).all()
    assert (logits.grad[~unknown] != 0).any()


@each_loss
def test_unknown_voxels_do_not_count_whatever_they_hold(loss):
    logits, labels, reviewed = random_case()
    expected = loss(logits, labels, reviewed)
    poisoned_logits, poisoned_labels = logits.detach().clone(), labels.clone()
    poisoned_logits.movedim(1, -1)[~reviewed] = torch.tensor([1e30, -1e30, float("inf")])
    poisoned_labels[~reviewed] = 2 - poisoned_labels[~reviewed]
    poisoned_logits.requires_grad_()
    found = loss(poisoned_logits, poisoned_labels, reviewed)
    assert found == expected
    found.backward()
    assert (poisoned_logits.grad.movedim(1, -1)[reviewed].isfinite()).all()


@each_loss
@pytest.mark.parametrize("reviewed", [True, False])
@pytest.mark.parametrize("label", [0, 1, 2])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_it_is_finite_for_one_class_and_for_none(loss, reviewed, label, scale):
    logits = (torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * scale).requires_grad_()
    value = loss(logits, torch.full((2, 5, 5), label), torch.full((2, 5, 5), reviewed))
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    if not reviewed:
        assert value == 0
        assert (logits.grad == 0).all()


@each_loss
def test_a_perfect_prediction_costs_almost_nothing_and_a_wrong_one_much(loss):
    labels = torch.randint(0, 3, (2, 20, 20), generator=torch.Generator().manual_seed(0))
    known = torch.ones_like(labels, dtype=torch.bool)
    right = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float() * 30
    assert loss(right, labels, known) < 0.01
    assert loss(-right, labels, known) > 0.6


def test_cross_entropy_is_torchs_where_everything_is_known():
    logits, labels, _ = random_case()
    expected = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(
        masked_cross_entropy(logits, labels, torch.ones_like(labels, dtype=torch.bool)), expected
    )


def test_dice_is_the_dice_of_the_known_voxels():
    logits, labels, reviewed = random_case()
    probability = logits.softmax(1)
    expected = 0
    for k in (1, 2):
        p, t = probability[:, k][reviewed], (labels == k)[reviewed].float()
        expected += 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    torch.testing.assert_close(masked_soft_dice(logits, labels, reviewed), expected / 2)


@each_loss
def test_half_precision_logits_are_summed_in_single(loss):
    labels = torch.zeros(4, 200, 200, dtype=torch.long)
    logits = torch.zeros(4, 2, 200, 200, dtype=torch.bfloat16)
    value = loss(logits, labels, torch.ones_like(labels, dtype=torch.bool))
    assert value.dtype == torch.float32
    assert value.isfinite()
