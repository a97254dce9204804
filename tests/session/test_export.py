"""What leaves the session says honestly who drew it, in DICOM's words and in the record beside the mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.errors import MaskError, ScanError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.io.registry import read_scan
from napari_unet.session.exporting import export_mask, export_masks
from napari_unet.session.session import Session
from tests.io import dicom_files
from tests.io.nifti_files import save_nifti
from tests.io.seg_files import scan_at, write_series
from tests.session.conftest import painted

NAME = "Mustermann^Erika"


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A series with a patient's name in it."""
    folder = tmp_path / "series"
    dicom_files.write_series(folder, dicom_files.volume(), PatientName=NAME)
    return folder


@pytest.mark.parametrize("by_hand", [True, False])
def test_the_export_says_who_drew_it(session: Session, series: Path, tmp_path: Path, by_hand: bool) -> None:
    scan = read_scan(series)
    mask = np.zeros(scan.spatial_shape, np.uint8)
    mask[3, 4:8, 3:7] = 1
    state = session.add_scan(scan, None if by_hand else mask)
    if by_hand:
        session.record_edit(state, mask, slice(3, 4), "stroke")
    written = tmp_path / "out" / "mask.dcm"
    export_mask(session, state, written)
    segments = pydicom.dcmread(written).SegmentSequence
    assert {segment.SegmentAlgorithmType for segment in segments} == {"MANUAL" if by_hand else "SEMIAUTOMATIC"}
    text = written.with_suffix(".json").read_text()
    assert NAME not in text
    assert str(tmp_path) not in text
    record = json.loads(text)
    assert record["format"] == "dicom-seg"
    assert record["source"]["hash"] == scan.fingerprint
    assert record["model"] is None


def test_the_record_names_the_model_whose_proposal_stands(
    computing: Session, trained: Checkpoint, scan_and_truth: tuple[Scan, np.ndarray], tmp_path: Path
) -> None:
    def record() -> Any:
        export_mask(computing, state, tmp_path / "mask.nii.gz")
        return json.loads((tmp_path / "mask.json").read_text())["model"]

    state = computing.add_scan(scan_and_truth[0])
    computing.models.use(trained)
    computing.proposals.begin()
    computing.wait(60)
    assert record()["id"] == trained.id
    computing.models.use(None)
    assert record()["name"] == "v1"
    computing.undo(state)  # the model
    computing.undo(state)  # the proposal
    assert record() is None
    computing.redo(state)
    assert record()["id"] == trained.id


def test_a_scan_larger_than_the_memory_is_refused(session: Session, tmp_path: Path) -> None:
    import dask.array as da

    scan = read_scan(_nifti(tmp_path))
    object.__setattr__(scan, "data", da.from_array(scan.data))
    with pytest.raises(ScanError, match="too large"):
        session.add_scan(scan)
    assert session.scans == []


def _nifti(folder: Path) -> Path:
    import nibabel as nib

    path = folder / "scan.nii"
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), path)
    return path


def test_all_open_scans_at_once_and_no_file_is_replaced(session: Session, tmp_path: Path) -> None:
    scans = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        data = np.random.default_rng(len(scans)).integers(0, 99, (9, 8, 5)).astype(np.uint8)
        scans.append(read_scan(save_nifti(tmp_path / folder / "scan.nii.gz", data)))
    states = [session.add_scan(scan) for scan in scans]
    for value, state in enumerate(states, 1):
        view = np.full_like(state.annotation.labels, value)
        session.record_edit(state, view, slice(None))
    out = tmp_path / "masks"
    out.mkdir()
    (out / "scan-mask.json").write_text("{}")  # of somebody else's
    written = export_masks(session, out)
    assert [path.name for path in written] == ["scan-mask-2.nii.gz", "scan-mask-3.nii.gz"]
    for value, path in enumerate(written, 1):
        assert (nib.load(path).get_fdata() == value).all()
    assert (out / "scan-mask.json").read_text() == "{}"


def test_a_damaged_journal_does_not_keep_the_mask(session: Session, tmp_path: Path) -> None:
    scan = read_scan(save_nifti(tmp_path / "scan.nii.gz", np.zeros((9, 8, 5), np.uint8)))
    state = session.add_scan(scan)
    session.record_edit(state, np.ones_like(state.annotation.labels), slice(None))
    session.close()
    path = session.project.path / "project.db"
    path.write_bytes(b"not a database" * 1000)
    export_mask(session, state, tmp_path / "mask.nii.gz")
    assert (nib.load(tmp_path / "mask.nii.gz").get_fdata() == 1).all()
    assert "damaged" in session.heard.notices[-1]
    assert "audit" not in json.loads((tmp_path / "mask.json").read_text())


def test_a_mask_can_be_loaded_again(session: Session, tmp_path: Path) -> None:
    scan = read_scan(save_nifti(tmp_path / "scan.nii.gz", np.zeros((9, 8, 5), np.uint8)))
    state = session.add_scan(scan)
    view = np.zeros_like(state.annotation.labels)
    view[1:4, 2:5, 2:5] = 2
    session.record_edit(state, view, slice(None))
    export_mask(session, state, tmp_path / "mask.nii.gz")
    session.undo(state)
    session.accept_slices(state, [3])
    assert session.load_mask(state, tmp_path / "mask.nii.gz") == 18
    view[3] = 0  # accepted as empty
    np.testing.assert_array_equal(state.annotation.labels, view)
    assert not state.annotation.painted.any()
    session.undo(state)
    assert not state.annotation.labels.any()
    session.set_schema(LabelSchema.of("a"))
    with pytest.raises(MaskError, match="no class"):
        session.load_mask(state, tmp_path / "mask.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)), tmp_path / "other.nii.gz")
    with pytest.raises(MaskError):
        session.load_mask(state, tmp_path / "other.nii.gz")


def test_a_dicom_segmentation_is_loaded_by_the_names_of_its_classes(open_session, tmp_path):
    scan = scan_at(write_series(tmp_path / "ct", SpacingBetweenSlices=4))
    session = open_session()
    session.set_schema(LabelSchema.of("liver", "kidney"))
    state = session.add_scan(scan)
    view = painted(state, np.s_[2, 3:6, 2:5], 1)
    view[3, 2, 2] = 2
    session.record_edit(state, view, slice(None))
    export_mask(session, state, tmp_path / "mask.dcm")
    other = open_session("other")
    other.set_schema(LabelSchema.of("kidney", "liver"))
    again = other.add_scan(scan)
    assert other.load_mask(again, tmp_path / "mask.dcm") == 10
    np.testing.assert_array_equal(again.annotation.labels == 2, view == 1)
    np.testing.assert_array_equal(again.annotation.labels == 1, view == 2)
    other.comparison.with_mask(tmp_path / "mask.dcm")
    assert not other.comparison.differences().any()
    other.set_schema(LabelSchema.of("kidney", "spleen"))
    with pytest.raises(MaskError, match="holds liver, and there is no class of that name"):
        other.load_mask(again, tmp_path / "mask.dcm")
