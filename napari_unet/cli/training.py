"""``fine-tune``: pairs in, one checkpoint out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from napari_unet.cli.output import say
from napari_unet.compute import jobs
from napari_unet.compute.engine import Engine
from napari_unet.compute.jobs import look_around
from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ExportError, TrainingError
from napari_unet.domain.progress import TrainingStep
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ComputeSettings, ModelSettings, TrainingSettings
from napari_unet.io.masks import TruthRule
from napari_unet.io.pairs import LabelledScan
from napari_unet.session.batch import TrainingFolder, load_training_folder, settings_for
from napari_unet.session.models import SCRATCH, find_base, has_learnt, helps
from napari_unet.session.planning import begins_anew, begins_with, refuse_fixed
from napari_unet.session.unlabelled import load_unlabelled
from napari_unet.session.worker import Worker
from napari_unet.storage.checkpoint_file import write_checkpoint
from napari_unet.training.fine_tune import fine_tune
from napari_unet.training.lesson import FineTuned, Lesson
from napari_unet.training.processes import ALONE, Processes
from napari_unet.training.words import in_words

_BUDGET, _CONSISTENCY = "training.budget_seconds", "training.consistency_weight"
_SECONDS_BETWEEN_LINES = 10.0


def run_fine_tune(
    images: Path,
    masks: Path,
    out: Path,
    *,
    model: str | None,
    preset: str | None,
    values: dict[str, Any],
    rule: TruthRule,
    group_by: str | None,
    exclude: Callable[[str], bool],
    max_side: int | None,
    unlabelled: Path | None,
    seed: int,
    compute: ComputeSettings,
    engine: Engine | None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Train and write the checkpoint; return the contract's JSON.

    ``engine`` computes; None: this process does, together with the others of ``processes``, the first of which speaks
    and writes for all.
    """
    if engine is not None and processes.world > 1:
        raise TrainingError("Several processes and --compute exclude each other: choose one of them.")
    tell = say if processes.leads else _say_nothing
    if out.is_dir():
        raise ExportError(f"{out} is a folder: give the name of a file, such as {out / 'model.safetensors'}.")
    # A recipe of one's own asks for a network of its own.
    base = find_base(SCRATCH if model is None and preset not in (None, "default") else model)
    judging = {key: value for key, value in values.items() if key == "training.validation_fraction"}
    before = base.card.settings if base is not None else ModelSettings()
    folder = load_training_folder(
        images,
        masks,
        rule,
        group_by=group_by,
        exclude=exclude,
        max_side=max_side,
        validation_fraction=before.with_values(judging).training.validation_fraction,
        seed=seed,
    )
    values = _with_defaults(values, base, preset, unlabelled is not None, tell)
    resolved, free = _device(compute, engine, processes)
    wishes = (preset or "default", values, free, resolved.device)
    settings, found = settings_for(folder, base, *wishes)
    begun = [] if base is None or has_learnt(base) else [begins_with(base)]
    if model is None and base is not None and not helps(base, settings):
        begun, base = [begins_anew(base)], None
        settings, found = settings_for(folder, base, *wishes, found)
    settings = processes.first_says(settings)
    _say_seen(base, folder.judging, tell)
    _refuse_unwritable(out)
    known = [item.scan.fingerprint for item in (*folder.teaching, *folder.judging)]
    more = [] if unlabelled is None else load_unlabelled(unlabelled, known, max_side)
    also = f", agreeing with itself on {len(more)} without labels" if more else ""
    tell(f"learning from {len(folder.teaching)} scans{also}, judging on {len(folder.judging)}")
    for sentence in (*in_words(settings, found), *begun):
        tell(f"plan: {sentence}")
    job = _job(folder, settings, resolved, base, out.stem, more, engine, processes)
    outcome = follow(job, tell)
    if processes.leads:
        write_checkpoint(outcome.checkpoint, out)
    return _told(outcome, out, tell)


def _device(compute: ComputeSettings, engine: Engine | None, processes: Processes) -> tuple[ResolvedCompute, int]:
    """Return what all processes compute with, and the bytes that are free for all of them together."""
    resolved, free = _finish(look_around(compute) if engine is None else engine.steps(look_around, compute))
    if processes.world > 1 and resolved.device == "mps":
        raise TrainingError("Several processes train on NVIDIA GPUs or on CPUs: add --device cpu.")
    # What they find must not differ; and each computes only its share of a batch.
    return processes.first_says(resolved), processes.world * processes.least(free)


