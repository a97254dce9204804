"""How much painting each recipe still asks for: this product and public tools in one protocol, that of `simulate`.

A cell is a set, a recipe and a seed; each is a JSON file under ``benchmarks/results/effort``, and those present are
skipped, so that the table can grow over several sittings. Split, loading, order and effort are the product's own code
for every recipe. The public tools live in an environment of their own, made by ``make bench``::

    .venv-bench/bin/python benchmarks/effort.py --only '^hippocampus_mr-(product|monai)-0$'
    .venv-bench/bin/python benchmarks/effort.py --table

How the public recipes learn and propose is in effort_peers.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from effort_sets import DATA, SETS, Scans
from record import circumstances, in_own_process, write

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.labels import LabelSchema
from napari_unet.io.pairs import LabelledScan
from napari_unet.session.simulate import Simulator, Split, refuse_seen

_PACKAGES = (
    "napari-unet",
    "torch",
    "numpy",
    "monai",
    "nnunetv2",
    "dynamic-network-architectures",
    "root-painter-trainer",
    "scikit-image",
    "scikit-learn",
)
_ROOT = Path(__file__).resolve().parents[1]
RESULTS = _ROOT / "benchmarks" / "results" / "effort"
SECONDS, FLOOR_SECONDS, THREADS = 20.0, 600.0, 2


#: Sets that the shipped starter learns from: there only one whose training left the set out counts.
_STARTER_LEARNS = ("hippocampus_mr", "cardiac_cine_mr", "nuclei_fluorescence", "breast_ultrasound")


@dataclass(frozen=True)
class Recipe:
    """A row of the table, and the packages it cannot be run without."""

    title: str
    packages: tuple[str, ...] = ()
    public: bool = True


RECIPES = {
    "rootpainter": Recipe("RootPainter (its network, loss, SGD)", ("root_painter_trainer",)),
    "monai": Recipe("MONAI Label style (BasicUNet, Adam 1e-4, DiceCE)", ("monai",)),
    "nnunet": Recipe("nnU-Net style (PlainConvUNet, SGD 1e-2 poly, fp32)", ("nnunetv2", "monai")),
    "forest": Recipe("pixel features + random forest (ilastik, convpaint style)", ("sklearn",)),
    "guide": Recipe("the guide's recipe as written (`classic`)"),
    "product": Recipe("**this product, from scratch**", public=False),
    "product-starter": Recipe("**this product, from a starter that has not seen the set**", public=False),
    "floor": Recipe("the floor: ten minutes on all other scans", public=False),
}
_PRODUCT = ("product", "product-starter")
_COLUMNS = (
    "recipe",
    "effort @3",
    "@5",
    "@N",
    "corrective Dice, scans 2..N",
    "test Dice",
    "steps per scan",
    "distance closed",
    "other programs, cores",
    "seeds",
)


@dataclass(frozen=True)
class Cell:
    """One run; ``scans`` and ``test`` are the set's own where None."""

    set_name: str
    recipe: str
    seed: int
    seconds: float = SECONDS
    scans: int | None = None
    test: int | None = None

    @property
    def name(self) -> str:
        """Name of its file, without suffix."""
        length = "" if self.scans is None else f"-{self.scans}scans"
        budget = "" if self.seconds == SECONDS else f"-{self.seconds:g}s"
        return f"{self.set_name}-{self.recipe}-{self.seed}{length}{budget}"


