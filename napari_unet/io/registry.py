"""The one door for reading: which formats there are, and which reader takes a path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from napari_unet.domain.errors import ScanError
from napari_unet.domain.scan import Scan, SeriesInfo
from napari_unet.io.formats import DICOM, OME_ZARR, READERS
from napari_unet.io.reading import Reader, ReadOptions

_READER_OF = {suffix: reader for reader in READERS for suffix in reader.suffixes}
_LONGEST_FIRST = tuple(sorted(_READER_OF, key=len, reverse=True))
#: Suffixes that folders have; any other is part of a folder's name.
_FOLDER_SUFFIXES = OME_ZARR.suffixes


def read_scan(
    path: Path | str,
    *,
    series: str | None = None,
    volume: int | None = None,
    untrusted: bool = False,
    resample: bool = False,
) -> Scan:
    """Read one scan.

    Parameters
    ----------
    path : Path or str
        A file in one of the formats of :mod:`napari_unet.io.formats`, or a folder that is a scan: a DICOM series,
        OME-Zarr.
    series : str, optional
        Identifier of the series to load, or the beginning of only one, where a source holds several.
    volume : int, optional
        Which volume of a time series, counted from 0.
    untrusted : bool
        Load although the slices do not form a regular grid.
    resample : bool
        Resample onto a regular grid where the slices do not form one.

    Returns
    -------
    Scan
        Volumes in ``[z, y, x]`` LPS by flips and permutation; see :class:`~napari_unet.domain.scan.Scan`.

    Raises
    ------
    ScanError
        No such file, no reader for it, a damaged file, or a choice that has to be made first.
    """
    scan = read_with(Path(path), ReadOptions(series, volume, untrusted, resample))
    chosen = {"series": series, "volume": volume, "untrusted": untrusted, "resample": resample}
    return replace(scan, choices={name: value for name, value in chosen.items() if value not in (None, False)})


def read_with(path: Path, options: ReadOptions) -> Scan:
    """Read one scan with the reader that its suffix or its content names; see :func:`read_scan`."""
    reader = _reader_or_raise(path)
    if options.series is not None and reader is not DICOM:
        raise ScanError(f"{path.name} is a {reader.name} file, which has no series to choose from: leave --series out.")
    return reader.read(path, options)


def list_series(path: Path | str, *, untrusted: bool = False) -> tuple[SeriesInfo, ...]:
    """Return the series at a path, without reading voxels; empty for formats that have none.

    Parameters
    ----------
    path : Path or str
        As for :func:`read_scan`.
    untrusted : bool
        List what only loads as untrusted, too.

    Raises
    ------
    ScanError
        Nothing there, or nothing that can be read.
    """
    path = Path(path)
    if _reader_or_raise(path) is not DICOM:
        return ()
    from napari_unet.io.dicom.reader import list_series as series_at

    return series_at(path, untrusted)


def can_read(path: Path | str) -> bool:
    """Return whether a path is a scan, by its suffix or, where that says nothing, by a look at its first bytes."""
    return reader_of(Path(path)) is not None


def reader_of(path: Path) -> Reader | None:
    """Return the reader for a path: by its suffix, else the first that recognises its content; or None."""
    try:
        return _find_reader(path)
    except OSError:
        return None


def _find_reader(path: Path) -> Reader | None:
    by_suffix = _READER_OF.get(_suffix(path))
    return by_suffix or next((reader for reader in READERS if reader.recognises(path)), None)


def _reader_or_raise(path: Path) -> Reader:
    try:
        if not path.exists():
            raise ScanError(f"There is no file {path}.")
        reader = _find_reader(path)
    except OSError as error:
        raise ScanError(f"{path.name} cannot be opened: {error.strerror}.") from error
    if reader is not None:
        return reader
    if path.is_dir():
        raise ScanError(
            f"{path} is a folder and not a scan (it holds no DICOM images and is no OME-Zarr): give a scan in it."
        )
    readable = ", ".join(suffix for reader in READERS for suffix in reader.suffixes)
    raise ScanError(f"{path.name} is in no format that is read: these are {readable}, and DICOM without a suffix.")


def source_stem(path: Path | str) -> str:
    """Return a source's name without the suffix of its format; ``.nii.gz`` and the like go as a whole.

    The stem of a DICOM folder is its name.
    """
    path = Path(path)
    return path.name[: len(path.name) - len(_suffix(path))]


def find_sources(folder: Path | str, recursive: bool = True) -> list[Path]:
    """Return the scans in a folder: files, and folders that are scans.

    A folder that directly holds DICOM images is one source; its DICOM files are not listed, but files of other formats
    and its subfolders are looked at. An OME-Zarr folder is one source and is not looked into.

    Parameters
    ----------
    folder : Path or str
        Where to look. It is a source itself, if it is one.
    recursive : bool
        Look into its subfolders too; else only whether they are sources.

    Returns
    -------
    list of Path
        Sorted by their path below ``folder`` as strings, ``folder`` itself first. Hidden files and folders, those
        that file managers leave behind, and everything that cannot be read are skipped.

    Raises
    ------
    ScanError
        There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ScanError(f"There is no folder {folder}.")
    found = {path.relative_to(folder).as_posix(): path for path in _sources_in(folder, 2**31 if recursive else 1)}
    return [found[name] for name in sorted(found, key=lambda name: (name != ".", name))]


def _sources_in(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the sources in a folder and in its subfolders down to a depth; at depth 0 the folder itself only."""
    reader = reader_of(folder)
    if reader is not None:
        yield folder
    if depth == 0 or reader not in (None, DICOM):
        return
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _sources_in(path, depth - 1)
        elif entry.is_file() and _READER_OF.get(_suffix(path)) not in (None, DICOM):
            yield path


def _suffix(path: Path) -> str:
    """Return the suffix of a format at the end of a name, or nothing."""
    lower = path.name.lower()
    found = next((suffix for suffix in _LONGEST_FIRST if lower.endswith(suffix)), "")
    return found if found in _FOLDER_SUFFIXES or not path.is_dir() else ""
