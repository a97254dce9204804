"""The command line on DICOM: folders, several series, and masks that other programs find in place."""

from __future__ import annotations

import json
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.labels import LabelSchema
from napari_unet.io.registry import read_scan
from napari_unet.storage.checkpoint_file import write_checkpoint
from napari_unet.training.fine_tune import fine_tune
from napari_unet.training.lesson import Lesson
from napari_unet.training.plan import plan
from tests.cli.test_commands import run
from tests.io import dicom_files

UIDS = ("1.2.826.0.1.3680043.8.498.11111111", "1.2.826.0.1.3680043.8.498.22222222")


def bright_block() -> np.ndarray:
    array = dicom_files.volume((6, 24, 20), -100, 100)
    array[2:5, 6:16, 4:12] = 900
    return array


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has learnt from a series what is bright."""
    folder = dicom_files.write_series(tmp_path_factory.mktemp("teacher") / "series", bright_block())
    scan = read_scan(folder)
    lesson = Lesson(scan, (scan.data > 500).astype(np.uint8))
    settings = plan([scan], 1, labels=[lesson.labels]).with_values({"training.steps": 60})
    job = fine_tune([lesson], settings, LabelSchema.of("bright"), ResolvedCompute("cpu", "float32", 1))
    while True:
        try:
            next(job)
        except StopIteration as end:
            checkpoint: Checkpoint = end.value.checkpoint
            break
    path = tmp_path_factory.mktemp("model") / "bright.safetensors"
    write_checkpoint(checkpoint, path)
    return path


def test_a_series_becomes_one_mask_in_place(model: Path, tmp_path: Path) -> None:
    folder = dicom_files.write_series(tmp_path / "knee left", bright_block())
    out = tmp_path / "out"
    assert run("predict", folder, "--out", out, "--model", model, "--device", "cpu") == 0
    assert sorted(p.name for p in out.iterdir()) == ["knee left.json", "knee left.nii.gz"]
    scan = read_scan(folder)
    image = nib.load(out / "knee left.nii.gz")
    found = np.argwhere(np.asarray(image.dataobj) == 1)
    assert len(found)
    ras = nib.affines.apply_affine(image.affine, found).mean(axis=0)
    bright = np.argwhere(scan.data > 500)
    lps = nib.affines.apply_affine(scan.geometry.affine, bright).mean(axis=0)
    assert np.abs(ras * (-1, -1, 1) - lps).max() < 3, "the mask lies where the bright block does"


def test_a_segmentation_refers_to_its_series(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = dicom_files.write_series(tmp_path / "series", bright_block())
    words = ("--out", tmp_path / "out", "--model", model, "--format", "dicom-seg", "--device", "cpu")
    assert run("predict", folder, *words) == 0
    assert "patient" in capsys.readouterr().err
    seg = hd.seg.segread(tmp_path / "out" / "series.dcm")
    assert seg.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    planes = seg.get_volume().array
    assert planes.any()
    assert run("predict", folder, *words, "--labelmap") == 0
    as_map = hd.seg.segread(tmp_path / "out" / "series.dcm")
    assert as_map.SegmentationType == "LABELMAP"
    assert run("predict", folder, "--out", tmp_path / "no", "--model", model, "--labelmap") == 2
    assert not (tmp_path / "no").exists()


def test_several_series_are_listed_and_chosen(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for uid in UIDS:
        dicom_files.write_series(tmp_path / "both", bright_block(), series=uid, prefix=uid[-1])
    words = ("predict", tmp_path / "both", "--out", tmp_path / "out", "--model", model, "--device", "cpu")
    assert run(*words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert all(uid in error for uid in UIDS)
    assert not (tmp_path / "out").exists()
    assert run(*words, "--series", UIDS[1]) == 0
    assert (tmp_path / "out" / "both-22222222.nii.gz").exists()
    capsys.readouterr()
    assert run("info", tmp_path / "both", "--json", "-") == 0
    told = json.loads(capsys.readouterr().out)
    assert [series["uid"] for series in told["series"]] == list(UIDS)
    assert told["shape"] is None
