"""Undo and redo of corrections. One step may hold several corrections (a proposal arrives slab by slab)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from napari_unet.domain.annotation import Correction


@dataclass(eq=False)
class Step:
    """What one undo takes back: corrections in the order they were made."""

    kind: str
    corrections: list[Correction] = field(default_factory=list)
    #: Whether a model made it; else the person did.
    by_machine: bool = False
    #: Of a step that changed which model is in use: puts the one before in its place, and the one after.
    swap: tuple[Callable[[], None], Callable[[], None]] | None = None


class History:
    """Steps done and undone. It decides which correction comes next; applying it is the session's."""

    def __init__(self) -> None:
        self._done: list[Step] = []
        self._undone: list[Step] = []

    def add(self, correction: Correction) -> None:
        """Record what the person did, as a step of one correction; what was undone before is forgotten."""
        if not correction.is_empty:
            self._undone.clear()
            self._done.append(Step(correction.kind, [correction]))

    def add_swap(self, back: Callable[[], None], forth: Callable[[], None]) -> None:
        """Record that the person chose another model, as a step without corrections."""
        self._undone.clear()
        self._done.append(Step("model", swap=(back, forth)))

    def extend(self, step: Step, correction: Correction) -> Step:
        """Record what the machine did, in a step that may go on while the person works.

        The step takes its place with its first correction. What was undone can be done again as long as this
        changed nothing beneath it.

        Returns
        -------
        Step
            The one to go on with: a new one where steps taken since had changed the same voxels, or had opened accepted
            slices again. This must be taken back before them.
        """
        if correction.is_empty:
            return step
        if any(_touches(correction, undone) for later in self._undone for undone in later.corrections):
            self._undone.clear()
        since = self._done[self._done.index(step) + 1 :] if step in self._done else []
        if any(_overlap(correction, later) or _reopens(later) for other in since for later in other.corrections):
            step = Step(step.kind, by_machine=step.by_machine)
        if not step.corrections:
            self._done.append(step)
        step.corrections.append(correction)
        return step

    @property
    def proposed_by(self) -> str | None:
        """The checkpoint whose proposal is the last that stands; None where there is none."""
        made = (c.proposal for step in reversed(self._done) if step.by_machine for c in step.corrections)
        return next((checkpoint for checkpoint in made if checkpoint), None)

    def stands(self, step: Step) -> bool:
        """Return whether a step was done and not taken back."""
        return step in self._done

    def are_latest(self, steps: Sequence[Step]) -> bool:
        """Return whether these steps, in this order, are the last that were done."""
        return self._done[len(self._done) - len(steps) :] == list(steps)

    @property
    def next_undo(self) -> Step | None:
        """The step an undo would take back."""
        return self._done[-1] if self._done else None

    @property
    def next_redo(self) -> Step | None:
        """The step a redo would do again."""
        return self._undone[-1] if self._undone else None

    def undo(self) -> list[Correction]:
        """Return the corrections that take back the last step, in the order to apply them."""
        if not self._done:
            return []
        step = self._done.pop()
        self._undone.append(step)
        if step.swap is not None:
            step.swap[0]()
        return [c.inverse() for c in reversed(step.corrections)]

    def redo(self) -> list[Correction]:
        """Return the corrections that do the last undone step again."""
        if not self._undone:
            return []
        step = self._undone.pop()
        self._done.append(step)
        if step.swap is not None:
            step.swap[1]()
        return list(step.corrections)


def _touches(new: Correction, undone: Correction) -> bool:
    """Return whether a proposal changed voxels of an undone step, or may have changed a slice that it accepts."""
    return undone.accepted is not None or _overlap(new, undone)


def _reopens(correction: Correction) -> bool:
    """Return whether it took back that slices are accepted, so that they could be changed since."""
    return correction.accepted is not None and not bool(np.all(correction.accepted.after))


def _overlap(one: Correction, other: Correction) -> bool:
    """Return whether both changed the label of the same voxel."""
    if one.labels is None or other.labels is None:
        return False
    return len(np.intersect1d(one.labels.indices, other.labels.indices)) > 0