class Meter:
    """What each scan of a stream cost this process and what other programs used meanwhile; called after each scan."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Any]] = {"cpu_seconds_per_scan": [], "others_cores_per_scan": [], "load_per_scan": []}
        self._last = self._now()

    def __call__(self, line: str) -> None:
        """Take down what was used since the last call, and pass the line on."""
        now = self._now()
        wall, own, busy = (new - old for new, old in zip(now, self._last, strict=True))
        self._last = now
        self.rows["cpu_seconds_per_scan"].append(round(own, 2))
        self.rows["others_cores_per_scan"].append(round(max(0.0, busy - own) / wall, 2))
        self.rows["load_per_scan"].append(os.getloadavg()[0] if hasattr(os, "getloadavg") else None)
        print(line, file=sys.stderr, flush=True)

    @staticmethod
    def _now() -> tuple[float, float, float]:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "steal", 0.0)
        return time.perf_counter(), time.process_time(), sum(times[:8]) - idle


def _product(cell: Cell, scans: Scans, split: Split, compute: ResolvedCompute, meter: Meter, base: Any = None) -> Any:
    """Run ``simulate``'s own loop; the guide's recipe is the preset ``classic`` in it."""
    from napari_unet.training.plan import plan

    adjust: dict[str, Callable[[Any], Any]] = {}
    if cell.recipe == "guide":
        first = scans(split.stream[0])
        classic = plan(
            [item.scan for item in first], len(scans.schema.classes), "classic", [item.labels for item in first]
        )
        adjust = {"adjust": lambda planned: classic}
    simulator = Simulator(scans, scans.schema, compute, cell.seconds, cell.seed, base, **adjust)
    figures = asdict(simulator.run(split, meter))
    return {**figures, "settings": simulator.settings.model_dump(mode="json") if simulator.settings else None}


def _starter(cell: Cell, scans: Scans, split: Split, starters: Path) -> Checkpoint:
    """Return the starter to begin with, refused if it has seen a scan of this run."""
    from napari_unet.storage.checkpoint_file import read_checkpoint

    path = starter_file(cell.set_name, starters)
    assert path is not None
    base = read_checkpoint(path)
    refuse_seen(base, [item for name in (*split.stream, *split.test) for item in scans(name)], allow=False)
    return begun(base, scans(split.stream[0]), scans.schema)


def begun(body: Checkpoint, group: Sequence[LabelledScan], schema: LabelSchema) -> Checkpoint:
    """Return what a project starts from that has a body from elsewhere and these first scans."""
    from napari_unet.networks.adapting import started
    from napari_unet.training.fingerprint import fingerprint
    from napari_unet.training.plan import plan_upon

    found = fingerprint([item.scan for item in group], [item.labels for item in group])
    return started(body, plan_upon(body.card.settings, found, len(schema.classes)), schema)


def starter_file(set_name: str, starters: Path | None) -> Path | None:
    """Return the starter's file that may be used for a set, if it is there."""
    if starters is None:
        return None
    path = starters / f"starter-without-{set_name}.safetensors"
    if not path.exists() and set_name not in _STARTER_LEARNS:
        path = starters / "starter.safetensors"
    return path if path.exists() else None


def _peer(cell: Cell, scans: Scans, split: Split, compute: ResolvedCompute, meter: Meter) -> dict[str, Any]:
    """Run a public recipe through the same stream."""
    from effort_peers import TOOLS, Task

    from napari_unet.evaluation.effort import correction_effort, pooled_dice

    n_classes = len(scans.schema.classes)
    tool = TOOLS[cell.recipe](Task(n_classes, cell.seed, compute.device, compute.threads))
    changed, dices, steps, seconds = [], [], [], []
    for name in split.stream:
        group = scans(name)
        proposals, truths = [tool.propose(item.scan) for item in group], [item.labels for item in group]
        changed.append(correction_effort(proposals, truths))
        dices.append(pooled_dice(proposals, truths, n_classes))
        started = time.perf_counter()
        steps.append(tool.learn(group, cell.seconds))
        seconds.append(round(time.perf_counter() - started, 3))
        meter(f"{name}: {changed[-1]} voxels to correct, Dice {dices[-1]}, {steps[-1]} steps in {seconds[-1]} s")
    tested = [
        pooled_dice([tool.propose(item.scan) for item in group], [item.labels for item in group], n_classes)
        for group in map(scans, split.test)
    ]
    return {"steps_per_scan": steps, "seconds_per_scan": seconds, **_figures(scans, split, changed, dices, tested)}


