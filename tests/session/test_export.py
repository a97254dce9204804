"""What leaves the session says honestly who drew it, in DICOM's words and in the record beside the mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.errors import ScanError
from napari_unet.domain.scan import Scan
from napari_unet.io.registry import read_scan
from napari_unet.session.session import Session
from tests.io import dicom_files

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
    session.export_mask(state, written)
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
        computing.export_mask(state, tmp_path / "mask.nii.gz")
        return json.loads((tmp_path / "mask.json").read_text())["model"]

    state = computing.add_scan(scan_and_truth[0])
    computing.use_model(trained)
    computing.propose()
    computing.wait(60)
    assert record()["id"] == trained.id
    computing.use_model(None)
    assert record()["name"] == "v1"
    computing.undo(state)
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
