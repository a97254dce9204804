"""Everything that is said about scans goes into the project's journal at once, on a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from napari_unet.domain.errors import NapariUnetError, ProjectError
from napari_unet.storage.desk import Desk, Place
from napari_unet.storage.journal import Entry, Journal
from napari_unet.storage.lock import Holder, ProjectLock

logger = logging.getLogger(__name__)

#: What the disk refused is tried again after so many seconds, and with the next entry.
_AGAIN_SECONDS = 5.0
_SETTLE_SECONDS = 1.0


class Journaling:
    """Adds entries to a project's journal in the background, in order; none is dropped while the program runs.

    The thread, the folder and the lock come with the first entry.

    Parameters
    ----------
    folder : Path
        The project's.
    reader : str
        Who makes the entries; a name of the person's choice.
    failed : callable
        Called on the journal's thread with an error, once for each time that the disk begins to refuse.
    """

    def __init__(self, folder: Path, reader: str, failed: Callable[[NapariUnetError], None]) -> None:
        self._folder, self.reader, self._failed = folder, reader, failed
        self._lock: ProjectLock | None = None
        self._changed = threading.Condition()
        self._waiting: deque[Entry] = deque()
        self._desk: tuple[Desk, tuple[Place, ...]] | None = None
        self._seq = 0
        self._refusing = False
        self._n_refused = 0  # of those that wait, the first so many
        self._closing = False
        self._thread: threading.Thread | None = None

    def take_lock(self) -> Holder | None:
        """Make this program the one that writes; return who does where another is.

        Raises
        ------
        ProjectError
            The folder cannot be made or written.
        """
        if self._lock is None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ProjectError(f"The project's folder cannot be made ({error.strerror}).") from error
            self._lock = ProjectLock(self._folder)
        return self._lock.take()

    def put(self, entry: Entry) -> None:
        """Add an entry, soon. Its arrays must not change afterwards."""
        with self._changed:
            self._waiting.append(entry)
            self._begin()
            self._changed.notify_all()

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="napari-unet-journal", daemon=True)
            self._thread.start()

    @property
    def is_writer(self) -> bool:
        """Whether this program is the one that writes."""
        return self._lock is not None and self._lock.is_held

    def keep_desk(self, desk: Desk, places: Sequence[Place]) -> None:
        """Keep what is open, soon; only the latest of it matters."""
        with self._changed:
            self._desk = desk, tuple(places)
            self._begin()
            self._changed.notify_all()

    def settle(self) -> int:
        """Wait a little until what was put is on the disk.

        Returns
        -------
        int
            The number of the last event that is on the disk since this program writes; 0 before.
        """
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._desk) or self._refusing, _SETTLE_SECONDS)
            return self._seq

    @property
    def is_settled(self) -> bool:
        """Whether all that was put is on the disk."""
        with self._changed:
            return not self._waiting

    def close(self) -> bool:
        """Write what waits, end the thread and give the lock back; return whether everything was written."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        if self._lock is not None:
            self._lock.release()
        return not self._waiting

    def _run(self) -> None:
        journal: Journal | None = None
        try:
            while True:
                with self._changed:
                    # What was refused alone is no news, but is tried again after a while.
                    news = self._desk is not None and not self._refusing
                    if len(self._waiting) <= self._n_refused and not news and not self._closing:
                        self._changed.wait(_AGAIN_SECONDS if self._refusing else None)
                    entries, desk, closing = list(self._waiting), self._desk, self._closing
                if entries or desk is not None:
                    journal = self._write(journal, entries, desk)
                if closing:
                    return
        finally:
            if journal is not None:
                journal.close()

    def _write(
        self, journal: Journal | None, entries: list[Entry], desk: tuple[Desk, tuple[Place, ...]] | None
    ) -> Journal | None:
        self._n_refused = len(entries)
        try:
            if journal is None:
                journal = Journal(self._folder)
            if entries:
                self._written(journal.append(entries, self.reader), len(entries))
            self._n_refused = 0
            if desk is not None:
                journal.keep_desk(*desk)
        except Exception as error:
            if not isinstance(error, NapariUnetError):
                logger.exception("the journal failed")
                error = ProjectError(
                    "What you do cannot be saved (the details are in the log): it is kept in the window; export your "
                    "labels."
                )
            with self._changed:
                begins, self._refusing = not self._refusing, True
                self._changed.notify_all()
            if begins:
                self._failed(error)
            return journal
        with self._changed:
            self._refusing = False
            self._desk = None if self._desk is desk else self._desk
            self._changed.notify_all()
        return journal

    def _written(self, seq: int, n: int) -> None:
        """Take note that the first entries are on the disk, whatever becomes of the rest."""
        with self._changed:
            for _ in range(n):
                self._waiting.popleft()
            self._seq = seq
            self._changed.notify_all()
