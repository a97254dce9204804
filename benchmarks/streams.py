"""Continual use: what becomes of the proposals, and of what was learnt, over thirty scans and when the scans change.

Each stream is that of ``napari-unet simulate`` on hippocampus_mr; after twenty scans it changes, but for the first one.
Corrective Dice is taken along the stream, and the Dice of its first five scans after every fifth: what they lost since
their best is forgetting. They stay among the labelled scans, as in a person's project::

    python benchmarks/streams.py --only inverted
    python benchmarks/streams.py --picture docs/images/streams.png

One JSON per stream and seed is written to benchmarks/results/streams; those present are skipped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from effort import RESULTS as EFFORT_RESULTS
from effort import THREADS, Cell, Meter, begun, mean_of, recorded
from effort_sets import DATA, SETS, Scans
from numpy.typing import NDArray
from record import begin_with_patient_threads, circumstances, write

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.labels import LabelSchema
from napari_unet.evaluation.effort import pooled_dice
from napari_unet.io.pairs import LabelledScan, scale_down
from napari_unet.session.simulate import Simulator, Split

_RESULTS = Path(__file__).resolve().parent / "results" / "streams"
_PACKAGES = ("napari-unet", "torch", "numpy")
_FIRST, _SECOND = "hippocampus_mr", "cardiac_cine_mr"
_GAMMA = 2.2

Group = list[LabelledScan]


@dataclass(frozen=True)
class Lengths:
    """Scans before and after the change, how many early ones are watched, and how often."""

    before: int = 20
    after: int = 10
    watched: int = 5
    every: int = 5


class Watched(Simulator):
    """A simulation that also scores some scans with the models on the way.

    Parameters
    ----------
    watch : list of str
        Groups to score.
    every : int
        After so many scans were learnt, and so on; what the last model makes of them is for ``Split.test``.
    from_the : int
        Not before so many scans were learnt.
    *given, **named
        As for :class:`Simulator`.
    """

    def __init__(self, watch: Sequence[str], every: int, *given: Any, from_the: int, **named: Any) -> None:
        super().__init__(*given, **named)
        self._watch, self._every, self._from, self._proposed = watch, every, from_the, 0
        self.watched: dict[int, list[float | None]] = {}
        self.last: Checkpoint | None = None

    def run_watched(self, stream: Sequence[str], report: Callable[[str], Any]) -> dict[str, Any]:
        """Run a stream; return its figures, and the Dice of the watched scans by the number of scans learnt."""
        self._length = len(stream)
        result = self.run(Split(tuple(stream), tuple(self._watch)), report)
        self.watched[len(stream)] = result.test_dice_per_case
        return {
            "effort": result.effort,
            "corrective_dice": result.corrective_dice,
            "steps_per_scan": result.steps_per_scan,
            "seconds_per_scan": result.seconds_per_scan,
            "cumulative_effort": result.cumulative_effort,
            "watch": list(self._watch),
            "watched": {str(learnt): dice for learnt, dice in self.watched.items()},
        }

    def _propose(self, model: Checkpoint | None, group: Group) -> list[NDArray]:
        # The only place that every model passes. Called for the scans of the stream first, then for those of the test.
        learnt, self._proposed, self.last = self._proposed, self._proposed + 1, model
        if self._from <= learnt < self._length and learnt % self._every == 0:
            self.watched[learnt] = [self._dice(model, self._load(name)) for name in self._watch]
        return super()._propose(model, group)

    def _dice(self, model: Checkpoint | None, group: Group) -> float | None:
        return pooled_dice(super()._propose(model, group), [item.labels for item in group], len(self._schema.classes))


def _inverted(item: LabelledScan) -> LabelledScan:
    data = item.scan.data
    return replace(item, scan=replace(item.scan, data=data.max() - data + data.min()))


def _darker(item: LabelledScan) -> LabelledScan:
    data = item.scan.data
    low, high = float(data.min()), float(data.max())
    share = (data.astype(np.float64) - low) / max(high - low, 1e-12)
    return replace(item, scan=replace(item.scan, data=(low + (high - low) * share**_GAMMA).astype(data.dtype)))


def _coarser(item: LabelledScan) -> LabelledScan:
    shape = item.scan.to_planes(item.labels).shape
    scan, labels = scale_down(item.scan, item.labels, max(shape[1:]) // 2)
    return LabelledScan(item.stem, scan, labels)


#: What the scans after the change look like, of the same set.
_CHANGES: dict[str, Callable[[LabelledScan], LabelledScan] | None] = {
    "steady": None,
    "inverted": _inverted,
    "darker": _darker,
    "coarser": _coarser,
}
#: The scans after the change are patients of the other set, whose structure is a class more, or a project of its own.
STREAMS = {
    "steady": "thirty scans of one kind",
    "inverted": "intensities inverted after the change",
    "darker": f"intensities to the power {_GAMMA} after the change",
    "coarser": "pixels twice as large after the change",
    "new-class": "another organ after the change, as one class more",
    "new-project": "another organ after the change, as a second project",
}


class _Stream:
    """One stream of one seed: its scans and how they are run."""

    def __init__(self, name: str, given: argparse.Namespace, compute: ResolvedCompute, lengths: Lengths) -> None:
        self._name, self._given, self._compute, self._lengths = name, given, compute, lengths
        self._first = Scans(SETS[_FIRST], given.data / _FIRST)
        self._meter = Meter()

    def run(self) -> dict[str, Any]:
        """Return the figures of the stream."""
        lengths = self._lengths
        names = list(self._first.split(self._given.seed, lengths.before + lengths.after, 0).stream)
        if self._name == "new-class":
            return self._new_class(names[: lengths.before])
        if self._name == "new-project":
            return self._new_project(names[: lengths.before])
        change, later = _CHANGES[self._name], set(names[lengths.before :])

        def load(name: str) -> Group:
            items = self._first(name)
            return [change(item) for item in items] if change is not None and name in later else items

        return self._watched(load, self._first.schema, names)

    def _watched(self, load: Callable[[str], Group], schema: LabelSchema, names: Sequence[str]) -> dict[str, Any]:
        early = list(names[: self._lengths.watched])
        rest = (self._compute, self._given.seconds, self._given.seed)
        simulator = Watched(early, self._lengths.every, load, schema, *rest, from_the=len(early))
        figures = simulator.run_watched(names, self._meter)
        return {**figures, "stream": list(names), "forgetting": forgetting(figures["watched"]), **self._meter.rows}

    def _second(self) -> tuple[Scans, list[str]]:
        scans = Scans(SETS[_SECOND], self._given.data / _SECOND)
        return scans, list(scans.split(self._given.seed, self._lengths.after, 0).stream)

    def _new_class(self, names: list[str]) -> dict[str, Any]:
        second, patients = self._second()
        known = len(self._first.schema.classes)
        schema = LabelSchema.of(*(entry.name for entry in (*self._first.schema.classes, *second.schema.classes)))

        def load(name: str) -> Group:
            if name not in patients:
                return self._first(name)
            return [replace(item, labels=np.where(item.labels > 0, item.labels + known, 0)) for item in second(name)]

        return self._watched(load, schema, [*names, *patients])

    def _new_project(self, names: list[str]) -> dict[str, Any]:
        """Run the second project from the first one's last model, whose own file stays as it is."""
        given, (second, patients) = self._given, self._second()
        rest = (self._compute, given.seconds, given.seed)
        before = Watched(names[:1], 1, self._first, self._first.schema, *rest, from_the=len(names))
        figures = before.run_watched(names, self._meter)
        assert before.last is not None
        base = begun(before.last, second(patients[0]), second.schema)
        after = Simulator(second, second.schema, *rest, base=base).run(Split(tuple(patients), ()), self._meter)
        scratch = recorded(Cell(_SECOND, "product", given.seed), EFFORT_RESULTS)
        return {
            "stream": [*names, *patients],
            "corrective_dice": [*figures["corrective_dice"], *after.corrective_dice],
            "effort": [*figures["effort"], *after.effort],
            "steps_per_scan": [*figures["steps_per_scan"], *after.steps_per_scan],
            "cumulative_effort_of_the_second": after.cumulative_effort,
            "from_scratch": scratch and {key: scratch[key] for key in ("cumulative_effort", "corrective_dice")},
            **self._meter.rows,
        }


