"""What is said about scans is kept: every change in the project's journal at once, and now and then the whole.

The journal is the truth. The file with a scan's whole annotation is a shortcut, so that opening it need not begin with
the first stroke: it carries the number of the journal's last event that it surely holds, and what came after is carried
out again, which changes nothing where it was there already.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from napari_unet.domain.annotation import Correction
from napari_unet.domain.errors import NapariUnetError
from napari_unet.session.annotation_writer import AnnotationWriter
from napari_unet.session.ledger import Ledger
from napari_unet.session.preferences import Preferences
from napari_unet.session.recalling import recall
from napari_unet.session.state import ScanState
from napari_unet.storage.journal import Entry
from napari_unet.storage.project_folder import ProjectFolder

#: Environment variable with the name under which a person's work is recorded.
READER_VARIABLE = "NAPARI_UNET_READER"
_NOBODY = "reader"


def reader_name() -> str:
    """Return the name under which work is recorded: what the environment says, or the person chose, or nobody's."""
    return os.environ.get(READER_VARIABLE) or Preferences.read().reader or _NOBODY


class Autosave:
    """Keeps what is said about scans, in the background; errors wait for :meth:`take_error`.

    Each change goes to the ledger and marks the scan for the writer of whole annotations, which copies under the lock
    that :meth:`apply` takes. A scan that is opened again before it could be saved goes on from what is unsaved.

    Parameters
    ----------
    project : ProjectFolder
    failed : callable
        Called on the thread that saves, once there is an error to take.
    reader : str, optional
        Under which name work is recorded; by default :func:`reader_name`.

    Attributes
    ----------
    ledger : Ledger
        What is handed to the journal; for what changes no scan.
    """

    def __init__(
        self, project: ProjectFolder, failed: Callable[[], None] = lambda: None, reader: str | None = None
    ) -> None:
        self._project, self._failed = project, failed
        self._steady = threading.Lock()
        self._errors: SimpleQueue[NapariUnetError] = SimpleQueue()
        self.ledger = Ledger(project, reader or reader_name(), self._complain)
        self._writer = AnnotationWriter(project, self._steady, self.ledger.settle, self._complain)

    def restore(self, state: ScanState) -> str | None:
        """Bring back what was saved for a scan; return what there is to say about it.

        What fits no scan, or cannot be understood, must stay as it is, so that such a scan is never saved.
        """
        scan = state.scan
        left = self._writer.unsaved(scan.fingerprint)
        # A header corrected meanwhile may name another plane.
        if left is not None and left.annotation.slice_axis == scan.slice_axis:
            state.annotation, state.locked, state.taught = left.annotation, left.locked, left.taught
            self.mark(state)
            return f"{state.name}: your labels are back, but they could not be saved yet."
        self.ledger.refuse_no_more(scan.fingerprint)
        locked = self.ledger.take_lock() if self._project.path.is_dir() else None
        try:
            recalled = recall(self._project, scan)
        except NapariUnetError as error:
            self.ledger.refuse(scan.fingerprint)
            return f"{error} Nothing new on {state.name} is saved by itself until you move that file: export often."
        self.ledger.take_up(state, recalled)
        state.flag = recalled.flag
        saved, n_since = recalled.saved, recalled.n_since
        if saved is None:
            return locked
        if recalled.in_journal and recalled.since is None:
            self._writer.begin_at(state, saved.seq)
        if saved.annotation.labels.dtype.itemsize < state.annotation.labels.dtype.itemsize:
            saved.annotation.labels = saved.annotation.labels.astype(state.annotation.labels.dtype)
        state.annotation, state.locked, state.taught = saved.annotation, saved.locked, saved.taught
        n = state.n_accepted
        said = f"{state.name}: your labels of last time are back ({n} slice{'s' if n != 1 else ''} accepted)."
        if n_since:
            said += f" The last {n_since} changes came from the journal." if n_since > 1 else " The last change too."
        return said if locked is None else f"{said} {locked}"

    def apply(self, state: ScanState, correction: Correction, action: str | None = None) -> None:
        """Carry out a correction while nothing copies the annotation, and keep it.

        Parameters
        ----------
        state : ScanState
        correction : Correction
        action : str, optional
            What it is to be called in the journal; by default as the correction is.
        """
        with self._steady:
            self.ledger.begin(state)
            state.apply(correction)
            # Of what is undone or done again, what that was: a proposal's voxels are nobody's hand's.
            facts = None if action is None else {"of": correction.kind}
            entry = Entry(action or correction.kind, correction=correction, model=correction.proposal, facts=facts)
            self.ledger.put(state, entry)
        self._mark(state)

    def note_on(self, state: ScanState, action: str, facts: dict[str, Any]) -> None:
        """Keep something that was said of a scan and changed none of its labels."""
        with self._steady:
            self.ledger.begin(state)
            self.ledger.put(state, Entry(action, facts=facts))

    def mark(self, state: ScanState) -> None:
        """Note that it has changed which slices of a scan judge, or have taught."""
        with self._steady:
            self.ledger.begin(state)
            self.ledger.put_sides(state)
        self._mark(state)

    def _mark(self, state: ScanState) -> None:
        if not self.ledger.only_reads and not self.ledger.still_refuses(state):
            self._writer.mark(state)

    def flush(self, state: ScanState) -> bool:
        """Save one scan now, if it has changed; return whether all of it is saved."""
        is_written = self._writer.flush(state)
        return is_written and not self.ledger.has_refused(state.scan.fingerprint) and not self.ledger.only_reads

    def close(self) -> None:
        """Save what is unsaved, end the threads, and let other programs write."""
        self._writer.close()
        self.ledger.close()

    def take_error(self) -> NapariUnetError | None:
        """Return the oldest error not yet taken."""
        return None if self._errors.empty() else self._errors.get()

    def _complain(self, error: NapariUnetError) -> None:
        self._errors.put(error)
        self._failed()
