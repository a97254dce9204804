"""Cleaning up the labels of a scan: asked of the engine, held as a preview, applied as one step."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_unet.compute.engine import Engine, Job
from napari_unet.compute.jobs import clean
from napari_unet.domain.annotation import Correction, SparseChange
from napari_unet.domain.errors import NapariUnetError, SessionError
from napari_unet.domain.progress import Notice
from napari_unet.domain.settings import AfterCareSettings
from napari_unet.session.proposing import ProposalRun
from napari_unet.session.state import ScanState
from napari_unet.session.worker import Worker, wait_until

if TYPE_CHECKING:
    from napari_unet.session.session import Session

KIND = "clean-up"


class CleanUp:
    """After-care of the active scan's labels, looked at before it is applied; and of proposals, once they are whole.

    Accepted slices and voxels painted by hand keep their labels.

    Parameters
    ----------
    session : Session
        Whose active scan counts, and that is told of what goes wrong.
    worker : Worker
    commit : callable
        Carries out a correction of a scan.
    """

    def __init__(self, session: Session, worker: Worker, commit: Callable[[ScanState, Correction], None]) -> None:
        self._session, self._worker, self._commit = session, worker, commit
        self._job: Job | None = None
        self._key = ""
        self._preview: tuple[ScanState, SparseChange] | None = None
        session.labels_changed.connect(lambda change: self._outdated(change.state))
        session.acceptance_changed.connect(self._outdated)
        session.scan_removed.connect(self._outdated)

    @property
    def is_over(self) -> bool:
        """Whether nothing is under way."""
        return self._job is None

    @property
    def preview(self) -> tuple[ScanState, SparseChange] | None:
        """The scan that was looked at last, and what would change in it; None where nothing would stand any more."""
        return self._preview

    def look(self, settings: AfterCareSettings) -> None:
        """Find out what after-care would change in the active scan; ``session.clean_up_changed`` tells when.

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
        self._ask(state, settings, lambda change: self._show(state, change))

    def apply(self) -> None:
        """Carry out what was previewed, as one step that undo takes back."""
        if self._preview is None:
            raise SessionError("The labels have changed since: press Preview again.")
        state, change = self._preview
        correction = Correction(KIND, labels=change)
        state.history.add(correction)
        self._commit(state, correction)

    def dismiss(self) -> None:
        """Forget the preview."""
        self._stop()
        self._set(None)

    def after(self, run: ProposalRun, settings: AfterCareSettings) -> None:
        """Clean up a proposal that is whole, as part of its step."""
        state = run.state

        def put(change: SparseChange) -> None:
            correction = Correction("proposal", labels=change, proposal=state.proposed_by)
            if not correction.is_empty:
                state.history.extend(run.step, correction)
                self._commit(state, correction)

        self._ask(state, settings, put)

    def wait(self, engine: Engine, timeout: float | None = None) -> None:
        """Poll until nothing is under way."""
        wait_until(lambda: self.is_over, engine, timeout, "the clean-up")

    def _ask(self, state: ScanState, settings: AfterCareSettings, take: Callable[[SparseChange], None]) -> None:
        self.dismiss()
        labels = state.annotation.labels.copy()
        self._key = f"labels-{uuid.uuid4().hex}"
        engine = self._worker.engine

        def finished(change: SparseChange) -> None:
            self._over()
            if state in self._session.scans:
                take(_allowed(state, change))

        def failed(error: NapariUnetError) -> None:
            self._over()
            self._session.notified.emit(Notice(str(error)))

        self._job = engine.submit(
            clean,
            engine.share(self._key, labels),
            state.scan.geometry.spacing,
            settings,
            on_result=finished,
            on_error=failed,
        )
        self._session.clean_up_changed.emit()

    def _over(self) -> None:
        self._job = None
        self._worker.engine.forget(self._key)

    def _stop(self) -> None:
        if self._job is not None:
            self._job.cancel()
            self._over()

    def _show(self, state: ScanState, change: SparseChange) -> None:
        self._set((state, change))

    def _outdated(self, state: ScanState) -> None:
        if self._preview is not None and self._preview[0] is state:
            self._set(None)

    def _set(self, preview: tuple[ScanState, SparseChange] | None) -> None:
        if preview is not None or self._preview is not None:
            self._preview = preview
            self._session.clean_up_changed.emit()


def _allowed(state: ScanState, change: SparseChange) -> SparseChange:
    """Return what of a change may be carried out: not over the person's word, and not over what has changed since."""
    annotation = state.annotation
    now = annotation.labels.flat[change.indices]
    free: NDArray[np.bool_] = ~annotation.painted.flat[change.indices] & (now == change.before)
    if annotation.slice_axis is None:
        free &= not annotation.accepted[0]
    else:
        where = np.unravel_index(change.indices, annotation.labels.shape)[annotation.slice_axis]
        free &= ~annotation.accepted[where]
    return SparseChange(change.indices[free], change.before[free], change.after[free])
