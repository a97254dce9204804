"""DICOM series, made with pydicom alone, whose every voxel says where it lies; what segmentations are tested on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from napari_unet.domain.scan import Scan
from napari_unet.io.dicom.reader import read_dicom
from napari_unet.io.reading import ReadOptions

#: Direction cosines of rows and columns (ImageOrientationPatient).
AXIAL = (1, 0, 0, 0, 1, 0)
SAGITTAL = (0, 1, 0, 0, 0, -1)
CORONAL = (1, 0, 0, 0, 0, -1)


def oblique(degrees: float = 20.0) -> tuple[float, ...]:
    """Axial, tilted about the patient's left-right axis and then a third as much about head-feet."""
    a, b = np.radians(degrees), np.radians(degrees / 3)
    turn = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    both = turn @ tilt
    return (*both[:, 0], *both[:, 1])


def write_series(
    folder: Path,
    *,
    shape: tuple[int, int, int] = (5, 12, 10),
    orientation: tuple[float, ...] = AXIAL,
    spacing: tuple[float, float, float] = (2.5, 0.8, 0.7),
    origin: tuple[float, float, float] = (-31.25, 12.5, 101.75),
    reverse: bool = False,
    lean: tuple[float, float] = (0.0, 0.0),
    decimals: int = 12,
    **attributes: Any,
) -> Path:
    """Write one single-frame file per slice.

    ``shape`` and ``spacing`` are of slices, rows, columns. ``reverse`` numbers and names the slices against the
    normal. ``lean`` is how many mm each slice is moved down and across, compared with the one before; positions are
    rounded to ``decimals``. Further keywords are set on every image; None removes one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    positions = _positions(shape[0], spacing[0], orientation, origin)
    sideways = lean[0] * np.array(orientation[3:]) + lean[1] * np.array(orientation[:3])
    positions = np.round(positions + np.outer(np.arange(shape[0]), sideways), decimals)
    series, frame_of_reference = generate_uid(), generate_uid()
    for k, position in enumerate(positions):
        number = shape[0] - k if reverse else k + 1
        image = _patient_and_study(CTImageStorage, series, frame_of_reference)
        image.InstanceNumber = number
        image.ImagePositionPatient = _numbers(position)
        image.ImageOrientationPatient = _numbers(orientation)
        image.PixelSpacing = _numbers(spacing[1:])
        image.SliceThickness = 5  # deliberately not the distance of the slices
        _add_pixels(image, _intensities(shape)[k])
        for keyword, value in attributes.items():
            if value is None:
                delattr(image, keyword)
            else:
                setattr(image, keyword, value)
        image.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)
    return folder


def write_enhanced(
    path: Path,
    *,
    shape: tuple[int, int, int] = (5, 12, 10),
    orientation: tuple[float, ...] = AXIAL,
    spacing: tuple[float, float, float] = (2.5, 0.8, 0.7),
    origin: tuple[float, float, float] = (-31.25, 12.5, 101.75),
    order: tuple[int, ...] | None = None,
    per_frame: bool = False,
) -> Path:
    """Write one enhanced CT; ``order`` is that of its frames, ``per_frame`` repeats what frames could share."""
    image = _patient_and_study(EnhancedCTImageStorage, generate_uid(), generate_uid())
    positions = _positions(shape[0], spacing[0], orientation, origin)
    order = order or tuple(range(shape[0]))
    measures, plane = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = _numbers(spacing[1:]), 5
    plane.ImageOrientationPatient = _numbers(orientation)
    shared, frames = Dataset(), []
    for k in order:
        group, position, content = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = _numbers(positions[k])
        content.StackID, content.InStackPositionNumber = "1", k + 1
        content.DimensionIndexValues = [1, k + 1]
        group.PlanePositionSequence, group.FrameContentSequence = [position], [content]
        frames.append(group)
    for group in frames if per_frame else [shared]:
        group.PixelMeasuresSequence, group.PlaneOrientationSequence = [measures], [plane]
    image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [shared], frames
    image.NumberOfFrames = len(order)
    _add_pixels(image, _intensities(shape)[list(order)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)
    return path


def labels_in_lps(scan: Scan, ids: tuple[int, ...] = (1, 2)) -> NDArray[np.uint8]:
    """A mask without any symmetry: an L of the first class, a dot of the last, empty slices between and around."""
    labels = np.zeros(scan.spatial_shape, np.uint8)
    planes = scan.to_planes(labels)
    planes[1, 2:7, 1] = planes[1, 6, 1:5] = ids[0]
    planes[-2, 1, 7] = ids[-1]
    return labels


def places(labels: NDArray, scan: Scan, label: int) -> NDArray[np.float64]:
    """LPS millimetres of a label's voxels by the scan's own affine, sorted."""
    index = np.argwhere(labels == label)
    found = (scan.geometry.affine @ np.c_[index, np.ones(len(index))].T)[:3].T
    return found[np.lexsort(np.round(found, 4).T)]


def places_in_file(path: Path, segment: int) -> NDArray[np.float64]:
    """LPS millimetres of a segment's voxels, by hand from the frames' positions (PS3.3 C.7.6.2.1.1), sorted."""
    seg = pydicom.dcmread(path)
    shared = seg.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    rows_apart, columns_apart = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    found = []
    for group, frame in zip(
        seg.PerFrameFunctionalGroupsSequence, seg.pixel_array.reshape(-1, seg.Rows, seg.Columns), strict=True
    ):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        if seg.SegmentationType == "LABELMAP":
            wanted = frame == segment
        else:
            own = group if "SegmentIdentificationSequence" in group else shared
            wanted = (frame > 0) & (own.SegmentIdentificationSequence[0].ReferencedSegmentNumber == segment)
        for row, column in np.argwhere(wanted):
            found.append(position + cosines[:3] * columns_apart * column + cosines[3:] * rows_apart * row)
    array = np.array(found).reshape(-1, 3)
    return array[np.lexsort(np.round(array, 4).T)]


def scan_at(path: Path, **options: Any) -> Scan:
    """Read a series or a multi-frame file."""
    return read_dicom(path, ReadOptions(**options))


def by_highdicom(path: Path, scan: Scan) -> NDArray[np.uint8]:
    """Segment numbers on the scan's grid, by highdicom's volumes alone."""
    volume = hd.seg.segread(path).get_volume(combine_segments=True)
    grid = hd.VolumeGeometry(scan.geometry.affine, scan.spatial_shape, "PATIENT")
    return volume.match_geometry(grid).array


def foreign_seg(
    path: Path, scan: Scan, pixels: Any, kind: str = "BINARY", n_segments: int = 1, **further: Any
) -> pydicom.Dataset:
    """A segmentation by highdicom alone, of the scan's images in the order of hd.spatial.sort_datasets."""
    images = hd.spatial.sort_datasets([pydicom.dcmread(file) for file in scan.source_files])
    segments = [
        hd.seg.SegmentDescription(
            number,
            f"part {number}",
            hd.sr.CodedConcept("85756007", "SCT", "Tissue"),
            hd.sr.CodedConcept("10200004", "SCT", "Liver"),
            "MANUAL",
        )
        for number in range(1, n_segments + 1)
    ]
    uids = [hd.UID() for _ in range(2)]
    seg = hd.seg.Segmentation(
        images, pixels, kind, segments, uids[0], 1, uids[1], 1, "maker", "model", "1", "2", **further
    )
    seg.save_as(path)
    return pydicom.dcmread(path)