def _told(outcome: FineTuned, out: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    defined = [v.after for v in outcome.verdicts if v.after is not None]
    dice = float(np.mean(defined)) if defined else None
    figure = "-" if dice is None else f"{dice:.3f}"
    tell(f"wrote {out}: {outcome.steps} steps in {outcome.seconds:.0f} s, validation Dice {figure}")
    return {"validation_dice": dice, "steps": outcome.steps, "seconds": round(outcome.seconds, 3), "out": str(out)}


def _finish(job: Generator[Any, None, Any]) -> Any:
    """Run a job to its end; return its result."""
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


def _job(
    folder: TrainingFolder,
    settings: ModelSettings,
    compute: ResolvedCompute,
    base: Checkpoint | None,
    name: str,
    unlabelled: Sequence[Scan],
    engine: Engine | None,
    processes: Processes,
) -> Generator[TrainingStep, None, FineTuned]:
    """Return the training, to be run here or by an engine."""
    if engine is None:
        import torch

        torch.set_num_threads(compute.threads)
        lessons = [Lesson(item.scan, item.labels) for item in folder.teaching]
        lessons += [Lesson(item.scan, item.labels, locked=np.ones(item.scan.n_slices, bool)) for item in folder.judging]
        options: dict[str, Any] = {"base": base, "name": name, "unlabelled": unlabelled, "processes": processes}
        return fine_tune(lessons, settings, folder.schema, compute, **options)
    worker = Worker(engine)
    handles = [worker.share_lesson(item.scan, item.labels, judges=False) for item in folder.teaching]
    handles += [worker.share_lesson(item.scan, item.labels, judges=True) for item in folder.judging]
    body = None if base is None else worker.share_checkpoint(base)
    others = [worker.share_scan(scan) for scan in unlabelled]
    return engine.steps(jobs.fine_tune, handles, settings, folder.schema, compute, body, name, others, lane="train")


def _with_defaults(
    values: dict[str, Any],
    base: Checkpoint | None,
    preset: str | None,
    has_unlabelled: bool,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Check what was set against the starting model, and add what follows from the other words."""
    if has_learnt(base):
        if preset is not None:
            tell("note: --preset counts from scratch only; the starting model keeps its own recipe.")
        refuse_fixed(base.card.settings, values)
        # Its own budget and steps were those of its own training.
        values = {_BUDGET: TrainingSettings().budget_seconds, "training.steps": None} | values
    weighted = base is not None and base.card.settings.training.consistency_weight > 0
    if has_unlabelled and _CONSISTENCY not in values and not weighted:
        tell(f"note: {_CONSISTENCY} is set to 1, so that scans without labels teach.")
        values = {_CONSISTENCY: 1.0} | values
    return values


def _say_nothing(line: str) -> None:
    """Stand in for :func:`say` where another process speaks."""


def _say_seen(base: Checkpoint | None, judging: Sequence[LabelledScan], tell: Callable[[str], None]) -> None:
    known = set(base.card.seen) if base is not None else set()
    n = sum(item.scan.fingerprint in known for item in judging)
    if base is not None and n:
        tell(f"note: {base.card.name!r} has learnt from {n} of the scans that judge: the validation Dice flatters.")


def _refuse_unwritable(out: Path) -> None:
    """Find out before an hour of training, not after."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"The folder {out.parent} cannot be made: {error.strerror}.") from error
    if not os.access(out.parent, os.W_OK):
        raise ExportError(f"Nothing can be written to {out.parent}: choose another place with --out.")


def follow(job: Any, tell: Callable[[str], None]) -> FineTuned:
    """Run a training to its end, with a line now and then."""
    last = time.monotonic()
    while True:
        try:
            event = next(job)
        except StopIteration as stop:
            return stop.value
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            left = "" if event.seconds_left is None else f", {event.seconds_left:.0f} s left"
            tell(f"step {event.step}: loss {event.loss:.3f}{left}")
