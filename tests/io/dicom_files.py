"""DICOM files, written with pydicom, for the tests of the reader: series, frames, and whatever lies beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)
from pydicom.valuerep import DSfloat

AXIAL = (1, 0, 0, 0, 1, 0)
SAGITTAL = (0, 1, 0, 0, 0, -1)
CORONAL = (1, 0, 0, 0, 0, -1)
#: Rows run to the front, as some scanners store prone patients.
UPSIDE_DOWN = (1, 0, 0, 0, -1, 0)
_C, _S = np.cos(np.radians(20)), np.sin(np.radians(20))
OBLIQUE = (_C, _S, 0, -_S * _C, _C * _C, _S)
ORIENTATIONS = {
    "axial": AXIAL,
    "sagittal": SAGITTAL,
    "coronal": CORONAL,
    "upside-down": UPSIDE_DOWN,
    "oblique": OBLIQUE,
}
ORIGIN = (-31.25, 12.5, 101.75)
PATIENT = "Planted^Patient"


def volume(shape: tuple[int, int, int] = (8, 12, 10), low: int = -1000, high: int = 1500) -> NDArray[np.int16]:
    """Slices, rows, columns without any symmetry."""
    return np.random.default_rng(5).integers(low, high, shape).astype(np.int16)


def numbers(values: Any) -> list[DSfloat]:
    return [DSfloat(float(value), auto_format=True) for value in values]


def dataset(sop_class: str, series: str = "", **attributes: Any) -> Dataset:
    """An image without pixels, or something that is none."""
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = sop_class, generate_uid()
    image.PatientName, image.PatientID, image.PatientBirthDate = PATIENT, "PLANTED-ID", "19010203"
    image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), series or generate_uid()
    image.FrameOfReferenceUID = generate_uid()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    return image


def set_pixels(image: Dataset, array: NDArray) -> None:
    """Store an array: rows, columns; frames before, colours after."""
    colours = array.ndim > 2 and array.shape[-1] == 3
    image.Rows, image.Columns = array.shape[-3:-1] if colours else array.shape[-2:]
    image.SamplesPerPixel = 3 if colours else 1
    image.PhotometricInterpretation = "RGB" if colours else "MONOCHROME2"
    if colours:
        image.PlanarConfiguration = 0
    if array.ndim - colours == 3:
        image.NumberOfFrames = array.shape[0]
    image.BitsAllocated = image.BitsStored = array.dtype.itemsize * 8
    image.HighBit = image.BitsStored - 1
    image.PixelRepresentation = int(array.dtype.kind == "i")
    image.PixelData = array.astype(array.dtype.newbyteorder("<")).tobytes()


def save(image: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)
    return path


def positions(n: int, step: float, orientation: Any = AXIAL, origin: Any = ORIGIN) -> NDArray[np.float64]:
    normal = np.cross(orientation[:3], orientation[3:])
    return np.array(origin) + step * np.arange(n)[:, np.newaxis] * normal


def write_series(
    folder: Path,
    array: NDArray,
    *,
    orientation: Any = AXIAL,
    spacing: tuple[float, float, float] = (2.5, 0.8, 0.7),
    origin: Any = ORIGIN,
    series: str = "",
    prefix: str = "",
    change: Callable[[Dataset, int], object] | None = None,
    **attributes: Any,
) -> Path:
    """Write one CT file per slice, ``000.dcm``, ``001.dcm``, ... along the normal.

    ``change`` gets each image and its number before it is saved; ``attributes`` are set on all, None removes one.
    """
    series, frame_of_reference, study = series or generate_uid(), generate_uid(), generate_uid()
    for k, position in enumerate(positions(len(array), spacing[0], orientation, origin)):
        image = dataset(CTImageStorage, series, Modality="CT", SeriesDescription="made up", InstanceNumber=k + 1)
        image.FrameOfReferenceUID, image.StudyInstanceUID = frame_of_reference, study
        image.ImagePositionPatient = numbers(position)
        image.ImageOrientationPatient = numbers(orientation)
        image.PixelSpacing = numbers(spacing[1:])
        image.RescaleSlope, image.RescaleIntercept = 1, 0
        set_pixels(image, array[k])
        for keyword, value in attributes.items():
            if value is None:
                delattr(image, keyword)
            else:
                setattr(image, keyword, value)
        if change is not None:
            change(image, k)
        save(image, folder / f"{prefix}{k:03d}.dcm")
    return folder


def edit(path: Path, **attributes: Any) -> Path:
    """Change a file that was written."""
    image = dcmread(path)
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    image.save_as(path)
    return path


def write_enhanced(
    path: Path,
    array: NDArray,
    *,
    order: list[int] | None = None,
    times: int = 1,
    orientation: Any = AXIAL,
    spacing: tuple[float, float, float] = (2.5, 0.8, 0.7),
    slopes: list[float] | None = None,
) -> Path:
    """Write an enhanced CT; frame ``i`` is slice ``order[i]``. ``times`` repeats every place, and needs as many slices
    of ``array`` in turn: all of the first time, all of the second, ...
    """
    n = len(array) // times
    where = positions(n, spacing[0], orientation)
    order = order or list(range(len(array)))
    image = dataset(EnhancedCTImageStorage, Modality="CT", InstanceNumber=1)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = numbers(spacing[1:]), spacing[0]
    plane.ImageOrientationPatient = numbers(orientation)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    frames = []
    for k in order:
        group, position, content = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = numbers(where[k % n])
        if times > 1:
            content.TemporalPositionIndex = k // n + 1
        group.PlanePositionSequence, group.FrameContentSequence = [position], [content]
        if slopes is not None:
            values = Dataset()
            values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slopes[k], 0, "US"
            group.PixelValueTransformationSequence = [values]
        frames.append(group)
    image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [shared], frames
    set_pixels(image, array[order])
    return save(image, path)


def write_picture(path: Path, array: NDArray, frames: bool = False, **attributes: Any) -> Path:
    """Write a secondary capture, or with ``frames`` an ultrasound clip; neither has a position."""
    kind = UltrasoundMultiFrameImageStorage if frames else SecondaryCaptureImageStorage
    image = dataset(kind, Modality="US" if frames else "OT")
    set_pixels(image, array)
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    return save(image, path)
