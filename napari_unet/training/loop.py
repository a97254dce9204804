"""The one training loop. It knows nothing of scans, sessions or policies: it is handed finished objects."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch._dynamo  # optimisers import it at their first step: seconds, out of the budget
from torch import Tensor, nn

from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import TrainingError
from napari_unet.domain.progress import TrainingStep
from napari_unet.domain.settings import NetworkSettings, TrainingSettings
from napari_unet.patches.sampling import Batch
from napari_unet.training.averaging import MovingAverage, Teacher
from napari_unet.training.losses import SupervisedLoss, consistency
from napari_unet.training.optimisation import LearningRate, make_optimiser
from napari_unet.training.parts import Gradients, Logits, autocast, gradients
from napari_unet.training.processes import ALONE, Processes

_log = logging.getLogger(__name__)

_DIVERGED = (
    "Training was stopped because the loss is no longer a number; the model is unchanged. Lower "
    "training.learning_rate and try again."
)
_SMOOTHING = 0.95


@dataclass(frozen=True)
class TrainingResult:
    """How a run went: steps done, wall seconds, smoothed loss at the end."""

    steps: int
    seconds: float
    loss: float


def train(
    network: nn.Module,
    draw: Callable[[], Batch],
    settings: TrainingSettings,
    compute: ResolvedCompute,
    *,
    description: NetworkSettings | None = None,
    validate: Callable[[], float] | None = None,
    started: float | None = None,
    processes: Processes = ALONE,
) -> Generator[TrainingStep, None, TrainingResult]:
    """Train a network in place until the budget is used; yields after every step.

    Parameters
    ----------
    network : Module
        Maps ``(B, C, *spatial)`` to logits ``(B, n_logits, *spatial)``, while training perhaps to a tuple of them, fine
        to coarse; holds the averaged weights at the end.
    draw : callable
        Returns the next batch.
    settings : TrainingSettings
        Optimiser, budget, loss weights. The first of ``steps`` and ``budget_seconds`` that is used up ends the run, or
        the last of ``stop_after_plateaus``.
    compute : ResolvedCompute
        Device and precision.
    description : NetworkSettings, optional
        What the logits mean; a softmax over classes without.
    validate : callable, optional
        Returns the validation loss of the network as it is, for the ``plateau`` schedule; without, the smoothed
        training loss takes its place.
    started : float, optional
        ``time.perf_counter()`` when the budget began; now, if not given.
    processes : Processes
        Those that train together; each draws its own part of the batches.

    Yields
    ------
    TrainingStep
        After each optimiser step.

    Returns
    -------
    TrainingResult

    Raises
    ------
    TrainingError
        Neither steps nor seconds are limited, a deterministic run is limited by seconds, or the loss or the weights are
        no longer finite.
    """
    _check_budget(settings)
    started = time.perf_counter() if started is None else started
    network.to(compute.device).train()
    smoothed, step, fraction = math.nan, 0, 0.0
    with _run(network, draw, settings, compute, description or NetworkSettings(), processes) as learn:
        while fraction < 1:
            loss = learn(step, fraction)
            step += 1
            if not math.isfinite(loss):
                raise TrainingError(_DIVERGED)
            smoothed = loss if step == 1 else _SMOOTHING * smoothed + (1 - _SMOOTHING) * loss
            judged = None
            if settings.schedule == "plateau" and step % settings.validation_interval == 0:
                (judged,) = processes.agree([smoothed if validate is None else validate()], compute.device)
                learn.rate.observe(judged)
            (seconds,) = processes.agree([time.perf_counter() - started], compute.device)
            fraction, left = _used(settings, step, seconds)
            if settings.stop_after_plateaus is not None and learn.rate.plateaus >= settings.stop_after_plateaus:
                fraction, left = 1.0, 0.0
            yield TrainingStep(step, smoothed, min(fraction, 1.0), left, judged)
        learn.finish()
    # The last step's own damage shows in no loss.
    if not all(bool(parameter.isfinite().all()) for parameter in network.parameters()):
        raise TrainingError(_DIVERGED)
    network.eval()
    seconds = time.perf_counter() - started
    _log.info("trained %d steps in %.1f s, loss %.4f", step, seconds, smoothed)
    return TrainingResult(step, seconds, smoothed)


def _check_budget(settings: TrainingSettings) -> None:
    if settings.stop_after_plateaus is not None and settings.schedule != "plateau":
        raise TrainingError("training.stop_after_plateaus goes with training.schedule=plateau: set both, or neither.")
    if settings.steps is None and settings.budget_seconds is None:
        raise TrainingError("Training would never end: set training.steps or training.budget_seconds.")
    if settings.deterministic and (settings.steps is None or settings.budget_seconds is not None):
        raise TrainingError(
            "Two runs of equal seconds never take equal steps: with training.deterministic set training.steps, and no "
            "training.budget_seconds."
        )


@contextmanager
def _run(
    network: nn.Module,
    draw: Callable[[], Batch],
    settings: TrainingSettings,
    compute: ResolvedCompute,
    description: NetworkSettings,
    processes: Processes,
) -> Iterator[_Learner]:
    """Set up, and later take down, what all steps of a run share."""
    # The next batch is drawn while this one is learnt from: one after the other, so that a seed means the same batches.
    # On one core: OpenMP would start a second team of threads there, to fight with the first.
    drawing = ThreadPoolExecutor(1, "napari-unet-batches", initializer=torch.set_num_threads, initargs=(1,))
    recompute = getattr(network, "checkpoint_activations", None)
    if recompute is not None:
        network.checkpoint_activations = settings.activation_checkpointing  # type: ignore[assignment]
    try:
        with (
            _deterministic(settings.deterministic),
            drawing as drawer,
            gradients(network, compute, settings.batch_size, settings.accumulate, processes) as differentiate,
        ):
            submit = partial(drawer.submit, draw)
            yield _Learner(network, submit, differentiate, settings, compute, description, processes)
    finally:
        if recompute is not None:
            network.checkpoint_activations = recompute


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Let torch refuse operations whose sums depend on the order of threads."""
    if not wanted:
        yield
        return
    # cuBLAS reads it when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


