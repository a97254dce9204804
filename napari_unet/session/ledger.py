"""What is handed to a project's journal, and whether anything may be: who writes, and which scans are left alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

from napari_unet.domain.annotation import Annotation, Correction
from napari_unet.domain.errors import NapariUnetError, ProjectError
from napari_unet.session.journaling import Journaling
from napari_unet.session.recalling import Recalled
from napari_unet.session.state import ScanState
from napari_unet.storage.desk import Desk, Place
from napari_unet.storage.journal import Entry, Journal, KnownScan, Sides
from napari_unet.storage.project_folder import ProjectFolder


class Ledger:
    """Keeps in a project's journal what was done; the thread that writes is :class:`Journaling`'s.

    What is said of one scan is said in order: who calls :meth:`begin` and :meth:`put` keeps others from changing the
    scan's annotation meanwhile.

    Parameters
    ----------
    project : ProjectFolder
    reader : str
        Under which name work is recorded.
    complain : callable
        Called with what could not be kept; on the journal's thread, or on the caller's.
    """

    def __init__(self, project: ProjectFolder, reader: str, complain: Callable[[NapariUnetError], None]) -> None:
        self._project, self._complain = project, complain
        self._journal = Journaling(project.path, reader, complain)
        self._desk: tuple[Desk, list[Place]] | None = None
        # Scans of which the journal holds all that was ever said; and how their slices stand there.
        self._journaled: set[str] = set()
        self._sides: dict[str, tuple[bytes, bytes]] = {}
        self._told_since: dict[str, Correction] = {}  # what a journal lacks, by scan, until the scan is changed
        self._refused: set[str] = set()
        self._only_reads = False

    # -- what is said of the project ------------------------------------------------------------------------------

    @property
    def reader(self) -> str:
        """Under which name work is recorded from now on."""
        return self._journal.reader

    @reader.setter
    def reader(self, name: str) -> None:
        self._journal.settle()
        if not self._journal.is_settled:
            raise ProjectError(
                f"What {self._journal.reader} did could not be saved yet: change the name once it is saved."
            )
        self._journal.reader = name

    @property
    def only_reads(self) -> bool:
        """Whether nothing is saved, since another program writes or the folder cannot be written."""
        return self._only_reads

    def journal(self) -> Journal | None:
        """Return the journal with all that was said so far, to be read; None where there is none.

        Raises
        ------
        ProjectError
            It is damaged.
        """
        self._journal.settle()
        return self._project.journal()

    def note(self, action: str, model: str | None = None, **facts: Any) -> None:
        """Keep that something was done which changed no scan."""
        if not self._only_reads and not self._says_locked():
            self._journal.put(Entry(action, model=model, facts=facts))

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

    def settle(self) -> int:
        """Wait a little until what was said is on the disk; return the number of the last event that is."""
        return self._journal.settle()

    def close(self) -> None:
        """Write what waits, end the thread, and let other programs write."""
        self._journal.close()

    # -- who writes -----------------------------------------------------------------------------------------------

    def take_lock(self) -> str | None:
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
        return (
            f"This project is in use by {who}: nothing you do here is saved. Close that program, then start "
            "this one again; or export."
        )

    def _says_locked(self) -> bool:
        """Take the lock with the first thing to be saved; return whether another program has it."""
        locked = self.take_lock()
        if locked is not None:
            self._complain(ProjectError(locked))
        return self._only_reads

    # -- what is said of scans ------------------------------------------------------------------------------------

    def take_up(self, state: ScanState, recalled: Recalled) -> None:
        """Take note of what the journal holds of a scan that is being opened."""
        key, saved = state.scan.fingerprint, recalled.saved
        if recalled.in_journal:
            self._journaled.add(key)
        if recalled.since is not None:
            self._told_since[key] = recalled.since
        elif recalled.in_journal and saved is not None:
            self._sides[key] = (saved.locked.tobytes(), saved.taught.tobytes())

    def begin(self, state: ScanState) -> None:
        """Tell the journal, before the first change of a scan that it does not know, what is there already."""
        key, annotation = state.scan.fingerprint, state.annotation
        since = self._told_since.pop(key, None)
        if since is not None:
            self.put(state, Entry("import", correction=since))
        if key in self._journaled or not self._saves(state):
            return
        self._journaled.add(key)
        begun = Correction("import")
        # Mostly there is nothing yet, and the person has just made a stroke.
        if annotation.labels.any() or annotation.painted.any() or annotation.accepted.any():
            nothing = Annotation.empty(annotation.labels.shape, annotation.slice_axis, annotation.labels.dtype.type)
            begun = Correction.between("import", nothing, annotation)
        self.put(state, Entry("import", correction=begun))

    def put(self, state: ScanState, entry: Entry) -> None:
        """Keep what was said of a scan, which was begun, and which slices judge or have taught, where that is new."""
        if not self._saves(state):
            return
        scan, sides = state.scan, _sides(state)
        known = KnownScan(scan.fingerprint, scan.spatial_shape, scan.slice_axis, scan.geometry.spacing)
        entry = replace(entry, scan=known)
        if self._sides.get(scan.fingerprint) != sides:
            self._sides[scan.fingerprint] = sides
            entry = replace(entry, sides=Sides(state.locked.copy(), state.taught.copy()))
        self._journal.put(entry)

    def put_sides(self, state: ScanState) -> None:
        """Keep which slices of a scan, which was begun, judge or have taught, where that is new."""
        if self._sides.get(state.scan.fingerprint) != _sides(state):
            self.put(state, Entry("sides"))

    def _saves(self, state: ScanState) -> bool:
        return not self._only_reads and not self.still_refuses(state) and not self._says_locked()

    # -- scans that are left alone --------------------------------------------------------------------------------

    def refuse(self, fingerprint: str) -> None:
        """Save nothing of a scan: what is there cannot be understood, or fits another one, and must stay as it is."""
        self._refused.add(fingerprint)

    def refuse_no_more(self, fingerprint: str) -> None:
        """Save what is said of a scan again: it is read anew."""
        self._refused.discard(fingerprint)

    def has_refused(self, fingerprint: str) -> bool:
        """Return whether something said of a scan may not have been saved."""
        return fingerprint in self._refused

    def still_refuses(self, state: ScanState) -> bool:
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


def _sides(state: ScanState) -> tuple[bytes, bytes]:
    return state.locked.tobytes(), state.taught.tobytes()
