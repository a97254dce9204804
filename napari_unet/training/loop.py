"""The one training loop. It knows nothing of scans, sessions or policies: it is handed finished objects."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch._dynamo  # optimisers import it at their first step: seconds, out of the budget
from torch import Tensor, nn

from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import TrainingError
from napari_unet.domain.progress import TrainingStep
from napari_unet.domain.settings import TrainingSettings
from napari_unet.patches.sampling import Batch
from napari_unet.training.losses import masked_cross_entropy, masked_soft_dice
from napari_unet.training.parts import Gradients, gradients

_log = logging.getLogger(__name__)

_DIVERGED = (
    "Training was stopped because the loss is no longer a number; the model is unchanged. Lower "
    "training.learning_rate and try again."
)


@dataclass(frozen=True)
class TrainingResult:
    """How a run went: steps done, wall seconds, smoothed loss at the end."""

    steps: int
    seconds: float
    loss: float


class _MovingAverage:
    """Exponential moving average of weights, which predicts better than the last step (Polyak averaging)."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network, self._decay = network, decay
        self._average = [p.detach().clone() for p in network.parameters()]

    def update(self, step: int) -> None:
        # A short memory at first, or the average would hold on to the weights before training.
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, [p.detach() for p in self._network.parameters()], 1 - decay)

    @torch.no_grad()
    def copy_to_network(self) -> None:
        for parameter, average in zip(self._network.parameters(), self._average, strict=True):
            parameter.copy_(average)


def train(
    network: nn.Module,
    draw: Callable[[], Batch],
    settings: TrainingSettings,
    compute: ResolvedCompute,
    *,
    started: float | None = None,
) -> Generator[TrainingStep, None, TrainingResult]:
    """Train a network in place until the budget is used; yields after every step.

    Parameters
    ----------
    network : Module
        Maps ``(B, C, *spatial)`` to logits ``(B, K, *spatial)``; holds the averaged weights at the end.
    draw : callable
        Returns the next batch, on the CPU.
    settings : TrainingSettings
        Optimiser, budget, loss weights. The first of ``steps`` and ``budget_seconds`` that is used up ends the run.
    compute : ResolvedCompute
        Device and precision.
    started : float, optional
        ``time.perf_counter()`` when the budget began; now, if not given.

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
        Neither steps nor seconds are limited, or the loss or the weights are no longer finite.
    """
    if settings.steps is None and settings.budget_seconds is None:
        raise TrainingError("Training would never end: set training.steps or training.budget_seconds.")
    started = time.perf_counter() if started is None else started
    network.to(compute.device).train()
    optimiser = _optimiser(network, settings)
    average = _MovingAverage(network, settings.ema_decay) if settings.ema_decay > 0 else None
    scaler = torch.amp.GradScaler(compute.device, enabled=compute.precision == "float16")
    smoothed, step, fraction = math.nan, 0, 0.0
    # The next batch is drawn while this one is learnt from: one after the other, so that a seed means the same batches.
    # On one core: OpenMP would start a second team of threads there, to fight with the first.
    drawing = ThreadPoolExecutor(1, "napari-unet-batches", initializer=torch.set_num_threads, initargs=(1,))
    with drawing as drawer, gradients(network, compute, settings.batch_size) as differentiate:
        upcoming = drawer.submit(draw)
        while fraction < 1:
            rate = settings.learning_rate * min(1.0, (step + 1) / (settings.warmup_steps + 1))
            if settings.schedule == "poly":
                rate *= (1 - fraction) ** 0.9
            for group in optimiser.param_groups:
                group["lr"] = rate
            batch, upcoming = upcoming.result(), drawer.submit(draw)
            loss = _step(network, differentiate, batch, optimiser, scaler, settings, compute)
            step += 1
            if average is not None:
                average.update(step)
            if not math.isfinite(loss):
                raise TrainingError(_DIVERGED)
            smoothed = loss if step == 1 else 0.95 * smoothed + 0.05 * loss
            fraction, left = _used(settings, step, time.perf_counter() - started)
            yield TrainingStep(step, smoothed, min(fraction, 1.0), left)
    if average is not None:
        average.copy_to_network()
    # The last step's own damage shows in no loss.
    if not all(bool(parameter.isfinite().all()) for parameter in network.parameters()):
        raise TrainingError(_DIVERGED)
    network.eval()
    seconds = time.perf_counter() - started
    _log.info("trained %d steps in %.1f s, loss %.4f", step, seconds, smoothed)
    return TrainingResult(step, seconds, smoothed)


def _used(settings: TrainingSettings, step: int, seconds: float) -> tuple[float, float | None]:
    """Return how much of the budget is used, and the seconds left."""
    by_steps = step / settings.steps if settings.steps else 0.0
    by_time = seconds / settings.budget_seconds if settings.budget_seconds else 0.0
    fraction = max(by_steps, by_time)
    return fraction, seconds * (1 - fraction) / fraction if fraction > 0 else None


def _optimiser(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    # Decay belongs on convolution kernels; on norms and biases it only hurts.
    groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.99, nesterov=True)
    kind = torch.optim.AdamW if settings.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.learning_rate, fused=True)


def _step(
    network: nn.Module,
    differentiate: Gradients,
    batch: Batch,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    settings: TrainingSettings,
    compute: ResolvedCompute,
) -> float:
    image, labels, reviewed = (
        t.to(compute.device, non_blocking=True) for t in (batch.image, batch.labels, batch.reviewed)
    )

    def loss(logits: Tensor) -> Tensor:
        return settings.cross_entropy_weight * masked_cross_entropy(
            logits, labels, reviewed
        ) + settings.dice_weight * masked_soft_dice(logits, labels, reviewed)

    value = differentiate(image, loss, scaler.scale)
    scaler.unscale_(optimiser)
    nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_clip)
    scaler.step(optimiser)
    scaler.update()
    return float(value)
