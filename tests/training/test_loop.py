"""The one loop: budgets, repeatability, and stopping before harm is done."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import TrainingError
from napari_unet.networks.factory import build, weights_of
from napari_unet.patches.sampling import Batch, PatchSampler
from napari_unet.training.examples import prepare_lesson
from napari_unet.training.loop import train
from napari_unet.training.optimisation import LearningRate, make_optimiser
from tests.training.lessons import CPU, SCHEMA, lesson, run, small_settings


@contextlib.contextmanager
def rates_seen(seen):
    """Note the learning rate of every step of real runs."""
    original = LearningRate.set

    def noting(self, step, fraction):
        seen.append(original(self, step, fraction))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LearningRate, "set", noting)
        yield


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
@pytest.mark.parametrize("schedule", ["poly", "cosine", "plateau", "constant"])
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


def rates(**training):
    """The learning rate before each of ten steps of ten."""
    settings = small_settings(steps=10, learning_rate=1.0, **training).training
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=settings.learning_rate)
    schedule = LearningRate(optimiser, settings)
    return [schedule.set(step, step / 10) for step in range(10)]


def test_the_rate_warms_up_and_falls_as_the_settings_say():
    assert rates(schedule="constant", warmup_steps=4)[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert rates(schedule="poly", warmup_steps=0) == pytest.approx([(1 - t / 10) ** 0.9 for t in range(10)])
    cosine = rates(schedule="cosine", warmup_steps=0)
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[5] == pytest.approx(0.5)


def test_a_plateau_of_the_validation_loss_lowers_the_rate_to_a_tenth():
    """The guide's ReduceLROnPlateau(min, patience 3)."""
    settings = small_settings(steps=20, schedule="plateau", validation_interval=2, patience=3, ema_decay=0)
    validations = iter([1.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6])
    seen = []
    with rates_seen(seen):
        _, job = start(settings, validate=lambda: next(validations))
        events, _ = run(job)
    assert [e.validation_loss for e in events if e.step % 2 == 0][:3] == [1.0, 0.5, 0.6]
    assert all(e.validation_loss is None for e in events if e.step % 2)
    # The best was the second; after four more (patience 3) the rate falls, before step 13.
    full = settings.training.learning_rate
    assert seen[11] == pytest.approx(full)
    assert seen[12] == pytest.approx(full / 10)


def test_a_plateau_may_end_the_training_before_its_time():
    settings = small_settings(steps=40, schedule="plateau", validation_interval=2, patience=1, stop_after_plateaus=2)
    _, job = start(settings, validate=lambda: 1.0)
    events, result = run(job)
    assert result.steps < 20
    assert events[-1].fraction == 1
    with pytest.raises(TrainingError, match="schedule=plateau"):
        run(start(small_settings(stop_after_plateaus=2))[1])


def test_an_encoder_that_knows_something_may_be_taught_more_slowly():
    settings = small_settings(steps=3, encoder_rate=0.1, weight_decay=0)
    network, job = start(settings)
    optimiser = make_optimiser(network, settings.training)
    LearningRate(optimiser, settings.training).set(100, 0)
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    by_name = {name: rates[id(p)] for name, p in network.named_parameters()}
    assert len(by_name) == len(rates)
    full = settings.training.learning_rate
    for name, rate in by_name.items():
        assert rate == pytest.approx(full / 10 if name.startswith("encoder.") else full)
    job.close()


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("change", [{"accumulate": 2}, {"accumulate": 4}, {"activation_checkpointing": True}])
@pytest.mark.parametrize("threads", [1, 2])
def test_saving_memory_does_not_change_the_step(dimensions, change, threads):
    found = []
    for more in ({}, change):
        settings = small_settings(dimensions, steps=3, batch_size=4, ema_decay=0, optimiser="sgd", **more)
        network, job = start(settings, compute=ResolvedCompute("cpu", "float32", threads))
        run(job)
        found.append(weights_of(network))
    for name, weights in found[0].items():
        np.testing.assert_allclose(found[1][name], weights, atol=2e-5, err_msg=name)


