"""Masks for scans and folders, as files: which there are, what is theirs to be called, what was done before."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from napari_unet.compute.predictor import Prediction, Predictor
from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ExportError, NapariUnetError, ScanError
from napari_unet.domain.scan import Scan
from napari_unet.io.registry import find_sources, read_scan, source_stem
from napari_unet.io.sidecar import read_record, write_sidecar
from napari_unet.io.writers import mask_suffix, uncertainty_path, write_mask, write_uncertainty
from napari_unet.session.cohort import (
    TABLE,
    ClassVolume,
    CohortTable,
    done_before,
    had_uncertainty,
    how_written,
    prediction_record,
    recorded_volumes,
    volumes_of,
)
from napari_unet.session.models import require_channels


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
    require_channels(checkpoint, scan)
    return Predictor(checkpoint, compute, {"inference.mirror": average}).predict(scan).labels


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

    @property
    def status(self) -> str:
        """``done``, ``done before`` or ``failed``."""
        return "failed" if self.error is not None else "done before" if self.done_before else "done"

    @property
    def all_notes(self) -> tuple[str, ...]:
        """What the person should know of it; of a failure the reason."""
        return self.notes if self.error is None else (str(self.error),)


@dataclass(frozen=True, eq=False)
class OpenedTarget:
    """A target whose mask is to be made: its scan, where the mask goes, and when work on it began."""

    target: Target
    scan: Scan
    path: Path
    how: dict[str, Any]
    started: float


class MaskFolder:
    """The folder that masks are written to.

    Parameters
    ----------
    path : Path
    checkpoint : Checkpoint
        Whose masks they are.
    values : dict
        Settings of the model to replace.
    format_name : str or None
        None: like the source's.
    labelmap : bool
        Of DICOM segmentations.
    uncertainty : bool
        Write beside each mask how unsure the model is.
    read : callable
        From a path to a scan.

    Raises
    ------
    SettingsError
        There is no such setting.
    """

    def __init__(
        self,
        path: Path,
        checkpoint: Checkpoint,
        values: dict[str, Any],
        *,
        format_name: str | None,
        labelmap: bool = False,
        uncertainty: bool = False,
        read: Callable[[Path], Scan] = read_scan,
    ) -> None:
        self.path, self.checkpoint, self.values, self.uncertainty = path, checkpoint, values, uncertainty
        self._format, self._read = format_name, read
        dumped = checkpoint.card.settings.with_values(values).model_dump(mode="json")
        # What a mask depends on besides the weights.
        self._how = {"inference": dumped["inference"], "after_care": dumped["after_care"], "labelmap": labelmap}

    def open(self, target: Target) -> OpenedTarget | Outcome:
        """Read a scan. An outcome is what became of it already: it failed, or its mask was made before.

        A mask that an earlier run wrote of the same voxels with the same weights and settings, and that is still as it
        was written, is left.
        """
        started = time.monotonic()
        try:
            scan = self._read(target.source)
            require_channels(self.checkpoint, scan)
            path = self.path / target.folder / (mask_stem(target.source, scan) + mask_suffix(self._format, scan))
            how = how_written(scan, self.checkpoint.card.label_schema, self._how)
            unsure = uncertainty_path(path, scan) if self.uncertainty else None
            made = done_before(path, unsure, scan, self.checkpoint.id, how)
            scan.fingerprint  # noqa: B018 - hashed here, where nobody waits for it
        except NapariUnetError as error:
            return failed(target, error, started)
        if made is not None:
            return Outcome(target, path, None, tuple(made["notes"]), recorded_volumes(made), done_before=True)
        return OpenedTarget(target, scan, path, how, started)

    def write(self, opened: OpenedTarget, found: Prediction) -> Outcome:
        """Write a mask and what belongs to it."""
        try:
            volumes = _write(found, opened.scan, opened.path, self.checkpoint, opened.how)
        except NapariUnetError as error:
            return failed(opened.target, error, opened.started)
        seconds = time.monotonic() - opened.started
        return Outcome(opened.target, opened.path, None, found.notes, volumes, seconds)


def failed(target: Target, error: NapariUnetError, started: float) -> Outcome:
    """Return the outcome of a target that came to nothing."""
    # Tracebacks hold on to the voxels that were at hand where it arose.
    link: BaseException | None = error
    while link is not None and link.__traceback__ is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return Outcome(target, None, error, seconds=time.monotonic() - started)


def require_own_names(targets: Sequence[Target]) -> None:
    """Refuse scans whose masks would have one name.

    Raises
    ------
    ExportError
        Names two of them.
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


def predict_targets(targets: Sequence[Target], predictor: Predictor, folder: MaskFolder) -> Iterator[Outcome]:
    """Predict scans one by one and write their masks; a failure is an outcome, not an end.

    Raises
    ------
    ExportError
        Two scans would be written to one file; nothing has been written.
    """
    require_own_names(targets)
    for target in targets:
        opened = folder.open(target)
        if isinstance(opened, Outcome):
            yield opened
            continue
        try:
            with _scratch(folder.path, opened.scan) as scratch:
                found = predictor.predict(opened.scan, uncertainty=folder.uncertainty, scratch=scratch)
                outcome = folder.write(opened, found)
        except NapariUnetError as error:
            outcome = failed(target, error, opened.started)
        yield outcome


def write_table(folder: Path, targets: Sequence[Target], outcomes: Sequence[Outcome]) -> None:
    """Write the table of what became of scans, in the order of the targets.

    Raises
    ------
    ExportError
        The disk refuses.
    """
    table = CohortTable(folder / TABLE)
    known = {outcome.target: outcome for outcome in outcomes}
    for target in targets:
        outcome = known.get(target)
        if outcome is None:
            continue
        source = (target.folder / target.source.name).as_posix()
        mask = "" if outcome.written is None else (target.folder / outcome.written.name).as_posix()
        table.add(
            source, mask, outcome.status, seconds=outcome.seconds, notes=outcome.all_notes, volumes=outcome.volumes
        )
    table.write()


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
