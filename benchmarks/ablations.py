"""What each part of the recipe is worth: one cell per set, recipe and seed, trained for a fixed number of steps.

Steps are fixed so that what else the machine does changes nothing but the time. A cell trains from scratch on a few
scans, all there at once, and scores scans that appear neither in the stream nor in the test set of the effort
benchmark's seed 0. Each cell is a JSON file under ``benchmarks/results/ablations``; those present are skipped, so that
the table can grow over several sittings::

    python benchmarks/ablations.py --only '^hippocampus_mr-(default|residual)-'
    python benchmarks/ablations.py --table
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from recipes import RECIPES, Recipe
from record import circumstances, write

from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.compute import PATIENT_THREADS, ResolvedCompute
from napari_unet.domain.errors import NapariUnetError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.settings import ModelSettings
from napari_unet.io.masks import TruthRule
from napari_unet.io.pairs import LabelledScan, find_pairs, load_pairs

_PACKAGES = ("napari-unet", "torch", "numpy")
_ROOT = Path(__file__).resolve().parents[1]
#: Of the effort benchmark's seed 0: these never teach and never score here.
_STREAM, _TEST = 10, 40
_SPLIT_SEED = 77
# Steps without measuring, and measured ones, to find what a step costs.
_COST_STEPS = 3, 10
_PRETRAINING = ("cardiac_cine_mr", "nuclei_fluorescence", "breast_ultrasound")
_PRETRAINING_SCANS, _PRETRAINING_SIDE = 20, 256


@dataclass(frozen=True)
class Split:
    """Stems of the scans that teach, that score, and of others that may be used without teaching."""

    teaching: tuple[str, ...]
    scoring: tuple[str, ...]
    other: tuple[str, ...]


def _split_hippocampus(stems: Sequence[str], seed: int) -> Split:
    order = np.random.default_rng(0).permutation(len(stems))[_STREAM:-_TEST]
    names = [stems[i] for i in np.random.default_rng(seed + _SPLIT_SEED).permutation(order)]
    return Split(tuple(names[:8]), tuple(names[8:38]), tuple(names[38:]))


def _split_em(stems: Sequence[str], seed: int) -> Split:
    # One stack of sections: block by block, or neighbours would be on both sides. From 20 on is the test set.
    block = sorted((stem for stem in stems if int(stem) < 14), key=int)
    names = [block[i] for i in np.random.default_rng(seed + _SPLIT_SEED).permutation(len(block))]
    scoring = sorted((stem for stem in stems if 14 <= int(stem) < 20), key=int)
    return Split(tuple(names[:5]), tuple(scoring), tuple(names[5:]))


@dataclass(frozen=True)
class ScanSet:
    """A folder of pairs: what its masks mean, how it is divided, and the steps of a cell (about 40 s on two cores)."""

    rule: TruthRule
    split: Callable[[Sequence[str], int], Split]
    steps: int


_SETS = {
    "hippocampus_mr": ScanSet(TruthRule(), _split_hippocampus, 400),
    "em_membrane": ScanSet(TruthRule(foreground=(0,)), _split_em, 240),
}


@dataclass(frozen=True)
class Cell:
    """One training of the table."""

    set_name: str
    recipe_name: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its file, without suffix."""
        return f"{self.set_name}-{self.recipe_name}-{self.seed}"

    @property
    def recipe(self) -> Recipe:
        """What it is taught, and how."""
        return RECIPES[self.recipe_name]


class Scans:
    """Reads the scans of a set by name, each once, with one mapping of mask values for all."""

    def __init__(self, folder: Path, rule: TruthRule, max_side: int | None = None) -> None:
        self._pairs = {pair.stem: pair for pair in find_pairs(folder / "images", folder / "masks")}
        self._rule, self._max_side = rule, max_side
        self._read: dict[str, LabelledScan] = {}

    @property
    def stems(self) -> list[str]:
        """Names of all pairs, sorted as strings."""
        return sorted(self._pairs)

    def __call__(self, stems: Sequence[str]) -> list[LabelledScan]:
        """Return scans in the order asked for."""
        new = [stem for stem in stems if stem not in self._read]
        if new:
            loaded, _ = load_pairs([self._pairs[stem] for stem in new], self._rule, self._max_side)
            self._read.update((item.stem, item) for item in loaded)
        return [self._read[stem] for stem in stems]


@lru_cache
def _scans_of(folder: Path, set_name: str) -> Scans:
    return Scans(folder / set_name, _SETS[set_name].rule)