def test_saving_memory_leaves_batch_statistics_alone():
    """Computed twice, counted once."""
    found = []
    for more in ({}, {"activation_checkpointing": True}):
        settings = small_settings(steps=3, batch_size=4, ema_decay=0, **more)
        settings = settings.with_values({"network.norm": "batch"})
        network, job = start(settings)
        run(job)
        found.append(weights_of(network))
    assert any("running_mean" in name for name in found[0])
    for name, weights in found[0].items():
        np.testing.assert_allclose(found[1][name], weights, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("encoder", ["plain", "residual"])
def test_deep_supervision_lowers_the_loss_of_every_level(encoder):
    settings = small_settings(steps=25).with_values(
        {"network.deep_supervision": True, "network.encoder": encoder, "network.strides": [[2, 2], [2, 2], [2, 2]]}
    )
    network, job = start(settings)
    first = network.train()(torch.zeros(1, 1, 16, 16))
    assert [tuple(level.shape[2:]) for level in first] == [(16, 16), (8, 8), (4, 4)]
    events, _ = run(job)
    assert events[-1].loss < events[0].loss
    assert isinstance(network(torch.zeros(1, 1, 16, 16)), torch.Tensor)


class TestDeterministic:
    def test_two_runs_give_equal_bits_on_several_threads(self):
        found = []
        for _ in range(2):
            settings = small_settings(steps=4, batch_size=4, budget_seconds=None, deterministic=True)
            network, job = start(settings, compute=ResolvedCompute("cpu", "float32", 2))
            run(job)
            found.append(weights_of(network))
        assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])
        assert not torch.are_deterministic_algorithms_enabled()

    def test_a_limit_of_seconds_is_refused(self):
        _, job = start(small_settings(steps=None, budget_seconds=5, deterministic=True))
        with pytest.raises(TrainingError, match=r"training\.steps"):
            next(job)


class TestMeanTeacher:
    def draw(self, settings):
        """Half the slices of one scan are reviewed, the others only seen."""
        one = lesson((4, 24, 24))
        reviewed = np.zeros(one.labels.shape, bool)
        reviewed[:2] = True
        example = prepare_lesson(replace(one, reviewed=reviewed), settings, SCHEMA)
        return PatchSampler([example], (16, 16), settings.training, settings.augmentation, 0)

    def test_unknown_slices_teach_agreement_and_nothing_else(self):
        settings = small_settings(steps=6, consistency_weight=10, consistency_ramp_steps=0)
        weights = []
        for weight in (10, 0):
            these = settings.with_values({"training.consistency_weight": weight})
            sampler = self.draw(these)
            batch = sampler.draw()
            assert (batch.student is None) == (weight == 0)
            network = build(these.network, seed=0)
            events, _ = run(train(network, sampler.draw, these.training, CPU, description=these.network))
            assert all(math.isfinite(e.loss) for e in events)
            weights.append(weights_of(network)["head.weight"])
        assert not np.array_equal(*weights)

    def test_student_and_teacher_see_one_place_in_two_lights(self):
        settings = small_settings(consistency_weight=1).with_values({"augmentation.probability": 0})
        batch = self.draw(settings).draw()
        assert batch.student.shape == batch.teacher.shape
        assert not torch.equal(batch.student, batch.teacher)
        for student, teacher in zip(batch.student, batch.teacher, strict=True):
            both = torch.stack((student.flatten(), teacher.flatten()))
            assert torch.corrcoef(both)[0, 1] > 0.9
        assert batch.free.all()

    def test_the_judges_slices_are_never_looked_at(self):
        settings = small_settings(consistency_weight=1)
        nothing = np.zeros((4, 24, 24), bool)
        nothing[0] = True
        example = prepare_lesson(lesson(reviewed=nothing, locked=np.arange(4) == 2), settings, SCHEMA)
        assert sorted(np.unique(example.free_centres[:, 0])) == [1, 3]
