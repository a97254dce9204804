"""Masks for scans and folders: what is said meanwhile, and the table of a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from napari_unet.cli.output import say
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.scan import Scan
from napari_unet.io.writers import require_format
from napari_unet.session.batch import Outcome, Predictor, find_targets, predict_targets
from napari_unet.session.cohort import TABLE, CohortTable
from napari_unet.session.models import find_task_model


def run_predict(
    paths: Sequence[Path],
    out: Path,
    model: str,
    *,
    resolve: Callable[[], ResolvedCompute],
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
    resolve : callable
        Decides where to compute; asked once everything else is known to be there.
    values : dict
        Settings of the model to replace.
    format_name : str or None
        None: like the source's.
    labelmap, uncertainty : bool
        As for :func:`napari_unet.session.batch.predict_targets`.
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
    predictor = Predictor(checkpoint, resolve(), values)
    if values.get("inference.mirror") and not checkpoint.card.settings.augmentation.mirror:
        say("note: this model never saw mirrored scans, so averaging over flips (--tta) changes nothing.")
    table = CohortTable(out / TABLE) if any(path.is_dir() for path in paths) and len(targets) > 1 else None
    options: dict[str, Any] = {"format_name": format_name, "labelmap": labelmap, "uncertainty": uncertainty}
    n_failed = 0
    try:
        for number, outcome in enumerate(predict_targets(targets, out, predictor, read=read, **options), start=1):
            _tell(outcome, number, len(targets), table)
            if outcome.error is not None:
                n_failed += 1
                if not keep_going:
                    raise outcome.error
                say(f"error: {outcome.target.source.name}: {outcome.error}")
    finally:
        if table is not None:
            table.write()
    if format_name == "dicom-seg":
        say("note: DICOM segmentations carry the patient's name and dates, as DICOM asks for.")
    return n_failed, len(targets)


def _tell(outcome: Outcome, number: int, total: int, table: CohortTable | None) -> None:
    """Say that a mask was written, or was there already, with its notes, and put it into the table."""
    target, error = outcome.target, outcome.error
    source = (target.folder / target.source.name).as_posix()
    mask = "" if outcome.written is None else (target.folder / outcome.written.name).as_posix()
    status = "failed" if error is not None else "done before" if outcome.done_before else "done"
    notes = outcome.notes if error is None else (str(error),)
    if table is not None:
        table.add(source, mask, status, seconds=outcome.seconds, notes=notes, volumes=outcome.volumes)
    if error is None:
        count = f" ({number} of {total})" if total > 1 else ""
        say(f"{'left, done before:' if outcome.done_before else 'wrote'} {outcome.written}{count}")
        for note in notes:
            say(f"note: {target.source.name}: {note}")
