"""Asking the model in use for proposals, one at a time, and putting into the session what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_unet.compute.engine import Engine
from napari_unet.domain.annotation import Correction
from napari_unet.domain.errors import NapariUnetError, SessionError
from napari_unet.domain.proposal import Proposal
from napari_unet.session.history import Step
from napari_unet.session.proposing import WORSE_THAN_NOTHING, ProposalRun
from napari_unet.session.state import ScanState
from napari_unet.session.worker import Worker

if TYPE_CHECKING:
    from napari_unet.session.session import Session


class Proposals:
    """The proposal under way, or the last one.

    Parameters
    ----------
    session : Session
        Whose active scan is proposed for, with its model in use.
    worker : Worker
    commit : callable
        Carries out a correction of a scan.

    Attributes
    ----------
    run : ProposalRun or None
        None before any.
    """

    changed = Signal()  # started, went on, or ended: read ``run``
    uncertainty_changed = Signal(ScanState)

    def __init__(self, session: Session, worker: Worker, commit: Callable[[ScanState, Correction], None]) -> None:
        self._session, self._worker, self._commit = session, worker, commit
        self.run: ProposalRun | None = None
        self._said: set[tuple[str, str, str]] = set()  # notes on proposals: scan, model, what
        self._doubted: set[str] = set()  # models of which it has been said that their proposals do not help

    @property
    def is_over(self) -> bool:
        """Whether nothing is under way."""
        return self.run is None or self.run.is_over

    def begin(self) -> None:
        """Let the model propose labels for the active scan, the slice on screen first.

        Accepted slices and voxels painted by hand are never overwritten.

        Raises
        ------
        SessionError
            No scan; no model that has learnt anything; or one whose forerunners spared no work on the last two new
            scans: that is said once for each model, and the next call proposes.
        """
        state, model = self._session.active, self._session.models.in_use
        if state is None:
            raise SessionError("No scan is open: drop a scan onto the window, or use File > Open.")
        if model is None or model.card.steps == 0:
            raise SessionError(
                "There is no model yet: paint on a slice or two, accept them, and press Fine-tune. Then it can propose."
            )
        if model.card.is_worse_than_nothing and model.id not in self._doubted:
            self._doubted.add(model.id)
            raise SessionError(WORSE_THAN_NOTHING)
        if not self.is_over:
            self.cancel()
        state.proposers[model.id] = model.card
        self._forget_uncertainty(state)
        state.before_proposal = state.annotation.labels.copy()
        self.run = ProposalRun(
            self._worker, state, model, self._session.visible_slice, self._take_slab, self._proposal_moved
        )
        self.changed.emit()

    def make_ready(self) -> None:
        """Have the engine, if it is up, measure the active scan for the model in use: a proposal may be next."""
        state, model = self._session.active, self._session.models.in_use
        if state is not None and model is not None and model.card.steps > 0:
            self._worker.make_ready(state.scan, model)

    def look_at(self, state: ScanState | None, index: int) -> None:
        """Propose near this slice of a scan first."""
        if self.run is not None and self.run.state is state:
            self.run.look_at(index)

    def cancel(self, *, take_back: bool = False) -> None:
        """Stop proposing; what has arrived stays, unless it is to be taken back.

        It can only be taken back as long as nothing was done since: later steps stand on it.

        Raises
        ------
        SessionError
            Something was painted or accepted since; the proposal is stopped all the same.
        """
        run = self.run
        if run is None:
            return
        run.cancel()
        steps = [step for step in run.steps if step.corrections]
        if take_back and steps:
            if not run.state.history.are_latest(steps):
                raise SessionError(
                    "You have worked on the scan since: what was proposed stays. Undo takes back your steps, then it."
                )
            for _ in steps:
                self._session.undo(run.state)

    def cancel_for(self, state: ScanState) -> None:
        """Stop proposing for a scan, where that is under way."""
        if self.run is not None and self.run.state is state:
            self.cancel()

    def make_way_for_undo(self, state: ScanState, step: Step) -> None:
        """Prepare for a step of a scan being taken back: stop what adds to it, forget what was said with it."""
        if self.run is not None and self.run.step is step:
            # The rest of it would come back over what is about to be taken away.
            self.cancel()
        if step.by_machine and step.kind == "proposal":
            self._forget_uncertainty(state)

    def wait(self, engine: Engine, timeout: float | None = None) -> None:
        """Poll until nothing is under way."""
        if self.run is not None:
            self.run.wait(engine, timeout)

    def _forget_uncertainty(self, state: ScanState) -> None:
        """What one proposal said of itself must not stand beside another, or beside none."""
        if state.uncertainty is not None:
            state.uncertainty.fill(0)
            self.uncertainty_changed.emit(state)

    def _take_slab(self, state: ScanState, correction: Correction, proposal: Proposal) -> None:
        for note in proposal.notes:
            if (said := (state.name, proposal.checkpoint, note)) not in self._said:
                self._said.add(said)
                self._session.tell(f"{state.name}: {note}")
        if state in self._session.scans:
            state.proposed_by = proposal.checkpoint
            self._commit(state, correction)
            state.put_uncertainty(proposal)
            self.uncertainty_changed.emit(state)

    def _proposal_moved(self, error: NapariUnetError | None) -> None:
        if error is not None:
            self._session.tell(str(error))
        run = self.run
        if run is not None and run.is_whole and run.after_care.does_something:
            self._session.clean_up.after(run, run.after_care)
        self.changed.emit()
