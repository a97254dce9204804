"""``fine-tune``: pairs in, one checkpoint out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from napari_unet.cli.output import say
from napari_unet.compute.device import free_memory
from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ExportError
from napari_unet.domain.settings import ModelSettings, TrainingSettings
from napari_unet.io.masks import TruthRule
from napari_unet.io.pairs import LabelledScan
from napari_unet.session.batch import load_training_folder, settings_for
from napari_unet.session.models import SCRATCH, find_model, has_learnt, helps
from napari_unet.session.planning import begins_anew, begins_with, refuse_fixed
from napari_unet.session.unlabelled import load_unlabelled
from napari_unet.storage.checkpoint_file import write_checkpoint
from napari_unet.training.fine_tune import fine_tune as fine_tune_job
from napari_unet.training.lesson import FineTuned, Lesson
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
    compute: ResolvedCompute,
) -> dict[str, Any]:
    """Train and write the checkpoint; return the contract's JSON."""
    import torch

    if out.is_dir():
        raise ExportError(f"{out} is a folder: give the name of a file, such as {out / 'model.safetensors'}.")
    # A recipe of one's own asks for a network of its own.
    base = find_model(SCRATCH if model is None and preset not in (None, "default") else model)
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
    values = _with_defaults(values, base, preset, unlabelled is not None)
    wishes = (preset or "default", values, free_memory(compute), compute.device)
    settings, found = settings_for(folder, base, *wishes)
    begun = [] if base is None or has_learnt(base) else [begins_with(base)]
    if model is None and base is not None and not helps(base, settings):
        begun, base = [begins_anew(base)], None
        settings, found = settings_for(folder, base, *wishes, found)
    _say_seen(base, folder.judging)
    _refuse_unwritable(out)
    known = [item.scan.fingerprint for item in (*folder.teaching, *folder.judging)]
    more = [] if unlabelled is None else load_unlabelled(unlabelled, known, max_side)
    torch.set_num_threads(compute.threads)
    also = f", agreeing with itself on {len(more)} without labels" if more else ""
    say(f"learning from {len(folder.teaching)} scans{also}, judging on {len(folder.judging)}")
    for sentence in (*in_words(settings, found), *begun):
        say(f"plan: {sentence}")
    lessons = [Lesson(item.scan, item.labels) for item in folder.teaching]
    lessons += [Lesson(item.scan, item.labels, locked=np.ones(item.scan.n_slices, bool)) for item in folder.judging]
    job = fine_tune_job(lessons, settings, folder.schema, compute, base=base, name=out.stem, unlabelled=more)
    outcome = follow(job)
    write_checkpoint(outcome.checkpoint, out)
    defined = [v.after for v in outcome.verdicts if v.after is not None]
    dice = float(np.mean(defined)) if defined else None
    figure = "-" if dice is None else f"{dice:.3f}"
    say(f"wrote {out}: {outcome.steps} steps in {outcome.seconds:.0f} s, validation Dice {figure}")
    return {"validation_dice": dice, "steps": outcome.steps, "seconds": round(outcome.seconds, 3), "out": str(out)}


def _with_defaults(
    values: dict[str, Any], base: Checkpoint | None, preset: str | None, has_unlabelled: bool
) -> dict[str, Any]:
    """Check what was set against the starting model, and add what follows from the other words."""
    if has_learnt(base):
        if preset is not None:
            say("note: --preset counts from scratch only; the starting model keeps its own recipe.")
        refuse_fixed(base.card.settings, values)
        # Its own budget and steps were those of its own training.
        values = {_BUDGET: TrainingSettings().budget_seconds, "training.steps": None} | values
    weighted = base is not None and base.card.settings.training.consistency_weight > 0
    if has_unlabelled and _CONSISTENCY not in values and not weighted:
        say(f"note: {_CONSISTENCY} is set to 1, so that scans without labels teach.")
        values = {_CONSISTENCY: 1.0} | values
    return values


def _say_seen(base: Checkpoint | None, judging: Sequence[LabelledScan]) -> None:
    known = set(base.card.seen) if base is not None else set()
    n = sum(item.scan.fingerprint in known for item in judging)
    if base is not None and n:
        say(f"note: {base.card.name!r} has learnt from {n} of the scans that judge: the validation Dice flatters.")


def _refuse_unwritable(out: Path) -> None:
    """Find out before an hour of training, not after."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"The folder {out.parent} cannot be made: {error.strerror}.") from error
    if not os.access(out.parent, os.W_OK):
        raise ExportError(f"Nothing can be written to {out.parent}: choose another place with --out.")


def follow(job: Any) -> FineTuned:
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
            say(f"step {event.step}: loss {event.loss:.3f}{left}")