def _figures(
    scans: Scans, split: Split, changed: list[int], dices: list[float | None], tested: list[float | None]
) -> dict[str, Any]:
    foreground = [scans.foreground(name) for name in split.stream]
    defined = [value for value in tested if value is not None]
    return {
        "cumulative_effort": sum(changed) / sum(foreground),
        "effort": [c / f if f else None for c, f in zip(changed, foreground, strict=True)],
        "corrective_dice": dices,
        "test_dice": statistics.mean(defined) if defined else None,
        "test_dice_per_case": tested,
    }


def _floor(
    cell: Cell, scans: Scans, split: Split, compute: ResolvedCompute, meter: Meter, seconds: float
) -> dict[str, Any]:
    """Teach the product's network all scans outside stream and test; the first scan of the stream costs all."""
    from napari_unet.cli.output import say
    from napari_unet.cli.training import follow
    from napari_unet.evaluation.effort import correction_effort, pooled_dice
    from napari_unet.session.predicting import predict_scan
    from napari_unet.training.fine_tune import fine_tune
    from napari_unet.training.lesson import Lesson
    from napari_unet.training.plan import plan

    used = {*split.stream, *split.test}
    teaching = [item for name in scans.names if name not in used for item in scans(name)]
    settings = plan(
        [item.scan for item in teaching],
        len(scans.schema.classes),
        labels=[item.labels for item in teaching],
        overrides={"training.budget_seconds": seconds, "training.newest_fraction": 0.0, "training.seed": cell.seed},
    )
    outcome = follow(fine_tune([Lesson(i.scan, i.labels) for i in teaching], settings, scans.schema, compute), say)
    meter(f"{len(teaching)} scans taught, {outcome.steps} steps")

    def judge(name: str) -> tuple[int, float | None]:
        group = scans(name)
        proposals = [predict_scan(outcome.checkpoint, item.scan, compute, True) for item in group]
        truths = [item.labels for item in group]
        return correction_effort(proposals, truths), pooled_dice(proposals, truths, len(scans.schema.classes))

    later = [judge(name) for name in split.stream[1:]]
    changed = [scans.foreground(split.stream[0]), *(c for c, _ in later)]
    tested = [judge(name)[1] for name in split.test]
    return {
        "steps_per_scan": [outcome.steps],
        "seconds_per_scan": [round(outcome.seconds, 3)],
        "teaching": len(teaching),
        **_figures(scans, split, changed, [None, *(dice for _, dice in later)], tested),
        "settings": settings.model_dump(mode="json"),
    }


def run_cell(cell: Cell, given: argparse.Namespace) -> dict[str, Any]:
    """Run one cell in this process and return its record."""
    import torch

    from napari_unet.compute.device import resolve
    from napari_unet.domain.settings import ComputeSettings

    if given.device == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    compute = resolve(ComputeSettings(device=given.device, threads=THREADS))
    torch.set_num_threads(THREADS)
    scans = Scans(SETS[cell.set_name], given.data / cell.set_name)
    split = scans.split(cell.seed, cell.scans, cell.test)
    before = circumstances(_PACKAGES, given.device)
    meter = Meter()
    if cell.recipe == "floor":
        figures = _floor(cell, scans, split, compute, meter, given.floor_seconds)
    elif cell.recipe in (*_PRODUCT, "guide"):
        base = _starter(cell, scans, split, given.starters) if cell.recipe == "product-starter" else None
        figures = _product(cell, scans, split, compute, meter, base)
    else:
        figures = _peer(cell, scans, split, compute, meter)
    foreground = [scans.foreground(name) for name in split.stream]
    return {
        **asdict(cell),
        "title": RECIPES[cell.recipe].title,
        **before,
        "compute": asdict(compute),
        "stream": list(split.stream),
        "test": list(split.test),
        "foreground": foreground,
        "effort_at": {n: _effort_at(figures["effort"], foreground, n) for n in (3, 5, len(foreground))},
        **{key: value for key, value in figures.items() if key not in ("test", "stream")},
        **meter.rows,
    }


