"""A project on disk, in its simplest form: checkpoints, and the latest annotation of each scan.

Scans are known by the hash of their voxels; no path and no name of a patient is written here.
"""

from __future__ import annotations

import io
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.annotation import Annotation
from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.errors import ExportError, ModelError, ProjectError, ScanError
from napari_unet.domain.labels import LabelSchema
from napari_unet.storage.atomic import replace_atomically
from napari_unet.storage.checkpoint_file import read_card, read_checkpoint, write_checkpoint
from napari_unet.storage.database import DATABASE
from napari_unet.storage.journal import Journal

#: Environment variable that names a folder for the project instead of the user's data folder.
PROJECT_VARIABLE = "NAPARI_UNET_PROJECT"
_VERSION_NAME = re.compile(r"v[0-9]+")
_FINGERPRINT = re.compile(r"[0-9a-f]{32}")


def _axis_code(slice_axis: int | None) -> int:
    return -1 if slice_axis is None else slice_axis


def is_version(name: str) -> bool:
    """Return whether a name is one that a project gives its checkpoints."""
    return _VERSION_NAME.fullmatch(name) is not None


def default_project() -> Path:
    """Return the folder where checkpoints and labels are kept unless a project is opened."""
    from platformdirs import user_data_dir

    return Path(os.environ.get(PROJECT_VARIABLE) or Path(user_data_dir("napari-unet")) / "project")


def require_project(folder: Path) -> None:
    """Refuse a folder that holds something else: a project is a folder of its own.

    Raises
    ------
    ProjectError
        It is a file, cannot be looked into, or holds other things.
    """
    try:
        entries = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise ProjectError(f"{folder.name} cannot be opened as a project ({error.strerror}).") from error
    mine = DATABASE in entries or any(folder.glob("models/v*.safetensors")) or any(folder.glob("labels/*.npz"))
    if entries and not mine:
        raise ProjectError(
            f"{folder.name} holds other things: choose a project's folder, or an empty one for a new one."
        )


@dataclass(frozen=True, eq=False)
class SavedAnnotation:
    """An annotation as saved, with the slices that only judge and those that a model has learnt from.

    ``seq`` is the number of the journal's last event when it was saved; 0 where there was no journal yet.
    """

    annotation: Annotation
    locked: NDArray[np.bool_]
    taught: NDArray[np.bool_]
    seq: int = 0


