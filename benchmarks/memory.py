"""Peak memory of training with activation checkpointing and with accumulation, and whether the steps stay the same.

Each way runs in a process of its own and takes the same steps on the same batches; what the weights differ by
afterwards is the difference in rounding. SGD, because Adam divides a gradient by its own size, so that a rounded zero
becomes a whole step::

    python benchmarks/memory.py --json -
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from record import circumstances, in_own_process, peak_mib, write
from steps import CASES, QUICK_CASES, Case, product_compute, product_sampler, seconds_each, settings_for

_PACKAGES = ("napari-unet", "torch", "numpy")
_ACCUMULATE = 4
_WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "activation_checkpointing": {"activation_checkpointing": True},
    "accumulate": {"accumulate": _ACCUMULATE},
    "both": {"activation_checkpointing": True, "accumulate": _ACCUMULATE},
}


def _cases(quick: bool) -> dict[str, Case]:
    """Return the cases of training.py, with as many patches as accumulation wants at least."""
    return {
        name: replace(case, batch=max(case.batch, _ACCUMULATE))
        for name, case in (QUICK_CASES if quick else CASES).items()
    }


def measure(case: Case, way: str, weights: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Take the steps one way in this process, and save the weights."""
    import torch

    from napari_unet.networks.factory import build, weights_of
    from napari_unet.training.loop import train

    compute = product_compute(given.device)
    training = {"steps": given.steps, "seed": given.seed, "optimiser": "sgd", "learning_rate": 1e-2, **_WAYS[way]}
    settings = settings_for(case, training, deep_supervision=False)
    network = build(settings.network, seed=given.seed)
    draw = product_sampler(case, settings, given.seed, given.device)
    before = peak_mib()
    taken = train(network, draw, settings.training, compute, description=settings.network)
    seconds = seconds_each(taken, 1, given.steps - 1, given.device)
    for _ in taken:
        pass  # the averaged weights are put in place after the last step
    np.savez(weights, **weights_of(network))
    cuda = given.device == "cuda"
    return {
        "peak_mib": round(peak_mib(), 1),
        "growth_mib": round(peak_mib() - before, 1),
        "device_mib": round(torch.cuda.max_memory_allocated() / 2**20, 1) if cuda else None,
        "seconds": round(statistics.median(seconds), 4),
        "precision": compute.precision,
        "threads": compute.threads,
    }


def _difference(one: Path, other: Path) -> dict[str, float]:
    """Return the largest difference between two files of weights, and the largest weight beside it."""
    with np.load(one) as a, np.load(other) as b:
        return {
            "largest_difference": max(float(np.abs(a[name] - b[name]).max()) for name in a.files),
            "largest_weight": max(float(np.abs(a[name]).max()) for name in a.files),
        }


def _measure_all(given: argparse.Namespace) -> dict[str, Any]:
    options = [f"--device={given.device}", f"--seed={given.seed}", f"--steps={given.steps}"]
    options += ["--quick"] if given.quick else []
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in _cases(given.quick):
            results[case] = {}
            for way in _WAYS:
                file = Path(folder) / f"{case}-{way}.npz"
                found = in_own_process(__file__, ["--one", case, way, str(file), *options], patient=True)
                plain = results[case].get("plain", found)
                where = "device_mib" if given.device == "cuda" else "growth_mib"
                found["memory_vs_plain"] = round(found[where] / plain[where], 3)
                found["time_vs_plain"] = round(found["seconds"] / plain["seconds"], 3)
                results[case][way] = found | _difference(Path(folder) / f"{case}-plain.npz", file)
                sys.stderr.write(f"{case}, {way}: {found[where]:.0f} MiB\n")
    return results


def main() -> None:
    """Measure, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small networks and patches")
    parser.add_argument("--json", metavar="FILE", default="-")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--one", nargs=3, metavar=("CASE", "WAY", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.steps < 2:
        parser.error("--steps wants 2 or more: the first is not timed")
    cases = _cases(given.quick)
    if given.one:
        case, way, file = given.one
        sys.stdout.write("\n" + json.dumps(measure(cases[case], way, Path(file), given)) + "\n")
        return
    figures = {**circumstances(_PACKAGES, given.device), "device": given.device, "seed": given.seed}
    results = _measure_all(given)
    figures |= {
        "quick": given.quick,
        "steps": given.steps,
        "accumulate": _ACCUMULATE,
        "tasks": {name: {"patch": c.patch, "batch": c.batch, "features": c.features} for name, c in cases.items()},
        "load_after": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "results": results,
    }
    write(figures, given.json)


if __name__ == "__main__":
    main()
