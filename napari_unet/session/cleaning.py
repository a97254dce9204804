"""Cleaning up the labels of a scan: asked of the engine, held as a preview, applied as one step."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

from napari_unet.compute.engine import Engine
from napari_unet.compute.jobs import clean
from napari_unet.domain.annotation import Correction, SparseChange
from napari_unet.domain.errors import NapariUnetError, SessionError
from napari_unet.domain.settings import AfterCareSettings
from napari_unet.session.proposing import ProposalRun
from napari_unet.session.state import ScanState
from napari_unet.session.worker import Worker, wait_until

if TYPE_CHECKING:
    from napari_unet.session.session import Session

KIND = "clean-up"

# Takes what would change, or None where that is not known: the labels have changed since, or it failed.
_Take = Callable[[SparseChange | None], None]


class CleanUp:
    """After-care of the active scan's labels, looked at before it is applied; and of proposals, once they are whole.

    Accepted slices and voxels painted by hand keep their labels; what the person asks for leaves locked classes alone,
    too. An answer about labels that have changed since is of no use: what hung by a thread may be one piece now.

    Parameters
    ----------
    session : Session
        Whose active scan counts, and that is told of what goes wrong.
    worker : Worker
    commit : callable
        Carries out a correction of a scan.
    """

    changed = Signal()  # asked for, known, or out of date: read ``preview``

    def __init__(self, session: Session, worker: Worker, commit: Callable[[ScanState, Correction], None]) -> None:
        self._session, self._worker, self._commit = session, worker, commit
        self._n_asked = 0
        # Which question the person waits for the answer of; None: none.
        self._awaited: object | None = None
        self._preview: tuple[ScanState, SparseChange] | None = None
        self._versions: WeakKeyDictionary[ScanState, int] = WeakKeyDictionary()
        session.labels_changed.connect(lambda change: self._changed(change.state))
        session.acceptance_changed.connect(self._changed)
        session.active_changed.connect(self.dismiss)

    @property
    def is_over(self) -> bool:
        """Whether nothing is under way."""
        return self._n_asked == 0

    @property
    def is_looking(self) -> bool:
        """Whether a preview is under way."""
        return self._awaited is not None

    @property
    def preview(self) -> tuple[ScanState, SparseChange] | None:
        """The active scan, and what would change in it; None where nothing was asked or it has changed since."""
        return self._preview

    def look(self, settings: AfterCareSettings) -> None:
        """Find out what after-care would change in the active scan; :attr:`changed` tells when.

        Raises
        ------
        SessionError
            No scan is open, or nothing was asked for.
        """
        state = self._session.active
        if state is None:
            raise SessionError("No scan is open: there is nothing to clean up.")
        if not settings.does_something:
            raise SessionError("Nothing is to be done: choose what to clean up first.")
        # Not cancelled where one is under way: to stop it within its seconds would mean to kill the worker.
        self._session.tools.dismiss()  # of two previews one would be shown and the other applied
        question = self._awaited = object()
        self._preview = None

        def show(change: SparseChange | None) -> None:
            if self._awaited is not question:
                return
            self._awaited = None
            if change is not None:
                self._preview = state, self._unlocked(change)
            else:
                self._session.tell("The labels have changed meanwhile: press Preview again.")
            self.changed.emit()

        self._ask(state, settings, show)
        self.changed.emit()

    def apply(self) -> None:
        """Carry out what was previewed, as one step that undo takes back."""
        if self._preview is None:
            raise SessionError("The labels have changed since: press Preview again.")
        state, change = self._preview
        # Something may have been locked since.
        correction = Correction(KIND, labels=self._unlocked(change))
        state.history.add(correction)
        self._commit(state, correction)

    def _unlocked(self, change: SparseChange) -> SparseChange:
        free = ~self._session.tools.forbidden(change.before, change.after)
        return SparseChange(change.indices[free], change.before[free], change.after[free])

    def dismiss(self) -> None:
        """Forget the preview, and the one that is awaited."""
        self._awaited = self._preview = None
        self.changed.emit()

    def after(self, run: ProposalRun, settings: AfterCareSettings) -> None:
        """Clean up a proposal that is whole, as part of its step."""
        state, by = run.state, run.state.proposed_by

        def put(change: SparseChange | None) -> None:
            # What was taken back meanwhile has nothing to be cleaned up.
            if run.step.corrections and not state.history.stands(run.step):
                return
            if change is None:
                self._ask(state, settings, put)
                return
            correction = Correction("proposal", labels=change, proposal=by)
            if not correction.is_empty:
                run.put(correction)
                self._commit(state, correction)

        self._ask(state, settings, put)

    def wait(self, engine: Engine, timeout: float | None = None) -> None:
        """Poll until nothing is under way."""
        wait_until(lambda: self.is_over, engine, timeout, "the clean-up")

    def _ask(self, state: ScanState, settings: AfterCareSettings, take: _Take) -> None:
        key, version, engine = f"labels-{uuid.uuid4().hex}", self._version(state), self._worker.engine
        self._n_asked += 1

        def over() -> None:
            self._n_asked -= 1
            engine.forget(key)

        def finished(change: SparseChange) -> None:
            over()
            if state in self._session.scans:
                take(_allowed(state, change) if self._version(state) == version else None)

        def failed(error: NapariUnetError) -> None:
            over()
            self._session.tell(str(error))
            self.dismiss()

        labels = engine.share(key, state.annotation.labels.copy())
        engine.submit(
            clean, labels, state.scan.geometry.spacing, settings, on_result=finished, on_error=failed, on_cancelled=over
        )

    def _version(self, state: ScanState) -> int:
        return self._versions.get(state, 0)

    def _changed(self, state: ScanState) -> None:
        self._versions[state] = self._version(state) + 1
        if self._preview is not None and self._preview[0] is state:
            self._preview = None
            self.changed.emit()


def _allowed(state: ScanState, change: SparseChange) -> SparseChange:
    """Return what of a change may be carried out: not over the person's word."""
    annotation = state.annotation
    free: NDArray[np.bool_] = ~annotation.painted.flat[change.indices]
    if annotation.slice_axis is None:
        free &= not annotation.accepted[0]
    else:
        where = np.unravel_index(change.indices, annotation.labels.shape)[annotation.slice_axis]
        free &= ~annotation.accepted[where]
    return SparseChange(change.indices[free], change.before[free], change.after[free])
