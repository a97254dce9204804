"""DICOM Segmentation objects (SEG): masks to files that name the images they were drawn on, and such files to masks.

Only labels pass here; scans are read by :mod:`napari_unet.io.dicom.reader`. Where a voxel stands comes from the
positions of the source's slices, never from its SliceThickness, and nothing is resampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet import __version__
from napari_unet.domain.errors import ExportError, MaskError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.io.dicom.header import quietly
from napari_unet.io.dicom.reader import to_acquired_slices, was_resampled
from napari_unet.io.dicom.source import (
    Placed,
    Source,
    check_identified,
    frame_affine,
    functional_group,
    source_of,
    to_loaded_axes,
    to_source_axes,
)
from napari_unet.io.masks import distinct_values
from napari_unet.io.reading import parsing
from napari_unet.io.writing.replacing import MaskFile, put_in_place

if TYPE_CHECKING:
    import highdicom
    from pydicom import Dataset

_PRODUCT = "napari-unet"
#: PS3.3 C.8.20: what may be said about how segments came to be.
_ALGORITHMS = ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL")
_SEGMENTATION, _LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
_BACKGROUND_CODE = "125040"  # of DICOM's own coding scheme
#: Longest text of value representation LO, which segment labels and names of algorithms have.
_LONGEST_LABEL = 64
#: How exactly a file that was read back has to lie where the scan lies.
_SAME_PLACE_MM = 1e-6
#: Above the numbers that scanners give, so that the segmentation is listed behind what it was drawn on.
_SERIES_NUMBER = 9000

#: highdicom checks its input with whatever error comes first.
_HIGHDICOM_ERRORS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def write_dicom_seg(
    labels: NDArray,
    scan: Scan,
    path: Path | str,
    schema: LabelSchema,
    *,
    labelmap: bool = False,
    algorithm: str = "SEMIAUTOMATIC",
    model_name: str | None = None,
) -> None:
    """Write the labels of a DICOM scan as a DICOM Segmentation that references its source images.

    Every class of the schema becomes a segment, numbered 1, 2, ... in the schema's order, whether the mask holds it
    or not; frames without a voxel are left out. An empty mask is a finding ("nothing there") and is written, with
    all its frames. The file repeats the patient and study that its source names, as the standard demands.

    Parameters
    ----------
    labels : integer array
        Over the scan's spatial axes, as loaded; 0 is background, other values are ids of the schema.
    scan : Scan
        Read from DICOM files that are still where they were.
    path : Path or str
        The file to write. Folders are made; an older file is replaced in one step after the new one was read back
        by highdicom and found equal in voxels, references and place.
    schema : LabelSchema
        The classes: names become segment labels, colours the recommended CIELab colours.
    labelmap : bool
        Write a Label Map Segmentation (DICOM Supplement 243: one frame per slice, values are segment numbers)
        instead of a BINARY one. Smaller for many classes, but fewer programs read it.
    algorithm : str
        ``AUTOMATIC`` (nobody touched it), ``SEMIAUTOMATIC`` or ``MANUAL``, for all segments.
    model_name : str, optional
        The model that proposed, for the identification of the algorithm; not with ``MANUAL``.

    Raises
    ------
    ExportError
        The scan is not from DICOM, its files are gone or changed, its grid is not theirs, another shape, labels
        without a class, a kind of image that no segmentation can refer to, or the disk refuses.
    """
    path = Path(path)
    if algorithm not in _ALGORITHMS:
        raise ExportError(f"There is no algorithm type {algorithm!r}: take one of {', '.join(_ALGORITHMS)}.")
    if algorithm == "MANUAL" and model_name is not None:
        raise ExportError("A mask that a model proposed is not MANUAL: say SEMIAUTOMATIC, or leave the model out.")
    numbers = _segment_numbers(labels, scan, schema)
    # A resampled scan's mask goes back to the slices that were acquired: only they can be referred to.
    numbers = to_acquired_slices(scan, numbers) if was_resampled(scan) else to_source_axes(numbers, scan)
    if any(_same_file(path, source) for source in (scan.source, *scan.source_files) if source is not None):
        raise ExportError(f"{path.name} is one of the scan's own files: choose another name for the mask.")
    with quietly():
        source = source_of(scan)
    check_identified(source)
    with quietly(), _understood_by_highdicom():
        seg = _segmentation(numbers, source, schema, labelmap, algorithm, model_name)

    def write(target: Path) -> None:
        with quietly():
            seg.save_as(target)

    put_in_place(path, ".dcm", MaskFile(write, lambda target: _is_sound(target, numbers, source)))


def is_dicom_seg(path: Path | str) -> bool:
    """Return whether a file is a DICOM segmentation; False of what is no DICOM file at all."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        with quietly():
            found = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    except (OSError, InvalidDicomError):
        return False
    return found.get("SOPClassUID") in (_SEGMENTATION, _LABEL_MAP_SEGMENTATION)