def grid_of(scan: Scan) -> hd.VolumeGeometry:
    return hd.VolumeGeometry(scan.geometry.affine, scan.spatial_shape, "PATIENT")


def blob(scan: Scan) -> NDArray[np.uint8]:
    """Two ellipsoids, off the middle, in unlike corners."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in scan.spatial_shape), indexing="ij")
    one, two = (
        sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True)) < 1
        for centre, radii in (((0.3, -0.2, 0.4), (0.5, 0.4, 0.3)), ((-0.6, 0.5, -0.5), (0.2, 0.3, 0.4)))
    )
    return np.select([one, two], [1, 2]).astype(np.uint8)


def _positions(n: int, step: float, orientation: tuple[float, ...], origin: tuple[float, ...]) -> NDArray[np.float64]:
    normal = np.cross(orientation[:3], orientation[3:])
    return np.array(origin) + np.outer(np.arange(n) * step, normal)


def _intensities(shape: tuple[int, int, int]) -> NDArray[np.int16]:
    return (np.arange(np.prod(shape)) % 2000).reshape(shape).astype(np.int16)


def _numbers(values: Any) -> list[DSfloat]:
    return [DSfloat(float(value), auto_format=True) for value in values]


def _patient_and_study(sop_class: str, series: str, frame_of_reference: str) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = sop_class
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.SpecificCharacterSet = "ISO_IR 100"
    image.PatientName, image.PatientID = "Müller^Jürgen", "4711"
    image.PatientBirthDate, image.PatientSex = "19500312", "M"
    image.PatientComments, image.PatientAddress = "lives with his sister", "Hauptstrasse 1"
    image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.1", series
    image.StudyDate, image.StudyTime, image.StudyID, image.AccessionNumber = "20240102", "101112", "S1", "A1"
    image.SeriesNumber, image.Modality, image.FrameOfReferenceUID = 3, "CT", frame_of_reference
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    return image


def _add_pixels(image: Dataset, pixels: NDArray[np.int16]) -> None:
    image.Rows, image.Columns = pixels.shape[-2:]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 1
    image.RescaleIntercept, image.RescaleSlope = 0, 1
    image.PixelData = pixels.tobytes()
