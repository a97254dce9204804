"""Exported models: network x format x runtime; how far from torch, how large, how fast, and the Dice on 40 scans.

Four networks learn from hippocampus scans with the product's own fine-tune, for equal seconds; the 40 scans of
``napari-unet simulate`` with seed 0 are set aside and judge. The shipped ``hippocampus-mr`` has met scans of this set
and is measured beside them for speed. Each model is exported as it is, in half precision, in eight bits, with a quarter
and half of its channels pruned (and as many seconds to recover), and pruned and in eight bits::

    nice python benchmarks/export.py

One JSON per network is written to benchmarks/results/export; those present are skipped. All models of a network run in
turns, so that what else the computer does slows all of them alike.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from record import begin_with_patient_threads, circumstances, write

from napari_unet.compute.device import resolve
from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.settings import ComputeSettings
from napari_unet.exchange.exporting import Judge, Scans

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
_RESULTS = Path(__file__).resolve().parent / "results" / "export"
_PACKAGES = ("napari-unet", "torch", "numpy", "onnx", "onnxruntime", "openvino")
_SHIPPED = "hippocampus-mr"
#: What the networks are besides what the plan makes of the scans.
_NETWORKS: dict[str, dict[str, Any]] = {
    "2d": {"network.dimensions": 2, "preparation.context_slices": 0},
    "2.5d": {"network.dimensions": 2, "preparation.context_slices": 1},
    "3d": {"network.dimensions": 3},
    "transunet": {"network.dimensions": 2, "preparation.context_slices": 1, "network.bottleneck": "transformer"},
    _SHIPPED: {},
}
_CALIBRATING = 24


def load(data: Path, quick: bool) -> tuple[Scans, LabelSchema]:
    """Return the scans that teach and the 40 that judge."""
    from effort_sets import SETS
    from effort_sets import Scans as Loader

    loader = Loader(SETS["hippocampus_mr"], data / "hippocampus_mr")
    test = loader.split(0).test
    teaching = [name for name in loader.names if name not in test]
    if quick:
        teaching, test = teaching[:8], test[:2]
    read = {name: tuple(Judge(i.scan, i.labels) for i in loader(name)) for name in (*teaching, *test)}
    return (
        Scans(tuple(j for name in teaching for j in read[name]), tuple(j for name in test for j in read[name])),
        loader.schema,
    )


def learn(name: str, scans: Scans, schema: LabelSchema, seconds: float, compute: ResolvedCompute) -> Checkpoint:
    """Return a model that has learnt for so many seconds."""
    import torch

    from napari_unet.cli.output import say
    from napari_unet.cli.training import follow
    from napari_unet.session.models import find_task_model
    from napari_unet.training.fine_tune import fine_tune
    from napari_unet.training.lesson import Lesson
    from napari_unet.training.plan import plan

    if name == _SHIPPED:
        return find_task_model(name)
    torch.set_num_threads(compute.threads)
    labels = [each.labels for each in scans.teaching if each.labels is not None]
    wishes = {**_NETWORKS[name], "training.budget_seconds": seconds, "training.first_proposals": False}
    wishes |= {"training.newest_fraction": 0.0}
    images = [each.scan for each in scans.teaching]
    settings = plan(images, len(schema.classes), "default", labels, overrides=wishes)
    lessons = [Lesson(scan, truth) for scan, truth in zip(images, labels, strict=True)]
    return follow(fine_tune(lessons, settings, schema, compute, name=name), say).checkpoint


def variants(checkpoint: Checkpoint, scans: Scans, inputs: Any, seconds: float, compute: ResolvedCompute) -> Any:
    """Return the models by format, the checkpoint itself first; and what could not be made, with the reason."""
    from napari_unet.domain.errors import NapariUnetError
    from napari_unet.exchange.compressing import halved, quantised
    from napari_unet.exchange.exporting import pruned_model
    from napari_unet.exchange.graphs import as_graph

    plain = as_graph(checkpoint, inputs, compute)
    found = {"torch": checkpoint, "onnx": plain}
    impossible = {}

    def graph(model: Checkpoint, data: bytes) -> Checkpoint:
        return Checkpoint.of_graph(data, model.card)

    found["onnx fp16"] = graph(plain, halved(plain.graph))
    found["onnx int8"] = graph(plain, quantised(plain.graph, inputs))
    for share in (0.25, 0.5):
        try:
            narrow = as_graph(pruned_model(checkpoint, share, seconds, scans, compute), inputs, compute)
        except NapariUnetError as error:
            impossible[f"pruned {share:.0%}"] = str(error)
            continue
        found[f"pruned {share:.0%}"] = narrow
        found[f"pruned {share:.0%}, int8"] = graph(narrow, quantised(narrow.graph, inputs))
    return found, impossible


def measure(name: str, scans: Scans, schema: LabelSchema, seconds: float, compute: ResolvedCompute) -> dict[str, Any]:
    """Return the table of one network."""
    from dataclasses import replace

    from napari_unet.exchange.graphs import largest_difference, seen_inputs
    from napari_unet.exchange.measuring import masks_of, mean_dice, speeds
    from napari_unet.inference.runtimes import network_of

    checkpoint = learn(name, scans, schema, seconds, compute)
    inputs = seen_inputs(checkpoint, [each.scan for each in scans.teaching[:_CALIBRATING]], compute)
    models, impossible = variants(checkpoint, scans, inputs, seconds, compute)
    fast = speeds(models, inputs, compute)
    truths = [each.labels for each in scans.judging if each.labels is not None]
    rows = []
    for format_name, model in models.items():
        size = len(model.graph) if model.graph else sum(array.nbytes for array in model.tensors.values())
        for speed in fast[format_name]:
            if model.graph is None and speed.runtime != "torch":
                continue  # what it is converted to has a row of its own
            where = replace(compute, runtime=speed.runtime)
            same = "pruned" not in format_name and model.graph is not None
            row = {
                "format": format_name,
                "runtime": speed.runtime,
                "bytes": size,
                "milliseconds": speed.milliseconds,
                "dice": mean_dice(masks_of(model, scans.judging, compute, speed.runtime), truths, schema.ids),
                "largest_difference": largest_difference(network_of(checkpoint), model, inputs, where)
                if same
                else None,
            }
            print(name, row, file=sys.stderr, flush=True)
            rows.append(row)
    return {
        "scans_that_judge": len(truths),
        "seen_by_the_model": sum(each.scan.fingerprint in checkpoint.card.seen for each in scans.judging),
        "input": list(max(inputs, key=lambda given: given[0, 0].size).shape),
        "steps": checkpoint.card.steps,
        "seconds": None if name == _SHIPPED else seconds,
        "recovery_seconds": seconds,
        "rows": rows,
        "not_possible": impossible,
        "network": checkpoint.card.settings.network.model_dump(mode="json"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the networks that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=_NETWORKS, action="append")
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=_DATA)
    parser.add_argument("--results", type=Path, default=_RESULTS)
    parser.add_argument("--quick", action="store_true", help="one network, two scans, 5 s; nothing is kept")
    parser.add_argument("--json", default=None, help="all figures in one file, or - for standard output")
    given = parser.parse_args(arguments)
    compute = resolve(ComputeSettings(device="cpu", precision="float32", threads=given.threads))
    scans, schema = load(given.data, given.quick)
    found = {}
    for name in given.only or (["2d"] if given.quick else _NETWORKS):
        path = given.results / f"{name}.json"
        if path.exists() and not given.quick:
            found[name] = json.loads(path.read_text(encoding="utf-8"))
            continue
        before = circumstances(_PACKAGES)
        figures = measure(name, scans, schema, 5.0 if given.quick else given.seconds, compute)
        found[name] = {**before, "network_name": name, "compute": asdict(compute), **figures}
        if not given.quick:
            write(found[name], str(path))
    if given.json is not None:
        write(found, given.json)


if __name__ == "__main__":
    begin_with_patient_threads()
    main()