def segment_names(path: Path | str) -> dict[int, str]:
    """Return the labels of a DICOM segmentation's segments, by their numbers."""
    import pydicom

    with quietly():
        seg = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SegmentSequence"])
    return {
        int(each.SegmentNumber): str(each.get("SegmentLabel", f"segment {each.SegmentNumber}"))
        for each in seg.get("SegmentSequence", [])
    }


def read_dicom_seg(path: Path | str, scan: Scan) -> NDArray:
    """Read a DICOM Segmentation as a mask for the scan it belongs to.

    Parameters
    ----------
    path : Path or str
        A Segmentation (BINARY, or FRACTIONAL, of which a voxel counts from half of the maximum on) or a Label Map
        Segmentation. Slices without a frame are empty; a frame may cover a part of a slice, or lie across it.
    scan : Scan
        Read from DICOM. Need not be the very series that the segmentation names: one frame of reference and one
        grid suffice.

    Returns
    -------
    array of uint8 or uint16
        Segment numbers over the scan's spatial axes, as loaded; 0 is background.

    Raises
    ------
    MaskError
        Not a segmentation, another frame of reference or grid, or segments that overlap: a mask holds one class per
        voxel, and to pick one silently would take tissue away from the other.
    ScanError
        The file is damaged or cannot be opened.
    """
    import pydicom

    path = Path(path)
    try:
        with quietly():
            source = source_of(scan)
    except ExportError as error:
        raise MaskError(str(error)) from error
    if source.planes:
        raise MaskError(f"The scan was resampled, and {path.name} belongs to its acquired slices: load it as it is.")
    with quietly(), parsing(path, "DICOM"):
        seg = pydicom.dcmread(path)
        if seg.get("SOPClassUID") not in (_SEGMENTATION, _LABEL_MAP_SEGMENTATION):
            raise MaskError(f"{path.name} is not a DICOM segmentation.")
        numbers = _numbers_on_grid(seg, source, path.name)
    return np.ascontiguousarray(to_loaded_axes(numbers, scan))


# ---- writing ----


def _segment_numbers(labels: NDArray, scan: Scan, schema: LabelSchema) -> NDArray[np.uint8]:
    if labels.shape != scan.spatial_shape:
        raise ExportError(f"The mask's shape {labels.shape} is not the scan's, {scan.spatial_shape}.")
    if labels.dtype.kind not in "biu":
        raise ExportError(f"The mask holds {labels.dtype} numbers: labels are whole numbers.")
    unknown = distinct_values(labels) - {0, *schema.ids}
    if unknown:
        raise ExportError(f"The mask holds labels that have no class: {', '.join(map(str, sorted(unknown)))}.")
    if labels.dtype == bool:
        labels = labels.view(np.uint8)
    number_of = np.zeros(max(schema.ids) + 1, np.uint8)  # a schema has at most 255 classes
    number_of[list(schema.ids)] = np.arange(1, len(schema.ids) + 1)
    return number_of[labels]


