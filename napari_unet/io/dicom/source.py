"""The DICOM images under a scan: which image each of its slices is, and how frames lie on the grid that they form.

What segmentations need to refer to their source and to find their way back to it. Headers only: pixels are read by
:mod:`napari_unet.io.dicom.reader`, segmentations by :mod:`napari_unet.io.dicom.segmentation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import ExportError, ScanError
from napari_unet.domain.scan import Scan
from napari_unet.io.dicom.grid import plane_affine
from napari_unet.io.dicom.reader import series_datasets, was_resampled

if TYPE_CHECKING:
    from pydicom import Dataset

#: A plane further than these shares of a voxel (slice, row, column) from the grid is none of its planes. What
#: :mod:`napari_unet.io.dicom.grid` takes as regular stays below, a grid that was resampled does not.
_MOST_OFF_GRID = np.array([0.06, 0.3, 0.3])

#: What a segmentation must repeat of its source (Patient and General Study modules), what ties it to the source
#: (Frame of Reference), and what says where slices lie. Comments, addresses and histories stay behind.
_KEPT = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"),
    *("FrameOfReferenceUID", "PositionReferenceIndicator", "Rows", "Columns", "NumberOfFrames"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "LossyImageCompression"),
    *("LossyImageCompressionRatio", "LossyImageCompressionMethod", "IssuerOfPatientID", "StudyDescription"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
)
_IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
#: Type 2: has to be there, may be empty. Anonymised files lack them, and highdicom asks for them.
_KEPT_OR_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)


@dataclass(frozen=True, eq=False)
class Source:
    """The images under a scan, and the grid that they form in their own axes: slice, row, column.

    Parameters
    ----------
    references : list of Dataset
        One per slice in the order of the grid's first axis, or the one multi-frame image: what a segmentation
        repeats of its source, without pixels.
    frames : tuple of int
        Per slice, the number (from 1) of its frame in the multi-frame image; empty for single-frame images.
    shape : (slices, rows, columns)
    affine : (4, 4) array or None
        From ``[slice, row, column, 1]`` to LPS millimetres; None for one image without a position.
    slack : float
        Farthest, in mm, that a corner of a slice lies from where the affine has it.
    planes : tuple of (4, 4) array
        Per slice, from ``[0, row, column, 1]`` to LPS millimetres, where the slices form no grid (``affine`` is then
        None); else empty.
    """

    references: list[Dataset]
    frames: tuple[int, ...]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64] | None
    slack: float
    planes: tuple[NDArray[np.float64], ...] = ()

    @property
    def frame_of_reference(self) -> str | None:
        """Identifier of the coordinate system, where there is one."""
        return self.references[0].get("FrameOfReferenceUID")


@dataclass(frozen=True, eq=False)
class Placed:
    """A frame on a grid, to the voxel.

    Parameters
    ----------
    matrix : (3, 3) integer array
        From ``[row, column, 1]`` of the frame to ``[slice, row, column]`` of the grid.
    off_voxels : (3,) array
    off_mm : float
        Farthest that a corner of the frame lies from its place by ``matrix``: along each axis, and in space.
    """

    matrix: NDArray[np.int64]
    off_voxels: NDArray[np.float64]
    off_mm: float

    @classmethod
    def on(cls, affine: NDArray[np.float64], plane: NDArray[np.float64], shape: tuple[int, ...]) -> Placed:
        """Place a frame of ``shape`` (rows, columns), that ``plane`` maps to mm, on the grid of ``affine``."""
        exact = (np.linalg.inv(affine) @ plane)[:3, 1:]
        matrix = np.rint(exact)
        corners = np.array([(row, column, 1) for row in (0, shape[0] - 1) for column in (0, shape[1] - 1)], float).T
        off = (exact - matrix) @ corners
        off_mm = np.linalg.norm(affine[:3, :3] @ off, axis=0).max()
        return cls(matrix.astype(np.int64), np.abs(off).max(axis=1), float(off_mm))

    @property
    def fits(self) -> bool:
        """Whether pixels of the frame are voxels of the grid, and neighbours among them neighbours on it."""
        steps = np.abs(self.matrix[:, :2])
        one_to_one = (steps.sum(axis=0) == 1).all() and (steps.sum(axis=1) <= 1).all()
        return bool(one_to_one and (self.off_voxels <= _MOST_OFF_GRID).all())

    @property
    def slice_number(self) -> int | None:
        """Which of the grid's slices the frame is, pixel for pixel; None if it is none of them."""
        is_slice = np.array_equal(self.matrix[:, :2], [[0, 0], [1, 0], [0, 1]]) and not self.matrix[1:, 2].any()
        return int(self.matrix[0, 2]) if is_slice and self.fits else None

    def index_of(
        self, pixels: tuple[NDArray[np.int64], ...], shape: tuple[int, ...]
    ) -> tuple[NDArray[np.int64], ...] | None:
        """Return the grid index of some rows and columns; None if one of them lies outside of a grid of ``shape``."""
        rows, columns = pixels
        index = tuple(a * rows + b * columns + c for a, b, c in self.matrix)
        inside = all(((axis >= 0) & (axis < n)).all() for axis, n in zip(index, shape, strict=True))
        return index if inside else None


