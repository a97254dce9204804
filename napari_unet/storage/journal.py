"""Everything that was ever said about a project's scans, in order: what the labels are made of, and who changed them.

Events are only added. Each holds the hash of the one before (a hash chain), so that a change of any of them shows; that
the last ones were cut off shows only against a hash that was written down elsewhere.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.annotation import Annotation, Correction, SparseChange
from napari_unet.domain.errors import ProjectError
from napari_unet.storage.database import DATABASE, open_database, transaction, why
from napari_unet.storage.desk import Desk, Place, keep_desk, read_desk, read_places

#: The hash before the first event.
BEGINNING = bytes(32)
_PARTS = ("labels", "painted", "accepted")
#: The first version of the database with a desk; one that is only read may be older.
_DESK_VERSION = 2
#: In bytes: an entry that changed everything about the largest scan that can be opened is smaller.
_LARGEST_ENTRY = 1 << 36
#: Entries are short, and begin much alike: what they share is not written each time (RFC 1950, preset dictionaries). It
#: belongs to the format, so it never changes.
_COMMON = (
    b'{"facts": {}, "arrays": [["accepted.steps", "<i4", 1], ["accepted.before", "|b1", 1], '
    b'["accepted.after", "|b1", 1]]'
    b'{"facts": {}, "arrays": [["labels.steps", "<i4", 100], ["labels.before", "|u1", 100], '
    b'["labels.after", "|u1", 100], ["painted.same", "|u1", 0], ["painted.before", "|b1", 100], '
    b'["painted.after", "|b1", 100]]}\n' + bytes(64) + b"\x01\x00\x00\x00" * 32 + bytes(64) + b"\x01" * 64
)


@dataclass(frozen=True, eq=False)
class KnownScan:
    """A scan as the project knows it: by its voxels and their grid, without a name."""

    fingerprint: str
    shape: tuple[int, ...]
    slice_axis: int | None
    spacing: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class Sides:
    """Which slices of a scan only judge, and which have taught; ``(n_slices,)`` bool arrays."""

    locked: NDArray[np.bool_]
    taught: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Entry:
    """Something to be added to the journal.

    Parameters
    ----------
    action : str
        ``stroke``, ``undo``, ``proposal``, ``accept``, ``sides``, ``model kept``...
    scan : KnownScan or None
        None where it is about the project.
    correction : Correction or None
        What changed in the scan's annotation.
    sides : Sides or None
        How its slices stand now.
    model : str or None
        Identifier of the checkpoint that it has to do with.
    facts : dict
        Further plain JSON values, such as the file and the hash of a model that was kept.
    """

    action: str
    scan: KnownScan | None = None
    correction: Correction | None = None
    sides: Sides | None = None
    model: str | None = None
    facts: dict[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Event:
    """An entry as it stands in the journal; see :class:`Entry`. ``at`` is UTC, ISO 8601."""

    seq: int
    at: str
    reader: str
    action: str
    scan: str | None
    model: str | None
    voxels: int
    payload: bytes
    previous: bytes
    hash: bytes

    def expected_hash(self) -> bytes:
        """Return the hash that belongs to what the event says."""
        return _hash(
            self.previous, self.seq, self.at, self.reader, self.action, self.scan, self.model, self.voxels, self.payload
        )

    def content(self) -> Content:
        """Return what the event changed.

        Raises
        ------
        ProjectError
            It cannot be read.
        """
        return decode(self.payload)


@dataclass(frozen=True, eq=False)
class Content:
    """What an event changed, by the parts of a :class:`~napari_unet.domain.annotation.Correction`; the sides; facts."""

    changes: dict[str, SparseChange]
    sides: Sides | None
    facts: dict[str, Any]

    def apply(self, annotation: Annotation) -> None:
        """Carry the changes out, in place.

        Raises
        ------
        ProjectError
            They are about voxels that the annotation has not.
        """
        for name, change in self.changes.items():
            array = getattr(annotation, name)
            if len(change) and not 0 <= int(change.indices.min()) <= int(change.indices.max()) < array.size:
                raise ProjectError("An entry of the project's journal does not fit its scan: it is damaged.")
            if name == "labels" and change.after.dtype.itemsize > array.dtype.itemsize:
                annotation.labels = array = array.astype(change.after.dtype)
            change.apply(array)


class Journal:
    """The events of a project, in its database.

    For one thread; several may have one each.

    Parameters
    ----------
    folder : Path
        The project's; made where it is not there, unless it is only read.
    read_only : bool
        Change nothing.
    checked : bool
        Look first whether the database is sound, which takes a second for a hundred thousand events.

    Raises
    ------
    ProjectError
        The database is damaged or cannot be opened.
    """

    def __init__(self, folder: Path, *, read_only: bool = False, checked: bool = True) -> None:
        if not read_only:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ProjectError(f"The project's folder cannot be made ({error.strerror}).") from error
        self._path = folder / DATABASE
        self._connection = open_database(self._path, read_only=read_only, checked=checked)

    def close(self) -> None:
        """Let go of the database."""
        self._connection.close()

    def append(self, entries: Sequence[Entry], reader: str) -> int:
        """Add entries, all of them or none; return the number of the last.

        They are on the disk when this returns.

        Raises
        ------
        ProjectError
            The disk refuses; nothing was added.
        """
        try:
            with transaction(self._connection):
                seq, previous = self._head()
                for entry in entries:
                    seq += 1
                    previous = self._add(entry, seq, previous, reader)
            return seq
        except sqlite3.Error as error:
            raise ProjectError(why(error, self._path)) from error

    def _head(self) -> tuple[int, bytes]:
        last = self._read("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1")
        return (last[0][0], last[0][1]) if last else (0, BEGINNING)

    def _read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise ProjectError(why(error, self._path)) from error

    @property
    def is_made(self) -> bool:
        """Whether its tables are there: another program may be making them."""
        return self._read("PRAGMA user_version")[0][0] > 0

    def _add(self, entry: Entry, seq: int, previous: bytes, reader: str) -> bytes:
        scan = entry.scan
        if scan is not None:
            self._connection.execute(
                "INSERT OR IGNORE INTO scans VALUES (?, ?, ?, ?)",
                (
                    scan.fingerprint,
                    json.dumps(scan.shape),
                    -1 if scan.slice_axis is None else scan.slice_axis,
                    None if scan.spacing is None else json.dumps(scan.spacing),
                ),
            )
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        changed = None if entry.correction is None else entry.correction.labels
        voxels = 0 if changed is None else len(changed)
        payload = encode(entry)
        key = None if scan is None else scan.fingerprint
        own = _hash(previous, seq, at, reader, entry.action, key, entry.model, voxels, payload)
        self._connection.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (seq, at, reader, entry.action, key, entry.model, voxels, payload, previous, own),
        )
        return own

    def keep_desk(self, desk: Desk, places: Sequence[Place]) -> None:
        """Keep what is open, and where those scans were read from.

        Raises
        ------
        ProjectError
            The disk refuses.
        """
        try:
            with transaction(self._connection):
                keep_desk(self._connection, desk, places)
        except sqlite3.Error as error:
            raise ProjectError(why(error, self._path)) from error

    def desk(self) -> tuple[Desk, list[Place]]:
        """Return what was open last, and where the project's scans were read from."""
        if self._read("PRAGMA user_version")[0][0] < _DESK_VERSION:
            return Desk(), []
        try:
            return read_desk(self._connection), read_places(self._connection)
        except (sqlite3.Error, ValueError) as error:
            raise ProjectError("The project's database cannot be read to its end: it is damaged.") from error

    def head(self) -> tuple[int, str]:
        """Return the last event's number and hash, as hexadecimal digits; ``(0, ...)`` where there is none."""
        seq, found = self._head()
        return seq, found.hex()

    def integrity(self) -> list[str]:
        """Return what SQLite finds wrong with the database's pages and indices; nothing, where it is sound."""
        try:
            found = [str(row[0]) for row in self._connection.execute("PRAGMA integrity_check(20)")]
        except sqlite3.Error as error:
            return [str(error)]
        return [] if found == ["ok"] else found

    def scans(self) -> list[KnownScan]:
        """Return the scans of which anything was said."""
        return [_scan_of(row) for row in self._read("SELECT * FROM scans ORDER BY rowid")]

    def scan(self, fingerprint: str) -> KnownScan | None:
        """Return a scan, or None where nothing was said of it."""
        rows = self._read("SELECT * FROM scans WHERE fingerprint = ?", fingerprint)
        return _scan_of(rows[0]) if rows else None

    def last(self, scan: str, action: str) -> Event | None:
        """Return the last event of a kind about a scan."""
        rows = self._read("SELECT * FROM events WHERE scan = ? AND action = ? ORDER BY seq DESC LIMIT 1", scan, action)
        return _event_of(rows[0]) if rows else None

    def events(self, scan: str | None = None, after: int = 0) -> Iterator[Event]:
        """Yield the events after a number, of all scans or of one, in order.

        Raises
        ------
        ProjectError
            The database cannot be read to its end.
        """
        where, values = ("seq > ?", [after]) if scan is None else ("scan = ? AND seq > ?", [scan, after])
        try:
            for row in self._connection.execute(f"SELECT * FROM events WHERE {where} ORDER BY seq", values):
                yield _event_of(row)
        except sqlite3.Error as error:
            raise ProjectError("The project's database cannot be read to its end: it is damaged.") from error


