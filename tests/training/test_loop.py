"""The one loop: budgets, repeatability, and stopping before harm is done."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import TrainingError
from napari_unet.networks.factory import build, weights_of
from napari_unet.patches.sampling import Batch, PatchSampler
from napari_unet.training.fine_tune import prepare_lesson
from napari_unet.training.loop import train
from tests.training.lessons import CPU, SCHEMA, lesson, run, small_settings


def start(settings, draw=None, compute=CPU, **more):
    example = prepare_lesson(lesson(), settings, SCHEMA)
    network = build(settings.network, seed=0)
    sampler = PatchSampler([example], settings.training.patch_size, settings.training, settings.augmentation, 0)
    return network, train(network, draw or sampler.draw, settings.training, compute, **more)


def test_it_takes_so_many_steps_and_says_each():
    network, job = start(small_settings(steps=7))
    events, result = run(job)
    assert [e.step for e in events] == list(range(1, 8))
    fractions = [e.fraction for e in events]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert events[-1].seconds_left == 0
    assert result.steps == 7
    assert math.isfinite(result.loss)
    assert not network.training


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("schedule", ["poly", "constant"])
def test_every_optimiser_and_schedule_lowers_the_loss(kind, schedule):
    rate = 1e-3 if kind == "sgd" else 1e-2
    _, job = start(small_settings(steps=12, optimiser=kind, schedule=schedule, learning_rate=rate, ema_decay=0))
    events, _ = run(job)
    assert events[-1].loss < events[0].loss


def test_a_budget_that_preparing_has_used_up_still_gives_one_step():
    settings = small_settings(steps=None, budget_seconds=1e-3)
    _, job = start(settings, started=0.0)
    events, result = run(job)
    assert result.steps == len(events) == 1
    assert events[0].fraction == 1


def test_the_first_limit_ends_it():
    _, job = start(small_settings(steps=3, budget_seconds=3600))
    assert run(job)[1].steps == 3


def test_without_any_limit_it_refuses_to_start():
    _, job = start(small_settings(steps=None))
    with pytest.raises(TrainingError, match="never end"):
        next(job)


def test_equal_seeds_and_steps_give_equal_weights_to_the_bit():
    weights = []
    for noise in range(2):
        torch.manual_seed(noise)
        network, job = start(small_settings(steps=5))
        run(job)
        weights.append(weights_of(network))
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_are_single_precision_whatever_is_computed_in(precision):
    network, job = start(small_settings(steps=2), compute=ResolvedCompute("cpu", precision, 1))
    run(job)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_a_moving_average_predicts_when_it_is_asked_for():
    weights = []
    for decay in (0.0, 0.9):
        network, job = start(small_settings(steps=4, ema_decay=decay))
        run(job)
        weights.append(weights_of(network)["head.weight"])
    assert not np.array_equal(*weights)


def test_a_loss_that_is_no_number_stops_it_with_a_cure():
    def poisoned():
        labels = torch.zeros(2, 16, 16, dtype=torch.long)
        return Batch(torch.full((2, 1, 16, 16), math.nan), labels, torch.ones_like(labels, dtype=torch.bool))

    _, job = start(small_settings(steps=5), poisoned)
    with pytest.raises(TrainingError, match=r"training\.learning_rate"):
        run(job)


def test_damage_done_by_the_last_step_is_noticed_too():
    settings = small_settings(steps=1, optimiser="sgd", learning_rate=1.0, warmup_steps=0, ema_decay=0)
    network, _ = start(settings)

    class Exploding(torch.nn.Module):
        """A finite loss whose gradient is not."""

        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x):
            out = self.inner(x)
            out.register_hook(lambda gradient: gradient * math.inf)
            return out

    example = prepare_lesson(lesson(), settings, SCHEMA)
    sampler = PatchSampler([example], (16, 16), settings.training, settings.augmentation, 0)
    with pytest.raises(TrainingError, match="no longer a number"):
        run(train(Exploding(), sampler.draw, settings.training, CPU))


def test_a_batch_about_which_nothing_is_known_changes_little_and_breaks_nothing():
    def unknown():
        labels = torch.zeros(2, 16, 16, dtype=torch.long)
        image = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        return Batch(image, labels, torch.zeros_like(labels, dtype=torch.bool))

    settings = small_settings(steps=3, weight_decay=0, ema_decay=0)
    network, job = start(settings, unknown)
    before = weights_of(network)
    events, _ = run(job)
    after = weights_of(network)
    assert [e.loss for e in events] == [0, 0, 0]
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_closing_it_between_steps_ends_it():
    network, job = start(small_settings(steps=1000))
    next(job)
    before = weights_of(network)
    job.close()
    assert list(job) == []
    after = weights_of(network)
    assert all(np.array_equal(before[name], after[name]) for name in before)