def _segmentation(
    numbers: NDArray[np.uint8],
    source: Source,
    schema: LabelSchema,
    labelmap: bool,
    algorithm: str,
    model_name: str | None,
) -> highdicom.seg.Segmentation:
    """Return the segmentation of ``numbers`` (slice, row, column)."""
    import highdicom as hd

    headers, positions = source.references, None
    if not source.frames and (source.affine is not None or source.planes):
        order = hd.spatial.get_dataset_sort_index(headers)
        headers, numbers = [headers[i] for i in order], numbers[order]
    elif source.affine is not None:
        groups = headers[0].PerFrameFunctionalGroupsSequence
        positions = [
            hd.PlanePositionSequence("PATIENT", groups[n - 1].PlanePositionSequence[0].ImagePositionPatient)
            for n in source.frames
        ]
    seg = hd.seg.Segmentation(
        source_images=headers,
        pixel_array=numbers,
        plane_positions=positions,
        segmentation_type="LABELMAP" if labelmap else "BINARY",
        segment_descriptions=_descriptions(schema, algorithm, model_name),
        series_instance_uid=hd.UID(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=_PRODUCT,
        manufacturer_model_name=_PRODUCT,
        software_versions=__version__,
        device_serial_number="0",
        content_label="SEGMENTATION",
        content_description="Segmentation",
        series_description="Segmentation",
        omit_empty_frames=True,
        specific_character_set="ISO_IR 192",  # UTF-8: class names are in any language
    )
    if (seg.NumberOfFrames * seg.Rows * seg.Columns * seg.BitsAllocated + 7) // 8 % 2:
        seg.PixelData = seg.PixelData[:-1] + b"\0"  # PS3.5, 8.2; highdicom 0.28 appends the character 0
    seg.ContentCreatorName = ""  # has to be there (type 2); nobody was asked for a name
    return seg


def _descriptions(schema: LabelSchema, algorithm: str, model_name: str | None) -> list[Any]:
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    identification = None
    if algorithm != "MANUAL":
        identification = hd.AlgorithmIdentificationSequence(
            name=_short_text(model_name or _PRODUCT) or _PRODUCT,
            family=codes.DCM.ArtificialIntelligence,
            version=__version__,
        )
    found = []
    for number, entry in enumerate(schema.classes, start=1):
        uid = hd.UID()
        label = _short_text(entry.name) or f"label {number}"
        found.append(
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=label,
                # What a class is called does not say what it is: only the general codes are certain.
                segmented_property_category=Code("123037004", "SCT", "Anatomical Structure"),
                segmented_property_type=Code("85756007", "SCT", "Tissue"),
                algorithm_type=algorithm,
                algorithm_identification=identification,
                tracking_uid=uid,
                tracking_id=f"{label} {uid[-12:]}",
                display_color=hd.color.CIELabColor.from_rgb(*(round(255 * min(max(c, 0), 1)) for c in entry.colour)),
            )
        )
    return found


def _short_text(text: str) -> str:
    """Return text that DICOM's LO holds: one line of at most 64 characters, without its separator."""
    printable = "".join(c if c.isprintable() else " " for c in text.replace("\\", "/"))
    return " ".join(printable.split())[:_LONGEST_LABEL].rstrip()


def _is_sound(path: Path, numbers: NDArray[np.uint8], source: Source) -> bool:
    """Read a file with highdicom and compare: by the images it refers to, and by where its voxels stand."""
    import highdicom as hd

    how: dict[str, Any] = {"combine_segments": True, "assert_missing_frames_are_empty": True}
    with quietly():
        seg = hd.seg.segread(path)
        uids = [str(header.SOPInstanceUID) for header in source.references]
        if source.frames:
            by_image = seg.get_pixels_by_source_frame(uids[0], list(source.frames), **how)
        else:
            by_image = seg.get_pixels_by_source_instance(uids, **how)
    if not np.array_equal(by_image, numbers):
        return False
    if source.planes:
        return _on_own_planes(seg, source)
    return source.affine is None or _in_place(seg, source, source.affine)


def _on_own_planes(seg: highdicom.seg.Segmentation, source: Source) -> bool:
    """Return whether every frame lies where the image was acquired that it refers to."""
    acquired = {
        reference.SOPInstanceUID: plane for reference, plane in zip(source.references, source.planes, strict=True)
    }
    for frame, group in enumerate(seg.PerFrameFunctionalGroupsSequence):
        plane = frame_affine(seg, frame)
        images = group.DerivationImageSequence[0].SourceImageSequence
        own = acquired.get(images[0].ReferencedSOPInstanceUID)
        # The third column is a thickness, which means nothing here.
        if plane is None or own is None or not np.allclose(plane[:, 1:], own[:, 1:], rtol=0, atol=_SAME_PLACE_MM):
            return False
    return True


def _in_place(seg: highdicom.seg.Segmentation, source: Source, affine: NDArray[np.float64]) -> bool:
    """Return whether every frame lies where the affine has the slice of the image that the frame refers to."""
    for frame, group in enumerate(seg.PerFrameFunctionalGroupsSequence):
        plane = frame_affine(seg, frame)
        placed = None if plane is None else Placed.on(affine, plane, source.shape[1:])
        if placed is None or placed.slice_number is None or placed.off_mm > _SAME_PLACE_MM + source.slack:
            return False
        images = group.DerivationImageSequence[0].SourceImageSequence
        if source.frames:
            is_own = source.frames[placed.slice_number] in [image.ReferencedFrameNumber for image in images]
        else:
            own = source.references[placed.slice_number].SOPInstanceUID
            is_own = own in [image.ReferencedSOPInstanceUID for image in images]
        if not is_own:
            return False
    return True


# ---- reading ----


