"""The moving average of a network's weights: what predicts in the end, and the teacher where nothing is known."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class MovingAverage:
    """Exponential moving average of weights, which predicts better than the last step (Polyak averaging).

    Parameters
    ----------
    network : Module
        Being trained.
    decay : float
        Share of the average that survives a step; smaller during the first steps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network, self._decay = network, decay
        self._average = [p.detach().clone() for p in network.parameters()]

    def update(self, step: int) -> None:
        """Take in the weights after a step (from 1)."""
        # A short memory at first, or the average would hold on to the weights before training.
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, [p.detach() for p in self._network.parameters()], 1 - decay)

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Give a network of the same shape the averaged weights."""
        for parameter, average in zip(network.parameters(), self._average, strict=True):
            parameter.copy_(average)


class Teacher:
    """A network with the averaged weights that says what it sees in unlabelled patches (Tarvainen & Valpola 2017).

    Parameters
    ----------
    network : Module
        Being trained; the teacher begins as its copy.
    average : MovingAverage
        Of that network.
    """

    def __init__(self, network: nn.Module, average: MovingAverage) -> None:
        self._network, self._average = network, average
        self._copy = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def logits(self, image: Tensor, autocast: Callable[[], Any]) -> Tensor:
        """Return the averaged network's logits ``(B, n_logits, *spatial)``."""
        self._average.copy_to(self._copy)
        for own, theirs in zip(self._copy.buffers(), self._network.buffers(), strict=True):
            own.copy_(theirs)
        with autocast():
            return self._copy(image)
