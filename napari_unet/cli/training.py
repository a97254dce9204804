"""``fine-tune``: pairs in, one checkpoint out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from napari_unet.cli.output import say
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ExportError
from napari_unet.io.masks import TruthRule
from napari_unet.session.batch import load_training_folder, settings_for
from napari_unet.session.models import find_model
from napari_unet.storage.checkpoint_file import write_checkpoint
from napari_unet.training.fine_tune import fine_tune as fine_tune_job
from napari_unet.training.lesson import FineTuned, Lesson

_SECONDS_BETWEEN_LINES = 10.0


def run_fine_tune(
    images: Path,
    masks: Path,
    out: Path,
    *,
    model: str | None,
    preset: str,
    values: dict[str, Any],
    rule: TruthRule,
    group_by: str | None,
    exclude: Callable[[str], bool],
    max_side: int | None,
    seed: int,
    compute: ResolvedCompute,
) -> dict[str, Any]:
    """Train and write the checkpoint; return the contract's JSON."""
    import torch

    if out.is_dir():
        raise ExportError(f"{out} is a folder: give the name of a file, such as {out / 'model.safetensors'}.")
    base = find_model(model)
    folder = load_training_folder(images, masks, rule, group_by=group_by, exclude=exclude, max_side=max_side, seed=seed)
    settings = settings_for(folder, base, preset, values)
    _refuse_unwritable(out)
    torch.set_num_threads(compute.threads)
    say(f"learning from {len(folder.teaching)} scans, judging on {len(folder.judging)}")
    lessons = [Lesson(item.scan, item.labels) for item in folder.teaching]
    lessons += [Lesson(item.scan, item.labels, locked=np.ones(item.scan.n_slices, bool)) for item in folder.judging]
    outcome = _follow(fine_tune_job(lessons, settings, folder.schema, compute, base=base, name=out.stem))
    write_checkpoint(outcome.checkpoint, out)
    defined = [v.after for v in outcome.verdicts if v.after is not None]
    dice = float(np.mean(defined)) if defined else None
    figure = "-" if dice is None else f"{dice:.3f}"
    say(f"wrote {out}: {outcome.steps} steps in {outcome.seconds:.0f} s, validation Dice {figure}")
    return {"validation_dice": dice, "steps": outcome.steps, "seconds": round(outcome.seconds, 3), "out": str(out)}


def _refuse_unwritable(out: Path) -> None:
    """Find out before an hour of training, not after."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"The folder {out.parent} cannot be made: {error.strerror}.") from error
    if not os.access(out.parent, os.W_OK):
        raise ExportError(f"Nothing can be written to {out.parent}: choose another place with --out.")


def _follow(job: Any) -> FineTuned:
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