def _effort_at(effort: Sequence[float | None], foreground: Sequence[int], n: int) -> float | None:
    """Return the cumulative effort over the first ``n`` scans."""
    if n > len(foreground) or not sum(foreground[:n]):
        return None
    return sum((e or 0.0) * f for e, f in zip(effort[:n], foreground[:n], strict=True)) / sum(foreground[:n])


def cells(only: str) -> list[Cell]:
    """Return the cells of the table whose names match: the product with all seeds of a set, others with the first."""
    found = [
        Cell(set_name, recipe, seed)
        for set_name, which in SETS.items()
        for recipe in RECIPES
        for seed in (which.seeds if recipe in _PRODUCT else which.seeds[:1])
    ]
    return [cell for cell in found if re.search(only, cell.name)]


def recorded(cell: Cell, results: Path) -> dict[str, Any] | None:
    """Return a cell's record, if it has been run."""
    path = results / f"{cell.name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def missing(cell: Cell, starters: Path | None) -> str | None:
    """Return what a cell cannot be run for the lack of."""
    packages = [name for name in RECIPES[cell.recipe].packages if importlib.util.find_spec(name) is None]
    if packages:
        return f"{', '.join(packages)} not installed here (`make bench` makes an environment with all of them)"
    if cell.recipe == "product-starter" and starter_file(cell.set_name, starters) is None:
        return "no starter that has not seen the set (--starters)"
    return None


def run(wanted: Sequence[Cell], given: argparse.Namespace) -> int:
    """Run the cells that are not there yet, each in a process of its own; return how many failed."""
    failed = 0
    for cell in wanted:
        if recorded(cell, given.results):
            continue
        reason = missing(cell, given.starters)
        if reason:
            print(f"{cell.name}: not run, {reason}", file=sys.stderr)
            continue
        print(f"{cell.name}: running", file=sys.stderr, flush=True)
        arguments = ["--cell", json.dumps(asdict(cell)), "--device", given.device, "--data", str(given.data)]
        arguments += ["--floor-seconds", str(given.floor_seconds)]
        arguments += ["--starters", str(given.starters)] if given.starters else []
        try:
            # Patient threads for every tool: a busy machine would otherwise stall the others' steps many times over.
            record = in_own_process(__file__, arguments, patient=True)
        except SystemExit:
            print(f"{cell.name}: failed", file=sys.stderr)
            failed += 1
            continue
        write(record, str(given.results / f"{cell.name}.json"))
        print(
            f"{cell.name}: effort {_figure(record['cumulative_effort'])}, test Dice {_figure(record['test_dice'])}",
            file=sys.stderr,
        )
    return failed


def table(results: Path, of: Callable[[str, str, int], Cell] = Cell, sets: Iterable[str] = SETS) -> str:
    """Return the table in Markdown; a cell that has not been run says so."""
    lines = []
    for set_name in sets:
        which = SETS[set_name]
        lines += [
            f"### {set_name}, N = {of(set_name, 'product', 0).scans or which.scans}",
            "",
            f"| {' | '.join(_COLUMNS)} |",
            "|---" * len(_COLUMNS) + "|",
        ]
        for name, recipe in RECIPES.items():
            seeds = which.seeds if name in _PRODUCT else which.seeds[:1]
            found = {seed: recorded(of(set_name, name, seed), results) for seed in seeds}
            run_ = {seed: record for seed, record in found.items() if record}
            closed = _closed(results, of, set_name, run_.get(which.seeds[0])) if name in _PRODUCT else ""
            lines.append(_row(recipe, run_, closed))
        lines.append("")
    return "\n".join(lines)


