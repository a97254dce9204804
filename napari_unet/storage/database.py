"""A project's SQLite database: how it is opened, what its tables are, and how they came to be what they are."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from napari_unet.domain.errors import ProjectError
from napari_unet.storage.lock import ProjectLock

#: Its name in the project's folder.
DATABASE = "project.db"

_BUSY_SECONDS = 5.0
#: Beginnings of the names that systems give the file systems of other computers.
_NETWORK_DRIVES = ("nfs", "cifs", "smb", "afp", "webdav", "fuse.sshfs", "9p", "lustre", "beegfs", "gpfs", "ceph", "afs")

#: Each takes a database from the version before to its own; what was once released is never changed.
_MIGRATIONS = (
    """
    CREATE TABLE scans (
        fingerprint TEXT PRIMARY KEY,
        shape TEXT NOT NULL,
        slice_axis INTEGER NOT NULL,
        spacing TEXT
    );
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY,
        at TEXT NOT NULL,
        reader TEXT NOT NULL,
        action TEXT NOT NULL,
        scan TEXT REFERENCES scans (fingerprint),
        model TEXT,
        voxels INTEGER NOT NULL,
        payload BLOB NOT NULL,
        previous BLOB NOT NULL,
        hash BLOB NOT NULL
    );
    CREATE INDEX events_by_scan ON events (scan, seq);
    CREATE TRIGGER events_are_not_changed BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'events are not changed'); END;
    CREATE TRIGGER events_are_not_removed BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'events are not removed'); END;
    """,
    """
    CREATE TABLE places (
        scan TEXT PRIMARY KEY,
        number INTEGER NOT NULL,
        path TEXT,
        choices TEXT NOT NULL
    );
    CREATE TABLE desk (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        state TEXT NOT NULL
    );
    """,
)
VERSION = len(_MIGRATIONS)


def open_database(path: Path, *, read_only: bool = False, checked: bool = True) -> sqlite3.Connection:
    """Open a project's database; make it, or bring it up to date, unless it is only read.

    Every transaction is on the disk when it ends (``synchronous=FULL``). The write-ahead log lets readers read while
    one writes; on network drives, which have no shared memory for it, SQLite's rollback journal serves.

    Parameters
    ----------
    path : Path
        Its folder exists.
    read_only : bool
        Change nothing, not even by recovery.
    checked : bool
        Look first whether it is sound.

    Raises
    ------
    ProjectError
        It is damaged, of a newer version, or cannot be read or written; or it is only read, and what another program
        wrote last cannot be seen.
    """
    try:
        if not read_only:
            return _opened("mode=rwc", path, False, checked)
        try:
            return _opened("mode=ro", path, True, checked)
        except sqlite3.Error as error:
            if _kind_of(error) not in _REFUSED:
                raise
            # SQLite reads a write-ahead log with a file of its own beside it, which it may not make here. Without that
            # only the database itself can be read, which is all there is where no log holds anything.
            if _is_in_use(path):
                raise ProjectError(_IN_USE.format(name=path.name)) from error
            return _opened("immutable=1", path, True, checked)
    except sqlite3.Error as error:
        raise ProjectError(why(error, path)) from error


def _opened(how: str, path: Path, read_only: bool, checked: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True, timeout=_BUSY_SECONDS)
    try:
        connection.isolation_level = None  # transactions are begun by `transaction` alone
        _prepare(connection, path, read_only, checked)
    except BaseException:
        connection.close()
        raise
    return connection


def _is_in_use(path: Path) -> bool:
    """Return whether a program has the project open, or left something that is not in the database itself yet."""
    holder = ProjectLock(path.parent).holder()
    if holder is not None and not holder.is_gone():
        return True
    logs = (path.with_name(f"{path.name}-{kind}") for kind in ("wal", "journal"))
    return any(log.exists() and log.stat().st_size > 0 for log in logs)


def _prepare(connection: sqlite3.Connection, path: Path, read_only: bool, checked: bool) -> None:
    if not read_only:
        connection.execute(f"PRAGMA journal_mode = {'DELETE' if is_on_network(path) else 'WAL'}")
        connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise ProjectError(
            f"The project's {path.name} was written by a newer version of napari-unet: open it with that one."
        )
    # What a cut-off or overwritten file has lost is found here, before anything is built upon it.
    (sound,) = connection.execute("PRAGMA quick_check(1)").fetchone() if checked else ("ok",)
    if sound != "ok":
        raise ProjectError(_DAMAGED.format(name=path.name))
    if read_only:
        return
    for number in range(version, VERSION):
        with transaction(connection):
            for statement in _statements(_MIGRATIONS[number]):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number + 1}")


def is_on_network(path: Path) -> bool:
    """Return whether a file lies, or would lie, on a network drive."""
    import psutil

    folder = path.resolve().parent
    holding = [part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part.mountpoint)]
    kind = max(holding, key=lambda part: len(part.mountpoint)).fstype.lower() if holding else ""
    return kind.startswith(_NETWORK_DRIVES)


_IN_USE = (
    "The project's {name} is in use by another program, or was left without being closed, and cannot be read "
    "completely now: close the project there, or read it from a folder that you may write to."
)
_REFUSED = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH)
_DAMAGED = (
    "The project's {name} is damaged: it was left as it is. Put a copy of it in its place, or choose another project "
    "folder."
)


def _kind_of(error: sqlite3.Error) -> int:
    # Of an extended code the lowest byte is what it is about.
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def why(error: sqlite3.Error, path: Path) -> str:
    """Return one sentence about what SQLite says of a project's database."""
    code = _kind_of(error)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"The project's {path.name} is being written by another program: try again."
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return (
            "Your work could not be saved, since the disk with the project is full or fails: it is kept in the window, "
            "and saved once that is possible; free some space, or export it elsewhere."
        )
    if code in _REFUSED:
        return (
            f"Your work could not be saved, since the project's {path.name} cannot be written: check its permissions."
        )
    return _DAMAGED.format(name=path.name)


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script; ``executescript`` would end the transaction they stand in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Let all that is done within be on the disk, or none of it; within another one it becomes a part of that."""
    if connection.in_transaction:
        name = "part"
        connection.execute(f"SAVEPOINT {name}")
        begin, keep, undo = name, f"RELEASE {name}", f"ROLLBACK TO {name}"
    else:
        connection.execute("BEGIN IMMEDIATE")
        begin, keep, undo = "", "COMMIT", "ROLLBACK"
    try:
        yield
    except BaseException:
        connection.execute(undo)
        if begin:
            connection.execute(keep)
        raise
    connection.execute(keep)