def schema_of(items: Sequence[LabelledScan]) -> LabelSchema:
    """Return a schema of as many classes as the labels have."""
    n_classes = max(int(item.labels.max()) for item in items)
    return LabelSchema.of(*(f"class {value}" for value in range(1, n_classes + 1)))


@dataclass(frozen=True, eq=False)
class Trained:
    """A checkpoint and what it took."""

    checkpoint: Checkpoint
    steps: int
    seconds: float
    cpu_seconds: float
    loss: float


class Trainer:
    """Plans and trains recipes on one set with one seed.

    Parameters
    ----------
    scans : Scans
        Of the set.
    split : Split
        Who teaches.
    compute : ResolvedCompute
        Device, precision, threads.
    seed : int
        Of weights and patches.
    """

    def __init__(self, scans: Scans, split: Split, compute: ResolvedCompute, seed: int) -> None:
        self._scans, self._split, self._compute, self._seed = scans, split, compute, seed
        self.schema = schema_of(scans(split.teaching))

    def plan(self, recipe: Recipe) -> ModelSettings:
        """Return a recipe's settings; what depends on its wishes is planned to fit them."""
        from napari_unet.training.plan import plan

        items = self._scans(self._split.teaching[: recipe.labelled])
        # All scans are there at once: none is the newest.
        fixed = {"training.newest_fraction": 0.0, "training.seed": self._seed, "training.budget_seconds": None}
        return plan(
            [item.scan for item in items],
            len(self.schema.classes),
            recipe.preset,
            [item.labels for item in items],
            overrides={**fixed, **recipe.values},
        )

    def step_cost(self, recipe: Recipe) -> float:
        """Return the CPU seconds of a step, all threads together; on an accelerator the wall seconds."""
        clock = time.process_time if self._compute.device == "cpu" else time.perf_counter
        skipped, measured = _COST_STEPS
        settings = self.plan(recipe).with_values({"training.steps": skipped + measured})
        training = self._begin(recipe, settings, None)
        for _ in range(skipped):
            next(training)
        before = clock()
        for _ in range(measured):
            next(training)
        cost = (clock() - before) / measured
        training.close()
        return cost

    def train(self, recipe: Recipe, steps: int, base: Checkpoint | None) -> Trained:
        """Train a recipe for so many steps."""
        settings = self.plan(recipe).with_values({"training.steps": steps})
        training = self._begin(recipe, settings, base)
        began, cpu_began = time.perf_counter(), time.process_time()
        seconds, cpu_seconds, loss = 0.0, 0.0, float("nan")
        while True:
            try:
                loss = next(training).loss
            except StopIteration as stop:
                return Trained(stop.value.checkpoint, stop.value.steps, seconds, cpu_seconds, loss)
            # At each step, so that what follows the last is not counted.
            seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began

    def _begin(self, recipe: Recipe, settings: ModelSettings, base: Checkpoint | None) -> Iterator[Any]:
        from napari_unet.training.examples import prepare_lesson, prepare_unlabelled
        from napari_unet.training.fine_tune import train_examples
        from napari_unet.training.lesson import Lesson

        teaching = self._scans(self._split.teaching[: recipe.labelled])
        judging = self._scans(self._split.other[: recipe.judging])
        unlabelled = self._scans(self._split.other[: recipe.unlabelled])
        lessons = [Lesson(item.scan, item.labels) for item in teaching]
        lessons += [Lesson(item.scan, item.labels, locked=np.ones(item.scan.n_slices, bool)) for item in judging]
        return train_examples(
            [prepare_lesson(lesson, settings, self.schema) for lesson in lessons],
            lessons,
            settings,
            self.schema,
            self._compute,
            base=base,
            name="ablation",
            started=time.perf_counter(),
            unlabelled=[prepare_unlabelled(item.scan, settings) for item in unlabelled],
        )


def score(checkpoint: Checkpoint, items: Sequence[LabelledScan], compute: ResolvedCompute) -> dict[str, float | None]:
    """Return the Dice of each scan, by name."""
    from napari_unet.evaluation.effort import pooled_dice
    from napari_unet.session.predicting import predict_scan

    n_classes = len(checkpoint.card.label_schema.classes)
    return {
        item.stem: pooled_dice([predict_scan(checkpoint, item.scan, compute, True)], [item.labels], n_classes)
        for item in items
    }


