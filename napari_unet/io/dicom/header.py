"""The header of one DICOM file to the planes that it holds: where each stands and how its voxels are stored.

No voxels are read here, and nothing is decided about several files: see :mod:`napari_unet.io.dicom.series`.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydicom import Dataset, config, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.filereader import read_file_meta_info
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from napari_unet.domain.errors import ScanError
from napari_unet.io.dicom.values import HeaderValues

_PIXEL_TAGS = {0x7FE00008: "f4", 0x7FE00009: "f8", 0x7FE00010: ""}
#: A header that says no more than this is read in a fraction of the time; every tag that is asked for stands here.
_KEYWORDS = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "ImageType"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ModalityLUTSequence"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing"),
    *("SliceThickness", "SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"),
    *("EchoNumbers", "AcquisitionNumber", "TemporalPositionIdentifier", "TriggerTime", "AcquisitionTime"),
    *("ContentTime", "InstanceNumber", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
_TAGS: list[int] = [tag for word in _KEYWORDS if (tag := tag_for_keyword(word)) is not None]

#: What else lies beside images, by a part of the keyword of its SOP class.
_OTHER_KINDS = (
    ("RTStructureSet", "structure set"),
    ("RTDose", "dose map"),
    ("RT", "radiotherapy object"),
    ("SR", "report"),
    ("KeyObject", "report"),
    ("PresentationState", "presentation state"),
    ("MediaStorageDirectory", "directory (DICOMDIR)"),
    ("Encapsulated", "document"),
    ("Waveform", "waveform"),
    ("RawData", "raw data"),
    ("WholeSlide", "slide in tiles"),
)
_TILED = "1.2.840.10008.5.1.4.1.1.77.1.6"
#: Segmentations, surfaces and label maps; the latter are too new for some dictionaries.
_SEGMENTATIONS = tuple(f"1.2.840.10008.5.1.4.1.1.66.{number}" for number in (4, 5, 7))
#: Rounded direction cosines are fine, other vectors are not.
_LOOSE_COSINES = 0.01


class NotAnImage(Exception):
    """A file beside the images; its text is the kind, such as ``report``."""


@dataclass(frozen=True, eq=False)
class Storage:
    """How the voxels of one file are stored.

    Parameters
    ----------
    file : Path
    syntax : UID
        Transfer syntax; that of the encoding found, where the file does not say.
    frames, rows, columns, samples : int
    dtype : dtype
        Of the stored numbers, little endian.
    bits : int
        How many bits of them count.
    photometric : str
        ``MONOCHROME1``, ``RGB``, ...
    offset, length : int or None
        Where the voxels lie in the file; None where they cannot be taken from it as they are.
    is_cut : bool
        Compressed voxels that stop before their end mark.
    has_lookup : bool
        Stored numbers become values through a table (Modality LUT).
    has_preamble : bool
        False: only to be read by force.
    """

    file: Path
    syntax: UID
    frames: int
    rows: int
    columns: int
    samples: int
    dtype: np.dtype
    bits: int
    photometric: str
    offset: int | None
    length: int | None
    is_cut: bool
    has_lookup: bool
    has_preamble: bool

    @property
    def frame_bytes(self) -> int:
        """Bytes of one decoded frame."""
        return self.rows * self.columns * self.samples * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice or picture: a file with a single frame, or one frame of a file.

    Parameters
    ----------
    storage : Storage
    frame : int
        Counted from 0.
    uid, sop_uid, description, modality : str
        Of series and instance; empty where unknown.
    image_type : tuple of str
    position, orientation, spacing : tuple of float or None
        ImagePositionPatient (LPS mm), ImageOrientationPatient, PixelSpacing (between rows, between columns).
    detector_spacing, thickness, between : see DICOM's ImagerPixelSpacing, SliceThickness, SpacingBetweenSlices
    slope, intercept : float
        From stored numbers to values.
    window : (low, high) or None
    echo, acquisition, temporal : float or None
    time : tuple of float
        Sorts what stands at one place.
    """

    storage: Storage
    frame: int
    uid: str
    sop_uid: str
    description: str
    modality: str
    image_type: tuple[str, ...]
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    detector_spacing: tuple[float, ...] | None
    thickness: float | None
    between: float | None
    slope: float
    intercept: float
    window: tuple[float, float] | None
    echo: float | None
    acquisition: float | None
    temporal: float | None
    time: tuple[float, ...]

    @property
    def is_placed(self) -> bool:
        """Whether it says where its voxels stand."""
        return self.position is not None and self.orientation is not None and self.spacing is not None

    @property
    def name(self) -> str:
        """For messages."""
        file = self.storage.file.name
        return file if self.storage.frames == 1 else f"frame {self.frame + 1} of {file}"


