"""What lies over a scan to be looked at: uncertainty and the preview of a clean-up; stopping and taking back."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from qtpy.QtCore import Qt

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.scan import Scan
from napari_unet.session.models import find_task_model
from napari_unet.session.state import ScanState
from tests.qt.conftest import Desk, make_scan
from tests.qt.test_work import BIG, checkpoint  # noqa: F401  # a fixture

pytestmark = pytest.mark.gui


def names(desk: Desk) -> list[str]:
    return [layer.name for layer in desk.viewer.layers]


def test_uncertainty_is_there_hidden_and_the_brush_stays_in_the_hand(desk: Desk, checkpoint: Checkpoint) -> None:  # noqa: F811
    desk.session.models.use(checkpoint)
    desk.open(make_scan(BIG))
    desk.push(desk.widget.correct.tools["erase"])
    desk.key(Qt.Key.Key_P)
    desk.until(lambda: desk.session.proposals.run.is_over, 90)
    desk.spin()
    state = desk.session.active
    layer = desk.widget.overlays.uncertainty_layer(state)
    assert names(desk) == ["scan 1", "scan 1 labels", "scan 1 uncertainty"]
    assert not layer.visible
    assert np.shares_memory(layer.data, state.uncertainty)
    assert desk.viewer.layers.selection.active is desk.layer
    assert str(desk.layer.mode) == "erase"
    assert len(desk.session.scans) == 1, "it is no scan of its own"
    # Where nothing is unsure nothing is drawn.
    shown = layer.colormap.map(np.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(shown[:, 3], [0, 0.5, 1], atol=0.01)
    # Made visible it follows the next proposal, and goes with its scan.
    layer.visible = True
    desk.key(Qt.Key.Key_P)
    desk.until(lambda: desk.session.proposals.run.is_over, 90)
    desk.open(make_scan(BIG))
    assert not layer.visible
    desk.session.remove_scan(state)
    assert layer not in desk.viewer.layers


@pytest.mark.slow
def test_it_may_be_deleted_and_comes_back_with_the_next_proposal(desk: Desk, checkpoint: Checkpoint) -> None:  # noqa: F811
    desk.session.models.use(checkpoint)
    desk.open(make_scan())
    for _ in range(2):
        desk.key(Qt.Key.Key_P)
        desk.until(lambda: desk.session.proposals.run.is_over, 90)
        desk.spin()
        assert names(desk)[-1] == "scan 1 uncertainty"
        desk.viewer.layers.remove("scan 1 uncertainty")
    assert len(desk.session.scans) == 1


def test_a_clean_up_is_seen_before_it_is_done(desk: Desk) -> None:
    desk.open(make_scan(BIG))
    state = desk.session.active
    labels = np.zeros(BIG, np.uint8)
    labels[4:20, 20:60, 20:60] = 1
    labels[10, 2:4, 2:4] = 1
    labels[10, 30, 30] = 0
    state.annotation.labels[...] = labels
    desk.layer.data[...] = labels
    desk.widget.correct.open_clean_up()
    dialog = desk.widget.correct.clean_up
    desk.push(dialog.preview)
    assert "choose what" in desk.said
    dialog.smallest_mm3.setValue(100)
    dialog.fill_holes.setChecked(True)
    desk.push(dialog.preview)
    desk.until(lambda: desk.session.clean_up.preview is not None, 60)
    desk.spin()
    shown = desk.widget.overlays.preview_layer.data
    assert (shown == 1).sum() == 4
    assert shown[10, 30, 30] == 2
    assert "4 voxels would be removed, 1 added" in dialog.said.text()
    np.testing.assert_array_equal(state.annotation.labels, labels)
    assert desk.viewer.layers.selection.active is desk.layer
    desk.push(dialog.apply)
    assert desk.widget.overlays.preview_layer is None
    assert not desk.layer.data[10, 2:4, 2:4].any()
    assert desk.layer.data[10, 30, 30] == 1
    assert not dialog.apply.isEnabled()
    desk.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    np.testing.assert_array_equal(desk.layer.data, labels)
    desk.push(dialog.preview)
    desk.until(lambda: desk.session.clean_up.preview is not None, 60)
    dialog.close()
    desk.spin()
    assert desk.widget.overlays.preview_layer is None
    assert names(desk) == ["scan 1", "scan 1 labels"]


@pytest.mark.slow
def test_a_stopped_proposal_can_be_taken_back_with_one_press(desk: Desk, checkpoint: Checkpoint) -> None:  # noqa: F811
    desk.session.models.use(checkpoint)
    desk.open(make_scan((64, 96, 96)))
    annotation = desk.session.active.annotation
    desk.push(desk.widget.propose.button)
    desk.until(lambda: annotation.labels.any() or desk.session.proposals.run.is_over, 60)
    desk.push(desk.widget.propose.take_back)
    assert desk.session.proposals.run.is_over
    assert not annotation.labels.any()
    assert not desk.layer.data.any()
    assert not desk.widget.propose.bar.isVisible()


@pytest.mark.slow
def test_the_slice_on_screen_comes_first_in_a_long_scan(
    desk: Desk, record_property: Callable[[str, object], None]
) -> None:
    """From the click to the mask of the slice that is looked at; the figures stand in benchmarks/README.md."""
    desk.session.models.use(find_task_model("hippocampus-mr"))
    rng = np.random.default_rng(0)
    data = rng.integers(0, 400, (300, 512, 512), dtype=np.int16)
    desk.open(Scan(data, "zyx", Geometry((1.0, 1.0, 1.0)), slice_axis=0))
    seconds = []
    changed: list[tuple[float, bool]] = []

    def heard(each: ScanState) -> None:
        # A new proposal begins by forgetting what the last one said.
        if each.uncertainty.any():
            changed.append((time.perf_counter(), bool(each.uncertainty[desk.session.visible_slice].any())))

    desk.session.proposals.uncertainty_changed.connect(heard)
    for index in (20, 150, 280, 75):
        desk.viewer.dims.set_point(0, float(index))
        desk.settle()
        changed.clear()
        before = time.perf_counter()
        desk.push(desk.widget.propose.button)
        desk.until(lambda: bool(changed), 120)
        seconds.append(changed[0][0] - before)
        assert desk.session.visible_slice == index
        assert changed[0][1], "the first mask is that of the slice on screen"
        desk.push(desk.widget.propose.take_back)
    # The first click finds a worker that has just begun.
    record_property("seconds_to_the_visible_slice", [round(each, 2) for each in seconds])
