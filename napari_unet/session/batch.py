"""Folders of images and masks: what is learnt from them, and how predictions are scored against them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.errors import ScanError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.settings import ModelSettings
from napari_unet.evaluation.metrics import CaseScores, score_case
from napari_unet.io.masks import LabelMapping, TruthRule, distinct_values, infer_classes, read_mask
from napari_unet.io.pairs import LabelledScan, find_pairs, group_of, load_pair, load_pairs
from napari_unet.io.sidecar import has_record
from napari_unet.session.models import has_learnt, require_classes

if TYPE_CHECKING:
    from napari_unet.training.fingerprint import Fingerprint

#: Predicted masks that are kept from the look at their values to their scoring, so that small ones are read once less.
_HELD_BYTES = 256 * 2**20


def schema_for(mapping: LabelMapping) -> LabelSchema:
    """Return the schema of a mapping: ids 1, 2, ... named after the values in the masks."""
    if mapping.n_classes == 1:
        return LabelSchema.of("foreground")
    return LabelSchema.of(*(f"label {value}" for value in mapping.values))


@dataclass(frozen=True, eq=False)
class TrainingFolder:
    """Pairs of a folder, divided by group into those that teach and those that judge."""

    teaching: tuple[LabelledScan, ...]
    judging: tuple[LabelledScan, ...]
    schema: LabelSchema


def load_training_folder(
    images: Path,
    masks: Path,
    rule: TruthRule,
    *,
    group_by: str | None = None,
    exclude: Callable[[str], bool] = lambda stem: False,
    max_side: int | None = None,
    validation_fraction: float = 0.2,
    seed: int = 0,
) -> TrainingFolder:
    """Read pairs; a share of the groups (at least one, where there are five) judges and never teaches.

    Parameters
    ----------
    images, masks : Path
        Folders with equal stems.
    rule : TruthRule
        How mask values are meant.
    group_by : str, optional
        First capture group names the patient: all scans of one teach or all judge.
    exclude : callable
        True for stems to leave out.
    max_side : int, optional
        Longest side in pixels.
    validation_fraction : float
        Share of the groups that judge; 0: none.
    seed : int
        Which groups judge.
    """
    pairs = [pair for pair in find_pairs(images, masks) if not exclude(pair.stem)]
    if not pairs:
        raise ScanError("Every pair was excluded by --exclude-regex: there is nothing to learn from.")
    loaded, mapping = load_pairs(pairs, rule, max_side)
    names = sorted({group_of(item.stem, group_by) for item in loaded})
    n_judging = max(1, round(len(names) * validation_fraction)) if len(names) >= 5 and validation_fraction > 0 else 0
    judging = {names[i] for i in np.random.default_rng(seed).permutation(len(names))[:n_judging]}
    sides = [group_of(item.stem, group_by) in judging for item in loaded]
    return TrainingFolder(
        tuple(item for item, judges in zip(loaded, sides, strict=True) if not judges),
        tuple(item for item, judges in zip(loaded, sides, strict=True) if judges),
        schema_for(mapping),
    )


def settings_for(
    folder: TrainingFolder,
    base: Checkpoint | None,
    preset: str,
    values: dict[str, Any],
    memory_bytes: int | None = None,
    device: str = "cpu",
    found: Fingerprint | None = None,
) -> tuple[ModelSettings, Fingerprint]:
    """Return the settings to train a folder with, the base's or a plan, and what was measured of its scans.

    What was measured before (``found``) is not measured again: that reads every scan through.

    Raises
    ------
    ModelError
        The base has other classes than the folder.
    SettingsError
        Unknown preset or setting.
    """
    from napari_unet.training.fingerprint import fingerprint
    from napari_unet.training.plan import plan_for, plan_upon
    from napari_unet.training.presets import preset_named

    n_classes = len(folder.schema.classes)
    # A slip of the pen is answered before the scans are measured.
    preset_named(preset)
    ModelSettings().with_values(dict.fromkeys(values.keys() - set(ModelSettings.keys())))
    # The scans of a folder came all at once: none is the newest.
    values = {"training.newest_fraction": 0.0, **values}
    if has_learnt(base):
        require_classes(base, n_classes)
    if found is None:
        found = fingerprint([item.scan for item in folder.teaching], [item.labels for item in folder.teaching])
    if has_learnt(base):
        return base.card.settings.with_values(values), found
    wishes: dict[str, Any] = {"memory_bytes": memory_bytes, "overrides": values, "device": device}
    if base is not None:
        return plan_upon(base.card.settings, found, n_classes, preset, **wishes), found
    return plan_for(found, n_classes, preset, **wishes), found


def evaluate_folders(
    predictions: Path, truth: Path, rule: TruthRule, tolerance_mm: float
) -> Iterator[tuple[CaseScores, LabelledScan, Any]]:
    """Score predicted masks against truth of equal stems.

    Yields
    ------
    (CaseScores, LabelledScan, array)
        Scores, the prediction as a scan with the truth's labels, and the predicted labels.

    Raises
    ------
    PairingError, MaskError
        No pairs, other shapes or places, values not understood.
    """
    pairs = find_pairs(predictions, truth)
    known = [distinct_values(read_mask(pair.mask).data) for pair in pairs]
    mapping = infer_classes(known, rule)
    ids = tuple(range(1, mapping.n_classes + 1))
    # Our own masks hold the ids 0..n; masks of other programs may hold the truth's values.
    values, held, room = set[int](), dict[str, NDArray](), _HELD_BYTES
    for pair in pairs:
        stored = read_mask(pair.image).data
        values |= distinct_values(stored)
        if stored.nbytes <= room:
            held[pair.stem], room = stored, room - stored.nbytes
    own = values <= {0, *ids} and (not values <= set().union(*known) or all(has_record(pair.image) for pair in pairs))
    for pair in pairs:
        item = load_pair(pair, mapping)
        grid = item.scan.geometry
        predicted = held.pop(pair.stem) if pair.stem in held else read_mask(pair.image).data
        predicted = predicted if own else mapping.apply(predicted)
        yield (
            score_case(predicted, item.labels, ids, grid.spacing, tolerance_mm, pair.stem, grid.voxel_volume),
            item,
            predicted,
        )
