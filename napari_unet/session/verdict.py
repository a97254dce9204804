"""What is to be said of a new model before the person decides: better, about as good, or worse, and where.

Arithmetic on Dice values and sentences. Who judges is decided in ``session/state.py``, the Dice is measured by
``training/judging.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.training.lesson import CaseVerdict

#: A case, or a class, that lost more Dice than this is named.
_FORGOTTEN = 0.02
#: How far the change of one scan lies from that of another, at the least; enters the standard error like one more case,
#: so that one or two cases that happen to agree are not taken for certainty. Between five hippocampus scans that judged
#: three fine-tunes it was 0.03 to 0.12, while the models were poor.
_SPREAD = 0.02
_NAMED = 3


@dataclass(frozen=True)
class VerdictRow:
    """One line of the table: a held-out case by the window's name, Dice before and after, how many slices judged."""

    name: str
    before: float | None
    after: float | None
    slices: int

    @property
    def change(self) -> float | None:
        """Dice gained; None where there is nothing to compare."""
        return None if self.before is None or self.after is None else self.after - self.before

    @property
    def is_worse(self) -> bool:
        """Whether it lost so much that it has to be said."""
        return self.change is not None and self.change < -_FORGOTTEN


@dataclass(frozen=True, eq=False)
class Verdict:
    """What is to be said of a new checkpoint, before the person decides.

    Parameters
    ----------
    checkpoint : Checkpoint
        The new one.
    cases : tuple of CaseVerdict
        The evidence.
    names : mapping
        What the window calls each case, by the scan's fingerprint.
    old : str or None
        Name of the model in use.
    best : (str, float) or None
        The earlier model with the highest mean Dice on the same scans, where that is higher than the new one's.
    """

    checkpoint: Checkpoint
    cases: tuple[CaseVerdict, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    old: str | None = None
    best: tuple[str, float] | None = None

    @property
    def rows(self) -> tuple[VerdictRow, ...]:
        """The table."""
        return tuple(
            VerdictRow(self.names.get(each.case, "a scan"), each.before, each.after, each.slices) for each in self.cases
        )

    @property
    def compared(self) -> tuple[VerdictRow, ...]:
        """The rows that hold both values."""
        return tuple(row for row in self.rows if row.change is not None)

    @property
    def dice_before(self) -> float | None:
        """Mean Dice of the old model on the held-out cases; None without one."""
        return _mean([case.before for case in self.cases])

    @property
    def dice_after(self) -> float | None:
        """Mean Dice of the new model on the held-out cases; None without cases."""
        return _mean([case.after for case in self.cases])

    @property
    def judgement(self) -> Literal["better", "as good", "worse"] | None:
        """Whether the mean change over the cases exceeds its standard error; None where nothing can be compared.

        The changes are paired, case by case, so that a hard case does not hide behind an easy one. To their squares a
        deviation of 0.02 is added as one more case: with one case the threshold is 0.02, with four that agree 0.005.
        """
        changes = np.array([row.change for row in self.compared], float)
        n = len(changes)
        if not n:
            return None
        mean = changes.mean()
        error = np.sqrt((((changes - mean) ** 2).sum() + _SPREAD**2) / n / n)
        if abs(mean) <= error:
            return "as good"
        return "better" if mean > 0 else "worse"

    @property
    def worse_classes(self) -> tuple[tuple[str, float, float], ...]:
        """Classes, with mean Dice before and after, that lost on average over the cases, whatever the others gained."""
        found = []
        for k, each in enumerate(self.checkpoint.card.label_schema.classes):
            pairs = [case.classes[k] for case in self.cases if k < len(case.classes)]
            both = [(a, b) for a, b in pairs if a is not None and b is not None]
            if both:
                before, after = np.mean(both, axis=0)
                if after - before < -_FORGOTTEN:
                    found.append((each.name, float(before), float(after)))
        return tuple(found)

    @property
    def recommended(self) -> bool | None:
        """Whether to use the new model: no where it is worse; None where the cases do not tell.

        Nor is it recommended where it is better on the whole while a class got worse.
        """
        judgement = self.judgement
        if judgement == "worse":
            return False
        return True if judgement == "better" and not self.worse_classes else None

    @property
    def sentence(self) -> str:
        """The verdict in one or two sentences."""
        name, before, after = self.checkpoint.card.name, self.dice_before, self.dice_after
        if after is None:
            return (
                f"{name} is ready. Nothing is held out to judge it by (that begins once five slices are accepted, some "
                "of them new), so judge it by eye."
            )
        cases = _counted(len(self.cases))
        if before is None:
            return f"{name} is ready: Dice {after:.2f} on {cases}."
        return " ".join([self._comparison(before, after), *self._alarms(), *self._history()])

    def _comparison(self, before: float, after: float) -> str:
        rows, name = self.compared, self.checkpoint.card.name
        gained, lost = (sum(sign * (row.change or 0) > 0 for row in rows) for sign in (1, -1))
        figures = f"of {_counted(len(rows))} ({before:.2f} -> {after:.2f})"
        if self.judgement == "better":
            return f"{name} is better: it gained on {gained} {figures}."
        if self.judgement == "worse":
            return f"{name} is worse: it lost on {lost} {figures}."
        return f"{name} is about as good as {self.old or 'the old model'}: it gained on {gained} {figures}."

    def _alarms(self) -> list[str]:
        worse = sorted((row for row in self.compared if row.is_worse), key=lambda row: row.change or 0)
        said = [f"{row.name} ({row.before:.2f} -> {row.after:.2f})" for row in worse[:_NAMED]]
        more = [f"{len(worse) - _NAMED} more"] if len(worse) > _NAMED else []
        found = [f"It got worse on {_listed([*said, *more])}."] if worse else []
        classes = [f"{name} ({before:.2f} -> {after:.2f})" for name, before, after in self.worse_classes]
        # With one class that would say the same twice.
        if classes and len(self.checkpoint.card.label_schema.classes) > 1:
            found.append(f"What got worse: {_listed(classes)}.")
        return found

    def _history(self) -> list[str]:
        return [] if self.best is None else [f"Best so far on the same scans: {self.best[0]}, {self.best[1]:.2f}."]


def with_history(verdict: Verdict, scores: Mapping[str, Mapping[str, float | None]]) -> Verdict:
    """Return a verdict that knows which earlier model did best on the same scans, if one did better than the new one.

    Parameters
    ----------
    verdict : Verdict
    scores : mapping
        Of each kept model by name: Dice by the fingerprint of the scan.
    """
    cases = [case.case for case in verdict.cases if case.after is not None]
    means = {
        name: float(np.mean([known[case] for case in cases]))
        for name, known in scores.items()
        if cases and all(known.get(case) is not None for case in cases)
        if name not in (verdict.checkpoint.card.name, verdict.old)
    }
    name = max(means, key=lambda each: means[each], default=None)
    floor = max(verdict.dice_before or 0, verdict.dice_after or 0)
    if name is None or round(means[name], 2) <= round(floor, 2):
        return verdict
    return replace(verdict, best=(name, means[name]))


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _counted(n: int) -> str:
    return f"{n} held-out case{'s' if n != 1 else ''}"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
