"""What a DICOM folder or file holds: its images sorted into series, and each series into volumes.

Headers only. Files that are no images are counted; which voxels stand where is :mod:`napari_unet.io.dicom.grid`'s.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_unet.domain.errors import ScanError, SeriesChoiceError, UntrustedError
from napari_unet.domain.geometry import orientation_codes
from napari_unet.domain.scan import SeriesInfo
from napari_unet.io.dicom.grid import places, plane_affine
from napari_unet.io.dicom.header import NotAnImage, Plane, has_preamble, is_image, looks_bare, read_planes
from napari_unet.io.placement import axis_map_of

#: Direction cosines that differ by less belong to parallel planes.
_PARALLEL = 1e-3
_UNNAMED = "unnamed"
#: Modalities whose slices form volumes even if they lost their positions.
_VOLUMETRIC = ("CT", "MR", "PT")
_NOT_DICOM = "file that is not DICOM"
#: Not worth opening to find out that they are not DICOM.
_OTHER_SUFFIXES = frozenset(
    (".nii", ".gz", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp", ".nrrd", ".nhdr", ".mha", ".mhd")
) | {".txt", ".csv", ".json", ".xml", ".html", ".md", ".py", ".zip", ".npy", ".pdf", ".safetensors"}


@dataclass(frozen=True, eq=False)
class Series:
    """Planes that belong together.

    Parameters
    ----------
    uid : str
        SeriesInstanceUID; with ``-1``, ``-2``, ... where one UID names several kinds of planes.
    description : str
        The series' own, and what tells it from its siblings.
    volumes : tuple of tuple of Plane
        Time points, or pictures that stand nowhere; a volume's planes are parallel, of one size and unsorted.
    """

    uid: str
    description: str
    volumes: tuple[tuple[Plane, ...], ...]

    @property
    def first(self) -> Plane:
        """One plane of it."""
        return self.volumes[0][0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first volume as loaded."""
        storage = self.first.storage
        colour = (3,) if storage.samples > 1 or storage.photometric == "PALETTE COLOR" else ()
        planes = self.volumes[0]
        if len(planes) == 1:
            return (storage.rows, storage.columns, *colour)
        shape: tuple[int, ...] = (len(planes), storage.rows, storage.columns)
        if self.first.position is not None and self.first.orientation is not None:
            positions = np.array([plane.position for plane in planes], float)
            shape = (len(places(positions, self.first.orientation)), *shape[1:])
            codes = orientation_codes(plane_affine((0, 0, 0), self.first.orientation, (1, 1)))
            shape = tuple(shape[axis] for axis in axis_map_of(codes).permutation)
        return (*shape, *colour)

    def info(self, chosen: bool = False) -> SeriesInfo:
        """Describe it for choosers."""
        return SeriesInfo(self.uid, self.description, self.shape, chosen)


@dataclass(frozen=True, eq=False)
class Contents:
    """All series of a source, the largest first within one UID, and a line about what was left out.

    ``damage`` is about a file whose header cannot be read, so that any of the series may lack a slice.
    """

    series: tuple[Series, ...]
    notes: tuple[str, ...]
    damage: ScanError | None


def open_source(path: Path, force: bool) -> Contents:
    """Read the headers of a file, or of all files that lie directly in a folder.

    Parameters
    ----------
    path : Path
    force : bool
        Read files without the DICOM preamble.

    Raises
    ------
    ScanError
        No image, or a damaged one alone.
    """
    skipped: Counter[str] = Counter()
    planes: list[Plane] = []
    damage: ScanError | None = None
    for file in _files(path):
        is_alone = file == path
        try:
            planes += _planes_of(file, force, is_alone)
        except NotAnImage as other:
            skipped[str(other)] += 1
        except ScanError as error:
            if is_alone:
                raise
            damage = damage or error
            skipped["damaged file"] += 1
    counted = _counted(skipped)
    if not planes:
        if damage is not None:
            raise damage
        if path.is_file():
            raise ScanError(f"{path.name} is a DICOM {next(iter(skipped))} and not an image: open the images instead.")
        raise ScanError(f"{path.name} holds no DICOM image{f', only {counted}' if counted else ''}.")
    n_skipped = sum(skipped.values())
    verb = "file was" if n_skipped == 1 else "files were"
    notes = (f"{n_skipped} {verb} skipped beside the images: {counted}",) if n_skipped else ()
    return Contents(tuple(_series_of(planes)), notes, damage)


