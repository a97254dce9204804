"""Losses over reviewed voxels and nothing else."""

from __future__ import annotations

import pytest
import torch

from napari_unet.domain.settings import NetworkSettings, TrainingSettings
from napari_unet.training.losses import (
    SupervisedLoss,
    consistency,
    masked_binary_cross_entropy,
    masked_cross_entropy,
    masked_soft_dice,
)

THREE = NetworkSettings(out_channels=3)
OVERLAPPING = NetworkSettings(out_channels=4, head="sigmoid", regions=((1, 2, 3), (2, 3), (3,)))


def weighted(logits, labels, reviewed):
    """Cross entropy in which the classes count differently."""
    return masked_cross_entropy(logits, labels, reviewed, torch.tensor([0.2, 1.0, 3.0]))


def overlapping(logits, labels, reviewed):
    """Binary cross entropy and Dice of three nested regions."""
    return SupervisedLoss(OVERLAPPING, TrainingSettings(positive_weight=3))((logits,), labels, reviewed)


def two_levels(logits, labels, reviewed):
    """The whole supervised loss with a coarser level that grows from the finer one."""
    coarse = torch.where(reviewed.unsqueeze(1), logits, 0.0)[..., ::2, ::2]
    return SupervisedLoss(THREE, TrainingSettings())((logits, coarse), labels, reviewed)


LOSSES = [masked_cross_entropy, masked_soft_dice, weighted, overlapping, two_levels]
each_loss = pytest.mark.parametrize("loss", LOSSES)
each_plain_loss = pytest.mark.parametrize("loss", LOSSES[:2])


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


@each_plain_loss
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


@each_plain_loss
def test_half_precision_logits_are_summed_in_single(loss):
    labels = torch.zeros(4, 200, 200, dtype=torch.long)
    logits = torch.zeros(4, 2, 200, 200, dtype=torch.bfloat16)
    value = loss(logits, labels, torch.ones_like(labels, dtype=torch.bool))
    assert value.dtype == torch.float32
    assert value.isfinite()


def test_class_weights_are_torchs_where_everything_is_known():
    logits, labels, _ = random_case()
    weights = torch.tensor([0.2, 1.0, 3.0])
    expected = torch.nn.functional.cross_entropy(logits, labels, weights)
    known = torch.ones_like(labels, dtype=torch.bool)
    torch.testing.assert_close(masked_cross_entropy(logits, labels, known, weights), expected)


def test_a_class_that_counts_more_pulls_harder():
    labels = torch.randint(0, 2, (1, 20, 20), generator=torch.Generator().manual_seed(0))
    known = torch.ones_like(labels, dtype=torch.bool)
    network = NetworkSettings(out_channels=2)
    for settings, head in (
        (TrainingSettings(dice_weight=0, class_weights=(1.0, 9.0)), network),
        (TrainingSettings(dice_weight=0, positive_weight=9), network.model_copy(update={"head": "sigmoid"})),
    ):
        logits = torch.zeros(1, head.n_logits, 20, 20, requires_grad=True)
        SupervisedLoss(head, settings)((logits,), labels, known).backward()
        pull = logits.grad[:, -1]
        assert pull[labels == 1].mean() == pytest.approx(-9 * float(pull[labels == 0].mean()), rel=1e-4)


def test_binary_cross_entropy_is_torchs_where_everything_is_known():
    logits, labels, _ = random_case()
    truth = torch.stack([labels == 1, labels >= 1, labels == 2], dim=1)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth.float(), pos_weight=torch.tensor(2.5))
    known = torch.ones_like(labels, dtype=torch.bool)
    torch.testing.assert_close(masked_binary_cross_entropy(logits, truth, known, 2.5), expected)


def test_overlapping_regions_are_learnt_together():
    """Three nested regions from one label map: each voxel's logits follow the regions that it lies in."""
    labels = torch.arange(4).repeat_interleave(16).view(1, 8, 8)
    known = torch.ones_like(labels, dtype=torch.bool)
    logits = torch.zeros(1, 3, 8, 8, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.5)
    loss = SupervisedLoss(OVERLAPPING, TrainingSettings())
    for _ in range(40):
        optimiser.zero_grad()
        loss((logits,), labels, known).backward()
        optimiser.step()
    inside = logits[0] > 0
    assert torch.equal(inside[0], labels[0] >= 1)
    assert torch.equal(inside[1], labels[0] >= 2)
    assert torch.equal(inside[2], labels[0] == 3)


def test_coarser_levels_count_half_as_much_each_and_one_in_all():
    logits, labels, reviewed = random_case((8, 8))
    one_level = SupervisedLoss(THREE, TrainingSettings())
    fine, coarse = logits.detach(), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    nearest = one_level((coarse,), labels[:, 1::2, 1::2], reviewed[:, 1::2, 1::2])
    together = one_level((fine, coarse), labels, reviewed)
    torch.testing.assert_close(together, (one_level((fine,), labels, reviewed) * 2 + nearest) / 3)


@pytest.mark.parametrize("network", [THREE, OVERLAPPING.model_copy(update={"regions": ((1, 2, 3), (2,), (3,))})])
def test_student_and_teacher_agree_only_where_it_is_free(network):
    rng = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 6, 6, generator=rng), torch.randn(2, 3, 6, 6, generator=rng)
    student.requires_grad_()
    free = torch.rand(2, 6, 6, generator=rng) < 0.5
    value = consistency(student, teacher, free, network)
    value.backward()
    assert value > 0
    assert (student.grad.movedim(1, -1)[~free] == 0).all()
    assert consistency(teacher, teacher, free, network) == 0
    assert consistency(student, teacher, torch.zeros_like(free), network) == 0


@pytest.mark.parametrize("network", [THREE, OVERLAPPING])
def test_infinite_logits_on_unknown_voxels_reach_no_gradient(network):
    logits, labels, reviewed = random_case()
    with torch.no_grad():
        logits.movedim(1, -1)[~reviewed] = torch.tensor([float("inf"), 0, float("-inf")])
    value = SupervisedLoss(network, TrainingSettings())((logits,), labels, reviewed)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
