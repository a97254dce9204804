"""Export behind a gate: a checkpoint becomes an ONNX model, and what compressing it has cost is measured first."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ExportError, ModelError
from napari_unet.exchange.compressing import halved, quantised
from napari_unet.exchange.graphs import TOLERANCE, as_graph, largest_difference, require_no_graph, seen_inputs
from napari_unet.exchange.measuring import Judge, Speed, masks_of, mean_dice, speeds
from napari_unet.inference.runtimes import network_of
from napari_unet.networks.pruning import prune
from napari_unet.storage.onnx_file import write_onnx_model

#: Dice that a compressed model may lose.
MOST_LOST = 0.01
#: How many scans judge, at most: more tell little that is new, and each is predicted twice.
_MOST_JUDGES = 40
OPENVINO_SUFFIX = ".xml"


@dataclass(frozen=True)
class Wishes:
    """What is asked of an export.

    Parameters
    ----------
    quantise : str
        ``""``, ``fp16`` (weights) or ``int8`` (convolutions).
    prune : float or None
        Share of the channels that goes.
    most_lost : float
        Dice that may be lost.
    force : bool
        Write it whatever was lost, and where nobody can tell.
    recovery_seconds : float
        Of training after pruning, where there are labels.
    """

    quantise: str = ""
    prune: float | None = None
    most_lost: float = MOST_LOST
    force: bool = False
    recovery_seconds: float = 60.0


@dataclass(frozen=True, eq=False)
class Scans:
    """Scans to measure with: those that calibrate (and teach, where labels are known), and those that judge."""

    teaching: tuple[Judge, ...] = ()
    judging: tuple[Judge, ...] = ()

    @property
    def labelled(self) -> bool:
        """Whether all of them have true labels."""
        return all(each.labels is not None for each in (*self.teaching, *self.judging))


@dataclass(frozen=True)
class Row:
    """One model of the table: Dice (None: no truth), Dice lost, bytes, and its speeds, the fastest first."""

    name: str
    dice: float | None
    lost: float | None
    size: int
    speeds: tuple[Speed, ...]


@dataclass(frozen=True, eq=False)
class Exported:
    """A model ready to be written, with the table that says what it costs."""

    model: Checkpoint
    rows: tuple[Row, ...]
    difference: float
    judges: int

    def table(self) -> dict[str, Any]:
        """Return it as a program reads it."""
        return {
            "largest_difference": self.difference,
            "judges": self.judges,
            "models": [asdict(row) for row in self.rows],
        }


def export_model(
    checkpoint: Checkpoint,
    wishes: Wishes,
    scans: Scans,
    compute: ResolvedCompute,
    tell: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Make a deployable model of a checkpoint.

    Parameters
    ----------
    checkpoint : Checkpoint
    wishes : Wishes
    scans : Scans
        Real ones to check and measure with; none: noise checks.
    compute : ResolvedCompute
        Threads; all is measured on the CPU.
    tell : callable
        Takes a line about what is done now.

    Raises
    ------
    ModelError
        The network cannot be exported, or the graph is not what torch computes.
    ExportError
        More was lost than is allowed, or nobody can tell, and it was not to be forced.
    """
    require_no_graph(checkpoint)
    given = [each.scan for each in scans.teaching or scans.judging]
    inputs = seen_inputs(checkpoint, given, compute)
    plain = as_graph(checkpoint, inputs, compute)
    difference = largest_difference(network_of(checkpoint), plain, inputs, compute)
    tell(f"checked: no probability differs from torch's by more than {difference:.1e} on {len(inputs)} inputs")
    model = plain
    if wishes.prune is not None:
        smaller = pruned_model(checkpoint, wishes.prune, wishes.recovery_seconds, scans, compute, tell)
        model = as_graph(smaller, inputs, compute)
    model = _compressed(model, wishes.quantise, inputs if given else ())
    model = replace(model, card=model.card.model_copy(update={"parent": checkpoint.id}))
    if not wishes.quantise and wishes.prune is None:
        return Exported(model, (), difference, 0)
    tell("measuring speed and Dice")
    rows = _measured(checkpoint, plain, model, wishes, scans, inputs, compute)
    for line in _table(rows):
        tell(line)
    found = Exported(model, rows, difference, min(len(scans.judging), _MOST_JUDGES))
    _gate(found, wishes, checkpoint, inputs, compute, tell)
    words = f"Exported with {_how(wishes)} from {checkpoint.id}{_lost_in_words(rows[-1], found.judges)}."
    # What the checkpoint scored says nothing of other weights.
    card = model.card.model_copy(update={"notes": f"{model.card.notes} {words}".strip(), "scores": {}})
    return replace(found, model=replace(model, card=card))


def write_export(exported: Exported, path: Path) -> None:
    """Write an exported model: ONNX, or OpenVINO's IR (``.xml`` with ``.bin`` beside it), by the file's name.

    Raises
    ------
    ExportError
        The file cannot be written.
    ModelError
        What writes it is not installed.
    """
    if path.suffix.lower() == OPENVINO_SUFFIX:
        _write_openvino(exported.model, path)
        return
    write_onnx_model(exported.model, path, {"napari_unet_measured": json.dumps(exported.table())})


def _table(rows: Sequence[Row]) -> list[str]:
    """Return the table in lines: Dice, Dice lost, megabytes, milliseconds per pass by runtime, and how much faster."""
    lines = ["model | Dice | lost | MB | ms by runtime | speed"]
    before = rows[0].speeds[0].milliseconds
    for row in rows:
        figures = [
            row.name,
            "-" if row.dice is None else f"{row.dice:.4f}",
            "-" if row.lost is None else f"{row.lost:.4f}",
            f"{row.size / 1e6:.2f}",
            ", ".join(f"{speed.runtime} {speed.milliseconds:.0f}" for speed in row.speeds),
            f"{before / row.speeds[0].milliseconds:.2f} x",
        ]
        lines.append(" | ".join(figures))
    return lines


