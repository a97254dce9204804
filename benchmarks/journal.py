"""How soon a stroke is on the disk, what many strokes cost when a scan is opened again, and how large a project grows.

Strokes of a round brush on a label volume of 512 x 512 x 300 go through the session, as the window's do; what counts is
the time from the end of the session's own work, which the hand waits for, to the commit. Then ten thousand strokes::

    python benchmarks/journal.py --json -
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import circumstances, write

from napari_unet.compute.engine import Engine
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.scan import Scan
from napari_unet.session.session import Session
from napari_unet.session.state import ScanState

_PACKAGES = ("napari-unet", "numpy")
_PAUSE_SECONDS = 0.02


def scan_of(shape: tuple[int, int, int]) -> Scan:
    """Return a scan of nothing: strokes do not look at it."""
    return Scan(np.zeros(shape, np.uint8), "zyx", Geometry((1.0, 1.0, 1.0)), slice_axis=0)


def stroke(session: Session, state: ScanState, view: np.ndarray, rng: np.random.Generator, radius: int) -> None:
    """Paint a capsule on a slice, and hand it to the session as the window does."""
    depth, height, width = view.shape
    index, (row, column) = int(rng.integers(depth)), rng.integers(radius, (height - radius, width - radius))
    end = np.clip(np.array([row, column]) + rng.integers(-40, 41, 2), radius, np.array([height, width]) - radius - 1)
    for place in np.linspace((row, column), end, 20).round().astype(int):
        box = tuple(slice(p - radius, p + radius + 1) for p in place)
        inside = np.hypot(*np.ogrid[-radius : radius + 1, -radius : radius + 1]) <= radius
        view[index][box][inside] = 1 + int(rng.integers(3))
    session.record_edit(state, view, slice(index, index + 1))


def latencies(shape: tuple[int, int, int], n: int) -> dict[str, Any]:
    """Return how long the session's own work takes, and how long until a stroke is committed, in milliseconds."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(Engine(), Path(folder) / "project")
        state = session.add_scan(scan_of(shape))
        view, own, committed = state.annotation.labels.copy(), [], []
        for number in range(n):
            began = time.perf_counter()
            stroke(session, state, view, rng, 6)
            done = time.perf_counter()
            while session.ledger.settle() < number + 2:  # the first event is the scan's beginning
                time.sleep(0.0002)
            own.append(1000 * (done - began))
            committed.append(1000 * (time.perf_counter() - done))
            time.sleep(_PAUSE_SECONDS)
        session.close()
    return {"session_ms": _summary(own), "journal_ms": _summary(committed), "strokes": n}


def growth(shape: tuple[int, int, int], n: int) -> dict[str, Any]:
    """Return what so many strokes cost to open again, with and without the shortcut, and on the disk."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        session = Session(Engine(), project)
        state = session.add_scan(scan_of(shape))
        view = state.annotation.labels.copy()
        for _ in range(n):
            stroke(session, state, view, rng, 6)
        session.close()
        buffer = io.BytesIO()
        np.savez_compressed(buffer, labels=state.annotation.labels)
        opened = [_opening(project, shape)]
        for file in (project / "labels").glob("*.npz"):
            file.unlink()
        opened.append(_opening(project, shape))
        size = (project / "project.db").stat().st_size
    return {
        "strokes": n,
        "open_seconds": round(opened[0], 3),
        "open_seconds_from_the_journal_alone": round(opened[1], 3),
        "journal_mib": round(size / 2**20, 2),
        "compressed_labels_mib": round(len(buffer.getvalue()) / 2**20, 2),
    }


def _opening(project: Path, shape: tuple[int, int, int]) -> float:
    session, scan = Session(Engine(), project), scan_of(shape)
    scan.fingerprint  # noqa: B018 - reading and hashing voxels is another matter
    began = time.perf_counter()
    session.add_scan(scan)
    seconds = time.perf_counter() - began
    session.close()
    return seconds


def _summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 2),
        "p99": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 2),
        "max": round(ordered[-1], 2),
    }


def main() -> None:
    """Measure, and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", default="-")
    parser.add_argument("--device", choices=["cpu"], default="cpu", help="no network is run")
    parser.add_argument("--quick", action="store_true", help="a smaller volume, fewer strokes")
    given = parser.parse_args()
    shape = (40, 256, 256) if given.quick else (300, 512, 512)
    record: dict[str, Any] = {**circumstances(_PACKAGES, given.device), "shape": shape}
    record["stroke"] = latencies(shape, 50 if given.quick else 500)
    record["growth"] = growth(shape, 200 if given.quick else 10_000)
    write(record, given.json)


if __name__ == "__main__":
    main()
