"""Two curves of learning on hippocampus_mr: against the seconds after each scan, and against the scans corrected.

The budget curve is made of cells of effort.py with other budgets; the label curve of one stream of twenty scans, after
each of which the test scans are scored. What has been run is not run again::

    python benchmarks/curves.py --pictures docs/images

"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effort import THREADS, Cell, Meter, arguments, mean_of, recorded, run
from effort_sets import SETS, Scans
from record import begin_with_patient_threads, circumstances, write
from streams import Watched

_SET, _SEED = "hippocampus_mr", 0
_BUDGETS, _SCANS = (5.0, 20.0, 80.0), 20
_PACKAGES = ("napari-unet", "torch", "numpy")


def measure_labels(given: argparse.Namespace, scans: int, seconds: float, test: int | None) -> dict[str, Any]:
    """Run one stream with the test scans scored after each of its scans."""
    import torch

    from napari_unet.compute.device import resolve
    from napari_unet.domain.settings import ComputeSettings

    compute = resolve(ComputeSettings(device=given.device, threads=THREADS))
    torch.set_num_threads(THREADS)
    source = Scans(SETS[_SET], given.data / _SET)
    split = source.split(_SEED, scans, test)
    meter = Meter()
    before = circumstances(_PACKAGES, given.device)
    # The test scans teach nothing, so that they may be scored from the first model on.
    simulator = Watched(split.test, 1, source, source.schema, compute, seconds, _SEED, from_the=1)
    figures = simulator.run_watched(split.stream, meter)
    foreground = [source.foreground(name) for name in split.stream]
    return {"set": _SET, "seed": _SEED, "seconds": seconds, **before, "foreground": foreground, **figures, **meter.rows}


def draw_budget(records: dict[str, dict[float, dict[str, Any]]], path: Path) -> None:
    """Draw effort and test Dice against the budget, a line per recipe."""
    figure, (left, right) = _axes()
    for recipe, found in records.items():
        budgets = sorted(found)
        left.plot(budgets, [found[t]["cumulative_effort"] for t in budgets], "o-", label=recipe)
        right.plot(budgets, [found[t]["test_dice"] for t in budgets], "o-", label=recipe)
    for axis, title in ((left, "cumulative effort, ten scans"), (right, "test Dice after ten scans")):
        axis.set(xscale="log", xlabel="seconds to learn after each scan", title=title)
        axis.set_xticks(_BUDGETS, [f"{t:g}" for t in _BUDGETS])
        axis.minorticks_off()
    left.legend()
    _save(figure, path)


def draw_labels(record: dict[str, Any], path: Path) -> None:
    """Draw effort and test Dice against the number of scans corrected."""
    figure, (left, right) = _axes()
    numbers = range(1, len(record["foreground"]) + 1)
    left.plot(numbers, [e or 0.0 for e in record["effort"]], "o", markersize=4, label="of that scan")
    left.plot(numbers, _cumulative(record), "-", label="of all so far")
    left.set(xlabel="scan of the stream", title="effort")
    left.legend()
    means = {int(learnt): mean_of(dice) for learnt, dice in record["watched"].items()}
    right.plot(means.keys(), means.values(), "o-")
    right.set(xlabel="scans corrected", title="test Dice")
    _save(figure, path)


def _cumulative(record: dict[str, Any]) -> list[float]:
    spent = [(e or 0.0) * f for e, f in zip(record["effort"], record["foreground"], strict=True)]
    return [sum(spent[: n + 1]) / sum(record["foreground"][: n + 1]) for n in range(len(spent))]


def _axes() -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def _budgets(recipes: Sequence[str], given: argparse.Namespace, quick: dict[str, Any]) -> dict[str, dict[float, Any]]:
    cells = [Cell(_SET, recipe, _SEED, seconds, **quick) for recipe in recipes for seconds in given.budgets]
    if run(cells, given):
        raise SystemExit("a cell of the budget curve could not be run")
    found: dict[str, dict[float, Any]] = {recipe: {} for recipe in recipes}
    for cell in cells:
        record = recorded(cell, given.results)
        if record:
            found[cell.recipe][cell.seconds] = record
    return found


def main() -> None:
    """Run what is missing, and draw."""
    parser = arguments()
    parser.description = __doc__.splitlines()[0]
    parser.add_argument("--recipe", action="append", help="of the budget curve; this product alone without")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="where budget-curve.png and label-curve.png go")
    parser.add_argument("--quick", action="store_true", help="two scans, 1 and 2 s, in a folder that is deleted")
    given = parser.parse_args()
    given.budgets, scans, seconds, quick = _BUDGETS, _SCANS, _BUDGETS[1], {}
    with tempfile.TemporaryDirectory() as folder:
        if given.quick:
            given.results, given.budgets, scans, seconds = Path(folder), (1.0, 2.0), 2, 2.0
            quick = {"scans": 2, "test": 2}
        budgets = _budgets(given.recipe or ["product"], given, quick)
        path = given.results / f"{_SET}-labels-{_SEED}.json"
        if not path.exists():
            write(measure_labels(given, scans, seconds, quick.get("test")), str(path))
        labels = json.loads(path.read_text(encoding="utf-8"))
    if given.pictures:
        draw_budget(budgets, given.pictures / "budget-curve.png")
        draw_labels(labels, given.pictures / "label-curve.png")
    for recipe, found in budgets.items():
        for budget, record in sorted(found.items()):
            print(f"{recipe}, {budget:g} s: effort {record['cumulative_effort']:.3f}", file=sys.stderr)
    if given.json:
        write({"budgets": budgets, "labels": labels}, given.json)


if __name__ == "__main__":
    begin_with_patient_threads()
    main()