def _how(wishes: Wishes) -> str:
    pruned = [] if wishes.prune is None else [f"{wishes.prune:.0%} of the channels pruned"]
    return " and ".join([*pruned, *([wishes.quantise] if wishes.quantise else [])])


def _lost_in_words(row: Row, judges: int) -> str:
    return "" if row.lost is None else f"; Dice lost on {judges} scans: {row.lost:.4f}"


def _compressed(model: Checkpoint, quantise: str, inputs: Sequence[NDArray[np.float32]]) -> Checkpoint:
    assert model.graph is not None
    if not quantise:
        return model
    graph = halved(model.graph) if quantise == "fp16" else quantised(model.graph, inputs)
    return Checkpoint.of_graph(graph, model.card, model.pixels)


def pruned_model(
    checkpoint: Checkpoint,
    fraction: float,
    seconds: float,
    scans: Scans,
    compute: ResolvedCompute,
    tell: Callable[[str], None] = lambda line: None,
) -> Checkpoint:
    """Return a narrower checkpoint that has recovered by training, where there are labels to learn from.

    Parameters
    ----------
    checkpoint : Checkpoint
    fraction : float
        Share of the channels that goes (:func:`napari_unet.networks.pruning.prune`).
    seconds : float
        Of training.
    scans : Scans
        Those that teach.
    compute : ResolvedCompute
    tell : callable
        Takes a line about what is done now.
    """
    pruned = prune(checkpoint, fraction)
    if not scans.teaching or not scans.labelled:
        tell("note: without labelled scans (--masks) the pruned network cannot recover by training")
        return pruned
    import torch

    from napari_unet.training.fine_tune import fine_tune
    from napari_unet.training.lesson import Lesson

    tell(f"pruned; recovering for {seconds:g} s on {len(scans.teaching)} scans")
    torch.set_num_threads(compute.threads)
    values = {"training.budget_seconds": seconds, "training.steps": None}
    values |= {"training.newest_fraction": 0.0, "training.first_proposals": False}
    settings = pruned.card.settings.with_values(values)
    lessons = [Lesson(each.scan, each.labels) for each in scans.teaching if each.labels is not None]
    job = fine_tune(lessons, settings, pruned.card.label_schema, compute.in_torch(), base=pruned, name=pruned.card.name)
    while True:
        try:
            next(job)
        except StopIteration as end:
            learnt: Checkpoint = end.value.checkpoint
            break
    # The classifier of pixels is as it was: only the network has been narrowed.
    card = learnt.card.model_copy(update={"pixel_share": checkpoint.card.pixel_share})
    return replace(learnt, card=card, pixels=checkpoint.pixels)


def _measured(
    checkpoint: Checkpoint,
    plain: Checkpoint,
    model: Checkpoint,
    wishes: Wishes,
    scans: Scans,
    inputs: Sequence[NDArray[np.float32]],
    compute: ResolvedCompute,
) -> tuple[Row, ...]:
    fast = speeds({"float32": checkpoint, "compressed": model}, inputs, compute)
    judges, ids = scans.judging[:_MOST_JUDGES], checkpoint.card.label_schema.ids
    sizes = [len(each.graph or b"") for each in (plain, model)]
    dice: list[float | None] = [None, None]
    if judges:
        before = masks_of(checkpoint, judges, compute, fast["float32"][0].runtime)
        after = masks_of(model, judges, compute, fast["compressed"][0].runtime)
        # Without truth the checkpoint's own masks stand for it: what differs from them is the most that was lost.
        truths = [each.labels if each.labels is not None else own for each, own in zip(judges, before, strict=True)]
        dice = [mean_dice(masks, truths, ids) for masks in (before, after)]
    lost = None if dice[0] is None or dice[1] is None else dice[0] - dice[1]
    return (
        Row("float32", dice[0], None if lost is None else 0.0, sizes[0], fast["float32"]),
        Row(_how(wishes), dice[1], lost, sizes[1], fast["compressed"]),
    )


def _gate(
    found: Exported,
    wishes: Wishes,
    checkpoint: Checkpoint,
    inputs: Sequence[NDArray[np.float32]],
    compute: ResolvedCompute,
    tell: Callable[[str], None],
) -> None:
    lost = found.rows[-1].lost
    if lost is None:
        # Where no probability moves, no mask does.
        moved = (
            np.inf
            if wishes.prune is not None
            else largest_difference(network_of(checkpoint), found.model, inputs, compute)
        )
        if moved <= TOLERANCE:
            return
        why = "Nobody can tell what this loses without scans: add --images DIR (and --masks DIR)"
    elif lost <= wishes.most_lost:
        return
    else:
        why = f"This loses {lost:.4f} Dice on {found.judges} scans, more than {wishes.most_lost:g}"
    if not wishes.force:
        raise ExportError(f"{why}: nothing was written; --force writes it all the same.")
    tell(f"note: {why}; written because of --force")


def _write_openvino(model: Checkpoint, path: Path) -> None:
    from napari_unet.inference.runtimes import import_openvino

    try:
        openvino = import_openvino()
    except ModuleNotFoundError as error:
        raise ModelError("OpenVINO's format needs openvino: run pip install 'napari-unet[openvino]'.") from error
    read = openvino.Core().read_model(model.graph)
    read.set_rt_info(model.card.model_dump_json(), "napari_unet_card")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        openvino.save_model(read, path, compress_to_fp16=False)
    except (OSError, RuntimeError) as error:
        raise ExportError(f"The model could not be written to {path.name}: choose another folder.") from error
