"""How the labels of a scan came to be, as one page: out of the project's journal."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.annotation import Annotation
from napari_unet.storage.journal import Content, Journal

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
    dice_of_proposal : float or None
        Mean Dice, over the classes that either has, of what was proposed before the scan was first learnt from with the
        labels as they are; None where nothing was.
    proposed_by : str or None
        The checkpoint that made that proposal.
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
    proposed_by: str | None
    flag: dict[str, Any] | None
    accepted_slices: int
    slices: int
    events: int
    head: str

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self) | {"readers": list(self.readers), "models": list(self.models)}


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
    annotation = Annotation.empty(known.shape, known.slice_axis)
    proposed = np.zeros(known.shape, np.uint16)  # what the last proposal said, voxel by voxel
    actions: dict[str, int] = {}
    readers: dict[str, None] = {}
    models: dict[str, None] = {}
    times: list[str] = []
    flag: dict[str, Any] | None = None
    before_learning: tuple[NDArray, str | None] | None = None
    by_people: list[str] = []
    for event in journal.events(fingerprint):
        content = event.content()
        content.apply(annotation)
        labels = content.changes.get("labels")
        if labels is not None and _is_no_hands(event.action, content):
            # What was painted by hand before a journal was begun is a hand's all the same.
            by_hand = annotation.painted.flat[labels.indices]
            proposed.flat[labels.indices] = np.where(by_hand, proposed.flat[labels.indices], labels.after)
        if event.action == _BY_MODEL and event.model is not None:
            models.pop(event.model, None)
            models[event.model] = None
        if before_learning is None and content.sides is not None and content.sides.taught.any():
            before_learning = proposed.copy(), next(reversed(models), None)
        if event.action == FLAG:
            flag = content.facts or None
        if event.action in _RECORDS:
            continue
        actions[event.action] = actions.get(event.action, 0) + 1
        readers[event.reader] = None
        times.append(event.at)
        if event.action != _BY_MODEL:
            by_people.append(event.at)
    edited = int((annotation.labels != proposed).sum())
    concerned = int(((annotation.labels > 0) | (proposed > 0)).sum())
    number, head = journal.head()
    first, by = before_learning or (proposed, next(reversed(models), None))
    return AuditCard(
        scan=fingerprint,
        readers=tuple(readers),
        first=times[0] if times else None,
        last=times[-1] if times else None,
        active_minutes=round(active_seconds(by_people) / 60, 2),
        actions=actions,
        models=tuple(models),
        labelled_voxels=int((annotation.labels > 0).sum()),
        edited_voxels=edited,
        percent_by_hand=round(100 * edited / concerned, 2) if concerned else None,
        dice_of_proposal=_mean_dice(first, annotation.labels) if by is not None else None,
        proposed_by=by,
        flag=flag,
        accepted_slices=int(annotation.accepted.sum()),
        slices=len(annotation.accepted),
        events=number,
        head=head,
    )


def _is_no_hands(action: str, content: Content) -> bool:
    """Return whether an event's labels are what a person began with, or went back to, and not what they changed."""
    if action in _HISTORY:
        # Of entries that do not say what they undo, strokes are those that change what is painted.
        return content.facts.get("of", "" if len(content.changes.get("painted", ())) else _BY_MODEL) == _BY_MODEL
    return action in (_BY_MODEL, "import", "restore", "load mask")


def _mean_dice(one: NDArray, other: NDArray) -> float | None:
    values = np.union1d(np.unique(one), np.unique(other))
    scores = []
    for value in values[values > 0]:
        a, b = one == value, other == value
        scores.append(2 * int((a & b).sum()) / (int(a.sum()) + int(b.sum())))
    return round(float(np.mean(scores)), 4) if scores else None


def active_seconds(times: Sequence[str]) -> float:
    """Return the seconds between moments (ISO 8601, in order) that follow each other within :data:`IDLE_SECONDS`."""
    moments = [datetime.datetime.fromisoformat(at).timestamp() for at in times]
    gaps = np.diff(moments)
    return float(gaps[(gaps > 0) & (gaps <= IDLE_SECONDS)].sum())