def to_source_axes(array: NDArray, scan: Scan) -> NDArray:
    """Bring an array over a scan's spatial axes to slice, row, column."""
    moved = scan.geometry.axis_map.to_source(array)
    return moved if moved.ndim == 3 else moved[np.newaxis]


def to_loaded_axes(array: NDArray, scan: Scan) -> NDArray:
    """Undo :func:`to_source_axes`."""
    axis_map = scan.geometry.axis_map
    return axis_map.to_loaded(array if len(axis_map.permutation) == 3 else array[0]).reshape(scan.spatial_shape)


def source_of(scan: Scan) -> Source:
    """Find the images of a scan's slices, and make sure that they still lie where the scan has them.

    Raises
    ------
    ExportError
        The scan is not from DICOM, its files are gone or changed, or its grid is not theirs.
    """
    headers = _headers(scan)
    if was_resampled(scan):
        return _uneven_source(headers)
    shape = to_source_axes(np.broadcast_to(np.uint8(0), scan.spatial_shape), scan).shape
    if any((header.get("Rows"), header.get("Columns")) != shape[1:] for header in headers):
        raise ExportError("The scan's DICOM files do not have its rows and columns (any more): load the scan again.")
    is_multiframe = "PerFrameFunctionalGroupsSequence" in headers[0]
    if is_multiframe and len(headers) > 1:
        raise ExportError("The scan lies in several multi-frame files, and a DICOM-SEG can refer to one only.")
    n_frames = len(headers[0].PerFrameFunctionalGroupsSequence) if is_multiframe else 1
    planes = [frame_affine(header, frame) for header in headers for frame in range(n_frames)]
    if planes[0] is None or "FrameOfReferenceUID" not in headers[0]:
        if shape[0] > 1 or len(planes) > 1:
            raise ExportError("The scan's slices have no position in the patient: write the mask as nifti or tiff.")
        return Source([_reference(headers[0])], (1,) if is_multiframe else (), shape, None, 0.0)

    affine = _source_affine(scan, planes[0], shape)
    chosen, slack = _slices_on_grid(affine, planes, shape)
    normal = np.cross(affine[:3, 1], affine[:3, 2])
    thickness = float(abs(affine[:3, 0] @ normal) / np.linalg.norm(normal))
    if shape[0] == 1:  # no second position to measure the distance to
        thickness = float(headers[0].get("SliceThickness") or 0) or thickness
    if is_multiframe:
        frames = tuple(frame + 1 for frame in chosen)
        return Source([_multiframe_reference(headers[0], chosen[0], thickness)], frames, shape, affine, slack)
    references = [_reference(headers[image]) for image in chosen]
    for reference in references:
        _set_measures(reference, reference.PixelSpacing, thickness)
        # Equal to within rounding, as was checked; highdicom wants them equal to the last digit.
        reference.ImageOrientationPatient = references[0].ImageOrientationPatient
    return Source(references, (), shape, affine, slack)


