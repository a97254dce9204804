"""DICOM-SEG that other programs wrote, as masks: in their place, or refused with the reason."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest

from napari_unet.domain.errors import MaskError, ScanError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.io.dicom.segmentation import read_dicom_seg, write_dicom_seg
from tests.io.seg_files import by_highdicom, foreign_seg, labels_in_lps, oblique, scan_at, write_series
from tests.real_data import REAL_DATA, needs_real_data

SCHEMA = LabelSchema.of("liver", "left kidney")


@pytest.fixture
def ct(tmp_path: Path) -> Scan:
    return scan_at(write_series(tmp_path / "ct", SpacingBetweenSlices=4))


def test_fractional_counts_from_half_on(ct: Scan, tmp_path: Path) -> None:
    shares = np.zeros((*ct.spatial_shape, 2), np.float32)
    shares[2, 3, :5, 0] = (0.1, 0.49, 0.5, 0.51, 1)
    shares[2, 4, :2, 1] = (0.6, 0.3)
    for most in (255, 100):
        foreign_seg(tmp_path / "seg.dcm", ct, shares, "FRACTIONAL", 2, max_fractional_value=most)
        found = read_dicom_seg(tmp_path / "seg.dcm", ct)
        # the middle slice of five, whichever way highdicom counts them
        assert np.argwhere(found == 1).tolist() == [[2, 3, 2], [2, 3, 3], [2, 3, 4]]
        assert np.argwhere(found == 2).tolist() == [[2, 4, 0]]


def test_a_part_of_the_grid_cut_along_another_plane(tmp_path: Path) -> None:
    """Frames that are coronal, smaller than the scan and flipped, on an axial scan."""
    scan = scan_at(write_series(tmp_path / "ct", orientation=oblique(15)))
    labels = labels_in_lps(scan)
    whole = hd.Volume(labels, scan.geometry.affine, "PATIENT")
    part = whole[:, 1:8, 1:9].permute_spatial_axes([1, 2, 0]).flip_spatial([0, 2])
    foreign_seg(tmp_path / "seg.dcm", scan, part, n_segments=2)
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm", scan), labels)


def test_a_second_series_on_the_same_grid(ct: Scan, tmp_path: Path) -> None:
    """A mask drawn on one sequence belongs to every other that lies in the same place."""
    write_dicom_seg(labels_in_lps(ct), ct, tmp_path / "seg.dcm", SCHEMA)
    frame = pydicom.dcmread(ct.source_files[0]).FrameOfReferenceUID
    twin = scan_at(write_series(tmp_path / "twin", FrameOfReferenceUID=frame))
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm", twin), labels_in_lps(ct))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"FrameOfReferenceUID": "1.2.3"}, "another frame of reference"),
        ({"origin": (-31.25 + 0.35, 12.5, 101.75)}, "off the scan's grid"),
        ({"origin": (-31.25, 12.5, 101.75 + 0.5)}, "off the scan's grid"),
        ({"origin": (-31.25 + 70, 12.5, 101.75)}, "outside"),
        ({"origin": (-31.25, 12.5, 101.75 + 25)}, "outside"),
        ({"spacing": (2.5, 1.6, 1.4)}, "other spacings"),
        ({"orientation": oblique(5)}, "off the scan's grid"),
    ],
)
def test_a_mask_of_another_grid_is_refused(ct: Scan, tmp_path: Path, other: dict[str, Any], message: str) -> None:
    frame = pydicom.dcmread(ct.source_files[0]).FrameOfReferenceUID
    elsewhere = scan_at(write_series(tmp_path / "other", **{"FrameOfReferenceUID": frame, **other}))
    write_dicom_seg(labels_in_lps(elsewhere), elsewhere, tmp_path / "seg.dcm", SCHEMA)
    with pytest.raises(MaskError, match=message):
        read_dicom_seg(tmp_path / "seg.dcm", ct)


def test_overlapping_segments_are_said(ct: Scan, tmp_path: Path) -> None:
    stacked = np.zeros((*ct.spatial_shape, 3), np.uint8)
    stacked[1, :4, :4, 0] = stacked[1, 3, :6, 1] = stacked[4, :, :, 2] = 1
    foreign_seg(tmp_path / "seg.dcm", ct, stacked, n_segments=3)
    with pytest.raises(MaskError, match=r"overlap \(numbers 1 and 2 in 4 voxels\)"):
        read_dicom_seg(tmp_path / "seg.dcm", ct)


def test_frames_without_a_segment_or_a_place(ct: Scan, tmp_path: Path) -> None:
    labels = labels_in_lps(ct)
    seg = foreign_seg(tmp_path / "seg.dcm", ct, (labels == 1).astype(np.uint8))
    del seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
    seg.save_as(tmp_path / "unplaced.dcm")
    with pytest.raises(MaskError, match="where its frames lie"):
        read_dicom_seg(tmp_path / "unplaced.dcm", ct)
    seg = foreign_seg(tmp_path / "seg.dcm", ct, labels, "LABELMAP", 2)
    del seg.SegmentSequence[-1]
    seg.save_as(tmp_path / "undescribed.dcm")
    with pytest.raises(MaskError, match="segment 2, which it does not describe"):
        read_dicom_seg(tmp_path / "undescribed.dcm", ct)


def test_what_is_no_segmentation(ct: Scan, tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="not a DICOM segmentation"):
        read_dicom_seg(ct.source_files[0], ct)
    write_dicom_seg(labels_in_lps(ct), ct, tmp_path / "seg.dcm", SCHEMA)
    content = (tmp_path / "seg.dcm").read_bytes()
    for length in (0, 100, 140, 1000, len(content) - 20):
        (tmp_path / "cut.dcm").write_bytes(content[:length])
        with pytest.raises((ScanError, MaskError)):
            read_dicom_seg(tmp_path / "cut.dcm", ct)
    with pytest.raises(ScanError, match="cannot be opened"):
        read_dicom_seg(tmp_path / "nothing.dcm", ct)
    with pytest.raises(MaskError, match="not read from DICOM"):
        read_dicom_seg(tmp_path / "seg.dcm", replace(ct, source_files=()))


@needs_real_data
@pytest.mark.parametrize("name", ["dcmqi_ct3_seg/liver.dcm", "pydicom_zoo/liver.dcm", "pydicom_zoo/liver_expb.dcm"])
def test_a_real_segmentation(name: str) -> None:
    folder = REAL_DATA / "dicom_awkward"
    scan = scan_at(folder / "dcmqi_ct3_seg" / "ct")
    found = read_dicom_seg(folder / name, scan)
    np.testing.assert_array_equal(found, by_highdicom(folder / "dcmqi_ct3_seg" / "liver.dcm", scan))
    assert np.count_nonzero(found) == 107098


@needs_real_data
def test_real_segmentations_that_are_refused(tmp_path: Path) -> None:
    folder = REAL_DATA / "dicom_awkward"
    scan = scan_at(folder / "dcmqi_ct3_seg" / "ct")
    with pytest.raises(MaskError, match=r"numbers 1 and 2 in 3017 voxels"):
        read_dicom_seg(folder / "dcmqi_ct3_seg" / "partial_overlaps.dcm", scan)
    with pytest.raises(MaskError, match="RLE Lossless"):
        read_dicom_seg(folder / "pydicom_zoo" / "liver_rle.dcm", scan)
    other = scan_at(folder / "dcmqi_multiframe" / "24x38x3_multiframe_mf.dcm")
    with pytest.raises(MaskError, match="another frame of reference"):
        read_dicom_seg(folder / "dcmqi_ct3_seg" / "liver.dcm", other)


@needs_real_data
@pytest.mark.parametrize("source", ["24x38x3_multiframe_mf.dcm", "24x38x3_image"])
@pytest.mark.parametrize("padding", ["noppv", "ppv5"])
def test_a_real_sparse_label_map(tmp_path: Path, source: str, padding: str) -> None:
    folder = REAL_DATA / "dicom_awkward" / "dcmqi_multiframe"
    path = folder / source
    if not path.suffix:
        path = tmp_path / "ct"
        path.mkdir()
        for file in folder.glob(f"{source}*"):
            shutil.copy(file, path)
    found = read_dicom_seg(folder / f"sparse-labelmap-{padding}.dcm", scan_at(path))
    assert [int(plane.sum()) for plane in found] == [315, 0, 315]
