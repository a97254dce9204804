"""The report of a project: gathered from its journal and its models, written on a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_unet.domain.checkpoint import ModelCard
from napari_unet.domain.errors import ExportError, NapariUnetError, SessionError
from napari_unet.storage.audit import AuditCard
from napari_unet.storage.desk import Place

if TYPE_CHECKING:
    from napari_unet.evaluation.session_report import History, SessionResult, Update
    from napari_unet.session.session import Session

logger = logging.getLogger(__name__)

#: What counts as a stroke among the journal's actions.
_STROKES = frozenset({"stroke", "erase", "fill", "smart stroke", "ball", "erase ball"})


class Reporting:
    """Writes one report at a time.

    Parameters
    ----------
    session : Session
        Whose project it is about.
    wake : callable
        Called on the writing thread once it has something to say, so that :meth:`poll` is.
    """

    changed = Signal()  # a report was begun or is there: read ``is_writing``

    def __init__(self, session: Session, wake: Callable[[], None]) -> None:
        self._session, self._wake = session, wake
        self._thread: threading.Thread | None = None
        self._done: SimpleQueue[Path | NapariUnetError] = SimpleQueue()

    @property
    def is_writing(self) -> bool:
        """Whether a report is under way."""
        return self._thread is not None

    def write(self, folder: Path) -> None:
        """Write ``report.html`` and ``report.pdf`` into a folder, in the background; :meth:`poll` says when.

        Raises
        ------
        SessionError
            One is under way, or there is nothing to report.
        ProjectError
            The journal is damaged.
        """
        if self.is_writing:
            raise SessionError("A report is being written: wait for it.")
        result = gathered(self._session)

        def run() -> None:
            from napari_unet.evaluation.session_report import write_session_report

            try:
                self._done.put(write_session_report(folder, result))
            except NapariUnetError as error:
                self._done.put(error)
            except Exception:
                logger.exception("the report failed")
                self._done.put(ExportError("The report could not be written; the details are in the log."))
            self._wake()

        self._thread = threading.Thread(target=run, name="napari-unet-report", daemon=True)
        self._thread.start()
        self.changed.emit()

    def poll(self) -> None:
        """Say which page was written, or what went wrong, where that is new."""
        if not self._done.empty():
            self.close()
            done = self._done.get()
            self._session.tell(str(done) if isinstance(done, NapariUnetError) else f"The report was written to {done}.")
            self.changed.emit()

    def close(self) -> None:
        """Wait for a report under way."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def gathered(session: Session) -> SessionResult:
    """Return what a report of the session's project shows.

    Raises
    ------
    SessionError
        Nothing was done in the project yet.
    ProjectError
        The journal is damaged.
    """
    from napari_unet.evaluation import session_report as parts
    from napari_unet.evaluation.trust import CorrectedScan

    found = [(place, card) for place, card in session.audits.all() if card is not None]
    if not found:
        raise SessionError("Nothing was done in this project yet, so there is nothing to report.")
    names, cards = session.audits.model_names(), session.project.cards()
    corrected = tuple(
        CorrectedScan(
            f"scan {place.number}", names.get(card.proposed_by or "", "a model"), card.dice_of_proposal, _share(card)
        )
        for place, card in found
        if card.dice_of_proposal is not None and card.accepted_slices
    )
    audits = tuple(
        parts.AuditCard(
            f"scan {place.number}",
            names.get(card.models[-1], "a model") if card.models else None,
            None if card.percent_by_hand is None else card.percent_by_hand / 100,
            card.active_minutes,
            ", ".join(card.readers),
            f"{card.accepted_slices} of {card.slices} slices",
        )
        for place, card in found
    )
    run = session.learning.run
    return parts.SessionResult(
        f"Project {session.project.path.name}",
        (f"{len(found)} scans, {len(cards)} models, read by {', '.join(_readers(found))}.",),
        effort=parts.EffortSaved(
            len(found),
            sum(card.active_minutes for _, card in found),
            sum(n for _, card in found for action, n in card.actions.items() if action in _STROKES),
            sum(card.edited_voxels for _, card in found),
            sum(card.labelled_voxels for _, card in found),
        ),
        corrected=corrected,
        history=_history(session, cards),
        losses=() if run is None else tuple(enumerate(run.losses, 1)),
        updates=tuple(_updates(session, cards)),
        model=None if session.models.in_use is None else session.models.in_use.card,
        audits=audits,
    )


def _share(card: AuditCard) -> float | None:
    return min(1.0, card.edited_voxels / card.labelled_voxels) if card.labelled_voxels else None


def _readers(found: list[tuple[Place, AuditCard]]) -> list[str]:
    return list({reader: None for _, card in found for reader in card.readers}) or ["nobody"]


def _shown(session: Session) -> dict[str, str]:
    return {place.scan: f"scan {place.number}" for place in session.desk.places()}


def _history(session: Session, cards: dict[str, ModelCard]) -> History | None:
    from napari_unet.evaluation.session_report import History

    judged = {name: card for name, card in cards.items() if card.scores}
    if not judged:
        return None
    shown = _shown(session)
    scans = {scan: None for card in judged.values() for scan in card.scores}
    return History(
        tuple(judged),
        {shown.get(scan, "a scan"): tuple(card.scores.get(scan) for card in judged.values()) for scan in scans},
    )


def _updates(session: Session, cards: dict[str, ModelCard]) -> list[Update]:
    """Return what became of the model in use, against the one that it grew from."""
    from napari_unet.evaluation.session_report import Update

    model, names = session.models.in_use, session.audits.model_names()
    old = None if model is None else cards.get(names.get(model.card.parent or "", ""))
    if model is None or old is None:
        return []
    new, shown = model.card, _shown(session)
    scans = {shown.get(scan, "a scan"): (old.scores.get(scan), dice) for scan, dice in new.scores.items()}
    return [
        Update(
            old.name,
            new.name,
            _changes(old, new),
            f"{new.name} has learnt from {len(new.seen)} scans, {old.name} from {len(old.seen)}.",
            f"Both were judged by {len(scans)} held-out scans, from which neither has learnt." if scans else "",
            scans,
        )
    ]


def _changes(old: ModelCard, new: ModelCard) -> tuple[str, ...]:
    found = [f"It went on from {old.name} for {new.steps:,} steps."]
    if old.settings.network != new.settings.network:
        found.append("The network is another one.")
    if old.label_schema != new.label_schema:
        found.append(f"Its classes are {', '.join(each.name for each in new.label_schema.classes)}.")
    return tuple(found)
