"""The journey of the README with mouse and keys, on a real scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from qtpy.QtCore import Qt

from napari_unet.domain.labels import LabelSchema
from napari_unet.evaluation.effort import pooled_dice
from napari_unet.io.masks import read_mask
from napari_unet.io.registry import read_scan
from tests.qt.conftest import Desk
from tests.real_data import REAL_DATA, needs_real_data

pytestmark = pytest.mark.gui

STEM = "hippocampus_003"


def correct_and_accept(desk: Desk, truth: np.ndarray, slices: list[int]) -> None:
    """Put the truth into slices as strokes would, and accept each with Enter."""
    state = desk.session.active
    for index in slices:
        view = state.annotation.labels.copy()
        view[index] = truth[index]
        desk.session.record_edit(state, view, slice(index, index + 1))
        desk.viewer.dims.set_current_step(0, index)
        desk.spin()
        desk.key(Qt.Key.Key_Return)
        assert state.annotation.accepted[index]


def improve(desk: Desk, seconds: int) -> None:
    """Press Fine-tune, wait for the verdict, press Use."""
    desk.widget.improve.seconds.value = seconds
    desk.push(desk.widget.improve.button)
    desk.until(lambda: desk.session.learning.verdict is not None, 150)
    assert desk.widget.improve.verdict.isVisible()
    desk.push(desk.widget.improve.use)


def propose(desk: Desk) -> np.ndarray:
    """Press Propose and return the labels once all slabs are there."""
    desk.push(desk.widget.propose.button)
    desk.until(lambda: desk.session.proposals.run.is_over, 120)
    return desk.session.active.annotation.labels.copy()


@needs_real_data
def test_the_journey_on_a_real_scan(desk: Desk, tmp_path: Path) -> None:
    source = REAL_DATA / "hippocampus_mr" / "images" / f"{STEM}.nii.gz"
    truth = read_mask(REAL_DATA / "hippocampus_mr" / "masks" / f"{STEM}.nii.gz").data
    desk.session.set_schema(LabelSchema.of("anterior", "posterior"))
    desk.viewer.open(str(source), plugin="napari-unet")
    desk.settle()
    state = desk.session.active
    assert STEM not in "".join(layer.name for layer in desk.viewer.layers)
    shown = np.flatnonzero(truth.reshape(len(truth), -1).any(axis=1)).tolist()
    # A stroke by hand on the first slice, where the truth begins.
    row, column = (int(v) for v in np.argwhere(truth[shown[4]] > 0)[0])
    desk.viewer.dims.set_current_step(0, shown[4])
    desk.settle()
    desk.layer.brush_size = 1
    desk.drag((shown[4], row, column), (shown[4], row, column + 3))
    assert state.annotation.labels[shown[4], row, column : column + 4].all()
    first, more, kept_out = shown[4:16:6], shown[1::4], shown[2::4]
    correct_and_accept(desk, truth, first)
    improve(desk, 5)
    before = pooled_dice([propose(desk)[kept_out]], [truth[kept_out]], 2)
    correct_and_accept(desk, truth, [i for i in more if i not in first])
    improve(desk, 12)
    after = pooled_dice([propose(desk)[kept_out]], [truth[kept_out]], 2)
    assert before is not None
    assert after is not None
    assert after > before
    assert after > 0.4
    corrected = sorted({*first, *more})
    np.testing.assert_array_equal(state.annotation.labels[corrected], truth[corrected])
    desk.widget.finish.export_to(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nii.gz").data, state.annotation.labels)
    np.testing.assert_allclose(
        read_scan(tmp_path / "mask.nii.gz").geometry.affine, state.scan.geometry.affine, atol=1e-6
    )