class ProjectFolder:
    """``models/v<N>.safetensors`` and ``labels/<fingerprint>.npz`` under one folder, made when first written to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def model_names(self) -> list[str]:
        """Return the checkpoints kept, oldest first."""
        folder = self.path / "models"
        found = [p.stem for p in folder.glob("v*.safetensors")] if folder.is_dir() else []
        return sorted((n for n in found if _VERSION_NAME.fullmatch(n)), key=lambda n: int(n[1:]))

    def next_model_name(self) -> str:
        """Return the name of the checkpoint to come: ``v1``, ``v2``..."""
        numbers = [int(name[1:]) for name in (*self.model_names(), *self.removed_names())]
        return f"v{max(numbers, default=0) + 1}"

    def removed_names(self) -> list[str]:
        """Return the checkpoints whose weights were deleted; their cards are there."""
        return [path.stem for path in (self.path / "models").glob("v*.json") if is_version(path.stem)]

    def model_path(self, name: str) -> Path:
        """Return where a checkpoint of this name lies or would lie."""
        if not _VERSION_NAME.fullmatch(name):
            raise ModelError(f"{name!r} is not the name of a project's checkpoint (v1, v2, ...).")
        return self.path / "models" / f"{name}.safetensors"

    def write_model(self, checkpoint: Checkpoint) -> Checkpoint:
        """Keep a checkpoint under its card's name, or the next free one where another program has taken it."""
        if self.model_path(checkpoint.card.name).exists():
            card = checkpoint.card.model_copy(update={"name": self.next_model_name()})
            checkpoint = replace(checkpoint, card=card)
        write_checkpoint(checkpoint, self.model_path(checkpoint.card.name))
        return checkpoint

    def remove_model(self, name: str) -> None:
        """Delete the weights of a kept checkpoint; its card stays, and its name is not used again.

        Raises
        ------
        ExportError
            They cannot be deleted.
        ModelError
            The file is damaged: its card cannot be kept.
        """
        path = self.model_path(name)
        card = read_card(path)
        try:
            replace_atomically(path.with_suffix(".json"), card.model_dump_json(indent=2).encode())
            path.unlink()
        except OSError as error:
            raise ExportError(f"{name} could not be deleted: {os.strerror(error.errno or 0)}.") from error

    def model_sizes(self) -> dict[str, int]:
        """Return the bytes that each kept checkpoint takes on the disk, oldest first."""
        return {name: self.model_path(name).stat().st_size for name in self.model_names()}

    def size(self) -> int:
        """Return the bytes that the whole project takes on the disk."""
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file()) if self.path.is_dir() else 0

    def read_model(self, name: str) -> Checkpoint:
        """Return a kept checkpoint."""
        return read_checkpoint(self.model_path(name))

    def scores(self, schema: LabelSchema) -> dict[str, dict[str, float | None]]:
        """Return the Dice that each kept checkpoint reached on the scans that judged it, by their fingerprints.

        Of one that knows other classes, over which a mean would be another figure, and of a file that cannot be read
        nothing is said.
        """
        return {name: card.scores for name, card in self.cards().items() if card.label_schema.ids == schema.ids}

    def cards(self) -> dict[str, ModelCard]:
        """Return the cards of the kept checkpoints, oldest first, but for files that cannot be read."""
        found: dict[str, ModelCard] = {}
        for name in self.model_names():
            with suppress(ModelError):
                found[name] = read_card(self.model_path(name))
        return found

    @property
    def has_journal(self) -> bool:
        """Whether there is one, sound or not."""
        return (self.path / DATABASE).exists()

    def journal(self, *, checked: bool = True) -> Journal | None:
        """Return the journal, to be read; None where there is none yet.

        Parameters
        ----------
        checked : bool
            Look first whether it is sound.

        Raises
        ------
        ProjectError
            It is damaged.
        """
        if not self.has_journal:
            return None
        journal = Journal(self.path, read_only=True, checked=checked)
        if journal.is_made:
            return journal
        journal.close()
        return None

    def write_annotation(self, fingerprint: str, saved: SavedAnnotation) -> None:
        """Save the annotation of a scan; the earlier one stays whole until the new one is complete.

        Raises
        ------
        ExportError
            The disk refused; the earlier file is unchanged.
        """
        buffer = io.BytesIO()
        annotation = saved.annotation
        np.savez_compressed(
            buffer,
            labels=annotation.labels,
            painted=np.packbits(annotation.painted),
            accepted=annotation.accepted,
            locked=saved.locked,
            taught=saved.taught,
            slice_axis=_axis_code(annotation.slice_axis),
            seq=saved.seq,
        )
        path = self._annotation_path(fingerprint)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_atomically(path, buffer.getvalue())
        except OSError as error:
            raise ExportError(
                f"Your labels could not be saved ({os.strerror(error.errno or 0)}): they are still in the window; "
                "free some space or export them elsewhere."
            ) from error

    def has_annotation(self, fingerprint: str) -> bool:
        """Return whether something is saved for a scan, sound or not."""
        return self._annotation_path(fingerprint).exists()

    def read_annotation(
        self, fingerprint: str, shape: tuple[int, ...], slice_axis: int | None
    ) -> SavedAnnotation | None:
        """Return what was saved for a scan, or None.

        Raises
        ------
        ScanError
            The file is damaged or was made for another shape or slice axis; it is left where it is.
        """
        path = self._annotation_path(fingerprint)
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                labels, axis = arrays["labels"], int(arrays["slice_axis"])
                if labels.shape != shape or axis != _axis_code(slice_axis):
                    raise ScanError(
                        f"The saved labels of this scan ({path.name}) do not fit it: they were left as they are."
                    )
                painted = np.unpackbits(arrays["painted"], count=labels.size).astype(bool).reshape(shape)
                annotation = Annotation(labels, slice_axis, painted, arrays["accepted"])
                n = len(annotation.accepted)
                locked, taught = arrays["locked"].astype(bool).reshape(n), arrays["taught"].astype(bool).reshape(n)
                seq = int(arrays["seq"]) if "seq" in arrays else 0
                return SavedAnnotation(annotation, locked, taught, seq)
        except ScanError:
            raise
        except Exception as error:
            # Damaged archives fail in a dozen ways: zlib.error, BadZipFile, EOFError, NotImplementedError...
            raise ScanError(
                f"The saved labels of this scan ({path.name}) are damaged: they were left as they are."
            ) from error

    def _annotation_path(self, fingerprint: str) -> Path:
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise ScanError("A scan's fingerprint is malformed: the project cannot hold it.")
        return self.path / "labels" / f"{fingerprint}.npz"
