"""DICOM-SEG: every voxel back in its place, by three readers, on every kind of grid; and honest refusals."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from napari_unet.domain.errors import ExportError, MaskError
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.labels import LabelClass, LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.io.dicom.reader import series_datasets
from napari_unet.io.dicom.segmentation import read_dicom_seg, write_dicom_seg
from tests.io.seg_files import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    blob,
    by_highdicom,
    grid_of,
    labels_in_lps,
    oblique,
    places,
    places_in_file,
    scan_at,
    write_enhanced,
    write_series,
)
from tests.real_data import REAL_DATA, needs_real_data

SCHEMA = LabelSchema.of("liver", "left kidney")
GRIDS: dict[str, dict[str, Any]] = {
    "axial": {"orientation": AXIAL},
    "sagittal": {"orientation": SAGITTAL},
    "coronal": {"orientation": CORONAL},
    "oblique": {"orientation": oblique(20)},
    "feet-first": {"orientation": (-1, 0, 0, 0, 1, 0)},
    "anisotropic": {"spacing": (6.5, 0.4, 0.9)},
    "frames that are no whole bytes": {"shape": (5, 9, 11)},
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    ("source", "labelmap"),
    [("series", False), ("series", True), ("reversed series", False), ("enhanced, shuffled", True)],
)
def test_every_voxel_keeps_its_place(tmp_path: Path, grid: str, source: str, labelmap: bool) -> None:
    if source.endswith("series"):
        path = write_series(tmp_path / "ct", reverse=source.startswith("reversed"), **GRIDS[grid])
    else:
        path = write_enhanced(tmp_path / "ct.dcm", order=(3, 1, 0, 4, 2), per_frame=True, **GRIDS[grid])
    scan = scan_at(path)
    labels, seg = labels_in_lps(scan), tmp_path / "out" / "seg.dcm"
    write_dicom_seg(labels, scan, seg, SCHEMA, labelmap=labelmap)

    np.testing.assert_array_equal(read_dicom_seg(seg, scan), labels)
    np.testing.assert_array_equal(by_highdicom(seg, scan), labels)
    for label in (1, 2):
        np.testing.assert_allclose(places_in_file(seg, label), places(labels, scan, label), rtol=0, atol=1e-6)
    assert [file.name for file in seg.parent.iterdir()] == ["seg.dcm"]


def test_slices_are_tied_to_their_own_images(tmp_path: Path) -> None:
    scan = scan_at(write_series(tmp_path / "ct", orientation=SAGITTAL, reverse=True))
    labels = np.zeros(scan.spatial_shape, np.uint8)
    for number, plane in enumerate(scan.to_planes(labels)):
        plane[number, 2] = 1  # another pixel in every slice
    write_dicom_seg(labels, scan, tmp_path / "seg.dcm", SCHEMA)

    seg = hd.seg.segread(tmp_path / "seg.dcm")
    for number, file in enumerate(scan.source_files):
        image = pydicom.dcmread(file)
        frame = seg.get_pixels_by_source_instance([image.SOPInstanceUID], combine_segments=True)[0]
        ((row, column),) = np.argwhere(frame)
        to_place = hd.spatial.PixelToReferenceTransformer.for_image(image)
        (wanted,) = np.argwhere(scan.from_planes(_only(scan.to_planes(labels), number)))
        np.testing.assert_allclose(
            to_place(np.array([[column, row]]))[0], (scan.geometry.affine @ (*wanted, 1))[:3], atol=1e-6
        )


def _only(planes: NDArray, number: int) -> NDArray:
    return planes * (np.arange(len(planes)) == number)[:, None, None]


@pytest.mark.parametrize("volume", [0, 1])
def test_one_of_two_times_in_one_file(tmp_path: Path, volume: int) -> None:
    path = write_enhanced(tmp_path / "ct.dcm", order=(0, 1, 2, 3, 4, 4, 3, 2, 1, 0))
    scan = scan_at(path, volume=volume)
    labels = labels_in_lps(scan)
    write_dicom_seg(labels, scan, tmp_path / "seg.dcm", SCHEMA)
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm", scan), labels)
    np.testing.assert_array_equal(by_highdicom(tmp_path / "seg.dcm", scan), labels)


# ---- what the file says ----


@pytest.fixture
def ct(tmp_path: Path) -> Scan:
    return scan_at(write_series(tmp_path / "ct", SpacingBetweenSlices=4))


@pytest.mark.parametrize("labelmap", [False, True], ids=["BINARY", "LABELMAP"])
def test_has_what_the_standard_demands(ct: Scan, tmp_path: Path, labelmap: bool) -> None:
    """The mandatory modules of PS3.3 A.51 and, for label maps, A.92: types 1 have values, types 2 are there."""
    write_dicom_seg(labels_in_lps(ct), ct, tmp_path / "seg.dcm", SCHEMA, labelmap=labelmap)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    image = pydicom.dcmread(ct.source_files[0])

    assert seg.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert seg.SOPClassUID == f"1.2.840.10008.5.1.4.1.1.66.{7 if labelmap else 4}"
    for same in ("PatientID", "StudyInstanceUID", "StudyDate", "AccessionNumber", "FrameOfReferenceUID"):
        assert seg[same].value == image[same].value, same
    assert seg.SeriesInstanceUID != image.SeriesInstanceUID
    for type_1 in (
        *("Modality", "SeriesNumber", "InstanceNumber", "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber"),
        *("SoftwareVersions", "ContentDate", "ContentTime", "ContentLabel", "SegmentationType", "SegmentsOverlap"),
        *("LossyImageCompression", "DimensionOrganizationSequence", "DimensionIndexSequence"),
        "ReferencedSeriesSequence",
    ):
        assert seg[type_1].value, type_1
    for type_2 in (
        *("PatientName", "PatientBirthDate", "PatientSex", "StudyTime", "StudyID", "ReferringPhysicianName"),
        *("PositionReferenceIndicator", "ContentDescription", "ContentCreatorName"),
    ):
        assert type_2 in seg, type_2
    assert seg.Modality == "SEG"
    assert list(seg.ImageType) == ["DERIVED", "PRIMARY"]
    assert (seg.Rows, seg.Columns, seg.SamplesPerPixel, seg.PixelRepresentation) == (12, 10, 1, 0)
    assert (seg.BitsAllocated, seg.BitsStored, seg.HighBit) == ((8, 8, 7) if labelmap else (1, 1, 0))
    assert seg.PhotometricInterpretation == "MONOCHROME2"
    assert seg.SegmentsOverlap == "NO"

    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == image.SeriesInstanceUID
    files = [pydicom.dcmread(file) for file in ct.source_files]
    assert [item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence] == [
        item.SOPInstanceUID for item in hd.spatial.sort_datasets(files)
    ]

    pointers = [item.DimensionIndexPointer for item in seg.DimensionIndexSequence]
    assert pointers == ([] if labelmap else [0x0062000B]) + [0x00200032]
    organisations = {item.DimensionOrganizationUID for item in seg.DimensionIndexSequence}
    assert organisations == {seg.DimensionOrganizationSequence[0].DimensionOrganizationUID}
    assert len(seg.PerFrameFunctionalGroupsSequence) == seg.NumberOfFrames == 2
    for group in seg.PerFrameFunctionalGroupsSequence:
        assert len(np.atleast_1d(group.FrameContentSequence[0].DimensionIndexValues)) == len(pointers)
        (reference,) = group.DerivationImageSequence[0].SourceImageSequence
        named = next(item for item in files if item.SOPInstanceUID == reference.ReferencedSOPInstanceUID)
        assert list(group.PlanePositionSequence[0].ImagePositionPatient) == list(named.ImagePositionPatient)
        assert ("SegmentIdentificationSequence" in group) != labelmap


def test_odd_lengths_are_padded_with_the_byte_0(tmp_path: Path) -> None:
    scan = scan_at(write_series(tmp_path / "ct", shape=(5, 9, 11)))
    labels = np.zeros(scan.spatial_shape, np.uint8)
    labels[2] = 1
    write_dicom_seg(labels, scan, tmp_path / "seg.dcm", SCHEMA, labelmap=True)
    assert pydicom.dcmread(tmp_path / "seg.dcm").PixelData == b"\1" * 99 + b"\0"


def test_distances_come_from_positions(ct: Scan, tmp_path: Path) -> None:
    write_dicom_seg(labels_in_lps(ct), ct, tmp_path / "seg.dcm", SCHEMA)
    shared = pydicom.dcmread(tmp_path / "seg.dcm").SharedFunctionalGroupsSequence[0]
    measures = shared.PixelMeasuresSequence[0]  # its source says 5 mm thick, 4 mm apart
    assert (measures.SpacingBetweenSlices, measures.SliceThickness) == (2.5, 2.5)
    assert list(measures.PixelSpacing) == [0.8, 0.7]


def test_segments_tell_the_classes(ct: Scan, tmp_path: Path) -> None:
    schema = LabelSchema(
        classes=(
            LabelClass(id=5, name="Hígado 肝臓", colour=(0.9, 0.2, 0.1)),
            LabelClass(id=2, name="a\\b\n" + "c" * 80, colour=(0, 0, 1)),
            LabelClass(id=300, name=" ", colour=(1, 1, 1)),
        )
    )
    labels = labels_in_lps(ct, ids=(2, 5)).astype(np.int64)
    write_dicom_seg(labels, ct, tmp_path / "seg.dcm", schema, model_name="kidneys v2")
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    assert list(seg.segment_numbers) == [1, 2, 3]
    one, two, three = (seg.get_segment_description(number) for number in (1, 2, 3))
    assert one.segment_label == "Hígado 肝臓"
    assert two.segment_label == "a/b " + "c" * 60
    assert three.segment_label == "label 3"
    colour = hd.color.CIELabColor.from_dicom_value(tuple(one.RecommendedDisplayCIELabValue)).to_rgb()
    np.testing.assert_allclose(colour, (230, 51, 26), atol=1)
    assert one.segmented_property_category.value == "123037004"
    assert one.segmented_property_type.value == "85756007"
    assert one.algorithm_type.value == "SEMIAUTOMATIC"
    assert one.algorithm_identification[0].AlgorithmName == "kidneys v2"
    assert len({item.tracking_uid for item in (one, two, three)}) == 3
    assert len({item.tracking_id for item in (one, two, three)}) == 3
    assert str(seg.PatientName) == "Müller^Jürgen"  # from Latin-1
    numbers = np.select([labels == 5, labels == 2], [1, 2])
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm", ct), numbers)


@pytest.mark.parametrize("labelmap", [False, True], ids=["BINARY", "LABELMAP"])
@pytest.mark.parametrize("algorithm", ["MANUAL", "AUTOMATIC"])
def test_says_who_drew(ct: Scan, tmp_path: Path, algorithm: str, labelmap: bool) -> None:
    write_dicom_seg(labels_in_lps(ct), ct, tmp_path / "seg.dcm", SCHEMA, algorithm=algorithm, labelmap=labelmap)
    item = hd.seg.segread(tmp_path / "seg.dcm").get_segment_description(1)
    assert item.algorithm_type.value == algorithm
    assert (item.algorithm_identification is None) == (algorithm == "MANUAL")


def test_carries_no_more_of_the_patient_than_it_must(ct: Scan, tmp_path: Path) -> None:
    write_dicom_seg(labels_in_lps(ct), ct, tmp_path / "seg.dcm", SCHEMA)
    content = (tmp_path / "seg.dcm").read_bytes()
    assert b"4711" in content
    assert b"sister" not in content
    assert b"Hauptstrasse" not in content


def test_anonymised_images_may_lack_what_may_be_empty(tmp_path: Path) -> None:
    lacking = ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber")
    folder = write_series(tmp_path / "ct", SliceThickness=None, **dict.fromkeys(lacking))
    scan = scan_at(folder)
    write_dicom_seg(labels_in_lps(scan), scan, tmp_path / "seg.dcm", SCHEMA)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert all(word in seg and not seg[word].value for word in lacking)


@pytest.mark.parametrize("labelmap", [False, True], ids=["BINARY", "LABELMAP"])
def test_an_empty_mask_is_a_finding(ct: Scan, tmp_path: Path, labelmap: bool) -> None:
    labels = np.zeros(ct.spatial_shape, np.uint8)
    write_dicom_seg(labels, ct, tmp_path / "seg.dcm", SCHEMA, labelmap=labelmap)
    np.testing.assert_array_equal(by_highdicom(tmp_path / "seg.dcm", ct), labels)
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm", ct), labels)


@pytest.mark.parametrize("labelmap", [False, True], ids=["BINARY", "LABELMAP"])
@pytest.mark.parametrize("orientation", [AXIAL, oblique(30)], ids=["axial", "oblique"])
def test_a_single_slice(tmp_path: Path, labelmap: bool, orientation: tuple[float, ...]) -> None:
    scan = scan_at(write_series(tmp_path / "ct", shape=(1, 9, 11), orientation=orientation))
    labels = np.zeros(scan.spatial_shape, np.uint8)
    labels[..., 2:5, 7] = 1
    labels[..., 8, 0] = 2
    write_dicom_seg(labels, scan, tmp_path / "seg.dcm", SCHEMA, labelmap=labelmap)
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm", scan), labels)
    image = pydicom.dcmread(scan.source_files[0])
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    frame = seg.get_pixels_by_source_instance([image.SOPInstanceUID], combine_segments=True)[0]
    np.testing.assert_array_equal(frame, labels.reshape(9, 11))
    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 5


def test_replaces_an_older_file_in_one_step(ct: Scan, tmp_path: Path) -> None:
    path = tmp_path / "näme with blanks" / f"{'x' * 240}.dcm"
    for size in (3, 5):
        labels = np.zeros(ct.spatial_shape, np.uint8)
        labels[1, :size] = 1
        write_dicom_seg(labels, ct, path, SCHEMA)
        np.testing.assert_array_equal(read_dicom_seg(path, ct), labels)
    assert list(path.parent.iterdir()) == [path]


def test_a_damaged_copy_never_replaces_the_old(ct: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, labels = tmp_path / "out" / "seg.dcm", labels_in_lps(ct)
    write_dicom_seg(labels, ct, path, SCHEMA)
    before = path.read_bytes()

    def failing_disk(descriptor: int) -> None:
        (written,) = (file for file in path.parent.iterdir() if file != path)
        content = written.read_bytes()
        written.write_bytes(content[:-12] + b"\x01" + content[-11:])

    monkeypatch.setattr("os.fsync", failing_disk)
    with pytest.raises(ExportError, match="read back from the disk"):
        write_dicom_seg(labels, ct, path, SCHEMA)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


# ---- what is refused ----


def test_wrong_masks_are_refused(ct: Scan, tmp_path: Path) -> None:
    labels = labels_in_lps(ct)
    for wrong, message in (
        (labels[1:], "shape"),
        (labels * 3, "no class: 3, 6"),
        (labels.astype(int) - 1, "no class: -1"),
        (labels.astype(float), "whole numbers"),
    ):
        with pytest.raises(ExportError, match=message):
            write_dicom_seg(wrong, ct, tmp_path / "seg.dcm", SCHEMA)
    with pytest.raises(ExportError, match="MOSTLY"):
        write_dicom_seg(labels, ct, tmp_path / "seg.dcm", SCHEMA, algorithm="MOSTLY")
    with pytest.raises(ExportError, match="MANUAL"):
        write_dicom_seg(labels, ct, tmp_path / "seg.dcm", SCHEMA, algorithm="MANUAL", model_name="unet")
    assert not (tmp_path / "seg.dcm").exists()


def test_never_over_a_source_file(ct: Scan, tmp_path: Path) -> None:
    (tmp_path / "link.dcm").hardlink_to(ct.source_files[2])
    for target in (*ct.source_files, tmp_path / "link.dcm"):
        before = target.read_bytes()
        with pytest.raises(ExportError, match="own files"):
            write_dicom_seg(labels_in_lps(ct), ct, target, SCHEMA)
        assert target.read_bytes() == before


def test_a_place_that_cannot_be_written_to(ct: Scan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExportError, match="could not be written"):
        write_dicom_seg(labels_in_lps(ct), ct, tmp_path / "file" / "seg.dcm", SCHEMA)


def test_a_scan_without_dicom_files(ct: Scan, tmp_path: Path) -> None:
    labels = labels_in_lps(ct)
    with pytest.raises(ExportError, match="not read from DICOM"):
        write_dicom_seg(labels, replace(ct, source_files=()), tmp_path / "seg.dcm", SCHEMA)
    (tmp_path / "a.nii").write_bytes(b"x" * 400)
    with pytest.raises(ExportError, match=r"a\.nii is not a DICOM image"):
        write_dicom_seg(labels, replace(ct, source_files=(tmp_path / "a.nii",)), tmp_path / "seg.dcm", SCHEMA)


def test_source_files_that_are_gone_or_changed(ct: Scan, tmp_path: Path) -> None:
    labels, file = labels_in_lps(ct), ct.source_files[1]
    image = pydicom.dcmread(file)
    for keyword, value in (
        ("ImagePositionPatient", [*image.ImagePositionPatient[:2], image.ImagePositionPatient[2] + 0.5]),
        ("ImageOrientationPatient", list(oblique(5))),
        ("PixelSpacing", [0.7, 0.8]),
        ("Rows", 11),
        ("ImagePositionPatient", None),
    ):
        changed = copy.deepcopy(image)
        setattr(changed, keyword, value)
        changed.save_as(file)
        with pytest.raises(ExportError, match=r"load the scan again|do not lie where"):
            write_dicom_seg(labels, ct, tmp_path / "seg.dcm", SCHEMA)
    file.unlink()
    with pytest.raises(ExportError, match=f"{file.name} cannot be opened"):
        write_dicom_seg(labels, ct, tmp_path / "seg.dcm", SCHEMA)


def test_a_grid_that_is_not_the_files(ct: Scan, tmp_path: Path) -> None:
    """Resampled or loaded as untrusted: the same number of slices, elsewhere."""
    affine = ct.geometry.affine.copy()
    affine[:3, 0] *= 1.1
    moved = replace(ct, geometry=replace(ct.geometry, affine=affine))
    with pytest.raises(ExportError, match="untrusted"):
        write_dicom_seg(labels_in_lps(ct), moved, tmp_path / "seg.dcm", SCHEMA)
    unplaced = replace(ct, geometry=Geometry(None, None, ct.geometry.axis_map))
    with pytest.raises(ExportError, match="no trusted grid"):
        write_dicom_seg(labels_in_lps(ct), unplaced, tmp_path / "seg.dcm", SCHEMA)


@pytest.mark.parametrize("labelmap", [False, True])
def test_a_resampled_scans_mask_goes_back_to_the_acquired_slices(tmp_path: Path, labelmap: bool) -> None:
    """Fault 7: the frames lie where the tilted slices were acquired, each with the labels nearest to its pixels."""
    scan = scan_at(write_series(tmp_path / "tilted", lean=(0.0, 0.6)), resample=True)
    labels = labels_in_lps(scan)
    path = tmp_path / "seg.dcm"
    write_dicom_seg(labels, scan, path, SCHEMA, labelmap=labelmap)
    headers = series_datasets(scan)
    uids = [str(header.SOPInstanceUID) for header in headers]
    found = hd.seg.segread(path).get_pixels_by_source_instance(
        uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    inverse = np.linalg.inv(scan.geometry.affine)
    number_of = {0: 0, **{entry.id: number for number, entry in enumerate(SCHEMA.classes, start=1)}}
    checked = 0
    for plane, header in zip(found, headers, strict=True):
        across, down = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        corner = np.array(header.ImagePositionPatient, float)
        for row, column in np.ndindex(plane.shape):
            point = corner + row * header.PixelSpacing[0] * down + column * header.PixelSpacing[1] * across
            index = (inverse @ [*point, 1])[:3]
            if (np.abs(index - np.floor(index) - 0.5) < 0.05).any():
                continue  # as near to one voxel as to the next
            nearest = tuple(np.rint(index).astype(int))
            inside = all(0 <= i < n for i, n in zip(nearest, labels.shape, strict=True))
            assert plane[row, column] == number_of[int(labels[nearest]) if inside else 0]
            checked += 1
    assert checked > found.size / 2
    assert found.any()
    with pytest.raises(MaskError, match="resampled"):
        read_dicom_seg(path, scan)


def test_slices_that_form_no_grid(tmp_path: Path) -> None:
    """As the reader loads them on demand: as if they lay evenly."""
    gap = write_series(tmp_path / "gap", shape=(8, 12, 10))
    (gap / "003.dcm").unlink()
    scan = scan_at(gap, untrusted=True)
    with pytest.raises(ExportError, match="untrusted"):
        write_dicom_seg(labels_in_lps(scan), scan, tmp_path / "seg.dcm", SCHEMA)
    with pytest.raises(MaskError, match="untrusted"):
        read_dicom_seg(tmp_path / "seg.dcm", scan)


@pytest.mark.parametrize("labelmap", [False, True], ids=["BINARY", "LABELMAP"])
@pytest.mark.parametrize("lean", [(0.0, 0.008), (0.0, 0.6)], ids=["as scanners round", "gantry tilt, untrusted"])
def test_a_leaning_stack_keeps_its_acquired_places(tmp_path: Path, lean: tuple[float, float], labelmap: bool) -> None:
    scan = scan_at(write_series(tmp_path / "ct", lean=lean, decimals=2), untrusted=lean[1] > 0.1)
    labels = labels_in_lps(scan)
    write_dicom_seg(labels, scan, tmp_path / "seg.dcm", SCHEMA, labelmap=labelmap)
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm", scan), labels)
    for label in (1, 2):  # the affine is that of a straight line through rounded positions
        wanted = places(labels, scan, label)
        np.testing.assert_allclose(places_in_file(tmp_path / "seg.dcm", label), wanted, rtol=0, atol=0.011)


def test_images_that_cannot_be_named(tmp_path: Path) -> None:
    blank = scan_at(write_series(tmp_path / "a", StudyInstanceUID="", SeriesInstanceUID=""))
    with pytest.raises(ExportError, match="lack SeriesInstanceUID and StudyInstanceUID"):
        write_dicom_seg(labels_in_lps(blank), blank, tmp_path / "seg.dcm", SCHEMA)
    twins = scan_at(write_series(tmp_path / "b", SOPInstanceUID="1.2.3"))
    with pytest.raises(ExportError, match="same SOPInstanceUID"):
        write_dicom_seg(labels_in_lps(twins), twins, tmp_path / "seg.dcm", SCHEMA)
    private = scan_at(write_series(tmp_path / "c", SOPClassUID="1.2.3.4"))
    with pytest.raises(ExportError, match="no DICOM-SEG can refer to them"):
        write_dicom_seg(labels_in_lps(private), private, tmp_path / "seg.dcm", SCHEMA)


# ---- any mask ----


@pytest.fixture(scope="module")
def odd_scan(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    folder = tmp_path_factory.mktemp("odd")
    return scan_at(write_series(folder / "mr", shape=(4, 5, 7), orientation=CORONAL, reverse=True))


@pytest.mark.parametrize("labelmap", [False, True], ids=["BINARY", "LABELMAP"])
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mask_survives(odd_scan: Scan, tmp_path: Path, labelmap: bool, data: st.DataObject) -> None:
    schema = LabelSchema(classes=tuple(LabelClass(id=i, name=f"c{i}", colour=(0, 0, 0)) for i in (7, 2, 40)))
    numbers = data.draw(arrays(np.uint8, odd_scan.spatial_shape, elements=st.integers(0, 3), fill=st.just(0)))
    ids = np.array([0, 7, 2, 40])[numbers]
    write_dicom_seg(ids, odd_scan, tmp_path / "seg.dcm", schema, labelmap=labelmap)
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm", odd_scan), numbers)
    np.testing.assert_array_equal(by_highdicom(tmp_path / "seg.dcm", odd_scan), numbers)


# ---- real scans ----


@needs_real_data
@pytest.mark.parametrize(
    "source",
    [
        *(f"dicom_mr_series/{name}" for name in ("study1_hcrop", "study2_hcrop", "study3_hcrop", "study3_flair_reg")),
        "dicom_awkward/dcmqi_ct3_seg/ct",
        "dicom_awkward/dcmqi_multiframe/24x38x3_multiframe_mf.dcm",
    ],
)
def test_real_series(tmp_path: Path, source: str) -> None:
    scan = scan_at(REAL_DATA / source)
    labels = blob(scan)
    write_dicom_seg(labels, scan, tmp_path / "seg.dcm", SCHEMA, labelmap="study3" in source)
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm", scan), labels)
    volume = hd.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    np.testing.assert_array_equal(volume.match_geometry(grid_of(scan), tol=1e-4).array, labels)
    for label in (1, 2):
        wanted = places(labels, scan, label)
        np.testing.assert_allclose(places_in_file(tmp_path / "seg.dcm", label), wanted, rtol=0, atol=1e-5)


@needs_real_data
def test_a_real_series_without_identifiers(tmp_path: Path) -> None:
    """Anonymised until nothing was left that a segmentation could name: refused; with identifiers: written."""
    study, series = generate_uid(), generate_uid()
    blank, named = tmp_path / "blank", tmp_path / "named"
    blank.mkdir()
    named.mkdir()
    for file in sorted((REAL_DATA / "multiorgan_ct_mr" / "images" / "ct_dicom_j2k").iterdir())[:5]:
        image = pydicom.dcmread(file)
        image.save_as(blank / file.name)
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID
        image.save_as(named / file.name)
    scan = scan_at(blank)
    with pytest.raises(ExportError, match="lack SOPClassUID and SOPInstanceUID and SeriesInstanceUID"):
        write_dicom_seg(blob(scan), scan, tmp_path / "seg.dcm", SCHEMA)
    twin = scan_at(named)
    write_dicom_seg(blob(twin), twin, tmp_path / "seg.dcm", SCHEMA)
    np.testing.assert_array_equal(by_highdicom(tmp_path / "seg.dcm", twin), blob(twin))
    for either in (twin, scan):  # known by frame of reference and place alone
        np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm", either), blob(twin))


@needs_real_data
@pytest.mark.parametrize("name", ["MR2_J2KR", "RG3_J2KR", "US1_J2KR", "explicit_VR-UN", "parametric_map_float"])
def test_single_pictures_with_and_without_a_place(tmp_path: Path, name: str) -> None:
    """A radiograph and an ultrasound have no place in the patient: their masks are tied to the picture itself."""
    scan = scan_at(REAL_DATA / "dicom_awkward" / "pydicom_zoo" / f"{name}.dcm")
    labels = np.zeros(scan.spatial_shape, np.uint8)
    labels[..., 2:5, 1:9] = 1
    labels[..., -1, 0] = 2
    write_dicom_seg(labels, scan, tmp_path / "seg.dcm", SCHEMA, labelmap=name.startswith("US"))
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm", scan), labels)
    other = "US1_J2KR" if name != "US1_J2KR" else "RG3_J2KR"
    with pytest.raises(MaskError, match="does not fit its scan"):
        read_dicom_seg(tmp_path / "seg.dcm", scan_at(REAL_DATA / "dicom_awkward" / "pydicom_zoo" / f"{other}.dcm"))
