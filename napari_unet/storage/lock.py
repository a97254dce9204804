"""One program writes to a project at a time; a second one is told who does, and reads."""

from __future__ import annotations

import datetime
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

from napari_unet.domain.errors import ProjectError

#: Its name in the project's folder.
LOCK = "project.lock"
_CLOCK_SECONDS = 2.0


@dataclass(frozen=True)
class Holder:
    """Who writes to a project: a process of a computer, since when (UTC, ISO 8601)."""

    host: str
    pid: int
    started: float
    since: str

    def in_words(self) -> str:
        """Return it as a part of a sentence."""
        day, _, clock = self.since.partition("T")
        return f"another program on {self.host} (process {self.pid}, since {day} {clock[:5]} UTC)"

    def is_gone(self) -> bool:
        """Return whether it is known to have ended: of another computer's programs nothing is known."""
        if self.host != socket.gethostname():
            return False
        try:
            # A number is used again: the process must be as old as the one that wrote it down.
            return abs(psutil.Process(self.pid).create_time() - self.started) > _CLOCK_SECONDS
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False


class ProjectLock:
    """A file that says who writes to a project.

    Parameters
    ----------
    folder : Path
        The project's, which exists.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._held = False

    @property
    def is_held(self) -> bool:
        """Whether this one holds it."""
        return self._held

    def take(self) -> Holder | None:
        """Take the lock; return who has it where that cannot be. One whose program is gone is taken over.

        Raises
        ------
        ProjectError
            The folder cannot be written.
        """
        if self._held:
            return None
        mine = Holder(
            socket.gethostname(),
            os.getpid(),
            psutil.Process().create_time(),
            datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        for _ in range(2):
            try:
                with self._path.open("x", encoding="utf-8") as file:
                    json.dump(vars(mine), file)
                    file.flush()
                    os.fsync(file.fileno())
            except FileExistsError:
                holder = self.holder()
                if holder is not None and not holder.is_gone():
                    return holder
                self._path.unlink(missing_ok=True)
            except OSError as error:
                raise ProjectError(f"The project's folder cannot be written ({error.strerror}).") from error
            else:
                self._held = True
                return None
        return self.holder()

    def holder(self) -> Holder | None:
        """Return who has the lock; None where nobody has, or the file says nothing."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            return Holder(str(found["host"]), int(found["pid"]), float(found["started"]), str(found["since"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def release(self) -> None:
        """Give the lock back, if it is held here."""
        if self._held:
            self._held = False
            self._path.unlink(missing_ok=True)
