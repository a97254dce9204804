"""Optimisers, and how the learning rate moves over a run."""

from __future__ import annotations

import math

import torch
from torch import nn

from napari_unet.domain.settings import TrainingSettings

_POLY_EXPONENT = 0.9
_PLATEAU_FACTOR = 0.1
_MOMENTUM = 0.99
# Under this key a group of parameters keeps its share of the rate.
_SHARE = "share_of_rate"


def make_optimiser(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return the optimiser of the settings over a network's parameters."""
    groups = []
    # The encoder last: the first group's rate is the one that schedules speak of.
    for of_encoder, share in ((False, 1.0), (True, settings.encoder_rate)):
        named = network.named_parameters()
        trained = [p for name, p in named if p.requires_grad and name.startswith("encoder.") == of_encoder]
        # Decay shrinks what multiplies; on norms and biases it only hurts.
        groups += [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay, _SHARE: share},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, _SHARE: share},
        ]
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=_MOMENTUM, nesterov=True)
    kind = torch.optim.AdamW if settings.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.learning_rate, fused=True)


class LearningRate:
    """Sets an optimiser's rate before each step: warm-up, then the schedule of the settings.

    ``poly`` falls as ``(1 - t) ** 0.9`` (Chen et al. 2018), ``cosine`` as half a cosine (Loshchilov & Hutter 2017),
    both over the share ``t`` of the budget that is used; ``plateau`` falls to a tenth once ``patience`` validations in
    a row brought nothing (torch's ReduceLROnPlateau).

    Parameters
    ----------
    optimiser : Optimizer
    settings : TrainingSettings
    """

    def __init__(self, optimiser: torch.optim.Optimizer, settings: TrainingSettings) -> None:
        self._optimiser, self._settings = optimiser, settings
        self._level = settings.learning_rate
        #: Plateaus met so far.
        self.plateaus = 0
        self._plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimiser, mode="min", factor=_PLATEAU_FACTOR, patience=settings.patience
        )

    def set(self, step: int, fraction: float) -> float:
        """Set and return the rate of a step (from 0), a fraction of the budget being used."""
        rate = self._level * min(1.0, (step + 1) / (self._settings.warmup_steps + 1))
        if self._settings.schedule == "poly":
            rate *= (1 - fraction) ** _POLY_EXPONENT
        elif self._settings.schedule == "cosine":
            rate *= (1 + math.cos(math.pi * fraction)) / 2
        self._set(rate)
        return rate

    def observe(self, validation_loss: float) -> None:
        """Take note of a validation; only ``plateau`` listens."""
        if self._settings.schedule == "plateau":
            self._set(self._level)
            self._plateau.step(validation_loss)
            level = float(self._optimiser.param_groups[0]["lr"])
            self.plateaus += level < self._level
            self._level = level

    def _set(self, rate: float) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = rate * group.get(_SHARE, 1.0)
