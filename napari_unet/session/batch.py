"""The main jobs on files and folders, without a window: predict, fine-tune, evaluate."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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
from napari_unet.io.sidecar import has_record, read_record, write_sidecar
from napari_unet.io.writers import mask_suffix, uncertainty_path, write_mask, write_uncertainty
from napari_unet.session.cohort import (
    ClassVolume,
    done_before,
    had_uncertainty,
    how_written,
    prediction_record,
    recorded_volumes,
    volumes_of,
)
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


def predict_scan(checkpoint: Checkpoint, scan: Scan, compute: ResolvedCompute, average: bool) -> NDArray:
    """Return the mask of one scan by one model, averaged over flips or not; see :class:`Predictor`."""
    return Predictor(checkpoint, compute, {"inference.mirror": average}).predict(scan).labels


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says about a whole scan.

    Parameters
    ----------
    labels : array over the scan's spatial axes
        In the label schema's values.
    uncertainty : uint8 array of the same shape, or None
        255 = all classes alike; None where it was not asked for.
    notes : tuple of str
        What the person should know: the scan is unlike those that the model learnt from, memory was short.
    """

    labels: NDArray
    uncertainty: NDArray[np.uint8] | None
    notes: tuple[str, ...]


class Predictor:
    """A model, ready to predict one scan after the other.

    Parameters
    ----------
    checkpoint : Checkpoint
    compute : ResolvedCompute
    values : dict
        Settings of the model to replace, such as ``{"inference.mirror": False}``.

    Raises
    ------
    ModelError
        The runtime that was asked for cannot run the model.
    SettingsError
        There is no such setting, or not such a value.
    """

    def __init__(self, checkpoint: Checkpoint, compute: ResolvedCompute, values: dict[str, Any]) -> None:
        from napari_unet.inference.predict import PixelShare
        from napari_unet.inference.runner import Runner
        from napari_unet.networks.factory import build, load_weights

        self.checkpoint = checkpoint
        self._settings = checkpoint.card.settings.with_values(values)
        self._compute = compute
        network = build(self._settings.network, seed=0)
        load_weights(network, checkpoint.weights)
        self._runner = Runner(network, self._settings, compute)
        self._pixels = PixelShare.of(checkpoint)

    @property
    def how(self) -> dict[str, Any]:
        """The settings that a mask depends on besides the weights, as plain JSON values."""
        dumped = self._settings.model_dump(mode="json")
        return {group: dumped[group] for group in ("inference", "after_care")}

    def predict(self, scan: Scan, *, uncertainty: bool = False, scratch: Path | None = None) -> Prediction:
        """Return the mask of a whole scan.

        Parameters
        ----------
        scan : Scan
            One that is larger than the memory is read slab by slab.
        uncertainty : bool
            Tell how unsure the model is, too.
        scratch : Path, optional
            An empty folder for the mask of a scan that is larger than the memory.

        Raises
        ------
        ModelError
            The scan's channels do not fit the model.
        ScanError
            The scan is larger than the memory, and what is asked for would need all of it there.
        ExportError
            The disk has no room for the mask of such a scan.
        """
        from napari_unet.inference.after_care import after_care
        from napari_unet.inference.predict import predict
        from napari_unet.inference.slabs import plan_slabs
        from napari_unet.inference.suitability import unlike
        from napari_unet.patches.prepare import PreparedScan
        from napari_unet.patches.spacing import zoom_of
        from napari_unet.training.examples import to_label_values

        settings, schema = self._settings, self.checkpoint.card.label_schema
        require_channels(self.checkpoint, scan)
        if scan.is_lazy:
            _require_piecewise(scan, settings, uncertainty)
        image = PreparedScan(scan, settings.preparation)
        shape, folder = image.shape[1:], scratch if scan.is_lazy else None
        labels = _array(shape, np.uint8 if max(schema.ids) < 256 else np.uint16, folder)
        unsure = np.zeros(shape, np.uint8) if uncertainty else None
        odd = unlike(self.checkpoint.card, scan, image)
        notes = [] if odd is None else [odd]
        slabs, zoom = plan_slabs(shape, settings), zoom_of(scan, settings)
        for result in predict(self._runner, image, settings, self._compute, slabs, zoom, self._pixels):
            labels[result.slab.start : result.slab.stop] = to_label_values(result.classes, schema)
            if unsure is not None:
                unsure[result.slab.start : result.slab.stop] = result.uncertainty
            notes += [result.note] if result.note else []
        found = scan.from_planes(labels)
        if settings.after_care.does_something:
            found = after_care(found, scan.geometry.spacing, settings.after_care)
        return Prediction(found, None if unsure is None else scan.from_planes(unsure), tuple(notes))


