"""The one door for reading: which formats there are, and which reader takes a path.

A new format is one module with a ``READER`` and one entry here; callers do not change.
"""

from __future__ import annotations

from pathlib import Path

from napari_unet.domain.errors import ScanError
from napari_unet.domain.scan import Scan
from napari_unet.io import nifti, raster, tiff
from napari_unet.io.reading import Reader, ReadOptions

READERS: tuple[Reader, ...] = (nifti.READER, tiff.READER, raster.READER)

_READER_OF = {suffix: reader for reader in READERS for suffix in reader.suffixes}
_LONGEST_FIRST = tuple(sorted(_READER_OF, key=len, reverse=True))

#: Formats that are recognised so that the person hears their name; reading them is work to come.
_NOT_READ_YET = {
    ".dcm": "DICOM",
    ".ima": "DICOM",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".zarr": "OME-Zarr",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
}


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
        A file in one of the formats of :data:`READERS`.
    series : str, optional
        Identifier of the series to load, where a source holds several.
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
    return read_with(Path(path), ReadOptions(series, volume, untrusted, resample))


def read_with(path: Path, options: ReadOptions) -> Scan:
    """Read one scan with the reader that its suffix names; see :func:`read_scan`."""
    reader = reader_of(path)
    try:
        if not path.exists():
            raise ScanError(f"There is no file {path}.")
        if reader is None or path.is_dir():
            raise ScanError(_cannot_read(path))
    except OSError as error:
        raise ScanError(f"{path.name} cannot be opened: {error.strerror}.") from error
    if options.series is not None:
        raise ScanError(f"{path.name} is a {reader.name} file, which has no series to choose from: leave --series out.")
    return reader.read(path, options)


def can_read(path: Path | str) -> bool:
    """Return whether a path's suffix is one that is read; the file is not touched."""
    return reader_of(Path(path)) is not None


def reader_of(path: Path) -> Reader | None:
    """Return the reader for a path's suffix, or None."""
    return _READER_OF.get(_suffix(path.name))


def source_stem(path: Path | str) -> str:
    """Return a source's name without the suffix of its format; ``.nii.gz`` and the like go as a whole."""
    name = Path(path).name
    return name[: len(name) - len(_suffix(name))]


def find_sources(folder: Path | str, recursive: bool = True) -> list[Path]:
    """Return the readable files of a folder.

    Parameters
    ----------
    folder : Path or str
        Where to look.
    recursive : bool
        Look into its subfolders too.

    Returns
    -------
    list of Path
        Sorted by their path below ``folder`` as strings. Hidden files and folders, those that file managers leave
        behind, and everything that cannot be read are skipped.

    Raises
    ------
    ScanError
        There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ScanError(f"There is no folder {folder}.")
    found = {}
    for path in folder.rglob("*") if recursive else folder.iterdir():
        below = path.relative_to(folder)
        is_junk = any(part.startswith(".") or part == "__MACOSX" for part in below.parts)
        if not is_junk and can_read(path) and path.is_file():
            found[below.as_posix()] = path
    return [found[name] for name in sorted(found)]


def _suffix(name: str) -> str:
    lower = name.lower()
    return next((suffix for suffix in _LONGEST_FIRST if lower.endswith(suffix)), "")


def _cannot_read(path: Path) -> str:
    readable = ", ".join(suffix for reader in READERS for suffix in reader.suffixes)
    kind = _NOT_READ_YET.get(path.suffix.lower())
    if kind is None and path.is_dir():
        kind = _kind_inside(path)
        if kind is None:
            return f"{path} is a folder and not a scan: give one of its files."
    if kind is None and _is_dicom(path):
        kind = "DICOM"
    if kind is not None:
        return f"{path.name} is {kind}, which this version does not read yet: convert it to NIfTI."
    return f"{path.name} is in no format that is read: these are {readable}."


def _kind_inside(folder: Path) -> str | None:
    if (folder / ".zattrs").exists() or (folder / "zarr.json").exists():
        return "OME-Zarr"
    return "DICOM" if any(_is_dicom(child) for child in sorted(folder.iterdir())[:20] if child.is_file()) else None


def _is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"
