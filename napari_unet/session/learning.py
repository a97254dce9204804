"""Fine-tuning in the background, and the person's decision on what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_unet.compute.engine import Engine
from napari_unet.domain.errors import NapariUnetError, SessionError
from napari_unet.session.improving import FineTuneRun
from napari_unet.session.state import ScanState
from napari_unet.session.verdict import Verdict, with_history
from napari_unet.session.worker import Worker
from napari_unet.storage.verify import KEPT

if TYPE_CHECKING:
    from napari_unet.session.session import Session


class Learning:
    """The fine-tune under way or the last one, and its verdict until the person has decided.

    Parameters
    ----------
    session : Session
        Whose scans teach, as its plan says, and whose project keeps the checkpoints.
    worker : Worker
    mark : callable
        Keeps that slices of a scan have taught.

    Attributes
    ----------
    run : FineTuneRun or None
        None before any.
    verdict : Verdict or None
        On a new model that waits for :meth:`use_new` or :meth:`keep_old`.
    """

    changed = Signal()  # started, went on, or ended: read ``run``
    verdict_changed = Signal()  # read ``verdict``

    def __init__(self, session: Session, worker: Worker, mark: Callable[[ScanState], None]) -> None:
        self._session, self._worker, self._mark = session, worker, mark
        self.run: FineTuneRun | None = None
        self.verdict: Verdict | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing is under way."""
        return self.run is None or self.run.is_over

    def begin(self, budget_seconds: float | None = None, steps: int | None = None) -> None:
        """Train in the background on everything reviewed so far, with the settings that are planned.

        Parameters
        ----------
        budget_seconds : float, optional
            Wall time from now on, unless ``steps`` is given; as before without.
        steps : int, optional
            Exactly so many steps instead, this time.

        Raises
        ------
        SessionError
            A training is running, or nothing has been reviewed.
        SettingsError
            What was set by hand does not fit the plan.
        """
        session, planning = self._session, self._session.planning
        if not self.is_over:
            raise SessionError("A fine-tune is running already: wait for it or cancel it first.")
        taught = planning.lessons()
        if not taught:
            raise SessionError(
                "Nothing has been reviewed yet, so there is nothing to learn from: paint on a slice or accept one."
            )
        if budget_seconds is not None:
            planning.set_budget(budget_seconds)
        settings = planning.settings()
        if steps is not None:
            settings = settings.with_values({"training.budget_seconds": None, "training.steps": steps})
        name = session.project.next_model_name()
        # A scan that holds judges is looked at by nobody who learns.
        others = [state.scan for state in session.scans if state not in taught and not state.locked.any()]
        base = session.models.in_use or planning.body()
        run = FineTuneRun(self._worker, taught, session.schema, settings, base, name, self._moved, others)
        self.run, self.verdict = run, None
        for state in taught:
            self._mark(state)
        self.verdict_changed.emit()
        self.changed.emit()

    def cancel(self) -> None:
        """Stop training; the model in use stays as it is."""
        if self.run is not None:
            self.run.cancel()

    def use_new(self) -> None:
        """Take the fine-tuned checkpoint into use."""
        if self.verdict is not None:
            checkpoint = self.verdict.checkpoint
            self._session.models.use(checkpoint, learnt_here=True)
            self._session.ledger.note("model used", checkpoint.id, name=checkpoint.card.name)
            self.verdict = None
            self.verdict_changed.emit()

    def keep_old(self) -> None:
        """Stay with the model in use; the new one is kept on disk."""
        self.verdict = None
        self.verdict_changed.emit()

    def wait(self, engine: Engine, timeout: float | None = None) -> None:
        """Poll until nothing is under way."""
        if self.run is not None:
            self.run.wait(engine, timeout)

    def _moved(self, verdict: Verdict | None, error: NapariUnetError | None) -> None:
        session = self._session
        if error is not None:
            session.tell(str(error))
        if verdict is not None:
            try:
                kept = session.project.write_model(verdict.checkpoint)
                session.ledger.note(KEPT, kept.id, name=kept.card.name, parent=kept.card.parent)
                verdict = replace(verdict, checkpoint=kept)
            except NapariUnetError as problem:
                session.tell(str(problem))
            self.verdict = with_history(verdict, session.project.scores(verdict.checkpoint.card.label_schema))
        self.changed.emit()
        if verdict is not None:
            self.verdict_changed.emit()
