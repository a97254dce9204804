"""The report of a project: gathered from its journal and its models, written on a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.errors import ExportError, NapariUnetError, SessionError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.evaluation.calibration import (
    FEWEST_FOR_INTERVAL,
    DiceCalibration,
    ProposalFeatures,
    proposal_features,
)
from napari_unet.evaluation.quality import CohortMember, Flag, find_outliers, measure_classes
from napari_unet.patches.prepare import PreparedScan, intensity_quantiles
from napari_unet.session.state import ScanState
from napari_unet.storage.audit import AuditCard, proposed
from napari_unet.storage.desk import Place
from napari_unet.storage.journal import Journal, KnownScan
from napari_unet.storage.project_folder import ProjectFolder

if TYPE_CHECKING:
    from napari_unet.evaluation.session_report import History, PredictedScan, SessionResult, Update
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
        gather = gathering(self._session)

        def run() -> None:
            from napari_unet.evaluation.session_report import write_session_report

            try:
                self._done.put(write_session_report(folder, gather()))
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
    """Return what a report of the session's project shows; errors as of :func:`gathering`."""
    return gathering(session)()


def gathering(session: Session) -> Callable[[], SessionResult]:
    """Return what gathers what a report of the session's project shows, to be called on any thread.

    What only the session knows is copied now; scans are measured when it is called, which may take seconds.

    Raises
    ------
    SessionError
        Nothing was done in the project yet.
    ProjectError
        The journal is damaged; what is called may raise it too.
    """
    from napari_unet.evaluation import session_report as parts
    from napari_unet.evaluation.trust import CorrectedScan

    found = [(place, card) for place, card in session.audits.all() if card is not None]
    if not found:
        raise SessionError("Nothing was done in this project yet, so there is nothing to report.")
    names, cards = session.audits.model_names(), session.project.cards()
    corrected = tuple(
        CorrectedScan(
            f"scan {place.number}",
            names.get(card.proposed_by or "", "a model"),
            card.dice_of_proposal,
            card.left_to_correct,
        )
        for place, card in sorted(found, key=lambda each: each[1].accepted_since or 0)
        if card.dice_of_proposal is not None
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
    training, in_use = session.learning.run, session.models.in_use
    result = parts.SessionResult(
        f"Project {session.project.path.name}",
        (f"{len(found)} scans, {len(cards)} models, read by {', '.join(_readers(found))}.",),
        effort=parts.EffortSaved(
            sum(1 for _, card in found if card.accepted_slices or card.edited_voxels),
            sum(card.active_minutes for _, card in found),
            sum(n for _, card in found for action, n in card.actions.items() if action in _STROKES),
            sum(card.edited_voxels for _, card in found),
            sum(card.labelled_voxels for _, card in found),
        ),
        corrected=corrected,
        history=_history(session, cards | _removed_cards(session.project)),
        losses=() if training is None else tuple(enumerate(training.losses, 1)),
        updates=tuple(_updates(session, cards)),
        model=None if in_use is None else in_use.card,
        audits=audits,
    )
    project, schema = session.project, session.schema
    numbers = {card.scan: place.number for place, card in found}
    still_open = {state.scan.fingerprint: _OpenScan.of(state) for state in session.scans}

    def gather() -> SessionResult:
        journal = project.journal(checked=False)
        if journal is None:
            return result
        with closing(journal):
            survey = _Survey(journal, schema, in_use)
            looked = [survey.look(scan, f"scan {number}", still_open.get(scan)) for scan, number in numbers.items()]
        measured = [each for each in looked if each is not None]
        predicted, note = _predicted(measured)
        flags = tuple(_flags(measured, None if in_use is None else in_use.card))
        return replace(result, predicted=predicted, prediction_note=note, flags=flags)

    return gather


@dataclass(frozen=True, eq=False)
class _OpenScan:
    """What of a scan only the session knows, while it is open.

    Parameters
    ----------
    scan : Scan
    uncertainty : uint8 array over the spatial axes, or None
        What the last proposal said of itself; None where that is not known (any longer).
    by : str or None
        The checkpoint that made it,
    n_classes : int
        and how many foreground classes that knows.
    """

    scan: Scan
    uncertainty: NDArray[np.uint8] | None
    by: str | None
    n_classes: int

    @classmethod
    def of(cls, state: ScanState) -> _OpenScan:
        """Return what is known now; it does not change afterwards."""
        card = state.proposers.get(state.proposed_by or "")
        if state.uncertainty is None or card is None or not state.uncertainty.any():
            return cls(state.scan, None, None, 0)
        return cls(state.scan, state.uncertainty.copy(), state.proposed_by, len(card.label_schema.classes))

    def features(self, labels: NDArray, planes: NDArray[np.bool_]) -> ProposalFeatures | None:
        """Return those of some planes of what was proposed; None where its uncertainty is not known."""
        if self.uncertainty is None:
            return None
        shown, unsure = self.scan.to_planes(labels)[planes], self.scan.to_planes(self.uncertainty)[planes]
        return proposal_features(shown, unsure, self.n_classes)


@dataclass(frozen=True, eq=False)
class _Measured:
    """What a scan adds to the prediction and to the cohort.

    Parameters
    ----------
    name : str
        Shown name.
    accepted_since : int
        Number of the event that began that; 0 where nothing is accepted.
    corrected : (ProposalFeatures, float) or None
        Of a proposal that was corrected, with its Dice, both on the slices that judge it.
    unseen : ProposalFeatures or None
        Of a proposal that nobody has looked at.
    member : CohortMember or None
        Where the whole scan has a mask: it was proposed, or accepted throughout.
    in_ml : bool
        Whether its volumes are in millilitres.
    """

    name: str
    accepted_since: int
    corrected: tuple[ProposalFeatures, float] | None
    unseen: ProposalFeatures | None
    member: CohortMember | None
    in_ml: bool


class _Survey:
    """Looks at what the journal tells of each scan, and at what is open of it.

    Parameters
    ----------
    journal : Journal
    schema : LabelSchema
        Whose classes are measured.
    model : Checkpoint or None
        In use: how unsure another one was, and what that learnt from, says nothing of this cohort.
    """

    def __init__(self, journal: Journal, schema: LabelSchema, model: Checkpoint | None) -> None:
        self._journal, self._schema, self._model = journal, schema, model

    def look(self, fingerprint: str, name: str, still: _OpenScan | None) -> _Measured | None:
        """Measure a scan; None where the journal knows nothing of it."""
        known, story = self._journal.scan(fingerprint), proposed(self._journal, fingerprint)
        if known is None or story is None:
            return None
        annotation = story.annotation
        whole = None
        if still is not None and still.by == story.by:
            whole = still.features(story.last, np.ones(len(annotation.accepted), bool))
        corrected = None
        # Where a proposal came after the scan was learnt from, it is that one that the uncertainty belongs to.
        if still is not None and whole is not None and story.is_only:
            dice, features = story.corrected(name).dice, still.features(story.first, story.judged)
            corrected = None if dice is None or features is None else (features, dice)
        is_unseen = not annotation.accepted.any() and not annotation.painted.any()
        spacing, voxel_volume = _grid(known, still)
        member = None
        if story.by is not None or annotation.accepted.all():
            measures = measure_classes(annotation.labels, self._schema, spacing, voxel_volume)
            has_doubt = whole is not None and self._model is not None and story.by == self._model.id
            doubt = whole.outline_doubt if whole is not None and has_doubt else None
            member = CohortMember(name, measures, doubt, self._intensities(still))
        return _Measured(
            name, story.accepted_since or 0, corrected, whole if is_unseen else None, member, spacing is not None
        )

    def _intensities(self, still: _OpenScan | None) -> tuple[float, ...]:
        if still is None or self._model is None or not self._model.card.intensities:
            return ()
        found = intensity_quantiles(PreparedScan(still.scan, self._model.card.settings.preparation))
        return tuple(float(value) for value in found)


def _grid(known: KnownScan, still: _OpenScan | None) -> tuple[tuple[float, ...] | None, float | None]:
    """Return spacing and volume of a voxel; nothing of pictures, which have no millilitres."""
    if len(known.shape) != 3:
        return None, None
    if still is not None:
        return still.scan.geometry.spacing, still.scan.geometry.voxel_volume
    return known.spacing, None


def _predicted(measured: Sequence[_Measured]) -> tuple[tuple[PredictedScan, ...], str]:
    """Return the Dice that what nobody has looked at probably has, and a sentence on what that lacks."""
    from napari_unet.evaluation.session_report import PredictedScan

    unseen = [(each.name, each.unseen) for each in measured if each.unseen is not None]
    if not unseen:
        return (), ""
    in_order = sorted(measured, key=lambda each: each.accepted_since)
    known = [each.corrected for each in in_order if each.corrected is not None]
    if not known:
        return (), (
            f"Nobody has looked at {len(unseen)} of the proposals, and their Dice cannot be predicted yet: that is "
            "learnt from scans that were corrected and are still open since they were proposed, and there is none."
        )
    calibration = DiceCalibration([features for features, _ in known], [dice for _, dice in known])
    found = [(name, calibration.predict(features)) for name, features in unseen]
    note = ""
    if len(known) < FEWEST_FOR_INTERVAL:
        note = (
            f"Too few corrections for intervals: they need {FEWEST_FOR_INTERVAL} scans that were corrected and are "
            f"still open since they were proposed, and there {'is' if len(known) == 1 else 'are'} {len(known)}."
        )
    return tuple(PredictedScan(name, each.dice, each.low, each.high) for name, each in found), note


def _flags(measured: Sequence[_Measured], card: ModelCard | None) -> list[Flag]:
    """Return what stands out among the scans that have a mask."""
    cohort = [each for each in measured if each.member is not None]
    # Millilitres and voxels are not compared: the more common unit is.
    in_ml = sum(each.in_ml for each in cohort) * 2 >= len(cohort)
    members = [each.member for each in cohort if each.member is not None and each.in_ml == in_ml]
    trained_on, spread = ((), 0.0) if card is None else (card.intensities, card.intensity_spread)
    return find_outliers(members, trained_on, spread, "mL" if in_ml else "voxels")


def _readers(found: list[tuple[Place, AuditCard]]) -> list[str]:
    return list({reader: None for _, card in found for reader in card.readers}) or ["nobody"]


def _shown(session: Session, judged: Iterable[ModelCard]) -> dict[str, str]:
    """Return what the scans that judged models are called, by their fingerprints; strangers are numbered too."""
    numbers = {place.scan: place.number for place in session.desk.places()}
    scans = {scan: None for card in judged for scan in card.scores}
    strangers = [scan for scan in scans if scan not in numbers]
    return {
        scan: f"scan {numbers[scan]}" if scan in numbers else f"another scan, {strangers.index(scan) + 1}"
        for scan in scans
    }


def _removed_cards(project: ProjectFolder) -> dict[str, ModelCard]:
    """Return the cards of models whose weights were deleted, but for files that cannot be read."""
    found = {}
    for name in project.removed_names():
        with suppress(OSError, ValueError):
            text = project.model_path(name).with_suffix(".json").read_text(encoding="utf-8")
            found[name] = ModelCard.model_validate_json(text)
    return found


def _history(session: Session, cards: dict[str, ModelCard]) -> History | None:
    from napari_unet.evaluation.session_report import History

    judged = {name: cards[name] for name in sorted(cards, key=lambda name: int(name[1:])) if cards[name].scores}
    if not judged:
        return None
    shown = _shown(session, judged.values())
    rows = {name: tuple(card.scores.get(scan) for card in judged.values()) for scan, name in shown.items()}
    # The slices that are held out of a scan may show nothing of any class: then they judge nobody.
    return History(tuple(judged), {name: row for name, row in rows.items() if any(dice is not None for dice in row)})


def _updates(session: Session, cards: dict[str, ModelCard]) -> list[Update]:
    """Return what became of the model in use, against the one that it grew from."""
    from napari_unet.evaluation.session_report import Update

    model, names = session.models.in_use, session.audits.model_names()
    old = None if model is None else cards.get(names.get(model.card.parent or "", ""))
    if model is None or old is None:
        return []
    new, shown = model.card, _shown(session, [model.card])
    scans = {shown[scan]: (old.scores.get(scan), dice) for scan, dice in new.scores.items() if dice is not None}
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
