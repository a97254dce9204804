"""How the labels of a scan came to be, as one page: out of the project's journal."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.annotation import Annotation
from napari_unet.evaluation.trust import CorrectedScan, corrected_scan
from napari_unet.storage.journal import Content, Event, Journal, KnownScan

#: A pause of more seconds than these is no work.
IDLE_SECONDS = 60.0
#: What a model does; everything else is done by a person.
_BY_MODEL = "proposal"
_HISTORY = frozenset({"undo", "redo"})
#: A note on a scan, in the event's facts.
FLAG = "flag"
#: What only puts on record how things stand.
_RECORDS = frozenset({"sides", "import"})


@dataclass(frozen=True)
class AuditCard:
    """Who and what made the mask of a scan.

    Parameters
    ----------
    scan : str
        Hash of the scan's voxels.
    readers : tuple of str
        Who worked on it, by the names they chose.
    first, last : str or None
        When it was first and last changed; UTC, ISO 8601.
    active_minutes : float
        Time between things that people did which followed each other within a minute; longer pauses do not count.
    actions : dict
        How often each thing was done.
    models : tuple of str
        Identifiers of the checkpoints that proposed, the last one last.
    labelled_voxels, edited_voxels : int
        Voxels with a label; and those whose label is not what the last proposal there said.
    percent_by_hand : float or None
        Edited voxels in per cent of those that are labelled or were proposed; None where there are none.
    dice_of_proposal, left_to_correct : float or None
        Of what was proposed before the scan was first learnt from, on the accepted slices that it found untouched, as
        they are now: its mean Dice over their classes, and the voxels that were wrong as a share of their foreground.
        None where nothing was proposed, no such slice is accepted, or they hold no foreground.
    proposed_by : str or None
        The checkpoint that made that proposal.
    accepted_since : int or None
        Number of the event with which the first of its accepted slices came; None where none is accepted.
    flag : dict or None
        ``difficulty`` and ``comment`` that were noted last.
    accepted_slices, slices : int
        Slices that were accepted, of how many.
    events : int
        Number of the journal's last event when this was made,
    head : str
        and its hash: whoever has it written down elsewhere sees whether anything was cut off since.
    """

    scan: str
    readers: tuple[str, ...]
    first: str | None
    last: str | None
    active_minutes: float
    actions: dict[str, int]
    models: tuple[str, ...]
    labelled_voxels: int
    edited_voxels: int
    percent_by_hand: float | None
    dice_of_proposal: float | None
    left_to_correct: float | None
    proposed_by: str | None
    accepted_since: int | None
    flag: dict[str, Any] | None
    accepted_slices: int
    slices: int
    events: int
    head: str

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self) | {"readers": list(self.readers), "models": list(self.models)}


@dataclass(frozen=True, eq=False)
class Proposed:
    """What was proposed for a scan, and what became of it.

    Parameters
    ----------
    annotation : Annotation
        As it is.
    last : array over the spatial axes
        What the last proposal said, voxel by voxel.
    first : array over the spatial axes
        What was proposed before the scan was first learnt from; as ``last`` where that has not happened.
    by : str or None
        The checkpoint that made ``first``; None where nothing was proposed.
    is_only : bool
        Whether nothing was proposed since the scan was first learnt from, so that ``first`` is ``last``.
    judged : (n_slices,) bool array
        Slices that are accepted and had not been worked on when the first proposal came: these tell how good it was.
        On all others the labels may be nobody's but the proposal's own.
    accepted_since : int or None
        Number of the event with which the first of its accepted slices came; None where none is accepted.
    """

    annotation: Annotation
    last: NDArray
    first: NDArray
    by: str | None
    is_only: bool
    judged: NDArray[np.bool_]
    accepted_since: int | None

    def corrected(self, name: str) -> CorrectedScan:
        """Return what correcting the judged slices took, for a scan of this name."""
        if not self.judged.any():
            return CorrectedScan(name, self.by or "", None, None)
        index = self.annotation.slice_index(self.judged)
        return corrected_scan(name, self.by or "", [self.first[index]], [self.annotation.labels[index]])


def proposed(journal: Journal, fingerprint: str) -> Proposed | None:
    """Return what was proposed for a scan; None where the journal knows nothing of it.

    Raises
    ------
    ProjectError
        The journal is damaged.
    """
    known = journal.scan(fingerprint)
    return None if known is None else _replayed(journal, known).proposed()


def audit_card(journal: Journal, fingerprint: str) -> AuditCard | None:
    """Return the card of a scan; None where the journal knows nothing of it.

    Raises
    ------
    ProjectError
        The journal is damaged.
    """
    known = journal.scan(fingerprint)
    if known is None:
        return None
    story = _replayed(journal, known)
    found, times = story.proposed(), story.times
    labels = found.annotation.labels
    edited = int((labels != found.last).sum())
    concerned = int(((labels > 0) | (found.last > 0)).sum())
    number, head = journal.head()
    correcting = found.corrected(fingerprint) if found.by is not None else None
    return AuditCard(
        scan=fingerprint,
        readers=tuple(story.readers),
        first=times[0] if times else None,
        last=times[-1] if times else None,
        active_minutes=round(active_seconds(story.by_people) / 60, 2),
        actions=story.actions,
        models=tuple(story.models),
        labelled_voxels=int((labels > 0).sum()),
        edited_voxels=edited,
        percent_by_hand=round(100 * edited / concerned, 2) if concerned else None,
        dice_of_proposal=None if correcting is None else _rounded(correcting.dice),
        left_to_correct=None if correcting is None else _rounded(correcting.share),
        proposed_by=found.by,
        accepted_since=found.accepted_since,
        flag=story.flag,
        accepted_slices=int(found.annotation.accepted.sum()),
        slices=len(found.annotation.accepted),
        events=number,
        head=head,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _replayed(journal: Journal, known: KnownScan) -> _Story:
    story = _Story(known)
    for event in journal.events(known.fingerprint):
        story.take(event)
    return story


class _Story:
    """What the events of a scan add up to, taken one by one."""

    def __init__(self, known: KnownScan) -> None:
        self._annotation = Annotation.empty(known.shape, known.slice_axis)
        self._last = np.zeros(known.shape, np.uint16)
        #: What was proposed before learning, by whom; None until something was learnt.
        self._first: tuple[NDArray, str | None] | None = None
        self._is_only = True
        #: Slices that had been worked on when the first proposal came; None before it.
        self._begun: NDArray[np.int64] | None = None
        self._accepted_since: int | None = None
        self.actions: dict[str, int] = {}
        self.readers: dict[str, None] = {}
        self.models: dict[str, None] = {}
        self.times: list[str] = []
        self.by_people: list[str] = []
        self.flag: dict[str, Any] | None = None

    def take(self, event: Event) -> None:
        """Add an event."""
        content, annotation = event.content(), self._annotation
        is_proposal = event.action == _BY_MODEL and event.model is not None
        if is_proposal and self._begun is None:
            self._begun = annotation.reviewed_slices()
        content.apply(annotation)
        labels = content.changes.get("labels")
        if labels is not None and _is_no_hands(event.action, content):
            # What was painted by hand before a journal was begun is a hand's all the same.
            by_hand = annotation.painted.flat[labels.indices]
            self._last.flat[labels.indices] = np.where(by_hand, self._last.flat[labels.indices], labels.after)
        if is_proposal:
            self.models.pop(event.model or "", None)
            self.models[event.model or ""] = None
            self._is_only = self._first is None
        if self._first is None and content.sides is not None and content.sides.taught.any():
            self._first = self._last.copy(), next(reversed(self.models), None)
        if event.action == FLAG:
            self.flag = content.facts or None
        self._accepted_since = (self._accepted_since or event.seq) if annotation.accepted.any() else None
        if event.action in _RECORDS:
            return
        self.actions[event.action] = self.actions.get(event.action, 0) + 1
        self.readers[event.reader] = None
        self.times.append(event.at)
        if event.action != _BY_MODEL:
            self.by_people.append(event.at)

    def proposed(self) -> Proposed:
        """Return what was proposed, as far as told."""
        first, by = self._first or (self._last, next(reversed(self.models), None))
        judged = self._annotation.accepted.copy()
        if self._begun is not None:
            judged[self._begun] = False
        return Proposed(self._annotation, self._last, first, by, self._is_only, judged, self._accepted_since)


def _is_no_hands(action: str, content: Content) -> bool:
    """Return whether an event's labels are what a person began with, or went back to, and not what they changed."""
    if action in _HISTORY:
        # Of entries that do not say what they undo, strokes are those that change what is painted.
        return content.facts.get("of", "" if len(content.changes.get("painted", ())) else _BY_MODEL) == _BY_MODEL
    return action in (_BY_MODEL, "import", "restore", "load mask")


def active_seconds(times: Sequence[str]) -> float:
    """Return the seconds between moments (ISO 8601, in order) that follow each other within :data:`IDLE_SECONDS`."""
    moments = [datetime.datetime.fromisoformat(at).timestamp() for at in times]
    gaps = np.diff(moments)
    return float(gaps[(gaps > 0) & (gaps <= IDLE_SECONDS)].sum())
