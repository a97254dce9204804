"""What a reader is, what it is told, and how the failures of parsers become sentences.

Readers of single formats stand in modules of their own; :mod:`napari_unet.io.registry` chooses among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from napari_unet.domain.errors import NapariUnetError, ScanError, VolumeChoiceError
from napari_unet.domain.scan import Scan


@dataclass(frozen=True)
class ReadOptions:
    """What the person chose where a source leaves a choice.

    Parameters
    ----------
    series : str or None
        Identifier of the series to load, where a source holds several.
    volume : int or None
        Which volume of a time series, counted from 0.
    untrusted : bool
        Load although the slices do not form a regular grid.
    resample : bool
        Resample onto a regular grid where the slices do not form one.
    as_mask : bool
        The file holds labels: its stored values matter, not how it looks.
    may_stay : bool
        A mask that is larger than the memory may stay on the disk, as scans do.
    """

    series: str | None = None
    volume: int | None = None
    untrusted: bool = False
    resample: bool = False
    as_mask: bool = False
    may_stay: bool = False


@dataclass(frozen=True)
class Reader:
    """One format.

    Parameters
    ----------
    name : str
        As people call the format.
    suffixes : tuple of str
        Lower case, with the dot; a compound one (``.nii.gz``) counts as a whole.
    read : callable
        From a path and options to a Scan; raises ScanError and nothing else for a bad file.
    mask_suffix : str
        Suffix of the masks that are written beside sources of this format by default.
    recognises : callable
        Looks at a folder, or at a file whose suffix says nothing, and says whether it is of this format; cheap, and
        raises nothing but OSError.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, ReadOptions], Scan]
    mask_suffix: str
    recognises: Callable[[Path], bool] = lambda path: False


@contextmanager
def parsing(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a parser raises on a bad file into one sentence.

    Foreign parsers raise nearly anything on damaged bytes (struct, zlib, key and index errors), hence the wide net.

    Raises
    ------
    ScanError
        The file cannot be opened, does not fit into memory, or is not what its name says.
    """
    try:
        yield
    except NapariUnetError:
        raise
    except MemoryError as error:
        raise ScanError(f"{path.name} needs more memory than there is: close other programs or crop it.") from error
    except OSError as error:
        if error.errno is not None:
            raise ScanError(f"{path.name} cannot be opened: {error.strerror or error}.") from error
        raise ScanError(_damaged(path, kind)) from error
    except Exception as error:
        raise ScanError(_damaged(path, kind)) from error


def _damaged(path: Path, kind: str) -> str:
    return f"{path.name} is damaged, cut short or not a {kind} file: copy it again from where it came."


def choose_volume(path: Path, n_volumes: int, volume: int | None) -> int:
    """Return the index of the volume to read.

    Raises
    ------
    VolumeChoiceError
        There are several and none was chosen; says how many there are.
    ScanError
        The chosen one does not exist.
    """
    if volume is None:
        if n_volumes == 1:
            return 0
        raise VolumeChoiceError(
            f"{path.name} holds {n_volumes} volumes (time points or channels): pass --volume N, "
            f"with N from 0 to {n_volumes - 1}.",
            n_volumes,
        )
    if not 0 <= volume < n_volumes:
        there_are = "one volume, number 0" if n_volumes == 1 else f"{n_volumes} volumes, numbers 0 to {n_volumes - 1}"
        raise ScanError(f"{path.name} has no volume {volume}: it holds {there_are}.")
    return volume
