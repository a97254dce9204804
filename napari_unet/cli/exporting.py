"""``export``: a checkpoint in, a deployable model out, and the table of what that cost."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_unet.cli.output import say
from napari_unet.compute.device import resolve
from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.errors import ExportError, ModelError
from napari_unet.domain.settings import ComputeSettings
from napari_unet.exchange.exporting import Judge, Scans, Wishes, export_model, write_export
from napari_unet.io.masks import TruthRule
from napari_unet.io.pairs import LabelledScan
from napari_unet.io.registry import find_sources, read_scan
from napari_unet.session.batch import load_training_folder
from napari_unet.session.models import find_model, require_channels, require_classes
from napari_unet.training.examples import to_label_values

_SUFFIXES = (".onnx", ".xml")
#: Of scans without masks: one in so many judges.
_ONE_JUDGES = 5


@dataclass(frozen=True)
class Measured:
    """What an export is measured on; nothing without images.

    Parameters
    ----------
    images, masks : Path or None
        Folders of scans and, if there is truth, of their masks.
    rule : TruthRule
        What the values of the masks mean.
    max_side : int or None
        Pictures are made smaller until no side is longer.
    group_by : str or None
        Which part of a file's name names the patient.
    seed : int
        Of the choice of scans that judge.
    """

    images: Path | None
    masks: Path | None
    rule: TruthRule
    max_side: int | None
    group_by: str | None
    seed: int


def run_export(model: str, out: Path, wishes: Wishes, measured: Measured) -> dict[str, Any]:
    """Export a model; return the table as JSON.

    Raises
    ------
    NapariUnetError
        The model is not there or cannot be exported, the scans cannot be read, or the gate is closed.
    """
    if out.suffix.lower() not in _SUFFIXES:
        raise ExportError(f"{out.name} is no name for an export: give it the suffix {' or '.join(_SUFFIXES)}.")
    if out.is_dir() or (out.parent.exists() and not os.access(out.parent, os.W_OK)):
        raise ExportError(f"Nothing can be written to {out}: choose another file with --onnx.")
    checkpoint = find_model(model)
    if checkpoint is None:
        raise ModelError(f"{model} has learnt no task yet: fine-tune it first.")
    scans = _scans(checkpoint, measured)
    exported = export_model(checkpoint, wishes, scans, resolve(ComputeSettings(device="cpu")), say)
    if checkpoint.pixels:
        say("note: the classifier of pixels beside the network goes along in the metadata: only this program runs it.")
    write_export(exported, out)
    say(f"wrote {out}")
    return {"out": str(out), "id": exported.model.id, **exported.table()}


def _scans(checkpoint: Checkpoint, measured: Measured) -> Scans:
    images, masks = measured.images, measured.masks
    if images is None:
        if masks is not None:
            raise ExportError("Masks without their scans measure nothing: add --images DIR.")
        return Scans()
    if masks is None:
        found = [Judge(read_scan(path), None) for path in find_sources(images)]
        if not found:
            raise ExportError(f"No scan that can be read was found in {images}.")
        for each in found:
            require_channels(checkpoint, each.scan)
        judging = found[::_ONE_JUDGES]
        return Scans(tuple(each for each in found if each not in judging) or tuple(found), tuple(judging))
    schema = checkpoint.card.label_schema
    folder = load_training_folder(
        images,
        masks,
        measured.rule,
        group_by=measured.group_by,
        max_side=measured.max_side,
        seed=measured.seed,
    )
    require_classes(checkpoint, len(folder.schema.classes))
    for item in (*folder.teaching, *folder.judging):
        require_channels(checkpoint, item.scan, item.stem)
    _say_seen(checkpoint, folder.judging)

    def judges(items: tuple[LabelledScan, ...]) -> tuple[Judge, ...]:
        return tuple(Judge(item.scan, to_label_values(item.labels, schema)) for item in items)

    # Of fewer than five scans none can be spared.
    return Scans(judges(folder.teaching), judges(folder.judging or folder.teaching))


def _say_seen(checkpoint: Checkpoint, judging: tuple[LabelledScan, ...]) -> None:
    seen = sum(item.scan.fingerprint in checkpoint.card.seen for item in judging)
    if seen:
        say(f"note: the model has learnt from {seen} of the {len(judging)} scans that judge")
