"""Whether a project is sound: its journal, what it makes of the labels, and its checkpoints."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_unet.domain.annotation import Annotation
from napari_unet.domain.errors import ModelError, ProjectError, ScanError
from napari_unet.storage.database import DATABASE
from napari_unet.storage.journal import BEGINNING, Journal, KnownScan
from napari_unet.storage.project_folder import ProjectFolder

#: Actions of the journal that name a checkpoint's file.
KEPT, REMOVED = "model kept", "model removed"


@dataclass(frozen=True)
class Problem:
    """Something that is not sound.

    Parameters
    ----------
    kind : str
        ``database``, ``journal``, ``labels`` or ``model``.
    path : str
        The file, relative to the project's folder.
    message : str
        One sentence.
    """

    kind: str
    path: str
    message: str


def verify(folder: Path) -> Iterator[Problem]:
    """Look at everything that a project's folder holds; nothing is changed.

    The chain of hashes shows what was changed or left out; that the journal's end was cut off shows only where a scan's
    file or a checkpoint says more than it.

    Yields
    ------
    Problem

    Raises
    ------
    ProjectError
        There is no project.
    """
    project = ProjectFolder(folder)
    if not folder.is_dir() or not any((folder / name).exists() for name in (DATABASE, "labels", "models")):
        raise ProjectError(f"There is no project in {folder}.")
    if not (folder / DATABASE).exists():
        yield from _labels_alone(project)
        yield from _models(project, {})
        return
    try:
        journal = Journal(folder, read_only=True)
    except ProjectError as error:
        yield Problem("database", DATABASE, str(error))
        yield from _labels_alone(project)
        yield from _models(project, {})
        return
    with closing(journal):
        yield from _integrity(journal)
        kept: dict[str, str] = {}
        try:
            yield from _chain(journal, kept)
            for scan in journal.scans():
                yield from _labels(project, journal, scan)
        except (ProjectError, sqlite3.Error) as error:
            yield Problem("journal", DATABASE, f"The journal cannot be read to its end ({type(error).__name__}).")
    yield from _models(project, kept)


def _integrity(journal: Journal) -> Iterator[Problem]:
    for finding in journal.integrity():
        yield Problem("database", DATABASE, f"The database is damaged: {finding}.")


def _chain(journal: Journal, kept: dict[str, str]) -> Iterator[Problem]:
    """Follow the chain; take down which checkpoints were kept, by their names."""
    previous, expected = BEGINNING, 1
    for event in journal.events():
        if event.seq != expected:
            yield Problem("journal", DATABASE, f"Events {expected} to {event.seq - 1} are missing.")
        if event.previous != previous or event.expected_hash() != event.hash:
            yield Problem("journal", DATABASE, f"Event {event.seq} ({event.action}) is not what was written.")
        previous, expected = event.hash, event.seq + 1
        if event.action in (KEPT, REMOVED):
            try:
                name = str(event.content().facts.get("name"))
            except ProjectError:
                continue  # told above: its hash does not fit
            if event.action == REMOVED:
                kept.pop(name, None)
            elif event.model is not None:
                kept[name] = event.model


def _labels(project: ProjectFolder, journal: Journal, scan: KnownScan) -> Iterator[Problem]:
    """Compare a scan's file with what the journal makes of it, up to the event that the file names."""
    path = f"labels/{scan.fingerprint}.npz"
    if not project.has_annotation(scan.fingerprint):
        return
    try:
        saved = project.read_annotation(scan.fingerprint, scan.shape, scan.slice_axis)
    except ScanError as error:
        yield Problem("labels", path, str(error))
        return
    assert saved is not None
    if saved.seq > journal.head()[0]:
        yield Problem(
            "journal", DATABASE, f"The journal ends at {journal.head()[0]}, before event {saved.seq} of {path}."
        )
        return
    annotation = Annotation.empty(scan.shape, scan.slice_axis, saved.annotation.labels.dtype.type)
    alike = False
    # The file may hold events after the one that it names: some state from there on must be its own.
    for event in journal.events(scan.fingerprint):
        if event.seq > saved.seq and _same(annotation, saved.annotation):
            alike = True
            break
        event.content().apply(annotation)
    if not alike and not _same(annotation, saved.annotation):
        yield Problem("labels", path, "The labels are not those that the journal's events make.")


def _same(one: Annotation, other: Annotation) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("labels", "painted", "accepted"))


def _labels_alone(project: ProjectFolder) -> Iterator[Problem]:
    """Say which of the scans' files cannot be read, where no journal is there to compare them with."""
    for path in sorted((project.path / "labels").glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                for name in arrays.files:
                    arrays[name]
        except Exception:  # damaged archives fail in a dozen ways
            yield Problem("labels", f"labels/{path.name}", "The saved labels are damaged.")


def _models(project: ProjectFolder, kept: dict[str, str]) -> Iterator[Problem]:
    names = project.model_names()
    for name in names:
        path = f"models/{name}.safetensors"
        try:
            checkpoint = project.read_model(name)
        except ModelError as error:
            yield Problem("model", path, str(error))
            continue
        if name in kept and checkpoint.id != kept[name]:
            yield Problem("model", path, "These are not the weights that were kept under this name.")
    for name in kept.keys() - set(names):
        yield Problem("model", f"models/{name}.safetensors", "The checkpoint was kept and is gone.")