def pretrained(settings: ModelSettings, data: Path, cache: Path, steps: int, compute: ResolvedCompute) -> Checkpoint:
    """Return weights for a network that learnt on other sets, but for its head; they are kept in the cache.

    Parameters
    ----------
    settings : ModelSettings
        Of the training that begins with them.
    data : Path
        Where the sets are.
    cache : Path
        Folder; one file per description of the network and number of steps.
    steps : int
        Of the training on the other sets, if it has to be done.
    compute : ResolvedCompute
    """
    from napari_unet.networks.factory import build, weights_of

    binary = settings.with_values({"network.out_channels": 2, "training.steps": steps, "training.seed": 0})
    described = json.dumps([binary.network.model_dump(), binary.preparation.model_dump(), steps], sort_keys=True)
    path = cache / f"pretrained-{hashlib.blake2b(described.encode(), digest_size=8).hexdigest()}.npz"
    if not path.exists():
        _pretrain(binary, data, path, compute)
    with np.load(path) as known:
        learnt = {name: known[name] for name in known.files}
    weights = weights_of(build(settings.network, seed=settings.training.seed))
    for name, fresh in weights.items():
        # Other classes: the head starts anew.
        if not name.startswith("head") and name in learnt and learnt[name].shape == fresh.shape:
            weights[name] = learnt[name]
    schema = LabelSchema.of(*(f"class {value}" for value in range(1, settings.network.out_channels)))
    return Checkpoint(weights, ModelCard(name="pretrained", settings=settings, label_schema=schema))


def _pretrain(settings: ModelSettings, data: Path, path: Path, compute: ResolvedCompute) -> None:
    from napari_unet.training.fine_tune import fine_tune
    from napari_unet.training.lesson import Lesson

    lessons = []
    for name in _PRETRAINING:
        scans = Scans(data / name, TruthRule(binary=True), _PRETRAINING_SIDE)
        chosen = np.random.default_rng(0).permutation(len(scans.stems))[:_PRETRAINING_SCANS]
        lessons += [Lesson(item.scan, item.labels) for item in scans([scans.stems[i] for i in chosen])]
    training = fine_tune(lessons, settings, LabelSchema.of("foreground"), compute, name="pretrained")
    while True:
        try:
            next(training)
        except StopIteration as stop:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **stop.value.checkpoint.weights)
            return


def run_cell(cell: Cell, given: argparse.Namespace, compute: ResolvedCompute) -> dict[str, Any]:
    """Train and score one cell; return its record."""
    recipe, scan_set = cell.recipe, _SETS[cell.set_name]
    scans = _scans_of(given.data, cell.set_name)
    split = scan_set.split(scans.stems, cell.seed)
    trainer = Trainer(scans, split, compute, cell.seed)
    steps = given.steps or scan_set.steps
    settings = trainer.plan(recipe)
    record: dict[str, Any] = {
        "set": cell.set_name,
        "recipe": cell.recipe_name,
        "seed": cell.seed,
        "title": recipe.title,
        "preset": recipe.preset,
        "overrides": dict(recipe.values),
        **circumstances(_PACKAGES, compute.device),
        "threads": compute.threads,
        "precision": compute.precision,
    }
    if cell.recipe_name != "default" and recipe.only_settings and settings == trainer.plan(RECIPES["default"]):
        return {**record, "same_as": "default"}
    if recipe.equal_cost:
        costs = {name: trainer.step_cost(RECIPES[name]) for name in ("default", cell.recipe_name)}
        steps = max(1, round(steps * costs["default"] / costs[cell.recipe_name]))
        record["step_seconds"] = costs
    base = None
    if recipe.pretrained:
        base = pretrained(settings, given.data, given.cache, 3 * steps, compute)
    trained = trainer.train(recipe, steps, base)
    dice = score(trained.checkpoint, scans(split.scoring[: given.scoring]), compute)
    return record | {
        "dice": float(np.mean([value for value in dice.values() if value is not None])),
        "dice_per_case": dice,
        "steps": trained.steps,
        "seconds": round(trained.seconds, 2),
        "cpu_seconds": round(trained.cpu_seconds, 2),
        "loss": trained.loss,
        "load_after": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "settings": trained.checkpoint.card.settings.model_dump(mode="json"),
    }


def cells(seeds: Sequence[int], only: str) -> list[Cell]:
    """Return the cells of the table whose names match, seed by seed, set by set."""
    found = [
        Cell(set_name, name, seed)
        for seed in seeds
        for set_name in _SETS
        for name, recipe in RECIPES.items()
        if set_name in recipe.sets
    ]
    return [cell for cell in found if re.search(only, cell.name)]


def _recorded(cell: Cell, results: Path) -> dict[str, Any] | None:
    path = results / f"{cell.name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _of_seeds(set_name: str, name: str, seeds: Sequence[int], results: Path) -> dict[int, dict[str, Any]]:
    records = {seed: _recorded(Cell(set_name, name, seed), results) for seed in seeds}
    return {seed: record for seed, record in records.items() if record}


