"""The files with scans' whole annotations, written in the background when the hand rests."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from napari_unet.domain.errors import ExportError, NapariUnetError
from napari_unet.session.state import ScanState
from napari_unet.storage.project_folder import ProjectFolder, SavedAnnotation

_log = logging.getLogger(__name__)
# The journal has it already, and to copy a large scan's labels holds the hand up: while strokes follow each other they
# are not written, but for once in a while.
_REST_SECONDS, _LONGEST_SECONDS = 3.0, 60.0


class AnnotationWriter:
    """Writes whole annotations on a thread of its own, which starts with the first change.

    What could not be saved is tried again with the next change of any scan, and at the end.

    Parameters
    ----------
    project : ProjectFolder
    steady : Lock
        Held by whoever changes an annotation: under it the copy is made, so that a file never holds half a correction.
    settle : callable
        Waits a little for the journal, and returns the number of the last event that it surely holds.
    complain : callable
        Called with each error, on the thread that saves.
    """

    def __init__(
        self,
        project: ProjectFolder,
        steady: threading.Lock,
        settle: Callable[[], int],
        complain: Callable[[NapariUnetError], None],
    ) -> None:
        self._project, self._steady, self._settle, self._complain = project, steady, settle, complain
        self._seq: dict[str, int] = {}  # of the last event that was there when a scan was opened
        self._dirty: dict[str, ScanState] = {}
        # Being written, and not written because the disk refused.
        self._underway: dict[str, ScanState] = {}
        self._unsaved: dict[str, ScanState] = {}
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._closing = False
        self._n_marks = 0
        self._thread: threading.Thread | None = None

    def begin_at(self, state: ScanState, seq: int) -> None:
        """Take note that a scan, as it is opened, holds all events up to this one."""
        self._seq[state.scan.fingerprint] = seq

    def unsaved(self, fingerprint: str) -> ScanState | None:
        """Return the scan with this fingerprint whose annotation could not be written; None where there is none."""
        with self._changed:
            return self._unsaved.get(fingerprint)

    def mark(self, state: ScanState) -> None:
        """Write a scan's annotation, soon."""
        with self._changed:
            self._dirty |= self._unsaved
            self._unsaved.clear()
            self._dirty[state.scan.fingerprint] = state
            self._n_marks += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="napari-unet-autosave", daemon=True)
                self._thread.start()
            self._changed.notify()

    def flush(self, state: ScanState) -> bool:
        """Write a scan's annotation now, if it has changed; return whether nothing of it is left to be written."""
        key = state.scan.fingerprint
        with self._changed:
            changed = self._dirty.pop(key, None) or self._unsaved.pop(key, None) or self._underway.get(key)
        if changed is not None:
            self._save(changed)
        return key not in self._unsaved

    def close(self) -> None:
        """Write what is unsaved, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        for state in list(self._unsaved.values()):
            self._save(state)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._dirty or self._closing)
                latest = time.monotonic() + _LONGEST_SECONDS
                while not self._closing and time.monotonic() < latest:
                    n_marks = self._n_marks
                    self._changed.wait(_REST_SECONDS)
                    if self._n_marks == n_marks:
                        break
                self._underway, self._dirty = self._dirty, {}
                closing = self._closing
            for state in list(self._underway.values()):
                self._save(state)
            with self._changed:
                self._underway = {}
            if closing:
                return

    def _save(self, state: ScanState) -> None:
        try:
            # One writer at a time, or an older copy could take the place of a newer one.
            with self._writing:
                # Asked for first: the copy holds that event, and perhaps some that are on their way to the journal.
                seq = max(self._settle(), self._seq.get(state.scan.fingerprint, 0))
                with self._steady:
                    saved = SavedAnnotation(state.annotation.copy(), state.locked.copy(), state.taught.copy(), seq)
                self._project.write_annotation(state.scan.fingerprint, saved)
        except Exception as error:
            if not isinstance(error, NapariUnetError):
                _log.exception("autosave failed")
                error = ExportError(
                    "Your labels could not be saved (the details are in the log): they are still in the window; export "
                    "them elsewhere."
                )
            with self._changed:
                self._unsaved[state.scan.fingerprint] = state
            self._complain(error)