def has_preamble(path: Path) -> bool:
    """Return whether a file begins as DICOM files must."""
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def is_image(path: Path) -> bool:
    """Return whether a file with a preamble is an image, from its first lines if they say so; a damaged one counts.

    Raises
    ------
    OSError
        It cannot be opened.
    """
    try:
        with quietly():
            stated = UID(str(read_file_meta_info(path).get("MediaStorageSOPClassUID", "")))
        if "ImageStorage" not in stated.keyword or stated == _TILED:
            read_planes(path)
    except NotAnImage:
        return False
    except OSError:
        raise
    except Exception:  # damaged: to be heard of, not passed over
        return True
    return True


def looks_bare(path: Path) -> bool:
    """Return whether a file begins like a DICOM data set that lacks its preamble."""
    with path.open("rb") as stream:
        start = stream.read(8)
    # An early element of group 2 or 8, and then a value representation or, without those, a small length.
    is_early = start[:2] in (b"\x02\x00", b"\x08\x00") and start[3:4] == b"\x00"
    states_kind = start[4:6].isalpha() and start[4:6].isupper()
    return len(start) == 8 and is_early and (states_kind or start[5:] == b"\x00\x00\x00")


@contextmanager
def quietly() -> Iterator[None]:
    """Keep pydicom from warning on standard error about odd values: they quote them, patient names among them."""
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def read_planes(path: Path, force: bool = False) -> list[Plane]:
    """Return the planes of one DICOM file, in stored order.

    Parameters
    ----------
    path : Path
    force : bool
        Read it although it lacks the preamble.

    Raises
    ------
    NotAnImage
        A report, a segmentation, ...; its text is the kind.
    ScanError
        Damaged, cut short, or a header whose values cannot be understood.
    """
    with quietly():
        try:
            with path.open("rb") as stream:
                dataset = dcmread(stream, stop_before_pixels=True, force=force, specific_tags=_TAGS)
                kind = _refuse_other_kinds(dataset, path)
                syntax = _syntax(dataset)
                start = _pixel_start(stream, dataset, syntax, path.stat().st_size)
        except OSError as error:
            if error.errno is None:
                raise ScanError(_cut(path)) from error
            raise ScanError(f"{path.name} cannot be opened: {error.strerror}.") from error
        except (NotAnImage, ScanError):
            raise
        except Exception as error:  # pydicom lets nearly anything through on damaged bytes
            raise ScanError(_cut(path)) from error
        header = HeaderValues(dataset, path)
        storage = _storage(header, syntax, start, kind)
        return _planes(header, storage)


def _cut(path: Path) -> str:
    return f"{path.name} is damaged or cut short: copy it again from where it came."


def _refuse_other_kinds(dataset: Dataset, path: Path) -> str:
    """Return the keyword of the SOP class; that of an image, too, where a cut header does not say."""
    meta = getattr(dataset, "file_meta", Dataset())
    uid = UID(str(meta.get("MediaStorageSOPClassUID") or dataset.get("SOPClassUID") or ""))
    if uid == _TILED:
        raise NotAnImage("slide in tiles")
    if uid in _SEGMENTATIONS:
        raise NotAnImage("segmentation")
    keyword = uid.keyword if uid else "ImageStorage"
    if "ImageStorage" not in keyword:
        for part, kind in _OTHER_KINDS:
            if part in keyword:
                raise NotAnImage(kind)
    return keyword