def _closed(results: Path, of: Callable[[str, str, int], Cell], set_name: str, record: dict[str, Any] | None) -> str:
    """Return how much of the way from the best public recipe to the floor the product has gone, at the first seed."""
    seed = SETS[set_name].seeds[0]
    floor = recorded(of(set_name, "floor", seed), results)
    public = [recorded(of(set_name, name, seed), results) for name, recipe in RECIPES.items() if recipe.public]
    efforts = [each["cumulative_effort"] for each in public if each]
    if record is None or floor is None or not efforts:
        return "not run"
    best, least = min(efforts), floor["cumulative_effort"]
    if best <= least:
        return "undefined"
    return f"{(best - record['cumulative_effort']) / (best - least):.0%} ({len(efforts)} public run)"


def _row(recipe: Recipe, run_: dict[int, dict[str, Any]], closed: str) -> str:
    if not run_:
        return f"| {recipe.title} | not run | | | | | | {closed} | | |"
    records = list(run_.values())

    def mean(values: Iterable[float | None]) -> str:
        defined = [value for value in values if value is not None]
        return _figure(statistics.mean(defined)) if defined else "-"

    later = [mean_of(record["corrective_dice"][1:]) for record in records]
    efforts = [mean(record["effort_at"].get(str(n)) for record in records) for n in (3, 5)]
    steps = [n for record in records for n in record["steps_per_scan"]]
    others = [n for record in records for n in record["others_cores_per_scan"]]
    return (
        f"| {recipe.title} | {efforts[0]} | {efforts[1]} | {mean(r['cumulative_effort'] for r in records)} "
        f"| {mean(later)} | {mean(r['test_dice'] for r in records)} | {statistics.median(steps):.0f} | {closed} "
        f"| {statistics.mean(others):.1f} | {', '.join(map(str, run_))} |"
    )


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are defined."""
    defined = [value for value in values if value is not None]
    return statistics.mean(defined) if defined else None


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def arguments() -> argparse.ArgumentParser:
    """Return the options that this program shares with those that run its cells."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--starters", type=Path, metavar="DIR", help="holds starter-without-SET.safetensors")
    parser.add_argument("--floor-seconds", type=float, default=FLOOR_SECONDS)
    parser.add_argument("--json", metavar="FILE", help="all figures in one file, or - for standard output")
    return parser


def main() -> None:
    """Run cells, or print what there is."""
    parser = arguments()
    parser.description = __doc__.splitlines()[0]
    parser.add_argument("--only", default="", metavar="REGEX", help="cells whose SET-RECIPE-SEED matches")
    parser.add_argument("--list", action="store_true", help="print the cells and which have been run")
    parser.add_argument("--table", action="store_true", help="print the table in Markdown")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="wall time after each scan")
    parser.add_argument("--quick", action="store_true", help="two scans, 2 s, in a folder that is deleted")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        print(json.dumps(run_cell(Cell(**json.loads(given.cell)), given)))
        return
    with tempfile.TemporaryDirectory() as folder:
        changes: dict[str, Any] = {"seconds": given.seconds}
        if given.quick:
            given.only, given.results, given.floor_seconds = given.only or "^hippocampus_mr-.*-0$", Path(folder), 5.0
            changes = {"seconds": min(given.seconds, 2.0), "scans": 2, "test": 2}
        wanted = [replace(cell, **changes) for cell in cells(given.only)]
        if given.list:
            print("\n".join(f"{cell.name}{' run' if recorded(cell, given.results) else ''}" for cell in wanted))
            return
        failed = 0 if given.table else run(wanted, given)
        if given.table or given.quick:
            sets = dict.fromkeys(cell.set_name for cell in wanted)
            print(
                table(given.results, lambda *key: Cell(*key, **changes), sets),
                file=sys.stderr if given.json == "-" else sys.stdout,
            )
        if given.json:
            write({"cells": {cell.name: recorded(cell, given.results) or "not run" for cell in wanted}}, given.json)
    if failed:
        raise SystemExit(f"{failed} cells could not be run")


if __name__ == "__main__":
    main()
