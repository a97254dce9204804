"""Masking a folder of scans with the model in use, while the person goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_unet.domain.errors import SessionError
from napari_unet.session.folder_run import FolderRun
from napari_unet.session.predicting import MaskFolder, Outcome, Target, find_targets
from napari_unet.session.worker import Worker

if TYPE_CHECKING:
    from napari_unet.session.session import Session


class FolderMasking:
    """The folder that is being masked, or the last one.

    Parameters
    ----------
    session : Session
        Whose model in use masks.
    worker : Worker

    Attributes
    ----------
    run : FolderRun or None
        None before any.
    """

    changed = Signal()  # a folder was begun, went on, or ended: read ``run``

    def __init__(self, session: Session, worker: Worker) -> None:
        self._session, self._worker = session, worker
        self.run: FolderRun | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing is under way."""
        return self.run is None or self.run.is_over

    def begin(self, source: Path, out: Path) -> None:
        """Let the model in use mask every scan of a folder, in the background; what is masked already is left.

        Raises
        ------
        SessionError
            There is no model, or a folder is under way. What else is wrong is notified.
        """
        model = self._session.models.in_use
        if not self.is_over:
            raise SessionError("A folder is being masked: wait for it, or stop it first.")
        if model is None or model.card.steps == 0:
            raise SessionError("There is no model yet that could mask a folder: fine-tune one, or choose one.")
        if out.resolve() == source.resolve():
            raise SessionError("The masks need a folder of their own: choose another one.")

        def find() -> list[Target]:
            # Masks of an earlier run, in a folder below the scans, are no scans.
            return [each for each in find_targets([source]) if not each.source.resolve().is_relative_to(out.resolve())]

        into = MaskFolder(out, model, {}, format_name=None)
        self.run = FolderRun(self._worker, find, into, self._moved)
        self.changed.emit()

    def cancel(self) -> None:
        """Stop; what has been written stays, and the next run goes on from there."""
        if self.run is not None:
            self.run.cancel()

    def wait(self, timeout: float | None = None) -> None:
        """Poll until nothing is under way."""
        if self.run is not None:
            self.run.wait(timeout)

    def _moved(self, outcome: Outcome | None) -> None:
        run = self.run
        if outcome is None and run is not None:
            if run.error is not None:
                self._session.tell(str(run.error))
            elif run.is_whole:
                self._session.tell(run.in_words())
        self.changed.emit()
