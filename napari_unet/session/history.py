"""Undo and redo of corrections. One step may hold several corrections (a proposal arrives slab by slab)."""

from __future__ import annotations

from dataclasses import dataclass, field

from napari_unet.domain.annotation import Correction


@dataclass(eq=False)
class Step:
    """What one undo takes back: corrections in the order they were made."""

    kind: str
    corrections: list[Correction] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether it would change nothing."""
        return all(c.is_empty for c in self.corrections)


class History:
    """Steps done and undone. It decides which correction comes next; applying it is the session's."""

    def __init__(self) -> None:
        self._done: list[Step] = []
        self._undone: list[Step] = []

    def begin(self, kind: str) -> Step:
        """Open a new step, to which corrections are added as they are made."""
        step = Step(kind)
        self._done.append(step)
        self._undone.clear()
        return step

    def add(self, correction: Correction) -> None:
        """Record a step of one correction."""
        if not correction.is_empty:
            self.begin(correction.kind).corrections.append(correction)

    @property
    def next_undo(self) -> Step | None:
        """The step an undo would take back."""
        self._drop_empty()
        return self._done[-1] if self._done else None

    @property
    def next_redo(self) -> Step | None:
        """The step a redo would do again."""
        return self._undone[-1] if self._undone else None

    def undo(self) -> list[Correction]:
        """Return the corrections that take back the last step, in the order to apply them."""
        self._drop_empty()
        if not self._done:
            return []
        step = self._done.pop()
        self._undone.append(step)
        return [c.inverse() for c in reversed(step.corrections)]

    def redo(self) -> list[Correction]:
        """Return the corrections that do the last undone step again."""
        if not self._undone:
            return []
        step = self._undone.pop()
        self._done.append(step)
        return list(step.corrections)

    def _drop_empty(self) -> None:
        while self._done and self._done[-1].is_empty:
            self._done.pop()