class _Learner:
    """One step after another: draw, differentiate, update, average."""

    def __init__(
        self,
        network: nn.Module,
        submit: Callable[[], Future[Batch]],
        differentiate: Gradients,
        settings: TrainingSettings,
        compute: ResolvedCompute,
        description: NetworkSettings,
        processes: Processes,
    ) -> None:
        self._processes = processes
        self._network, self._submit, self._differentiate = network, submit, differentiate
        self._settings, self._compute, self._description = settings, compute, description
        self._supervised = SupervisedLoss(description, settings)
        self._optimiser = make_optimiser(network, settings)
        self.rate = LearningRate(self._optimiser, settings)
        self._average = MovingAverage(network, settings.ema_decay) if settings.ema_decay > 0 else None
        self._teacher = Teacher(network, self._average) if self._average and settings.consistency_weight > 0 else None
        self._scaler = torch.amp.GradScaler(compute.device, enabled=compute.precision == "float16")
        self._upcoming = submit()

    def __call__(self, step: int, fraction: float) -> float:
        """Do step number ``step`` (from 0) and return the loss before it."""
        batch, self._upcoming = self._upcoming.result(), self._submit()
        batch = batch.to(self._compute.device)
        self.rate.set(step, fraction)
        value = self._differentiate(batch.image_and_student, self._loss(batch, step), self._scaler.scale)
        self._scaler.unscale_(self._optimiser)
        nn.utils.clip_grad_norm_(self._network.parameters(), self._settings.gradient_clip)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        if self._average is not None:
            self._average.update(step + 1)
        return float(value)

    def finish(self) -> None:
        """Leave the averaged weights in the network."""
        if self._average is not None:
            self._average.copy_to(self._network)

    def _loss(self, batch: Batch, step: int) -> Callable[[Logits], Tensor]:
        if batch.student is None or self._teacher is None:
            labels, reviewed = self._processes.gather(batch.labels), self._processes.gather(batch.reviewed)
            return partial(self._supervised, labels=labels, reviewed=reviewed)
        assert batch.teacher is not None
        assert batch.free is not None
        told = self._teacher.logits(batch.teacher, partial(autocast, self._compute))
        weight = self._settings.consistency_weight * self._ramp(step)
        n, free = len(batch.labels), batch.free

        def loss(outputs: Logits) -> Tensor:
            known = self._supervised([level[:n] for level in outputs], batch.labels, batch.reviewed)
            return known + weight * consistency(outputs[0][n:], told, free, self._description)

        return loss

    def _ramp(self, step: int) -> float:
        """Return the share of the consistency weight: a teacher that knows nothing yet must not be agreed with."""
        ramp = self._settings.consistency_ramp_steps
        return 1.0 if step >= ramp else math.exp(-5 * (1 - step / ramp) ** 2)


def _used(settings: TrainingSettings, step: int, seconds: float) -> tuple[float, float | None]:
    """Return how much of the budget is used, and the seconds left."""
    by_steps = step / settings.steps if settings.steps else 0.0
    by_time = seconds / settings.budget_seconds if settings.budget_seconds else 0.0
    fraction = max(by_steps, by_time)
    return fraction, seconds * (1 - fraction) / fraction if fraction > 0 else None
