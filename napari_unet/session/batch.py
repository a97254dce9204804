"""The main jobs on files and folders, without a window: predict, fine-tune, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ExportError, NapariUnetError, ScanError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ModelSettings
from napari_unet.evaluation.metrics import CaseScores, score_case
from napari_unet.io.masks import LabelMapping, TruthRule, distinct_values, infer_classes, read_mask
from napari_unet.io.pairs import LabelledScan, find_pairs, group_of, load_pair, load_pairs
from napari_unet.io.registry import find_sources, read_scan, source_stem
from napari_unet.io.sidecar import has_record, write_sidecar
from napari_unet.io.writers import mask_suffix, write_mask
from napari_unet.session.models import has_learnt, require_channels, require_classes

if TYPE_CHECKING:
    from napari_unet.training.fingerprint import Fingerprint


@dataclass(frozen=True)
class Target:
    """One scan to predict and the folder, below the output folder, for its mask."""

    source: Path
    folder: Path


def find_targets(paths: Sequence[Path]) -> list[Target]:
    """Return the scans at some paths; folders are searched and their subfolders kept.

    Raises
    ------
    ScanError
        Nothing to read at a path.
    """
    found: list[Target] = []
    for path in (given.resolve() if given.name in ("", "..") else given for given in paths):
        if path.is_dir():
            sources = find_sources(path)
            if not sources:
                raise ScanError(f"No scan that can be read was found in {path}.")
            # A folder that is a scan itself, a series, is its own source.
            found += [Target(s, Path() if s == path else s.parent.relative_to(path)) for s in sources]
        else:
            found.append(Target(path, Path()))
    return found


def predict_scan(checkpoint: Checkpoint, scan: Scan, compute: ResolvedCompute, average: bool) -> Any:
    """Return the mask of a whole scan, over its spatial axes, in the label schema's values.

    Parameters
    ----------
    checkpoint : Checkpoint
    scan : Scan
    compute : ResolvedCompute
    average : bool
        Average over flips, where the network learnt from mirrored scans.

    Raises
    ------
    ModelError
        The scan's channels do not fit the model.
    """
    from napari_unet.inference.predict import PixelShare, predict
    from napari_unet.inference.slabs import plan_slabs
    from napari_unet.networks.factory import build, load_weights
    from napari_unet.patches.prepare import prepare
    from napari_unet.patches.spacing import zoom_of
    from napari_unet.training.examples import to_label_values

    settings = checkpoint.card.settings.with_values({"inference.mirror": average})
    require_channels(checkpoint, scan)
    network = build(settings.network, seed=0)
    load_weights(network, checkpoint.weights)
    image = prepare(scan, settings.preparation)
    classes = np.zeros(image.shape[1:], np.uint8)
    slabs = plan_slabs(image.shape[1:], settings)
    pixels = PixelShare.of(checkpoint)
    for result in predict(network, image, settings, compute, slabs, zoom_of(scan, settings), pixels):
        classes[result.slab.start : result.slab.stop] = result.classes
    return scan.from_planes(to_label_values(classes, checkpoint.card.label_schema))


def mask_stem(source: Path, scan: Scan) -> str:
    """Return the name of a scan's mask: its source's stem, with the end of the series' UID where there are several."""
    chosen = next((series.uid for series in scan.series if series.chosen), "")
    return source_stem(source) + (f"-{chosen[-8:]}" if len(scan.series) > 1 else "")


@dataclass(frozen=True)
class Outcome:
    """What became of one target: the file written, or why none was."""

    target: Target
    written: Path | None
    error: NapariUnetError | None


def predict_targets(
    targets: Sequence[Target],
    out: Path,
    checkpoint: Checkpoint,
    compute: ResolvedCompute,
    *,
    format_name: str | None,
    average: bool,
    labelmap: bool = False,
    read: Callable[[Path], Scan] = read_scan,
) -> Iterator[Outcome]:
    """Predict scans one by one and write their masks; a failure is an outcome, not an end.

    Raises
    ------
    ExportError
        Two scans would be written to one file; nothing has been written.
    """
    stems: dict[tuple[Path, str], Path] = {}
    for target in targets:
        key = (target.folder, source_stem(target.source))
        if key in stems:
            raise ExportError(
                f"{stems[key].name} and {target.source.name} would be written to one mask: rename one or give separate "
                "output folders."
            )
        stems[key] = target.source
    for target in targets:
        try:
            scan = read(target.source)
            path = out / target.folder / (mask_stem(target.source, scan) + mask_suffix(format_name, scan))
            labels = predict_scan(checkpoint, scan, compute, average)
            card = checkpoint.card
            write_mask(
                labels,
                scan,
                path,
                card.label_schema,
                algorithm="AUTOMATIC",
                model_name=card.name,
                labelmap=labelmap,
            )
            write_sidecar(path, scan, card.label_schema, model=card, model_id=checkpoint.id)
        except NapariUnetError as error:
            yield Outcome(target, None, error)
        else:
            yield Outcome(target, path, None)


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
    values = set().union(*(distinct_values(read_mask(pair.image).data) for pair in pairs))
    own = values <= {0, *ids} and (not values <= set().union(*known) or all(has_record(pair.image) for pair in pairs))
    for pair in pairs:
        item = load_pair(pair, mapping)
        predicted = read_mask(pair.image).data
        predicted = predicted if own else mapping.apply(predicted)
        yield (
            score_case(predicted, item.labels, ids, item.scan.geometry.spacing, tolerance_mm, pair.stem),
            item,
            predicted,
        )