def _syntax(dataset: Dataset) -> UID:
    stated = getattr(dataset, "file_meta", Dataset()).get("TransferSyntaxUID")
    if stated:
        return UID(stated)
    implicit, little = dataset.original_encoding
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


@dataclass(frozen=True)
class _Start:
    """Where pixel data begin: which element, offset and length of its value where they lie bare in the file, and
    whether fragments of compressed data stop before their end.
    """

    tag: int
    offset: int | None
    length: int | None
    is_cut: bool = False


def _pixel_start(stream: BinaryIO, dataset: Dataset, syntax: UID, size: int) -> _Start | None:
    """Return where the voxels begin; None where there are none. pydicom left the stream in front of them."""
    if syntax == DeflatedExplicitVRLittleEndian:
        return _Start(0x7FE00010, None, None)
    implicit, little = dataset.original_encoding
    order = "<" if little else ">"
    head = stream.read(12)
    if len(head) < 12:
        return None
    group, element = struct.unpack(f"{order}HH", head[:4])
    tag = Tag(group, element)
    if tag not in _PIXEL_TAGS:
        return None
    if implicit:
        (length,) = struct.unpack(f"{order}L", head[4:8])
        offset = stream.tell() - 4
    else:
        (length,) = struct.unpack(f"{order}L", head[8:12])
        offset = stream.tell()
    if length == 0xFFFFFFFF:
        return _Start(int(tag), None, None, is_cut=not _has_end(stream, offset, order))
    return _Start(int(tag), offset, min(length, max(0, size - offset)))


def _has_end(stream: BinaryIO, offset: int, order: str) -> bool:
    """Return whether the fragments of compressed voxels (PS3.5 A.4) lead to their end mark."""
    stream.seek(offset)
    while len(head := stream.read(8)) == 8:
        group, element, length = struct.unpack(f"{order}HHL", head)
        if (group, element) == (0xFFFE, 0xE0DD):
            return True
        if (group, element) != (0xFFFE, 0xE000):
            return False
        stream.seek(length, 1)
    return False


def _storage(header: HeaderValues, syntax: UID, start: _Start | None, kind: str) -> Storage:
    path = header.path
    rows, columns = header.whole("Rows", 0), header.whole("Columns", 0)
    if start is None or rows < 1 or columns < 1:
        if "ImageStorage" in kind or start is not None or rows > 0:
            raise ScanError(f"{path.name} is a DICOM image without voxels, or cut short: copy it again.")
        raise NotAnImage("other DICOM file")
    frames, samples = header.whole("NumberOfFrames", 1), header.whole("SamplesPerPixel", 1)
    allocated = header.whole("BitsAllocated", 16)
    if frames < 1 or samples not in (1, 3, 4) or allocated not in (1, 8, 16, 32, 64):
        raise ScanError(
            f"{path.name} has impossible voxels ({frames} frames, {samples} samples, {allocated} bits): "
            "export it again from where it came."
        )
    bits = min(header.whole("BitsStored", allocated), allocated)
    code = _PIXEL_TAGS[start.tag] or f"{'i' if header.whole('PixelRepresentation', 0) else 'u'}{max(1, allocated // 8)}"
    lies_bare = (
        start.offset is not None
        and syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
        and (samples, allocated > 1, header.whole("HighBit", bits - 1)) == (1, True, bits - 1)
    )
    return Storage(
        file=path,
        syntax=syntax,
        frames=frames,
        rows=rows,
        columns=columns,
        samples=samples,
        dtype=np.dtype(f"<{code}" if code[1] != "1" else code),
        bits=bits,
        photometric=header.text("PhotometricInterpretation") or "MONOCHROME2",
        offset=start.offset if lies_bare else None,
        length=start.length if lies_bare else None,
        is_cut=start.is_cut,
        has_lookup="ModalityLUTSequence" in header.dataset,
        has_preamble=bool(getattr(header.dataset, "preamble", None)),
    )


