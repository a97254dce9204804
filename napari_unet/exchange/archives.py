"""Packages of other people's: a folder, or an archive that is unpacked with care."""

from __future__ import annotations

import lzma
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from napari_unet.domain.errors import ModelError

#: Most that a package may hold, unpacked, and most files.
LARGEST_BYTES, MOST_FILES = 4 << 30, 2000
_CHUNK = 1 << 20


@contextmanager
def opened(source: Path) -> Iterator[Path]:
    """Give the folder of a package: itself, or where its archive has been unpacked for as long as it is used.

    Raises
    ------
    ModelError
        There is none, it is no archive, it would write outside of its folder, or it is too large.
    """
    if source.is_dir():
        yield source
        return
    if not source.exists():
        raise ModelError(f"There is no file or folder {source}: give a package (.zip), or its folder.")
    with tempfile.TemporaryDirectory(prefix="napari-unet-") as name:
        folder = Path(name)
        _unpack(source, folder)
        yield folder


def _unpack(source: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
            if len(entries) > MOST_FILES or sum(entry.file_size for entry in entries) > LARGEST_BYTES:
                raise ModelError(f"{source.name} is too large for a model: it was not unpacked.")
            left = LARGEST_BYTES
            for entry in entries:
                left = _unpack_one(archive, entry, folder, left, source.name)
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        OSError,
        NotImplementedError,
        RuntimeError,
        EOFError,
    ) as error:
        raise ModelError(f"{source.name} is no archive that can be unpacked: it is damaged or locked.") from error


def _unpack_one(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, left: int, name: str) -> int:
    target = (folder / entry.filename).resolve()
    if not target.is_relative_to(folder.resolve()) or stat.S_ISLNK(entry.external_attr >> 16):
        raise ModelError(f"{name} would write outside of its folder: it was not unpacked.")
    if entry.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return left
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as packed, target.open("wb") as file:
        # What an entry says of its size need not be true.
        while chunk := packed.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise ModelError(f"{name} is too large for a model: it was not unpacked.")
            file.write(chunk)
    return left


def inside(folder: Path, name: str) -> Path:
    """Return a file of a package by the name that another of its files gives.

    Raises
    ------
    ModelError
        It would lie outside, or is not there.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ModelError(f"The package names a file outside of its folder ({name[:80]!r}): it was not read.")
    if not path.is_file():
        raise ModelError(f"The package lacks the file {name[:80]!r}.")
    return path