def check_identified(source: Source) -> None:
    """Refuse images that a segmentation cannot name.

    Raises
    ------
    ExportError
        Identifiers are missing or are not unique, as careless anonymising leaves them.
    """
    lacking = [word for word in _IDENTIFIERS if any(not reference.get(word) for reference in source.references)]
    if lacking:
        raise ExportError(
            f"The scan's DICOM files lack {' and '.join(lacking)} (anonymising may have removed them), so no DICOM-SEG "
            "can refer to them: write the mask as nifti or tiff."
        )
    if len({reference.SOPInstanceUID for reference in source.references}) < len(source.references):
        raise ExportError(
            "Several of the scan's DICOM files have the same SOPInstanceUID, so no DICOM-SEG can refer to them: write "
            "the mask as nifti or tiff."
        )


def functional_group(image: Dataset, frame: int, keyword: str) -> Dataset | None:
    """Return the functional group of a frame (from 0): its own, or the one that all frames share, or None."""
    own = image.get("PerFrameFunctionalGroupsSequence", [])[frame : frame + 1]
    shared = image.get("SharedFunctionalGroupsSequence", [])[:1]
    return next((group[keyword].value[0] for group in (*own, *shared) if group.get(keyword)), None)


def frame_affine(image: Dataset, frame: int) -> NDArray[np.float64] | None:
    """Return where a frame lies.

    Parameters
    ----------
    image : Dataset
        A single-frame image, or one with functional groups.
    frame : int
        From 0; without meaning in single-frame images.

    Returns
    -------
    (4, 4) array or None
        From ``[slice, row, column, 1]`` to LPS mm, as of :func:`napari_unet.io.dicom.grid.plane_affine`; None where the
        image does not say.
    """
    position: Any
    orientation: Any
    measures: Any
    position = orientation = measures = image
    if "PerFrameFunctionalGroupsSequence" in image:
        position, orientation, measures = (
            functional_group(image, frame, f"{name}Sequence") or {}
            for name in ("PlanePosition", "PlaneOrientation", "PixelMeasures")
        )
    values = (
        position.get("ImagePositionPatient"),
        orientation.get("ImageOrientationPatient"),
        measures.get("PixelSpacing"),
    )
    if any(value is None or len(value) != n for value, n in zip(values, (3, 6, 2), strict=True)):
        return None
    return plane_affine(*(tuple(map(float, value)) for value in values))


def _headers(scan: Scan) -> list[Dataset]:
    if not scan.source_files:
        raise ExportError("The scan was not read from DICOM files, which a DICOM-SEG has to refer to: take nifti.")
    try:
        headers = series_datasets(scan)
    except ScanError as error:
        raise ExportError(f"The scan's DICOM files are not what they were: {error}") from error
    for file, header in zip(scan.source_files, headers, strict=True):
        if "Rows" not in header:
            raise ExportError(f"{file.name} is not a DICOM image, which a DICOM-SEG has to refer to: take nifti.")
    return headers


def _uneven_source(headers: list[Dataset]) -> Source:
    """Return the images of a scan that was resampled, each where it was acquired."""
    planes = [frame_affine(header, 0) for header in headers]
    if "PerFrameFunctionalGroupsSequence" in headers[0] or any(plane is None for plane in planes):
        raise ExportError(
            "The scan was resampled from frames of one file, which cannot be referred to singly: write the mask as "
            "nifti or tiff."
        )
    placed = tuple(plane for plane in planes if plane is not None)
    corners = np.array([plane[:3, 3] for plane in placed])
    steps = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    thickness = float(headers[0].get("SliceThickness") or 0) or float(np.median(steps))
    references = [_reference(header) for header in headers]
    for reference in references:
        _set_measures(reference, reference.PixelSpacing, thickness)
    shape = (len(headers), int(headers[0].Rows), int(headers[0].Columns))
    return Source(references, (), shape, None, 0.0, placed)