def _planes(header: HeaderValues, storage: Storage) -> list[Plane]:
    dataset = header.dataset
    try:
        shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
        own = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    except Exception as error:
        raise ScanError(_cut(header.path)) from error
    if own and len(own) != storage.frames:
        raise ScanError(f"{header.path.name} describes {len(own)} frames and holds {storage.frames}: export it again.")
    common = {
        "storage": storage,
        "uid": header.text("SeriesInstanceUID"),
        "sop_uid": header.text("SOPInstanceUID"),
        "description": " ".join(header.text("SeriesDescription").split()),
        "modality": header.text("Modality"),
        "image_type": header.texts("ImageType"),
        "detector_spacing": _spacing(header, "ImagerPixelSpacing"),
    }
    if not own:
        return [_plane(header, frame, storage.frames > 1, common) for frame in range(storage.frames)]
    return [
        _plane(HeaderValues(dataset, header.path, (groups, *shared)), frame, False, common)
        for frame, groups in enumerate(own)
    ]


def _plane(values: HeaderValues, frame: int, is_unplaced: bool, common: dict[str, Any]) -> Plane:
    def number(keyword: str, group: str | None = None) -> float | None:
        return values.loosely(keyword, group)

    slope = values.number("RescaleSlope", "PixelValueTransformationSequence")
    intercept = values.number("RescaleIntercept", "PixelValueTransformationSequence")
    frame_content = "FrameContentSequence"
    temporal = number("TemporalPositionIndex", frame_content) if values.groups else number("TemporalPositionIdentifier")
    trigger = number("NominalCardiacTriggerDelayTime", "CardiacSynchronizationSequence")
    order = (
        trigger if trigger is not None else number("TriggerTime"),
        number("AcquisitionTime"),
        number("ContentTime"),
        number("InstanceNumber"),
    )
    return Plane(
        frame=frame,
        # A lone position of a file with many frames says where the first stands, not the others.
        position=None if is_unplaced else values.numbers("ImagePositionPatient", 3, "PlanePositionSequence"),
        orientation=_orientation(values),
        spacing=_spacing(values, "PixelSpacing"),
        thickness=number("SliceThickness", "PixelMeasuresSequence"),
        between=number("SpacingBetweenSlices", "PixelMeasuresSequence"),
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
        window=_window(number("WindowCenter", "FrameVOILUTSequence"), number("WindowWidth", "FrameVOILUTSequence")),
        echo=number("EffectiveEchoTime", "MREchoSequence") if values.groups else number("EchoNumbers"),
        acquisition=number("FrameAcquisitionNumber", frame_content) if values.groups else number("AcquisitionNumber"),
        temporal=temporal,
        time=tuple(-1.0 if value is None else value for value in order),
        **common,
    )


def _spacing(values: HeaderValues, keyword: str) -> tuple[float, ...] | None:
    found = values.numbers(keyword, 2, "PixelMeasuresSequence")
    if found is not None and min(found) <= 0:
        sizes = " x ".join(f"{size:g}" for size in found)
        raise ScanError(f"{values.path.name} has no usable pixel size ({keyword} {sizes}): export it again.")
    return found


def _orientation(values: HeaderValues) -> tuple[float, ...] | None:
    found = values.numbers("ImageOrientationPatient", 6, "PlaneOrientationSequence")
    if found is None or not any(found):  # some programs write zeros for "unknown"
        return None
    along_row, along_column = np.array(found[:3]), np.array(found[3:])
    lengths = np.array([np.linalg.norm(along_row), np.linalg.norm(along_column)])
    if np.abs(lengths - 1).max() > _LOOSE_COSINES or abs(along_row @ along_column) > _LOOSE_COSINES:
        raise ScanError(
            f"{values.path.name} has directions of rows and columns that are no right angle (ImageOrientationPatient): "
            "export it again."
        )
    return found


def _window(centre: float | None, width: float | None) -> tuple[float, float] | None:
    if centre is None or width is None or width <= 0:
        return None
    return (centre - width / 2, centre + width / 2)
