"""Training on a whole set with the `thorough` preset, scored on scans that were set aside before.

The test scans are those of ``napari-unet simulate`` with seed 0, so that nothing else in benchmarks/ has learnt from
them; all others teach. The preset is used as it is, with the same budget for every set::

    python benchmarks/whole_set.py --only hippocampus

One JSON per set is written to benchmarks/results/whole_set; those present are skipped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from record import begin_with_patient_threads, circumstances, write

from napari_unet.compute.device import resolve
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.settings import ComputeSettings
from napari_unet.io.pairs import LabelledScan

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
_RESULTS = Path(__file__).resolve().parent / "results" / "whole_set"
_SECONDS = 1500.0
_PACKAGES = ("napari-unet", "torch", "numpy")


#: The sets of the effort benchmark, so that its test scans are set aside here as well.
_SETS = {"hippocampus": "hippocampus_mr", "cardiac": "cardiac_cine_mr", "em": "em_membrane"}


def load(folder: str, data: Path) -> tuple[list[LabelledScan], dict[str, list[LabelledScan]], LabelSchema]:
    """Return the scans that teach, those that test by group, and the classes."""
    from effort_sets import SETS, Scans

    scans = Scans(SETS[folder], data / folder)
    loaded = {name: scans(name) for name in scans.names}
    test = scans.split(0).test
    teaching = [item for name, items in loaded.items() if name not in test for item in items]
    return teaching, {name: loaded[name] for name in test}, scans.schema


def measure(folder: str, data: Path, seconds: float, compute: ResolvedCompute, quick: bool) -> dict[str, Any]:
    """Train, predict the test scans and score them; with ``quick`` few scans of each."""
    import torch

    from napari_unet.cli.output import say
    from napari_unet.cli.training import follow
    from napari_unet.session.predicting import predict_scan
    from napari_unet.training.fine_tune import fine_tune
    from napari_unet.training.lesson import Lesson
    from napari_unet.training.plan import plan

    torch.set_num_threads(compute.threads)
    teaching, testing, schema = load(folder, data)
    if quick:
        teaching, testing = teaching[:8], dict(list(testing.items())[:3])
    settings = plan(
        [item.scan for item in teaching],
        len(schema.classes),
        "thorough",
        [item.labels for item in teaching],
        overrides={"training.budget_seconds": seconds},
        device=compute.device,
    )
    lessons = [Lesson(item.scan, item.labels) for item in teaching]
    cpu = time.process_time()
    outcome = follow(fine_tune(lessons, settings, schema, compute), say)
    cpu = time.process_time() - cpu
    started = time.perf_counter()
    predicted = {
        name: [predict_scan(outcome.checkpoint, item.scan, compute, average=True) for item in items]
        for name, items in testing.items()
    }
    return {
        **_scores(predicted, testing, len(schema.classes)),
        "teaching": len(teaching),
        "testing": sum(len(items) for items in testing.values()),
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "predicting_seconds": round(time.perf_counter() - started, 1),
        "settings": settings.model_dump(mode="json"),
    }


def _scores(
    predicted: dict[str, list[np.ndarray]], testing: dict[str, list[LabelledScan]], n_classes: int
) -> dict[str, Any]:
    """Return Dice per group as simulate counts it, and HD95 where the spacing is known."""
    from napari_unet.evaluation.effort import pooled_dice
    from napari_unet.evaluation.metrics import score_case

    dice = [pooled_dice(predicted[name], [i.labels for i in items], n_classes) for name, items in testing.items()]
    defined = [value for value in dice if value is not None]
    ids = tuple(range(1, n_classes + 1))
    cases = [
        score_case(mask, item.labels, ids, item.scan.geometry.spacing, 1.0, item.stem)
        for name, items in testing.items()
        for mask, item in zip(predicted[name], items, strict=True)
        if item.labels.any()
    ]
    hd95 = [float(np.mean(list(case.hd95_mm.values()))) for case in cases]
    return {
        "dice": float(np.mean(defined)),
        "dice_per_class": {k: float(np.mean([case.dice[k] for case in cases])) for k in ids},
        "dice_per_group": dict(zip(testing, dice, strict=True)),
        "dice_quartiles": [float(v) for v in np.percentile(defined, (25, 50, 75))],
        "hd95": float(np.mean(hd95)),
        "hd95_median": float(np.median(hd95)),
        "hd95_unit": cases[0].unit,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the sets that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=_SETS, action="append")
    parser.add_argument("--seconds", type=float, default=_SECONDS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--data", type=Path, default=_DATA)
    parser.add_argument("--results", type=Path, default=_RESULTS)
    parser.add_argument("--quick", action="store_true", help="one set, eight scans, 20 s; nothing is kept")
    parser.add_argument("--json", default=None, help="all figures in one file, or - for standard output")
    given = parser.parse_args(arguments)
    compute = resolve(ComputeSettings(device=given.device, threads=given.threads))
    found = {}
    for name in given.only or (["hippocampus"] if given.quick else _SETS):
        path = given.results / f"{name}-0.json"
        if path.exists() and not given.quick:
            found[name] = json.loads(path.read_text(encoding="utf-8"))
            continue
        before = circumstances(_PACKAGES, given.device)
        figures = measure(_SETS[name], given.data, 20.0 if given.quick else given.seconds, compute, given.quick)
        found[name] = {**before, "set": name, "seed": 0, "compute": asdict(compute), **figures}
        if not given.quick:
            write(found[name], str(path))
    for name, figures in found.items():
        distance = f"HD95 {figures['hd95']:.2f} {figures['hd95_unit']}"
        print(f"{name}: Dice {figures['dice']:.4f}, {distance}, {figures['steps']} steps", file=sys.stderr)
    if given.json is not None:
        write(found, given.json)


if __name__ == "__main__":
    begin_with_patient_threads()
    main()
