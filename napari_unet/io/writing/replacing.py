"""Files and folders that are either the old ones or the new ones, and new only once they were read back."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from napari_unet.domain.errors import ExportError


@dataclass(frozen=True)
class MaskFile:
    """How one mask comes to lie on the disk.

    Parameters
    ----------
    write : callable
        Makes a file, or a folder, at a path that does not exist yet.
    is_sound : callable
        Reads it back, and says whether voxels and position are those that were meant.
    """

    write: Callable[[Path], object]
    is_sound: Callable[[Path], bool]


def put_in_place(path: Path, suffix: str, file: MaskFile) -> None:
    """Write beside the target, make sure that it lies on the disk as it was meant, then take the target's place.

    Parameters
    ----------
    path : Path
        The target; its folder is made. What is there is replaced, a folder by a folder.
    suffix : str
        Of the format, for libraries that choose by it.
    file : MaskFile
        What to write.

    Raises
    ------
    ExportError
        The disk refuses, or holds something else than was written; what was there before is there still.
    """
    # Short and hidden: the target's own name may already be as long as the file system allows.
    temporary = path.parent / f".{secrets.token_hex(6)}{suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file.write(temporary)
            _flush(temporary)
            if not _reads_back(file, temporary):
                raise ExportError(
                    "The mask read back from the disk is not the one written: check the disk and try again."
                )
            _swap(temporary, path)
        finally:
            _remove(temporary)
    except OSError as error:
        raise ExportError(f"{path.name} could not be written to {path.parent}: {error.strerror or error}.") from error


def _reads_back(file: MaskFile, path: Path) -> bool:
    try:
        return file.is_sound(path)
    except OSError:
        raise
    except Exception:  # parsers raise nearly anything on bytes that a bad disk has changed
        return False


def _flush(path: Path) -> None:
    if not path.is_dir():
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
        return
    for folder, _, names in os.walk(path):
        for name in names:
            _flush(Path(folder, name))
        if os.name == "posix":  # elsewhere folders cannot be opened
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _swap(new: Path, target: Path) -> None:
    if not (new.is_dir() and target.exists()):
        new.replace(target)
        return
    # No system replaces a folder that holds something in one step.
    aside = target.parent / f".{secrets.token_hex(6)}.old"
    target.rename(aside)
    try:
        new.rename(target)
    except OSError:
        aside.rename(target)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