def _source_affine(scan: Scan, plane: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the matrix from ``[slice, row, column, 1]`` to LPS millimetres."""
    geometry = scan.geometry
    if geometry.affine is not None:
        return geometry.affine @ np.linalg.inv(geometry.axis_map.index_matrix(scan.spatial_shape))
    if shape[0] > 1:
        raise ExportError("The scan's slices form no trusted grid in the patient: write the mask as nifti or tiff.")
    return plane


def _slices_on_grid(
    affine: NDArray[np.float64], planes: Sequence[NDArray[np.float64] | None], shape: tuple[int, ...]
) -> tuple[list[int], float]:
    """Return which image each slice of a grid is (the first, of several in one place), and the slack in mm."""
    chosen: dict[int, int] = {}
    slack = 0.0
    for image, plane in enumerate(planes):
        placed = None if plane is None else Placed.on(affine, plane, shape[1:])
        number = None if placed is None else placed.slice_number
        if placed is not None and number is not None and number not in chosen:
            chosen[number] = image
            slack = max(slack, placed.off_mm)
    if not all(number in chosen for number in range(shape[0])):
        raise ExportError(
            "The scan's slices do not lie where its DICOM files have them (it was loaded as untrusted, or the files "
            "changed), so no DICOM-SEG can refer to them: write the mask as nifti or tiff."
        )
    return [chosen[number] for number in range(shape[0])], slack


def _reference(header: Dataset) -> Dataset:
    """Return the part of a source image that a segmentation needs; see :data:`_KEPT`."""
    from pydicom import Dataset

    kept = Dataset()
    for keyword in _KEPT:
        if keyword in header:
            kept[keyword] = header[keyword]
    for keyword in _KEPT_OR_EMPTY:
        setattr(kept, keyword, header.get(keyword) or "")
    return kept


def _multiframe_reference(header: Dataset, frame: int, thickness: float) -> Dataset:
    """Return the same of a multi-frame image, with the orientation and spacing of one frame for all."""
    from pydicom import Dataset

    def group_with(name: str, number: int, keyword: str) -> Dataset:
        found, group = functional_group(header, number, name), Dataset()
        setattr(group, keyword, found[keyword].value if found is not None else None)
        return group

    kept, shared, per_frame = _reference(header), Dataset(), []
    shared.PlaneOrientationSequence = [group_with("PlaneOrientationSequence", frame, "ImageOrientationPatient")]
    measures = group_with("PixelMeasuresSequence", frame, "PixelSpacing")
    _set_measures(measures, measures.PixelSpacing, thickness)
    shared.PixelMeasuresSequence = [measures]
    for number in range(len(header.PerFrameFunctionalGroupsSequence)):
        group = Dataset()
        group.PlanePositionSequence = [group_with("PlanePositionSequence", number, "ImagePositionPatient")]
        per_frame.append(group)
    kept.SharedFunctionalGroupsSequence, kept.PerFrameFunctionalGroupsSequence = [shared], per_frame
    return kept


def _set_measures(measures: Dataset, spacing: Any, thickness: float) -> None:
    """Say how far apart voxels are.

    It is the source that is told, since highdicom takes over the measures of its sources, whatever it is given. Slice
    thickness too becomes the distance of the slices: many programs take the one for the other.
    """
    from pydicom.valuerep import DSfloat

    measures.PixelSpacing = spacing
    text = DSfloat(round(thickness, 10), auto_format=True)  # without the dust of floating point
    measures.SliceThickness = measures.SpacingBetweenSlices = text