def holds_images(folder: Path) -> bool:
    """Return whether a DICOM image lies directly in a folder; cheap."""
    return any(_may_be_dicom(file) and _is_image(file) for file in folder.iterdir() if file.is_file())


def is_dicom(file: Path) -> bool:
    """Return whether a file is DICOM, by its first bytes."""
    return _may_be_dicom(file) and (has_preamble(file) or looks_bare(file))


def choose_series(contents: Contents, wanted: str | None, name: str) -> Series:
    """Return the series to load.

    Parameters
    ----------
    contents : Contents
    wanted : str or None
        A UID, or the beginning of only one.
    name : str
        Of the source, for messages.

    Raises
    ------
    SeriesChoiceError
        Several, and none or no single one was named.
    """
    series = contents.series
    if wanted is None:
        found = list(series)
        what = f"{name} holds {len(series)} series: pass --series with one of these"
    else:
        found = [s for s in series if s.uid == wanted] or [s for s in series if _base(s) == wanted]
        found = found or [s for s in series if wanted and s.uid.startswith(wanted)]
        count = f"{len(found)} series that begin" if found else "no series that begins"
        what = f"{name} holds {count} with {wanted!r}: pass --series with one of these"
    if len(found) == 1:
        return found[0]
    listed = found or list(series)
    items = "; ".join(
        f"{s.uid} ({', '.join(filter(None, (s.description, 'x'.join(map(str, s.shape)))))})" for s in listed
    )
    raise SeriesChoiceError(f"{what}: {items}.", tuple(s.info() for s in series))


# ---- files ----


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if not file.name.startswith(".") and file.is_file())


def _may_be_dicom(file: Path) -> bool:
    return not file.name.startswith(".") and file.suffix.lower() not in _OTHER_SUFFIXES


def _is_image(file: Path) -> bool:
    if file.name.upper() == "DICOMDIR":
        return False
    if not has_preamble(file):
        return looks_bare(file)
    return is_image(file)


def _planes_of(file: Path, force: bool, is_alone: bool) -> list[Plane]:
    try:
        complete = has_preamble(file)
        bare = not complete and (looks_bare(file) or (is_alone and force))
    except OSError as error:
        raise ScanError(f"{file.name} cannot be opened: {error.strerror}.") from error
    if file.name.upper() == "DICOMDIR":
        raise NotAnImage("directory (DICOMDIR)")
    if complete:
        return read_planes(file, force)
    if not bare and not is_alone:
        raise NotAnImage(_NOT_DICOM)
    if not force:
        if file.stat().st_size == 0:
            raise ScanError(f"{file.name} is empty: copy it again from where it came.")
        raise UntrustedError(
            f"{file.name} lacks the preamble that DICOM files begin with, so that it may be something else or "
            "incomplete: load it as untrusted (--untrusted) to read it regardless."
        )
    try:
        return read_planes(file, force=True)
    except NotAnImage as other:
        raise ScanError(f"{file.name} is not a DICOM image, also when read without its preamble.") from other


def _counted(kinds: Counter[str]) -> str:
    def plural(kind: str) -> str:
        return kind.replace("file", "files", 1).replace("that is", "that are") if "file" in kind else f"{kind}s"

    return ", ".join(f"{count} {kind if count == 1 else plural(kind)}" for kind, count in sorted(kinds.items()))


# ---- planes to series ----


def _series_of(planes: Sequence[Plane]) -> list[Series]:
    groups = [part for group in _by_kind(planes) for part in _by_place(group)]
    of_uid: defaultdict[str, list[tuple[tuple[Plane, ...], ...]]] = defaultdict(list)
    for volumes in groups:
        of_uid[volumes[0][0].uid or _UNNAMED].append(volumes)
    found = []
    for uid, siblings in of_uid.items():
        siblings.sort(key=lambda volumes: (-sum(map(len, volumes)), volumes[0][0].storage.file.name))
        for number, volumes in enumerate(siblings, 1):
            name = uid if len(siblings) == 1 else f"{uid}-{number}"
            found.append(Series(name, _description(volumes, len(siblings) > 1), volumes))
    return sorted(found, key=lambda series: series.uid)


def _base(series: Series) -> str:
    return series.first.uid


