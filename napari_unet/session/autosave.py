"""Annotations are written to the project a moment after they change, by a thread of their own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from napari_unet.domain.annotation import Correction
from napari_unet.domain.errors import ExportError, NapariUnetError, ScanError
from napari_unet.session.state import ScanState
from napari_unet.storage.project_folder import ProjectFolder, SavedAnnotation

_log = logging.getLogger(__name__)
# Strokes follow each other closely; waiting this long saves once for several, and loses no more than this.
_DELAY_SECONDS = 0.4


class Autosave:
    """Saves marked scans in the background; errors wait for :meth:`take_error`.

    The thread starts with the first mark. An annotation is copied under the lock that :meth:`apply` takes, so a file
    never holds half a correction. What could not be saved is tried again with the next change of any scan, and at the
    end; a scan that is opened again meanwhile goes on from it.

    Parameters
    ----------
    project : ProjectFolder
    failed : callable
        Called on the thread that saves, once there is an error to take.
    """

    def __init__(self, project: ProjectFolder, failed: Callable[[], None] = lambda: None) -> None:
        self._project, self._failed = project, failed
        self._dirty: dict[str, ScanState] = {}
        self._refused: set[str] = set()
        # Being written, and not written because the disk refused.
        self._underway: dict[str, ScanState] = {}
        self._unsaved: dict[str, ScanState] = {}
        self._changed = threading.Condition()
        self._steady = threading.Lock()
        self._writing = threading.Lock()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._errors: SimpleQueue[NapariUnetError] = SimpleQueue()

    def restore(self, state: ScanState) -> str | None:
        """Bring back what was saved for a scan; return what there is to say about it.

        A damaged file must stay as it is, so that such a scan is never saved.
        """
        scan = state.scan
        with self._changed:
            left = self._unsaved.get(scan.fingerprint)
        # A header corrected meanwhile may name another plane.
        if left is not None and left.annotation.slice_axis == scan.slice_axis:
            state.annotation, state.locked, state.taught = left.annotation, left.locked, left.taught
            self.mark(state)
            return f"{state.name}: your labels are back, but they could not be saved yet."
        self._refused.discard(scan.fingerprint)
        try:
            saved = self._project.read_annotation(scan.fingerprint, scan.spatial_shape, scan.slice_axis)
        except ScanError as error:
            self._refused.add(scan.fingerprint)
            return f"{error} Nothing new on {state.name} is saved by itself until you move that file: export often."
        if saved is None:
            return None
        if saved.annotation.labels.dtype.itemsize < state.annotation.labels.dtype.itemsize:
            saved.annotation.labels = saved.annotation.labels.astype(state.annotation.labels.dtype)
        state.annotation, state.locked, state.taught = saved.annotation, saved.locked, saved.taught
        n = state.n_accepted
        return f"{state.name}: your labels of last time are back ({n} slice{'s' if n != 1 else ''} accepted)."

    def apply(self, state: ScanState, correction: Correction) -> None:
        """Carry out a correction while nothing copies the annotation, and note that it has changed."""
        with self._steady:
            state.annotation.apply(correction)
        self.mark(state)

    def mark(self, state: ScanState) -> None:
        """Note that an annotation has changed."""
        if state.scan.fingerprint in self._refused:
            if self._project.has_annotation(state.scan.fingerprint):
                return
            self._refused.discard(state.scan.fingerprint)
        with self._changed:
            self._dirty |= self._unsaved
            self._unsaved.clear()
            self._dirty[state.scan.fingerprint] = state
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="napari-unet-autosave", daemon=True)
                self._thread.start()
            self._changed.notify()

    def flush(self, state: ScanState) -> bool:
        """Save one scan now, if it has changed; return whether all of it is saved."""
        key = state.scan.fingerprint
        with self._changed:
            changed = self._dirty.pop(key, None) or self._unsaved.pop(key, None) or self._underway.get(key)
        if changed is not None:
            self._save(changed)
        return key not in self._unsaved and key not in self._refused

    def close(self) -> None:
        """Save what is unsaved and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        for state in list(self._unsaved.values()):
            self._save(state)

    def take_error(self) -> NapariUnetError | None:
        """Return the oldest error not yet taken."""
        return None if self._errors.empty() else self._errors.get()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._dirty or self._closing)
                if not self._closing:
                    self._changed.wait_for(lambda: self._closing, _DELAY_SECONDS)
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
                with self._steady:
                    saved = SavedAnnotation(state.annotation.copy(), state.locked.copy(), state.taught.copy())
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
            self._errors.put(error)
            self._failed()
