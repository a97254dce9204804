"""What is said about scans is kept: every change in the project's journal at once, and now and then the whole.

The journal is the truth. The file with a scan's whole annotation is a shortcut, so that opening it need not begin with
the first stroke: it carries the number of the journal's last event that it surely holds, and what came after is carried
out again, which changes nothing where it was there already.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import numpy as np

from napari_unet.domain.annotation import Annotation, Correction
from napari_unet.domain.errors import ExportError, NapariUnetError, ProjectError, ScanError
from napari_unet.session.journaling import Journaling
from napari_unet.session.preferences import Preferences
from napari_unet.session.state import Flag, ScanState
from napari_unet.storage.audit import FLAG
from napari_unet.storage.desk import Desk, Place
from napari_unet.storage.journal import Entry, Journal, KnownScan, Sides
from napari_unet.storage.project_folder import ProjectFolder, SavedAnnotation

_log = logging.getLogger(__name__)
# The journal has it already, and to copy a large scan's labels holds the hand up: while strokes follow each other they
# are not written, but for once in a while.
_REST_SECONDS, _LONGEST_SECONDS = 3.0, 60.0
#: Environment variable with the name under which a person's work is recorded.
READER_VARIABLE = "NAPARI_UNET_READER"
_NOBODY = "reader"


def reader_name() -> str:
    """Return the name under which work is recorded: what the environment says, or the person chose, or nobody's."""
    return os.environ.get(READER_VARIABLE) or Preferences.read().reader or _NOBODY