def _scan_of(row: tuple[Any, ...]) -> KnownScan:
    fingerprint, shape, axis, spacing = row
    try:
        return KnownScan(
            fingerprint,
            tuple(json.loads(shape)),
            None if axis < 0 else axis,
            None if spacing is None else tuple(json.loads(spacing)),
        )
    except (TypeError, ValueError) as error:
        raise ProjectError("What the project's database says of a scan cannot be read: it is damaged.") from error


def _event_of(row: tuple[Any, ...]) -> Event:
    # A single wrong bit can make SQLite take a text for bytes.
    event = Event(*row)
    words = (event.at, event.reader, event.action, event.scan or "", event.model or "")
    if not (
        all(isinstance(word, str) for word in words)
        and all(isinstance(number, int) for number in (event.seq, event.voxels))
        and all(isinstance(part, bytes) for part in (event.payload, event.previous, event.hash))
    ):
        raise ProjectError(f"Event {event.seq} of the project's journal cannot be read: it is damaged.")
    return event


def _hash(previous: bytes, *said: Any) -> bytes:
    *words, payload = said
    text = json.dumps([*words, hashlib.sha256(payload).hexdigest()], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(previous + text.encode()).digest()


def encode(entry: Entry) -> bytes:
    """Return an entry's content as bytes: a line of JSON that describes the arrays, and these, compressed.

    Indices are kept as steps from one to the next, which are mostly 1 and take next to no room; where several parts
    changed at the same places these are kept once.
    """
    header: dict[str, Any] = {"facts": entry.facts or {}, "arrays": []}
    pieces: list[bytes] = []

    def put(name: str, array: NDArray) -> None:
        header["arrays"].append([name, array.dtype.str, len(array)])
        pieces.append(np.ascontiguousarray(array).tobytes())

    last: NDArray | None = None
    for name in _PARTS:
        change = None if entry.correction is None else getattr(entry.correction, name)
        if change is not None:
            if last is not None and np.array_equal(last, change.indices):
                put(f"{name}.same", np.zeros(0, np.uint8))
            else:
                steps = np.diff(change.indices, prepend=0)
                small = len(steps) == 0 or (abs(int(steps.min())) < 2**31 and abs(int(steps.max())) < 2**31)
                put(f"{name}.steps", steps.astype("<i4" if small else "<i8"))
            last = change.indices
            put(f"{name}.before", change.before.astype(change.before.dtype.newbyteorder("<")))
            put(f"{name}.after", change.after.astype(change.after.dtype.newbyteorder("<")))
    if entry.sides is not None:
        put("locked", entry.sides.locked)
        put("taught", entry.sides.taught)
    packer = zlib.compressobj(zdict=_COMMON)
    return packer.compress(json.dumps(header).encode() + b"\n" + b"".join(pieces)) + packer.flush()


def decode(payload: bytes) -> Content:
    """Return what :func:`encode` made bytes of.

    Raises
    ------
    ProjectError
        The bytes are no such content.
    """
    try:
        unpacker = zlib.decompressobj(zdict=_COMMON)  # which is asked for only by entries that were written with it
        text, _, data = unpacker.decompress(payload, _LARGEST_ENTRY).partition(b"\n")
        if not unpacker.eof:
            raise ValueError("cut off, or larger than any entry")
        header = json.loads(text)
        arrays, at = {}, 0
        for name, kind, length in header["arrays"]:
            dtype = np.dtype(kind)
            arrays[name] = np.frombuffer(data, dtype, length, at)
            at += length * dtype.itemsize
        changes: dict[str, SparseChange] = {}
        indices = np.zeros(0, np.int64)
        for name in _PARTS:
            if f"{name}.before" in arrays:
                if f"{name}.same" not in arrays:
                    indices = np.cumsum(arrays[f"{name}.steps"], dtype=np.int64)
                changes[name] = SparseChange(indices, arrays[f"{name}.before"], arrays[f"{name}.after"])
        sides = Sides(arrays["locked"].copy(), arrays["taught"].copy()) if "locked" in arrays else None
        return Content(changes, sides, header["facts"])
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise ProjectError("An entry of the project's journal cannot be read: it is damaged.") from error
