"""Masks for scans and folders: what is said meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from napari_unet.cli.output import say
from napari_unet.compute.engine import Engine
from napari_unet.compute.predictor import Predictor
from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ComputeSettings
from napari_unet.io.writers import require_format
from napari_unet.session.folder_run import FolderRun
from napari_unet.session.models import find_task_model
from napari_unet.session.predicting import (
    MaskFolder,
    Outcome,
    Target,
    find_targets,
    predict_targets,
    require_own_names,
    write_table,
)
from napari_unet.session.worker import Worker


def run_predict(
    paths: Sequence[Path],
    out: Path,
    model: str,
    *,
    compute: ComputeSettings,
    engine: Engine | None,
    values: dict[str, Any],
    format_name: str | None,
    labelmap: bool,
    uncertainty: bool,
    keep_going: bool,
    read: Callable[[Path], Scan],
) -> tuple[int, int]:
    """Predict scans and write their masks; return how many failed, and of how many.

    Parameters
    ----------
    paths : sequence of Path
        Scans and folders. Of a folder, a table is written beside the masks, also where the run is interrupted.
    out : Path
        Folder for the masks.
    model : str
        Name or file.
    compute : ComputeSettings
        What to compute with.
    engine : Engine or None
        What computes; None: this process does.
    values : dict
        Settings of the model to replace.
    format_name : str or None
        None: like the source's.
    labelmap, uncertainty : bool
        As for :class:`napari_unet.session.predicting.MaskFolder`.
    keep_going : bool
        Whether the failure of one scan is not the end.
    read : callable
        From a path to a scan.

    Raises
    ------
    NapariUnetError
        What is asked for is not there; or, unless it is to go on, whatever was wrong with a scan.
    """
    if format_name is not None:
        require_format(format_name)
    checkpoint = find_task_model(model)
    targets = find_targets(paths)
    folder = MaskFolder(
        out, checkpoint, values, format_name=format_name, labelmap=labelmap, uncertainty=uncertainty, read=read
    )
    if values.get("inference.mirror") and not checkpoint.card.settings.augmentation.mirror:
        say("note: this model never saw mirrored scans, so averaging over flips (--tta) changes nothing.")
    told: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        told.append(outcome)
        # The error that ends it all is told last, and once.
        if outcome.error is None or keep_going:
            _tell(outcome, len(told), len(targets))

    has_table = any(path.is_dir() for path in paths) and len(targets) > 1
    if engine is None:
        _predict_here(targets, folder, checkpoint, compute, keep_going, tell, told if has_table else None)
    else:
        _predict_by(Worker(engine, compute), targets, folder, keep_going, tell, has_table)
    if format_name == "dicom-seg":
        say("note: DICOM segmentations carry the patient's name and dates, as DICOM asks for.")
    return sum(outcome.error is not None for outcome in told), len(targets)


def _predict_by(
    worker: Worker,
    targets: Sequence[Target],
    folder: MaskFolder,
    keep_going: bool,
    tell: Callable[[Outcome], None],
    has_table: bool,
) -> None:
    require_own_names(targets)
    with contextlib.closing(worker.engine):
        run = FolderRun(
            worker,
            lambda: targets,
            folder,
            lambda outcome: None if outcome is None else tell(outcome),
            keep_going=keep_going,
            table=has_table,
        )
        try:
            run.wait()
        finally:
            run.cancel()
    if run.error is not None:
        raise run.error


def _predict_here(
    targets: Sequence[Target],
    folder: MaskFolder,
    checkpoint: Checkpoint,
    compute: ComputeSettings,
    keep_going: bool,
    tell: Callable[[Outcome], None],
    of_table: list[Outcome] | None,
) -> None:
    from napari_unet.compute.device import resolve

    predictor = Predictor(checkpoint, resolve(compute), folder.values)
    try:
        for outcome in predict_targets(targets, predictor, folder):
            tell(outcome)
            if outcome.error is not None and not keep_going:
                raise outcome.error
    finally:
        if of_table is not None:
            write_table(folder.path, targets, of_table)


def _tell(outcome: Outcome, number: int, total: int) -> None:
    """Say that a mask was written, or was there already, or why not."""
    source = outcome.target.source.name
    if outcome.error is not None:
        say(f"error: {source}: {outcome.error}")
        return
    count = f" ({number} of {total})" if total > 1 else ""
    say(f"{'left, done before:' if outcome.done_before else 'wrote'} {outcome.written}{count}")
    for note in outcome.notes:
        say(f"note: {source}: {note}")