def table(results: Path, seeds: Sequence[int]) -> str:
    """Return the table in Markdown: means over the seeds that were run, and the difference at equal seeds."""
    lines = []
    for set_name in _SETS:
        lines += [
            f"### {set_name}, seeds {', '.join(map(str, seeds))}",
            "",
            "| recipe | Dice | against its reference | reference | steps | CPU s per step | seeds run |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, recipe in RECIPES.items():
            if set_name in recipe.sets:
                mine, theirs = (_of_seeds(set_name, each, seeds, results) for each in (name, recipe.against))
                lines.append(_row(recipe, mine, theirs))
        lines.append("")
    return "\n".join(lines)


def _row(recipe: Recipe, found: dict[int, dict[str, Any]], references: dict[int, dict[str, Any]]) -> str:
    run = {seed: record for seed, record in found.items() if "dice" in record}
    if not run:
        return f"| {recipe.title} | {'as planned' if found else 'not run'} | | {recipe.against} | | | |"
    gains = [record["dice"] - references[seed]["dice"] for seed, record in run.items() if seed in references]
    gain = f"{statistics.mean(gains):+.4f}" if gains else "not run"
    if recipe is RECIPES[recipe.against]:
        gain = ""
    dice = statistics.mean(record["dice"] for record in run.values())
    steps = ", ".join(str(n) for n in sorted({record["steps"] for record in run.values()}))
    cost = statistics.median(record["cpu_seconds"] / record["steps"] for record in run.values())
    ran = ", ".join(str(seed) for seed in run)
    return f"| {recipe.title} | {dice:.4f} | {gain} | {recipe.against} | {steps} | {cost:.3f} | {ran} |"


def run(wanted: Sequence[Cell], given: argparse.Namespace) -> int:
    """Run the cells that are not there yet; return how many failed."""
    import torch

    from napari_unet.compute.device import resolve
    from napari_unet.domain.settings import ComputeSettings

    # One precision on every machine, so that cells of several can stand in one table.
    compute = resolve(ComputeSettings(device=given.device, precision="float32", threads=given.threads))
    torch.set_num_threads(compute.threads)
    failed = 0
    for cell in wanted:
        if _recorded(cell, given.results):
            continue
        try:
            record = run_cell(cell, given, compute)
        except NapariUnetError as error:
            sys.stderr.write(f"{cell.name}: {error}\n")
            failed += 1
            continue
        write(record, str(given.results / f"{cell.name}.json"))
        done = f"Dice {record['dice']:.4f}, {record['seconds']:.0f} s" if "dice" in record else "as planned"
        sys.stderr.write(f"{cell.name}: {done}\n")
    return failed


def _arguments() -> argparse.Namespace:
    import platformdirs

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="REGEX", help="cells whose SET-RECIPE-SEED matches")
    parser.add_argument("--list", action="store_true", help="print the cells and which have been run")
    parser.add_argument("--table", action="store_true", help="print the table in Markdown")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=None, help="instead of the set's own number")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--data", type=Path, default=_ROOT.parent / "shared" / "data")
    parser.add_argument("--results", type=Path, default=_ROOT / "benchmarks" / "results" / "ablations")
    parser.add_argument("--cache", type=Path, default=platformdirs.user_cache_path("napari-unet") / "ablations")
    parser.add_argument("--json", metavar="FILE", help="all cells that have been run, in one file")
    parser.add_argument("--quick", action="store_true", help="three cells of 20 steps, in a folder that is deleted")
    parser.set_defaults(scoring=None)
    return parser.parse_args()


def main() -> None:
    """Run cells, or print what there is."""
    for name, value in PATIENT_THREADS.items():
        os.environ.setdefault(name, value)
    given = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        if given.quick:
            given.only = given.only or "^hippocampus_mr-(default|two-scans|mean-teacher)-0$"
            given.results, given.steps, given.scoring = Path(folder), given.steps or 20, 3
        wanted = cells(given.seeds, given.only)
        if given.list:
            print("\n".join(f"{cell.name}{' run' if _recorded(cell, given.results) else ''}" for cell in wanted))
            return
        failed = 0 if given.table else run(wanted, given)
        if given.table or given.quick:
            print(table(given.results, given.seeds))
        if given.json:
            records = {cell.name: _recorded(cell, given.results) or "not run" for cell in wanted}
            write({"cells": records}, given.json)
    if failed:
        raise SystemExit(f"{failed} cells could not be run")


if __name__ == "__main__":
    main()