def _require_piecewise(scan: Scan, settings: ModelSettings, uncertainty: bool) -> None:
    """Refuse what a scan that is larger than the memory cannot have, before an hour of work.

    Raises
    ------
    ScanError
        After-care, an uncertainty map, or planes that are themselves too large.
    """
    import psutil

    if settings.after_care.does_something:
        raise ScanError(
            "This scan is larger than the memory, and after-care looks at a mask as a whole: switch it off with "
            "--set for each after_care setting of the model, and clean the mask up in parts."
        )
    if uncertainty:
        raise ScanError(
            "This scan is larger than the memory, and its uncertainty map would be four times as large: leave "
            "--uncertainty out."
        )
    height, width = scan.to_planes(scan.data[..., 0] if scan.has_channels else scan.data).shape[1:]
    floats = settings.network.in_channels + settings.network.out_channels + 3
    if 4 * floats * height * width > psutil.virtual_memory().available:
        raise ScanError(
            f"A single plane of this scan ({height} x {width}) is too large for the memory: cut it into parts."
        )


def _array(shape: tuple[int, ...], dtype: type, folder: Path | None) -> NDArray:
    """Return zeros for a mask, in a file where a folder is given.

    Raises
    ------
    ExportError
        The disk has no room for it, and for the mask that is then written.
    """
    if folder is None:
        return np.zeros(shape, dtype)
    try:
        # The file is sparse at first, so that a full disk would show in the midst of the work, as a fault.
        if shutil.disk_usage(folder).free < 2 * math.prod(shape) * np.dtype(dtype).itemsize:
            raise ExportError("The disk has too little room for the mask: free some, or choose another folder.")
        return np.lib.format.open_memmap(folder / "labels.npy", mode="w+", dtype=dtype, shape=shape)
    except OSError as error:
        raise ExportError(f"The mask's folder cannot be written to ({error.strerror}): choose another one.") from error


def mask_stem(source: Path, scan: Scan) -> str:
    """Return the name of a scan's mask: its source's stem, with the end of the series' UID where there are several."""
    chosen = next((series.uid for series in scan.series if series.chosen), "")
    return source_stem(source) + (f"-{chosen[-8:]}" if len(scan.series) > 1 else "")


@dataclass(frozen=True)
class Outcome:
    """What became of one target: the file written now or before, or why none was; what is known of it."""

    target: Target
    written: Path | None
    error: NapariUnetError | None
    notes: tuple[str, ...] = ()
    volumes: tuple[ClassVolume, ...] = ()
    seconds: float = 0.0
    done_before: bool = False


def predict_targets(
    targets: Sequence[Target],
    out: Path,
    predictor: Predictor,
    *,
    format_name: str | None,
    labelmap: bool = False,
    uncertainty: bool = False,
    read: Callable[[Path], Scan] = read_scan,
) -> Iterator[Outcome]:
    """Predict scans one by one and write their masks; a failure is an outcome, not an end.

    A mask that an earlier run wrote of the same voxels with the same weights and settings, and that is still as it was
    written, is left.

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
        started = time.monotonic()
        try:
            scan = read(target.source)
            path = out / target.folder / (mask_stem(target.source, scan) + mask_suffix(format_name, scan))
            schema = predictor.checkpoint.card.label_schema
            how = how_written(scan, schema, {**predictor.how, "labelmap": labelmap})
            unsure = uncertainty_path(path, scan) if uncertainty else None
            made = done_before(path, unsure, scan, predictor.checkpoint.id, how)
            if made is not None:
                yield Outcome(target, path, None, tuple(made["notes"]), recorded_volumes(made), done_before=True)
                continue
            with _scratch(out, scan) as scratch:
                found = predictor.predict(scan, uncertainty=uncertainty, scratch=scratch)
                volumes = _write(found, scan, path, predictor.checkpoint, how)
        except NapariUnetError as error:
            yield Outcome(target, None, error, seconds=time.monotonic() - started)
        else:
            yield Outcome(target, path, None, found.notes, volumes, time.monotonic() - started)


@contextmanager
def _scratch(out: Path, scan: Scan) -> Iterator[Path | None]:
    """Give an empty folder beside the results, where the disk has to hold them anyway, for a large scan's arrays."""
    if not scan.is_lazy:
        yield None
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=".napari-unet-", dir=out)
    except OSError as error:
        raise ExportError(f"{out.name} cannot be written to: choose another folder for the masks.") from error
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(
    found: Prediction, scan: Scan, path: Path, checkpoint: Checkpoint, how: dict[str, Any]
) -> tuple[ClassVolume, ...]:
    """Write a mask and what belongs to it; return the volumes of its classes."""
    card = checkpoint.card
    options: dict[str, Any] = {"algorithm": "AUTOMATIC", "model_name": card.name, "labelmap": how["labelmap"]}
    unsure, before = uncertainty_path(path, scan), read_record(path)
    write_mask(found.labels, scan, path, card.label_schema, **options)
    if found.uncertainty is not None:
        write_uncertainty(found.uncertainty, scan, unsure)
    elif had_uncertainty(before):
        # Beside this mask the map of the one before would be taken for its own.
        unsure.unlink(missing_ok=True)
    volumes = volumes_of(found.labels, card.label_schema, scan)
    # The record comes last: where there is one, all that it speaks of is there.
    record = prediction_record(path, None if found.uncertainty is None else unsure, how, volumes, found.notes)
    write_sidecar(path, scan, card.label_schema, model=card, model_id=checkpoint.id, prediction=record)
    return volumes


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
