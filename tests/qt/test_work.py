"""Long work beside the person's: streaming, stopping, closing, and layers that vanish meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication

from napari_unet.compute.engine import Engine
from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.labels import LabelSchema
from napari_unet.session.session import Session
from tests.qt.conftest import Desk, make_scan

pytestmark = pytest.mark.gui

SCHEMA = LabelSchema.of("structure", "other")
BIG = (32, 96, 96)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model that has learnt next to nothing."""
    session = Session(Engine(), tmp_path_factory.mktemp("model"), SCHEMA)
    scan = make_scan((6, 40, 48))
    session.start()
    session.accept_slices(session.add_scan(scan, (scan.data > 50).astype(np.uint8)))
    session.learning.begin(steps=2)
    session.wait(120)
    verdict = session.learning.verdict
    session.close()
    assert verdict is not None
    card = verdict.checkpoint.card
    quick = card.settings.with_values({"inference.mirror": False})
    return Checkpoint(verdict.checkpoint.weights, card.model_copy(update={"settings": quick}))


def train(desk: Desk) -> None:
    """Have a long fine-tune going."""
    desk.session.accept_slices(desk.session.active, [0, 1])
    desk.widget.improve.seconds.value = 600
    desk.push(desk.widget.improve.button)
    desk.until(lambda: desk.session.learning.run.last is not None, 90)


def test_a_stroke_is_never_overwritten_by_slabs(desk: Desk, checkpoint: Checkpoint) -> None:
    desk.session.models.use(checkpoint)
    desk.open(make_scan(BIG))
    annotation = desk.session.active.annotation
    desk.layer.brush_size = 5
    desk.layer.selected_label = 2
    middle = desk.session.visible_slice
    desk.push(desk.widget.propose.button)
    desk.press((middle, 60, 50))
    desk.move((middle, 60, 60))
    under_the_hand = annotation.labels.copy()
    desk.until(lambda: bool(desk.widget.session.engine._queue), 60)
    desk.qtbot.wait(300)
    np.testing.assert_array_equal(annotation.labels, under_the_hand)
    assert desk.session.proposals.run.progress.fraction == 0
    desk.move((middle, 60, 70))
    desk.release((middle, 60, 70))
    stroke = annotation.painted.copy()
    assert stroke[middle, 60, 50:71].all()
    desk.until(lambda: desk.session.proposals.run.is_over, 90)
    assert (annotation.labels[stroke] == 2).all()
    assert (annotation.labels[~stroke] != 0).any(), "the rest was proposed"
    np.testing.assert_array_equal(desk.layer.data, annotation.labels)
    for _ in range(2):
        desk.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert not annotation.labels.any()
    assert not annotation.painted.any()
    assert not desk.layer.data.any()


def test_proposing_goes_on_beside_training_and_both_stop(desk: Desk, checkpoint: Checkpoint) -> None:
    desk.session.models.use(checkpoint)
    desk.open(make_scan(BIG))
    train(desk)
    assert desk.widget.improve.bar.isVisible()
    assert not desk.widget.improve.button.isEnabled()
    desk.push(desk.widget.propose.button)
    desk.until(lambda: desk.session.proposals.run.is_over, 90)
    assert not desk.session.learning.run.is_over
    desk.push(desk.widget.propose.button)
    desk.until(lambda: desk.session.proposals.run.progress.fraction > 0, 60)
    for bar in (desk.widget.propose.bar, desk.widget.improve.bar):
        assert bar.isVisible()
        desk.push(bar.cancel)
        assert not bar.isVisible()
    assert desk.session.proposals.run.is_over
    assert desk.session.learning.run.is_over
    desk.until(lambda: not desk.widget.session.engine._jobs, 30)
    assert desk.session.models.in_use is checkpoint
    assert desk.session.learning.verdict is None
    desk.key(Qt.Key.Key_P)
    desk.until(lambda: desk.session.proposals.run.is_over, 90)
    assert desk.said == ""


@pytest.mark.slow
def test_the_dock_may_be_closed_while_it_trains_and_opened_again(desk: Desk, checkpoint: Checkpoint) -> None:
    desk.session.models.use(checkpoint)
    scan = make_scan()
    desk.open(scan)
    desk.layer.brush_size = 1
    desk.drag((3, 10, 12), (3, 10, 20))
    train(desk)
    old, layer = desk.widget, desk.layer
    desk.viewer.window._qt_window.findChild(type(old), old.objectName()).parent().destroyOnClose()
    desk.spin()
    assert old.session.engine.state == "closed"
    assert not layer.editable, "nobody would record what is painted now"
    desk.canvas.hide()
    _, desk.widget = desk.viewer.window.add_plugin_dock_widget("napari-unet", "Annotate")
    desk.spin()
    try:
        state = desk.session.active
        assert state.scan.fingerprint == scan.fingerprint
        assert np.flatnonzero(state.annotation.accepted).tolist() == [0, 1]
        assert state.annotation.labels[3, 10, 12:21].all()
        assert len(desk.viewer.layers) == 2
        assert desk.layer is not layer
    finally:
        desk.widget.shut_down()


def test_the_window_may_be_closed_while_it_trains(desk: Desk, checkpoint: Checkpoint) -> None:
    desk.session.models.use(checkpoint)
    desk.open(make_scan(BIG))
    train(desk)
    desk.session.proposals.begin()
    desk.viewer.close()
    QApplication.processEvents()
    assert desk.widget.session.engine.state == "closed"


@pytest.mark.parametrize("which", [pytest.param("image", marks=pytest.mark.slow), "labels"])
def test_layers_may_vanish_while_slabs_arrive(desk: Desk, checkpoint: Checkpoint, which: str) -> None:
    desk.session.models.use(checkpoint)
    desk.open(make_scan(BIG))
    state = desk.session.active
    desk.session.proposals.begin()
    desk.until(lambda: desk.session.proposals.run.progress.fraction > 0, 60)
    desk.canvas.hide()
    desk.viewer.layers.remove(getattr(desk.widget.layers, which)(state))
    desk.until(lambda: desk.session.proposals.run.is_over, 60)
    desk.qtbot.wait(300)
    assert desk.session.scans == []
    assert len(desk.viewer.layers) == 0
    assert "unexpected" not in desk.said


_PROGRAM = """
import sys, napari
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication
from tests.qt.conftest import make_scan

viewer = napari.Viewer()
_, dock = viewer.window.add_plugin_dock_widget("napari-unet", "Annotate")
session = dock.session
session.accept_slices(session.add_scan(make_scan((8, 64, 64))))
session.learning.begin(600)

def leave():
    if session.learning.run.last is None:
        QTimer.singleShot(50, leave)
    elif sys.argv[1] == "window":
        viewer.window._qt_window.close()
    else:
        QApplication.quit()

leave()
napari.run()
print("left")
"""


@pytest.mark.parametrize("way", ["window", pytest.param("quit", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_program_ends_well_while_it_trains(tmp_path: Path, way: str) -> None:
    environment: dict[str, Any] = {
        **os.environ,
        "NAPARI_UNET_PROJECT": str(tmp_path / "project"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, way], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip().endswith("left")
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "project").is_dir()