def forgetting(watched: dict[str, list[float | None]]) -> dict[str, float]:
    """Return by how much the watched scans' Dice fell from their best to the end: the mean, and of the worst one."""
    series = [[value for value in each if value is not None] for each in zip(*watched.values(), strict=True)]
    drops = [max(values) - values[-1] for values in series if values]
    return {"mean": statistics.mean(drops), "worst": max(drops)} if drops else {}


def draw(records: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the streams: corrective Dice scan by scan, and what the early scans keep."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(11, 5.5), sharex=True, sharey=True, layout="constrained")
    for name, axis in zip(STREAMS, axes.flat, strict=True):
        axis.set(title=STREAMS[name], ylim=(0, 1))
        axis.title.set_fontsize(8)
        record = records.get(name)
        if record is None:
            axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center")
            continue
        dice = [np.nan if value is None else value for value in record["corrective_dice"]]
        axis.plot(range(1, len(dice) + 1), dice, "o-", markersize=3, linewidth=0.8, label="before correction")
        if "watched" in record:
            means = {int(learnt): mean_of(values) for learnt, values in record["watched"].items()}
            axis.plot(means.keys(), means.values(), "s--", markersize=4, label="the first five, at that time")
        if name != "steady":
            axis.axvline(record["lengths"]["before"] + 0.5, color="grey", linewidth=0.8)
    fullest = max((axis.get_legend_handles_labels() for axis in axes.flat), key=lambda each: len(each[1]))
    figure.legend(*fullest, loc="outside lower right", ncols=2, fontsize=8)
    figure.supxlabel("scan of the stream")
    figure.supylabel("Dice")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def measure(name: str, given: argparse.Namespace, lengths: Lengths) -> dict[str, Any]:
    """Run one stream and return its record."""
    import torch

    from napari_unet.compute.device import resolve
    from napari_unet.domain.settings import ComputeSettings

    compute = resolve(ComputeSettings(device=given.device, threads=THREADS))
    torch.set_num_threads(THREADS)
    return {
        "stream_name": name,
        "title": STREAMS[name],
        "seed": given.seed,
        "seconds": given.seconds,
        "lengths": vars(lengths),
        **circumstances(_PACKAGES, given.device),
        **_Stream(name, given, compute, lengths).run(),
    }


def _line(name: str, record: dict[str, Any]) -> str:
    n = record["lengths"]["before"]
    dice = record["corrective_dice"]
    parts = [f"{name}: Dice before correction {_figure(mean_of(dice[1:n]))}, after the change"]
    parts.append(
        f"{_figure(mean_of(dice[n : n + 1]))} on its first scan, {_figure(mean_of(dice[n + 1 :]))} on the rest"
    )
    lost = record.get("forgetting")
    parts += [f"; the first scans lost {lost['mean']:.3f} (worst {lost['worst']:.3f})"] if lost else []
    return " ".join(parts)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main() -> None:
    """Run the streams that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=STREAMS, action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--results", type=Path, default=_RESULTS)
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw what has been run")
    parser.add_argument("--json", metavar="FILE", help="all figures in one file, or - for standard output")
    parser.add_argument("--quick", action="store_true", help="two and two scans, 2 s, in a folder that is deleted")
    given = parser.parse_args()
    lengths = Lengths()
    records = {}
    with tempfile.TemporaryDirectory() as folder:
        if given.quick:
            lengths = Lengths(before=2, after=2, watched=1, every=1)
            given.results, given.seconds = Path(folder), 2.0
        for name in given.only or STREAMS:
            path = given.results / f"{name}-{given.seed}.json"
            if not path.exists():
                write(measure(name, given, lengths), str(path))
            records[name] = json.loads(path.read_text(encoding="utf-8"))
            print(_line(name, records[name]), file=sys.stderr)
        if given.picture:
            draw(records, given.picture)
    if given.json:
        write(records, given.json)


if __name__ == "__main__":
    begin_with_patient_threads()
    main()
