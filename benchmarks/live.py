"""Live refit: how soon a stroke shows in the mask of its slice, and what it does to the rest of that slice.

512 x 512 slices: of computed CT phantoms, and electron microscopy sections where the data lie beside the checkout. A
model learns briefly from some; on others it proposes, the hand looks at the slice for a second, and then paints one
stroke after another into the largest mistake, through the session and its engine, with Live on. A stroke is answered
once the session has taken over the new labels of the slice; the pause in which the program waits for the hand to rest
counts::

    python benchmarks/live.py --json -
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import circumstances, write
from scipy import ndimage

from napari_unet.compute.engine import Engine
from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.evaluation.effort import pooled_dice
from napari_unet.session.session import Session

_PACKAGES = ("napari-unet", "torch", "numpy", "scipy", "scikit-image")
_EM = Path(__file__).resolve().parents[1] / "../shared/data/em_membrane"
_SIDE = 512
_LARGEST_RADIUS, _LONGEST = 5, 40
# To find the first mistake of a slice. Meanwhile the worker makes its features ready, if that is quick enough.
_LOOK_SECONDS = 1.0
_BUSY = "while True: pass"


@dataclass(frozen=True)
class Task:
    """What a model learns from, and what is then painted on: scans with their truth, and slices of these."""

    schema: LabelSchema
    taught: list[tuple[Scan, NDArray[np.uint8]]]
    painted: list[tuple[Scan, NDArray[np.uint8], int]]


def phantoms(seed: int, n_painted: int) -> Task:
    """Return computed abdomens of 512 x 512 pixels: two teach; on each of the others one slice is painted."""
    from napari_unet.io import phantom
    from napari_unet.io.samples import PHANTOM_SCHEMA

    spacing = (20.0, 0.625, 0.625)

    def patient(number: int) -> tuple[Scan, NDArray[np.uint8]]:
        body = phantom.compute(number, (6, _SIDE, _SIDE), spacing)
        labels = np.zeros(body.image.shape, np.uint8)
        for value, level in enumerate((body.liver, body.kidneys, body.spleen, body.aorta), 1):
            labels[level > 0] = value
        return Scan(np.rint(body.image).astype(np.int16), "zyx", Geometry(spacing), slice_axis=0), labels

    first = 1000 * seed
    return Task(
        PHANTOM_SCHEMA,
        [patient(first + i) for i in range(2)],
        [(*patient(first + 2 + i), 3) for i in range(n_painted)],
    )


def membranes(seed: int, n_painted: int) -> Task:
    """Return sections of the EM stack: two of the first 14 teach, and some from 20 on are painted."""
    from napari_unet.io.registry import read_scan

    def section(number: int) -> tuple[Scan, NDArray[np.uint8]]:
        image = sorted((_EM / "images").iterdir())[number]
        truth = read_scan(sorted((_EM / "masks").iterdir())[number])
        return read_scan(image), (np.asarray(truth.data) == 0).astype(np.uint8)

    random = np.random.default_rng(seed)
    taught, painted = random.permutation(14)[:2], 20 + random.permutation(10)[:n_painted]
    return Task(LabelSchema.of("membrane"), [section(i) for i in taught], [(*section(i), 0) for i in painted])


def stroke(labels: NDArray, truth: NDArray, painted: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], int] | None:
    """Return the pixels of a stroke into the largest mistake, and its class; None where nothing is wrong.

    A straight line from the mistake's innermost pixel, in the direction in which it goes on longest, with the largest
    round brush that fits there. The hand stays within the true class.
    """
    found = []
    for value in np.unique(truth[labels != truth]):
        parts, n = ndimage.label((labels != truth) & (truth == value) & ~painted)
        if n:
            sizes = np.bincount(parts.ravel())[1:]
            found.append((sizes.max(), int(value), parts == sizes.argmax() + 1))
    if not found:
        return None
    _, value, mistake = max(found, key=lambda each: each[0])
    depth = ndimage.distance_transform_edt(mistake)
    start = np.array(np.unravel_index(depth.argmax(), depth.shape))
    radius = np.clip(depth.max(), 1, _LARGEST_RADIUS)
    line: list[tuple[int, ...]] = []
    for angle in np.arange(16) * np.pi / 8:
        steps = np.arange(_LONGEST)[:, None] * (np.sin(angle), np.cos(angle))
        points = np.rint(start + steps).astype(int)
        inside = ((points >= 0) & (points < truth.shape)).all(axis=1)
        inside[inside] = mistake[tuple(points[inside].T)]
        length = len(inside) if inside.all() else int(inside.argmin())
        line = max(line, [tuple(p) for p in points[:length]], key=len)
    off = np.ones(truth.shape, bool)
    off[tuple(np.array(line).T)] = False
    return (ndimage.distance_transform_edt(off) <= radius) & (truth == value), value


def learn(task: Task, steps: int) -> Checkpoint:
    """Return a model that has learnt from a task for so many steps."""
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Session(Engine(), Path(folder), task.schema)) as s:
        for scan, truth in task.taught:
            state = s.add_scan(scan)
            s.record_edit(state, truth, slice(None))
            s.accept_slices(state)
        s.learning.begin(steps=steps)
        s.wait()
        if s.learning.verdict is None:
            raise SystemExit("The model could not be trained: see the log.")
        return s.learning.verdict.checkpoint


@contextlib.contextmanager
def busy(cores: int) -> Iterator[None]:
    """Keep so many cores busy."""
    others = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(cores)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def paint(task: Task, model: Checkpoint, strokes: int) -> dict[str, Any]:
    """Paint on each slice of a task; return seconds until each answer, and the Dice around it."""
    n_classes = len(task.schema.classes)
    seconds: dict[str, list[float]] = {"first": [], "later": []}
    slices: list[list[list[float | None]]] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Session(Engine(), Path(folder), task.schema)) as s:
        s.models.use(model)
        s.live.switch(True)
        for scan, truth, index in task.painted:
            state = s.add_scan(scan)
            s.show_slice(index)
            s.proposals.begin()
            while s.proposals.run is None or not s.proposals.run.is_over:
                s.poll()
                time.sleep(0.005)
            time.sleep(_LOOK_SECONDS)
            s.poll()
            wanted = scan.to_planes(truth)[index]
            planes = [scan.to_planes(a)[index] for a in (state.annotation.labels, state.annotation.painted)]
            rows: list[list[float | None]] = []
            for number in range(strokes):
                made = stroke(planes[0], wanted, planes[1])
                if made is None:
                    break
                row = [pooled_dice([planes[0]], [wanted], n_classes)]
                view = state.annotation.labels.copy()
                scan.to_planes(view)[index][made[0]] = made[1]
                began = time.perf_counter()
                s.record_edit(state, view, slice(index, index + 1))
                row.append(pooled_dice([planes[0]], [wanted], n_classes))
                s.wait()
                seconds["later" if number else "first"].append(time.perf_counter() - began)
                rows.append([*row, pooled_dice([planes[0]], [wanted], n_classes)])
            slices.append(rows)
            s.remove_scan(state)
    return {
        "seconds": {
            **{name: _spread(each) for name, each in seconds.items()},
            "all": _spread([*seconds["first"], *seconds["later"]]),
        },
        # Per slice and stroke: before it, with the stroke alone, and after the refit.
        "dice": slices,
    }


def _spread(values: list[float]) -> dict[str, float | int]:
    return {
        "n": len(values),
        "median": round(statistics.median(values), 3),
        "p90": round(float(np.percentile(values, 90)), 3),
        "longest": round(max(values), 3),
    }


def _dice_means(slices: list[list[list[float]]]) -> dict[str, list[float]]:
    """Return, stroke by stroke, the mean Dice of the slices before it, with it alone, and after the refit."""
    n = min(len(rows) for rows in slices)
    means = np.array([rows[:n] for rows in slices], float).mean(axis=0).round(4)
    return {name: means[:, i].tolist() for i, name in enumerate(("before", "stroke", "refit"))}


def measure(task: Task, steps: int, strokes: int) -> dict[str, Any]:
    """Train, then paint with the machine idle and with two busy cores."""
    model = learn(task, steps)
    found: dict[str, Any] = {}
    for name, cores in (("idle", 0), ("two_busy_cores", 2)):
        with busy(cores):
            painted = paint(task, model, strokes)
        # The same strokes, but for rounding: once is enough.
        found.setdefault("dice", {**_dice_means(painted["dice"]), "slices": painted["dice"]})
        found[name] = painted["seconds"]
        sys.stderr.write(f"{name}: {found[name]['all']}\n")
    return found


def main() -> None:
    """Measure, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one slice of each, three strokes, a model of 30 steps")
    parser.add_argument("--json", metavar="FILE", default="-")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    n_slices, strokes, steps = (1, 3, 30) if given.quick else (5, 8, 80)
    tasks = {"phantom_ct": phantoms, **({"em_membrane": membranes} if _EM.is_dir() else {})}
    figures = {**circumstances(_PACKAGES, given.device), "device": given.device, "seed": given.seed}
    results = {}
    for name, make in tasks.items():
        sys.stderr.write(f"{name}\n")
        results[name] = measure(make(given.seed, n_slices), steps, strokes)
    load = list(os.getloadavg()) if hasattr(os, "getloadavg") else None
    figures |= {
        "quick": given.quick,
        "side": _SIDE,
        "look_seconds": _LOOK_SECONDS,
        "training_steps": steps,
        "load_after": load,
        "results": results,
    }
    write(figures, given.json)


if __name__ == "__main__":
    main()
