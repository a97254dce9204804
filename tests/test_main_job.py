"""The product's promise, on real scans: correct a few slices, press Fine-tune, and other slices come out better."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from napari_unet.__main__ import main
from napari_unet.compute.engine import Engine
from napari_unet.domain.labels import LabelSchema
from napari_unet.evaluation.effort import pooled_dice
from napari_unet.io.masks import read_mask
from napari_unet.io.registry import read_scan
from napari_unet.session.session import Session
from tests.real_data import REAL_DATA, needs_real_data

STEM = "hippocampus_003"


@pytest.fixture
def session(tmp_path: Path):
    opened = Session(Engine(), tmp_path / "project", LabelSchema.of("anterior", "posterior"))
    opened.start()
    yield opened
    opened.close()


@needs_real_data
def test_corrections_of_some_slices_improve_the_others(session: Session) -> None:
    folder = REAL_DATA / "hippocampus_mr"
    scan = read_scan(folder / "images" / f"{STEM}.nii.gz")
    truth = read_mask(folder / "masks" / f"{STEM}.nii.gz").data
    state = session.add_scan(scan)
    shown = np.flatnonzero(truth.reshape(len(truth), -1).any(axis=1))
    corrected = shown[::3]
    view = state.annotation.labels.copy()
    view[corrected] = truth[corrected]
    session.record_edit(state, view, slice(None))
    session.accept_slices(state, corrected.tolist())
    session.learning.begin(steps=60)
    session.wait(timeout=240)
    assert session.learning.verdict is not None
    session.learning.use_new()
    session.proposals.begin()
    session.wait(timeout=120)
    others = [int(i) for i in shown if i not in set(corrected)]
    labels = state.annotation.labels
    np.testing.assert_array_equal(labels[corrected], truth[corrected])
    dice = pooled_dice([labels[others]], [truth[others]], 2)
    assert dice is not None
    assert dice > 0.5


@needs_real_data
def test_simulate_runs_on_grouped_pictures(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    folder = REAL_DATA / "breast_ultrasound"
    words = ["--images", str(folder / "images"), "--masks", str(folder / "masks"), "--max-side", "64"]
    with pytest.raises(SystemExit) as end:
        main(["simulate", *words, "--scans", "2", "--test", "3", "--budget-seconds", "1", "--json", str(result)])
    assert not end.value.code
    figures = json.loads(result.read_text())
    assert len(figures["stream"]) == len(figures["effort"]) == 2
    assert len(figures["test_dice_per_case"]) == 3
    assert figures["seen"] is False