def _numbers_on_grid(seg: Dataset, source: Source, name: str) -> NDArray:
    """Return segment numbers on the source's grid: slice, row, column."""
    if seg.get("FrameOfReferenceUID") != source.frame_of_reference:
        raise MaskError(f"{name} does not fit its scan: it belongs to another frame of reference (another study).")
    described = {int(item.SegmentNumber) for item in seg.SegmentSequence}
    found = np.zeros(source.shape, np.uint8 if max(described) <= 255 else np.uint16)
    overlaps: dict[tuple[int, int], int] = {}
    for number, frame in enumerate(_frames(seg, name)):
        pixels, new = _segments(seg, number, frame)
        unknown = distinct_values(new) - described
        if unknown:
            raise MaskError(f"{name} holds the segment {min(unknown)}, which it does not describe.")
        index = _index_on_grid(seg, number, frame.shape, pixels, source, name)
        old = found[index]
        for other in distinct_values(old[(old > 0) & (old != new)]):
            pair = (other, int(np.broadcast_to(new, old.shape)[old == other][0]))
            overlaps[pair] = overlaps.get(pair, 0) + int(np.count_nonzero(old == other))
        found[index] = new
    if overlaps:
        (one, other), n_voxels = max(overlaps.items(), key=lambda item: item[1])
        raise MaskError(
            f"{name} holds segments that overlap (numbers {one} and {other} in {n_voxels} voxels), and a mask has one "
            "class per voxel: save the segments as separate files."
        )
    return found


def _frames(seg: Dataset, name: str) -> Iterator[NDArray]:
    """Return the frames as stored, one after the other: many segments of a large volume are more than fits."""
    from pydicom.pixels import iter_pixels

    syntax = seg.file_meta.TransferSyntaxUID
    try:
        if seg.BitsAllocated == 1 and (seg.Rows * seg.Columns) % 8 and not syntax.is_compressed:
            # pydicom 3.0 takes every frame to begin with a byte when it reads single ones.
            yield from seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
        else:
            yield from iter_pixels(seg, raw=True)
    except RuntimeError as error:
        if not syntax.is_compressed:
            raise
        raise MaskError(
            f"{name} is compressed ({syntax.name}) in a way that cannot be read: save it uncompressed."
        ) from error


def _segments(seg: Dataset, number: int, frame: NDArray) -> tuple[tuple[NDArray[np.int64], ...], NDArray]:
    """Return rows and columns of a frame's (from 0) foreground, and the segment number of each, or one for all."""
    kind = seg.get("SegmentationType")
    if kind == "LABELMAP":
        background = {int(seg.get("PixelPaddingValue", 0))} | {
            int(item.SegmentNumber)
            for item in seg.SegmentSequence
            if item.SegmentedPropertyTypeCodeSequence[0].get("CodeValue") == _BACKGROUND_CODE
        }
        pixels = np.nonzero(np.isin(frame, list(background), invert=True))
        return pixels, frame[pixels]
    identification: Any = functional_group(seg, number, "SegmentIdentificationSequence") or {}
    threshold = seg.MaximumFractionalValue / 2 if kind == "FRACTIONAL" else 1
    return np.nonzero(frame >= threshold), np.array([identification["ReferencedSegmentNumber"].value])


def _index_on_grid(
    seg: Dataset,
    number: int,
    shape: tuple[int, ...],
    pixels: tuple[NDArray[np.int64], ...],
    source: Source,
    name: str,
) -> tuple[NDArray[np.int64], ...]:
    """Return where some pixels of a frame (from 0) lie on the source's grid."""
    if source.affine is None:
        named = {str(element.value) for element in seg.iterall() if element.keyword == "ReferencedSOPInstanceUID"}
        if str(source.references[0].SOPInstanceUID) not in named or shape != source.shape[1:]:
            raise MaskError(f"{name} does not fit its scan: it was made on another image.")
        return (np.zeros_like(pixels[0]), *pixels)
    plane = frame_affine(seg, number)
    if plane is None:
        raise MaskError(f"{name} does not say where its frames lie: export it again from where it came.")
    placed = Placed.on(source.affine, plane, shape)
    if not placed.fits:
        raise MaskError(
            f"{name} does not fit its scan: frame {number + 1} lies {placed.off_mm:.3g} mm off the scan's grid or has "
            "other spacings; load the scan that it was made on."
        )
    index = placed.index_of(pixels, source.shape)
    if index is None:
        raise MaskError(f"{name} does not fit its scan: frame {number + 1} has voxels outside of it.")
    return index


# ---- what foreign code and disks do ----


@contextmanager
def _understood_by_highdicom() -> Iterator[None]:
    try:
        yield
    except _HIGHDICOM_ERRORS as error:
        raise ExportError(
            "The scan's DICOM images are of a kind, or lack attributes, such that no DICOM-SEG can refer to them: "
            "write the mask as nifti or tiff."
        ) from error


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))
    except OSError:
        return False
