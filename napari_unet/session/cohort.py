"""A folder of scans as one piece of work: what was done already is left, and a table says what became of each scan."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import ExportError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.io.sidecar import grid_of, read_record
from napari_unet.storage.atomic import replace_atomically

#: The table's name in the output folder.
TABLE = "scans.csv"
_COLUMNS = ("scan", "mask", "status", "seconds", "notes")


@dataclass(frozen=True)
class ClassVolume:
    """How much of a class a mask holds; ``millilitres`` is None for pictures and where the spacing is not known."""

    name: str
    voxels: int
    millilitres: float | None


def volumes_of(labels: NDArray, schema: LabelSchema, scan: Scan) -> tuple[ClassVolume, ...]:
    """Return the volume of each class of a mask over a scan's spatial axes."""
    voxel = scan.geometry.voxel_volume if labels.ndim == 3 else None
    litre = None if voxel is None else voxel / 1000
    # One plane after the other: a mask may lie on the disk.
    counts = {one.id: 0 for one in schema.classes}
    for plane in labels if labels.ndim == 3 else labels[np.newaxis]:
        for value, n in zip(*np.unique(plane, return_counts=True), strict=True):
            if int(value) in counts:
                counts[int(value)] += int(n)
    return tuple(
        ClassVolume(one.name, counts[one.id], None if litre is None else counts[one.id] * litre)
        for one in schema.classes
    )


def prediction_record(
    mask: Path, uncertainty: Path | None, how: dict[str, Any], volumes: Sequence[ClassVolume], notes: Sequence[str]
) -> dict[str, Any]:
    """Return what the record beside a predicted mask says of its making, for :func:`done_before`."""
    return {
        "settings": how,
        "mask_hash": digest(mask),
        "uncertainty_hash": None if uncertainty is None else digest(uncertainty),
        "notes": list(notes),
        "volumes": [{"name": v.name, "voxels": v.voxels, "millilitres": v.millilitres} for v in volumes],
    }


def how_written(scan: Scan, schema: LabelSchema, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what else a mask depends on than voxels, place and weights, in plain JSON values."""
    axes = scan.geometry.axis_map
    return {
        **settings,
        "labels": schema.model_dump(mode="json"),
        # Of a series that was exported anew a segmentation names images that are gone.
        "series": next((series.uid for series in scan.series if series.chosen), None),
        "file_axes": [list(map(int, axes.permutation)), list(map(bool, axes.flips))],
    }


def done_before(
    mask: Path, uncertainty: Path | None, scan: Scan, model_id: str, how: dict[str, Any]
) -> dict[str, Any] | None:
    """Return what was recorded of a mask that need not be made again; None where it must be.

    It need not, where the record beside it names the same voxels in the same place, the same weights and the same
    settings, and the mask, and the uncertainty that is asked for, are still those that were written then.
    """
    record = read_record(mask)
    if record is None or not mask.exists():
        return None
    try:
        made = record["prediction"]
        same = (
            record["source"]["hash"] == scan.fingerprint
            and record["grid"] == grid_of(scan)
            and record["model"]["id"] == model_id
            and made["settings"] == how
            and made["mask_hash"] == digest(mask)
            and (uncertainty is None or made["uncertainty_hash"] == digest(uncertainty))
        )
        return made if same else None
    except (KeyError, TypeError, OSError):
        return None


def had_uncertainty(record: dict[str, Any] | None) -> bool:
    """Return whether the record beside a mask speaks of an uncertainty map."""
    made = (record or {}).get("prediction")
    return isinstance(made, dict) and made.get("uncertainty_hash") is not None


def recorded_volumes(made: dict[str, Any]) -> tuple[ClassVolume, ...]:
    """Return the volumes in a record."""
    return tuple(ClassVolume(v["name"], v["voxels"], v["millilitres"]) for v in made["volumes"])


def digest(path: Path) -> str:
    """Return the hash of a file, or of all files in a folder with their names."""
    found = hashlib.blake2b(digest_size=16)
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    for file in files:
        if file != path:
            found.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as stream:
            while piece := stream.read(1 << 22):
                found.update(piece)
    return found.hexdigest()


class CohortTable:
    """What became of each scan: done, done before or failed, with notes, and the volume of each class.

    Parameters
    ----------
    path : Path
        Where it is written, as CSV in UTF-8; one of an earlier run is replaced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, str]] = []
        self._classes: list[str] = []

    def add(
        self,
        scan: str,
        mask: str,
        status: str,
        *,
        seconds: float = 0.0,
        notes: Sequence[str] = (),
        volumes: Sequence[ClassVolume] = (),
    ) -> None:
        """Add a row."""
        row = {"scan": scan, "mask": mask, "status": status, "seconds": f"{seconds:.1f}", "notes": " ".join(notes)}
        for volume in volumes:
            for column, value in (("voxels", volume.voxels), ("mL", volume.millilitres)):
                name = f"{volume.name} ({column})"
                if name not in self._classes:
                    self._classes.append(name)
                row[name] = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
        self._rows.append(row)

    def write(self) -> None:
        """Write the table, if anything became of any scan.

        Raises
        ------
        ExportError
            The disk refuses.
        """
        if not self._rows:
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [*_COLUMNS, *self._classes], restval="")
        writer.writeheader()
        writer.writerows(self._rows)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # With a byte-order mark, without which spreadsheets take names for Latin-1.
            replace_atomically(self._path, text.getvalue().encode("utf-8-sig"))
        except OSError as error:
            raise ExportError(f"{self._path.name} could not be written: {error.strerror or error}.") from error