def _description(volumes: tuple[tuple[Plane, ...], ...], has_siblings: bool) -> str:
    first = volumes[0][0]
    parts = [first.description]
    if _is_localizer(first):
        parts.append("localizer")
    if has_siblings and first.echo is not None:
        parts.append(f"echo {first.echo:g}")
    if len(volumes) > 1:
        parts.append(f"{len(volumes)} volumes" if len(volumes[0]) > 1 else f"{len(volumes)} pictures")
    return ", ".join(filter(None, parts))


def _is_localizer(plane: Plane) -> bool:
    return "LOCALIZER" in plane.image_type


def _by_kind(planes: Iterable[Plane]) -> list[list[Plane]]:
    """Divide by everything that slices of one volume have in common."""
    orientations: list[tuple[float, ...]] = []

    def orientation_index(plane: Plane) -> int:
        if plane.orientation is None or plane.position is None:
            return -1
        for index, known in enumerate(orientations):
            if max(abs(a - b) for a, b in zip(known, plane.orientation, strict=True)) < _PARALLEL:
                return index
        orientations.append(plane.orientation)
        return len(orientations) - 1

    groups: defaultdict[Hashable, list[Plane]] = defaultdict(list)
    for plane in planes:
        storage = plane.storage
        key = (
            plane.uid,
            storage.file if storage.frames > 1 else None,
            (storage.rows, storage.columns, storage.samples, storage.photometric),
            plane.is_placed and orientation_index(plane),
            plane.spacing and tuple(round(step, 4) for step in plane.spacing),
            _is_localizer(plane),
            plane.echo and round(plane.echo, 2),
        )
        groups[key].append(plane)
    return list(groups.values())


def _by_place(planes: list[Plane]) -> list[tuple[tuple[Plane, ...], ...]]:
    """Divide planes of one kind into series, and each into volumes."""
    if not planes[0].is_placed:
        planes = sorted(planes, key=lambda plane: (plane.time[-1], plane.storage.file.name, plane.frame))
        if planes[0].modality in _VOLUMETRIC:
            return [(tuple(planes),)]
        return [tuple((plane,) for plane in planes)]
    counts = [len(place) for place in _places(planes)]
    if max(counts) == 1:
        return [(tuple(planes),)]
    by_image = _split(planes, lambda plane: plane.image_type)
    if len(by_image) > 1:
        return [part for group in by_image for part in _by_place(group)]
    by_time = _split(planes, lambda plane: plane.temporal)
    if len(by_time) > 1 and all(_stand_apart(part) for part in by_time):
        return [tuple(map(tuple, by_time))]
    by_acquisition = _split(planes, lambda plane: plane.acquisition)
    if len(by_acquisition) > 1 and all(_stand_apart(part) for part in by_acquisition):
        if len({len(part) for part in by_acquisition}) == 1 and min(counts) == max(counts) == len(by_acquisition):
            return [tuple(map(tuple, by_acquisition))]
        return [(tuple(part),) for part in by_acquisition]
    names = [(plane.sop_uid or plane.storage.file.name, plane.frame) for plane in planes]
    if min(counts) == max(counts) and len(set(names)) == len(names):
        # The same number everywhere: time points whose order the files tell by clocks and numbers only.
        in_time = [sorted((planes[i] for i in place), key=lambda plane: plane.time) for place in _places(planes)]
        return [tuple(zip(*in_time, strict=True))]
    return [(tuple(planes),)]


def _places(planes: Sequence[Plane]) -> list[list[int]]:
    first = planes[0]
    assert first.orientation is not None
    return places(np.array([plane.position for plane in planes], float), first.orientation)


def _stand_apart(planes: Sequence[Plane]) -> bool:
    return all(len(place) == 1 for place in _places(planes))


def _split(planes: Iterable[Plane], key: Callable[[Plane], Hashable]) -> list[list[Plane]]:
    groups: defaultdict[Hashable, list[Plane]] = defaultdict(list)
    for plane in planes:
        groups[key(plane)].append(plane)
    return [groups[value] for value in sorted(groups, key=lambda value: (value is not None, value))]


def repeated(planes: Sequence[Plane]) -> list[list[int]]:
    """Return the places where several planes of a volume stand, by their indices; the first file comes first."""
    return [sorted(place) for place in _places(planes) if len(place) > 1]
