"""Events that long work yields. They carry numbers, never widgets; a generator's return value is its result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a job is: fraction in [0, 1] and an estimate of the seconds left (None while unknown)."""

    fraction: float
    seconds_left: float | None = None


@dataclass(frozen=True)
class TrainingStep:
    """One optimiser step: its number from 1, the loss (smoothed), how far the budget is used.

    ``validation_loss`` is there at steps after which a validation was made.
    """

    step: int
    loss: float
    fraction: float
    seconds_left: float | None = None
    validation_loss: float | None = None


@dataclass(frozen=True)
class Notice:
    """Something the person should read: one sentence."""

    message: str
