"""Earlier states of a scan's labels, out of the project's journal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_unet.domain.annotation import Annotation, Correction
from napari_unet.domain.errors import SessionError
from napari_unet.session.ledger import Ledger

if TYPE_CHECKING:
    from napari_unet.session.state import ScanState

#: Events after which the labels are as they were before.
_NO_CHANGE = frozenset({"sides"})


@dataclass(frozen=True)
class Moment:
    """Something that was done to a scan.

    Parameters
    ----------
    seq : int
        The journal's number of it.
    at : str
        When, UTC, ISO 8601.
    reader : str
        By whom.
    action : str
        ``stroke``, ``proposal``, ``accept``...
    voxels : int
        How many labels changed.
    """

    seq: int
    at: str
    reader: str
    action: str
    voxels: int


class Timeline:
    """What was done to a scan, and its labels after any of it.

    Parameters
    ----------
    ledger : Ledger
        Of the project.
    commit : callable
        Carries out a correction of a scan as a step that can be undone.
    """

    def __init__(self, ledger: Ledger, commit: Callable[[ScanState, Correction], None]) -> None:
        self._ledger, self._commit = ledger, commit

    def moments(self, state: ScanState) -> list[Moment]:
        """Return everything that was done to a scan, the first of it first.

        Raises
        ------
        ProjectError
            The journal is damaged.
        """
        journal = self._ledger.journal()
        if journal is None:
            return []
        with closing(journal):
            return [
                Moment(event.seq, event.at, event.reader, event.action, event.voxels)
                for event in journal.events(state.scan.fingerprint)
                if event.action not in _NO_CHANGE
            ]

    def annotation_at(self, state: ScanState, seq: int) -> Annotation:
        """Return what was said about a scan after an event, which takes as long as there are events before it.

        Raises
        ------
        SessionError
            There is no journal.
        ProjectError
            It is damaged.
        """
        journal = self._ledger.journal()
        if journal is None:
            raise SessionError("Nothing was saved of this scan yet.")
        now = state.annotation
        found = Annotation.empty(now.labels.shape, now.slice_axis, now.labels.dtype.type)
        with closing(journal):
            for event in journal.events(state.scan.fingerprint):
                if event.seq > seq:
                    break
                event.content().apply(found)
        return found

    def restore(self, state: ScanState, seq: int) -> None:
        """Make a scan's labels, and which slices are accepted, what they were after an event; undo takes it back.

        Which slices judge stays as it is: what has judged never teaches.
        """
        correction = Correction.between("restore", state.annotation, self.annotation_at(state, seq))
        if correction.is_empty:
            raise SessionError("The labels are what they were then.")
        self._commit(state, correction)


def summary(moments: list[Moment]) -> list[Moment]:
    """Return the moments with runs of one action by one reader within a minute put together, the last of each run.

    Hundreds of strokes are as many lines, of which nobody finds the one.
    """
    found: list[Moment] = []
    for moment in moments:
        last = found[-1] if found else None
        if last is not None and (last.action, last.reader) == (moment.action, moment.reader):
            apart = np.datetime64(moment.at.partition("+")[0]) - np.datetime64(last.at.partition("+")[0])
            if apart < np.timedelta64(60, "s"):
                found[-1] = Moment(moment.seq, moment.at, moment.reader, moment.action, last.voxels + moment.voxels)
                continue
        found.append(moment)
    return found
