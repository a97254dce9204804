"""What stood on the desk when a project was last in use: which scans, which slice of each, classes, model.

None of it is a part of the labels: the journal knows those, and its chain of hashes does not hold this.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from napari_unet.domain.labels import LabelClass, LabelSchema


@dataclass(frozen=True)
class Place:
    """Where a scan was read from.

    Parameters
    ----------
    scan : str
        Its fingerprint.
    number : int
        It is called ``scan <number>`` in this project.
    path : Path or None
        Absolute; None where it was no file. The only place where paths are kept.
    choices : dict
        Options of reading it; see :attr:`napari_unet.domain.scan.Scan.choices`.
    """

    scan: str
    number: int
    path: Path | None = None
    choices: dict[str, Any] = field(default_factory=dict)


class Desk(BaseModel):
    """What is open; scans by their fingerprints.

    ``model`` is the identifier of the checkpoint in use, ``model_name`` what its card calls it. ``former`` are all
    classes that the project ever had, since scans that are closed may hold voxels of one that was removed.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    open: tuple[str, ...] = ()
    active: str | None = None
    slices: dict[str, int] = Field(default_factory=dict)
    classes: LabelSchema | None = None
    former: tuple[LabelClass, ...] = ()
    model: str | None = None
    model_name: str | None = None


def read_desk(connection: sqlite3.Connection) -> Desk:
    """Return the desk as it was kept; an empty one where none was, or it cannot be understood."""
    row = connection.execute("SELECT state FROM desk").fetchone()
    try:
        return Desk() if row is None else Desk.model_validate_json(row[0])
    except ValueError:
        # Where the windows stood is not worth an error.
        return Desk()


def read_places(connection: sqlite3.Connection) -> list[Place]:
    """Return where the project's scans were read from, by their numbers."""
    rows = connection.execute("SELECT scan, number, path, choices FROM places ORDER BY number").fetchall()
    return [Place(scan, n, None if path is None else Path(path), json.loads(chosen)) for scan, n, path, chosen in rows]


def keep_desk(connection: sqlite3.Connection, desk: Desk, places: Sequence[Place]) -> None:
    """Keep what is open, and where those scans were read from, in the transaction under way."""
    connection.execute("INSERT OR REPLACE INTO desk VALUES (1, ?)", (desk.model_dump_json(),))
    for place in places:
        connection.execute(
            "INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?)",
            (place.scan, place.number, None if place.path is None else str(place.path), json.dumps(place.choices)),
        )