class Autosave:
    """Keeps what is said about scans, in the background; errors wait for :meth:`take_error`.

    The threads start with the first change. An annotation is copied under the lock that :meth:`apply` takes, so a file
    never holds half a correction. What could not be saved is tried again with the next change of any scan, and at the
    end; a scan that is opened again meanwhile goes on from it.

    Parameters
    ----------
    project : ProjectFolder
    failed : callable
        Called on the thread that saves, once there is an error to take.
    """

    def __init__(
        self, project: ProjectFolder, failed: Callable[[], None] = lambda: None, reader: str | None = None
    ) -> None:
        self._project, self._failed = project, failed
        self._journal = Journaling(project.path, reader or reader_name(), self._refused_by_disk)
        self._desk: tuple[Desk, list[Place]] | None = None
        # Scans of which the journal holds all that was ever said; and how their slices stand there.
        self._journaled: set[str] = set()
        self._sides: dict[str, tuple[bytes, bytes]] = {}
        self._told_since: dict[str, Correction] = {}  # what a journal lacks, by scan, until the scan is changed
        self._seq: dict[str, int] = {}  # of the last event that was there when a scan was opened
        self._only_reads = False
        self._dirty: dict[str, ScanState] = {}
        self._refused: set[str] = set()
        # Being written, and not written because the disk refused.
        self._underway: dict[str, ScanState] = {}
        self._unsaved: dict[str, ScanState] = {}
        self._changed = threading.Condition()
        self._steady = threading.Lock()
        self._writing = threading.Lock()
        self._closing = False
        self._n_marks = 0
        self._thread: threading.Thread | None = None
        self._errors: SimpleQueue[NapariUnetError] = SimpleQueue()

    def restore(self, state: ScanState) -> str | None:
        """Bring back what was saved for a scan; return what there is to say about it.

        What fits no scan, or cannot be understood, must stay as it is, so that such a scan is never saved.
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
        locked = self._lock_project() if self._project.path.is_dir() else None
        try:
            saved, n_since = self._recall(state)
        except NapariUnetError as error:
            self._refused.add(scan.fingerprint)
            return f"{error} Nothing new on {state.name} is saved by itself until you move that file: export often."
        if saved is None:
            return locked
        if saved.annotation.labels.dtype.itemsize < state.annotation.labels.dtype.itemsize:
            saved.annotation.labels = saved.annotation.labels.astype(state.annotation.labels.dtype)
        state.annotation, state.locked, state.taught = saved.annotation, saved.locked, saved.taught
        n = state.n_accepted
        said = f"{state.name}: your labels of last time are back ({n} slice{'s' if n != 1 else ''} accepted)."
        if n_since:
            said += f" The last {n_since} changes came from the journal." if n_since > 1 else " The last change too."
        return said if locked is None else f"{said} {locked}"

    def _lock_project(self) -> str | None:
        """Become the program that writes to the project; say who does where another is."""
        if self._only_reads:
            return None
        try:
            holder = self._journal.take_lock()
        except ProjectError as error:
            self._only_reads = True
            return f"{error} Nothing is saved here: export your labels."
        if holder is None:
            self._hand_desk_over()
            return None
        self._only_reads = True
        who = holder.in_words()
        return f"This project is in use by {who}: nothing you do here is saved. Close one of them, or export."

    def _recall(self, state: ScanState) -> tuple[SavedAnnotation | None, int]:
        """Return what was saved of a scan, and how many changes came from the journal alone.

        Raises
        ------
        ScanError, ProjectError
            It is damaged, or fits another scan; all files are left as they are.
        """
        scan = state.scan
        saved, trouble = None, None
        try:
            saved = self._project.read_annotation(scan.fingerprint, scan.spatial_shape, scan.slice_axis)
        except ScanError as error:
            trouble = error
        journal = self._project.journal()
        if journal is None:
            if trouble is not None:
                raise trouble
            return saved, 0
        with closing(journal):
            known = journal.scan(scan.fingerprint)
            if known is None:
                if trouble is not None:
                    raise trouble
                return saved, 0
            if (known.shape, known.slice_axis) != (scan.spatial_shape, scan.slice_axis):
                raise ScanError("The saved labels of this scan do not fit it: they were left as they are.")
            self._journaled.add(scan.fingerprint)
            flag = journal.last(scan.fingerprint, FLAG)
            state.flag = Flag(**flag.content().facts) if flag is not None and flag.content().facts else None
            if saved is not None and saved.seq > journal.head()[0]:
                # A copy of the journal from before was put in its place: it is told what has changed since.
                older, _ = replayed(journal, known, None)
                self._told_since[scan.fingerprint] = Correction.between("import", older.annotation, saved.annotation)
                return saved, 0
            found, n = replayed(journal, known, saved)
            self._sides[scan.fingerprint] = (found.locked.tobytes(), found.taught.tobytes())
            self._seq[scan.fingerprint] = found.seq
            return found, n

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
            self._begin(state)
            state.apply(correction)
            # Of what is undone or done again, what that was: a proposal's voxels are nobody's hand's.
            facts = None if action is None else {"of": correction.kind}
            entry = Entry(action or correction.kind, correction=correction, model=correction.proposal, facts=facts)
            self._put(state, entry)
        self._mark(state)

    def journal(self) -> Journal | None:
        """Return the journal with all that was said so far, to be read; None where there is none.

        Raises
        ------
        ProjectError
            It is damaged.
        """
        self._journal.settle()
        return self._project.journal()

    @property
    def reader(self) -> str:
        """Under which name work is recorded from now on."""
        return self._journal.reader

    @reader.setter
    def reader(self, name: str) -> None:
        self._journal.settle()
        self._journal.reader = name

    @property
    def only_reads(self) -> bool:
        """Whether nothing is saved, since another program writes or the folder cannot be written."""
        return self._only_reads

    def desk(self) -> tuple[Desk, list[Place]]:
        """Return what was open last in this project, and where its scans were read from.

        Raises
        ------
        ProjectError
            The database is damaged.
        """
        # Not checked: that is done before labels are read, and here the window waits.
        journal = self._project.journal(checked=False)
        if journal is None:
            return Desk(), []
        with closing(journal):
            return journal.desk()

    def keep_desk(self, desk: Desk, places: list[Place]) -> None:
        """Keep what is open, once there is a project: with the first thing that is said of a scan."""
        self._desk = desk, places
        self._hand_desk_over()

    def _hand_desk_over(self) -> None:
        if self._desk is not None and not self._only_reads and self._journal.is_writer:
            self._journal.keep_desk(*self._desk)
            self._desk = None

    def note(self, action: str, model: str | None = None, **facts: Any) -> None:
        """Keep that something was done which changed no scan."""
        if not self._only_reads and not self._says_locked():
            self._journal.put(Entry(action, model=model, facts=facts))

    def note_on(self, state: ScanState, action: str, facts: dict[str, Any]) -> None:
        """Keep something that was said of a scan and changed none of its labels."""
        with self._steady:
            self._begin(state)
            self._put(state, Entry(action, facts=facts))

    def mark(self, state: ScanState) -> None:
        """Note that it has changed which slices of a scan judge, or have taught."""
        with self._steady:
            self._begin(state)
            if self._sides.get(state.scan.fingerprint) != (state.locked.tobytes(), state.taught.tobytes()):
                self._put(state, Entry("sides"))
        self._mark(state)

    def _begin(self, state: ScanState) -> None:
        """Tell the journal, before the first change of a scan that it does not know, what is there already."""
        key, annotation = state.scan.fingerprint, state.annotation
        since = self._told_since.pop(key, None)
        if since is not None:
            self._put(state, Entry("import", correction=since))
        if key in self._journaled or not self._saves(state):
            return
        self._journaled.add(key)
        begun = Correction("import")
        # Mostly there is nothing yet, and the person has just made a stroke.
        if annotation.labels.any() or annotation.painted.any() or annotation.accepted.any():
            nothing = Annotation.empty(annotation.labels.shape, annotation.slice_axis, annotation.labels.dtype.type)
            begun = Correction.between("import", nothing, annotation)
        self._put(state, Entry("import", correction=begun))

    def _put(self, state: ScanState, entry: Entry) -> None:
        if not self._saves(state):
            return
        scan, sides = state.scan, (state.locked.tobytes(), state.taught.tobytes())
        known = KnownScan(scan.fingerprint, scan.spatial_shape, scan.slice_axis, scan.geometry.spacing)
        entry = replace(entry, scan=known)
        if self._sides.get(scan.fingerprint) != sides:
            self._sides[scan.fingerprint] = sides
            entry = replace(entry, sides=Sides(state.locked.copy(), state.taught.copy()))
        self._journal.put(entry)

    def _saves(self, state: ScanState) -> bool:
        return not self._only_reads and not self._is_refused(state) and not self._says_locked()

    def _is_refused(self, state: ScanState) -> bool:
        """Return whether what was saved of a scan has to stay as it is; no longer, once that was moved away."""
        key = state.scan.fingerprint
        if key in self._refused and not self._project.has_annotation(key) and not self._is_in_journal(key):
            self._refused.discard(key)
        return key in self._refused

    def _is_in_journal(self, fingerprint: str) -> bool:
        try:
            journal = self._project.journal()
            if journal is None:
                return False
            with closing(journal):
                return journal.scan(fingerprint) is not None
        except ProjectError:
            return True  # It cannot be said: it is left alone.

    def _says_locked(self) -> bool:
        """Take the lock with the first thing to be saved; return whether another program has it."""
        locked = self._lock_project()
        if locked is not None:
            self._errors.put(ProjectError(locked))
            self._failed()
        return self._only_reads

    def _mark(self, state: ScanState) -> None:
        """Write the file with the whole annotation, soon."""
        if self._only_reads or self._is_refused(state):
            return
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
        """Save one scan now, if it has changed; return whether all of it is saved."""
        key = state.scan.fingerprint
        with self._changed:
            changed = self._dirty.pop(key, None) or self._unsaved.pop(key, None) or self._underway.get(key)
        if changed is not None:
            self._save(changed)
        return key not in self._unsaved and key not in self._refused and not self._only_reads

    def close(self) -> None:
        """Save what is unsaved, end the threads, and let other programs write."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        for state in list(self._unsaved.values()):
            self._save(state)
        self._journal.close()

    def take_error(self) -> NapariUnetError | None:
        """Return the oldest error not yet taken."""
        return None if self._errors.empty() else self._errors.get()

    def _refused_by_disk(self, error: NapariUnetError) -> None:
        self._errors.put(error)
        self._failed()

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
                seq = max(self._journal.settle(), self._seq.get(state.scan.fingerprint, 0))
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
            self._errors.put(error)
            self._failed()


def replayed(journal: Journal, known: KnownScan, saved: SavedAnnotation | None) -> tuple[SavedAnnotation, int]:
    """Return what was saved of a scan with all that the journal knows beyond it, and how many changes that were.

    Parameters
    ----------
    journal : Journal
    known : KnownScan
    saved : SavedAnnotation or None
        None: begin with nothing.

    Raises
    ------
    ProjectError
        The journal cannot be read.
    """
    n_slices = 1 if known.slice_axis is None else known.shape[known.slice_axis]
    if saved is None:
        nothing = Annotation.empty(known.shape, known.slice_axis)
        saved = SavedAnnotation(nothing, np.zeros(n_slices, bool), np.zeros(n_slices, bool))
    annotation, locked, taught, seq, n = saved.annotation, saved.locked, saved.taught, saved.seq, 0
    for event in journal.events(known.fingerprint, after=seq):
        content = event.content()
        content.apply(annotation)
        if content.sides is not None:
            locked, taught = content.sides.locked, content.sides.taught
        seq, n = event.seq, n + 1
    return SavedAnnotation(annotation, locked, taught, seq), n
