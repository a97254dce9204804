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
    """One optimiser step: its number from 1, the loss (smoothed), how far the budget is used."""

    step: int
    loss: float
    fraction: float
    seconds_left: float | None = None


@dataclass(frozen=True)
class ValidationScore:
    """Mean foreground Dice on the locked cases at a step."""

    step: int
    dice: float | None


@dataclass(frozen=True)
class Notice:
    """Something the person should read: one sentence."""

    message: str
