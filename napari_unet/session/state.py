"""What the session knows about one open scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.annotation import Annotation
from napari_unet.domain.scan import Scan
from napari_unet.session.history import History


@dataclass(eq=False)
class ScanState:
    """An open scan with its annotation and history.

    Parameters
    ----------
    name : str
        What the window calls it: ``scan 1``. Never a patient's name, never a file's.
    scan : Scan
    annotation : Annotation
        The truth; views show copies of its labels.
    locked : (n_slices,) bool array
        Slices that judge models and never teach. A slice never changes sides.
    """

    name: str
    scan: Scan
    annotation: Annotation
    locked: NDArray[np.bool_]
    #: (n_slices,) bool: slices that a model has learnt from; they never become judges.
    taught: NDArray[np.bool_] = field(init=False)
    history: History = field(default_factory=History)
    #: Checkpoint of the last proposal, None before any.
    proposed_by: str | None = None
    #: Stem of the source's file, for naming what is exported.
    stem: str = "scan"

    def __post_init__(self) -> None:
        self.taught = np.zeros(self.scan.n_slices, bool)

    @property
    def n_accepted(self) -> int:
        """Number of accepted slices."""
        return int(self.annotation.accepted.sum())

    def note_taught(self) -> None:
        """Remember that a model is about to learn from what is reviewed now."""
        self.taught[self.annotation.reviewed_slices()] = True
        self.taught &= ~self.locked


def lock_judges(states: Sequence[ScanState]) -> None:
    """Put a fifth of what is accepted aside as judges, once five are: slices of each volume, and whole pictures.

    Neighbouring slices look alike, so single slices sprinkled over a scan would flatter the model: judges stand
    together, at the far end of what is accepted. What a model has learnt from never judges, and judges stay judges.
    """
    for state in states:
        if state.scan.n_slices > 1:
            for i in _judges(state.annotation.accepted, state.locked, state.taught):
                state.locked[i] = True
    pictures = [state for state in states if state.scan.n_slices == 1]
    if pictures:
        flags = [(s.annotation.accepted[0], s.locked[0], s.taught[0]) for s in pictures]
        for i in _judges(*np.array(flags).T):
            pictures[i].locked[0] = True


def _judges(accepted: NDArray[np.bool_], locked: NDArray[np.bool_], taught: NDArray[np.bool_]) -> NDArray[np.int64]:
    n = int(accepted.sum())
    if n < 5 or (accepted & locked).any():
        return np.zeros(0, np.int64)
    return np.flatnonzero(accepted & ~taught)[-(n // 5) :]
