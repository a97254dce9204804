"""Brushes and tools under the mouse: edges, balls, locks, pieces, previews."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QWheelEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from napari_unet.domain.geometry import Geometry
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan

pytestmark = pytest.mark.gui


def halves():
    """Left half bright, right half dark; voxels twice as thick as wide."""
    data = np.random.default_rng(3).normal(0, 2, (7, 40, 48)).astype(np.float32)
    data[:, :, :24] += 100
    return Scan(data, "zyx", Geometry((4.0, 2.0, 2.0)), 0)


def _with(state, where, value):
    view = state.annotation.labels.copy()
    view[where] = value
    return view


def wheel(widget):
    """Turn the wheel over a widget."""
    middle = QPointF(widget.rect().center())
    event = QWheelEvent(
        middle,
        QPointF(widget.mapToGlobal(middle.toPoint())),
        QPoint(0, 120),
        QPoint(0, 120),
        Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier,
        Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    QApplication.sendEvent(widget, event)


@pytest.fixture
def work(desk):
    desk.session.set_schema(LabelSchema.of("bright", "dark"))
    desk.open(halves())
    return desk, desk.session.active, desk.widget.correct


def test_smart_brush_ball_and_locks(work):
    desk, state, panel = work
    # The size is in millimetres, and napari's keys change it too.
    panel.size.setValue(24)
    assert desk.layer.brush_size == 12
    desk.layer.brush_size = 14
    assert panel.size.value() == 28
    assert panel.size.suffix() == " mm"

    desk.push(panel.tools["smart"])
    assert panel.tools["smart"].isChecked()
    desk.drag((3, 12, 19), (3, 20, 19), (3, 28, 19))
    bright = state.scan.data[3] > 50
    found = state.annotation.labels[3] == 1
    assert found.sum() > 150
    assert (found & ~bright).sum() <= 0.02 * found.sum(), "it stops at the edge"
    np.testing.assert_array_equal(desk.layer.data, state.annotation.labels)
    desk.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert not desk.layer.data.any()

    desk.push(panel.tools["paint"])
    panel.ball.setChecked(True)
    panel.size.setValue(16)
    desk.click((3, 20, 20))
    z, y, x = np.nonzero(desk.layer.data)
    assert (np.ptp(z), np.ptp(y), np.ptp(x)) == (4, 8, 8), "16 mm in every direction"
    np.testing.assert_array_equal(desk.layer.data, state.annotation.labels)
    panel.ball.setChecked(False)

    # What is locked stays, in the view too.
    before = desk.layer.data.copy()
    desk.push(panel.locks[1])
    assert panel.locks[1].text() == "locked"
    desk.push(panel.choices[2])
    desk.drag((3, 20, 14), (3, 20, 28))
    assert (desk.layer.data == 2).any()
    np.testing.assert_array_equal(desk.layer.data == 1, before == 1)
    np.testing.assert_array_equal(desk.layer.data, state.annotation.labels)


def test_what_the_brushes_of_napari_leave_open(work):
    """Locks under a polygon, balls over what is painted, balls over several slices, enclosed areas."""
    desk, state, panel = work
    layer = desk.layer
    desk.session.record_edit(state, _with(state, np.s_[3, 20, 20], 2), slice(None))
    layer.data[3, 20, 20] = 2
    desk.push(panel.locks[2])
    desk.push(panel.tools["polygon"])
    for corner in ((3, 10, 10), (3, 10, 30), (3, 30, 30), (3, 30, 10)):
        desk.click(corner)
    desk.key(Qt.Key.Key_Return)
    desk.spin()
    assert layer.data[3, 15, 15] == 1
    assert layer.data[3, 20, 20] == 2, "napari writes the polygon after it has told of it"
    np.testing.assert_array_equal(layer.data, state.annotation.labels)

    # On a slice that is painted already a ball still reaches its neighbours.
    desk.push(panel.tools["paint"])
    panel.ball.setChecked(True)
    panel.size.setValue(16)
    desk.click((3, 15, 15))
    assert (layer.data[2] == 1).any()
    assert (layer.data[4] == 1).any()
    np.testing.assert_array_equal(layer.data, state.annotation.labels)
    panel.ball.setChecked(False)

    # The wheel over the dock changes nothing, and Enter in the size accepts no slice.
    for editor in (panel.rule, panel.how, panel.size):
        before = editor.currentIndex() if editor is not panel.size else editor.value()
        wheel(editor)
        assert (editor.currentIndex() if editor is not panel.size else editor.value()) == before
    panel.size.setFocus()
    QTest.keyClicks(panel.size, "9")
    QTest.keyClick(panel.size, Qt.Key.Key_Return)
    desk.spin()
    assert not state.annotation.accepted.any()
    assert not panel.size.hasFocus()

    # Before and after leave the tool in the hand.
    desk.push(panel.tools["smart"])
    state.before_proposal = np.zeros_like(state.annotation.labels)
    desk.key(Qt.Key.Key_B)
    desk.key(Qt.Key.Key_B)
    assert desk.widget.hand.tool == "smart"


def test_a_click_on_a_piece_offers_what_can_be_done_with_it(work):
    desk, state, panel = work
    view = np.zeros_like(state.annotation.labels)
    view[2:5, 5:12, 5:12] = 1
    view[2:5, 25:30, 30:36] = 1
    desk.session.record_edit(state, view, slice(None))
    desk.layer.data[...] = view
    desk.push(panel.tools["piece"])
    heard = []
    desk.widget.hand.piece_clicked.connect(lambda *said: heard.append(said))
    desk.click((3, 8, 8))
    desk.until(lambda: QApplication.activePopupWidget() is not None)
    QApplication.activePopupWidget().close()
    assert heard == [(state, (3, 8, 8))]
    menu = panel.piece_menu(state, (3, 8, 8), 1)
    texts = [action.text() for action in menu.actions()]
    assert texts == ["Accept this piece", "Remove this piece", "It is dark"]
    menu.actions()[2].trigger()
    assert (desk.layer.data == 2).sum() == 3 * 49
    assert (desk.layer.data == 1).sum() == 3 * 30
    menu.close()
    # A drag pans, and asks nothing.
    desk.drag((3, 8, 8), (3, 12, 12))
    assert len(heard) == 1


def test_tools_with_a_preview(work):
    desk, state, panel = work
    desk.drag((3, 10, 8), (3, 20, 8))
    panel.open_tools()
    dialog = panel.dialog
    dialog.choice.setCurrentText("Threshold")
    desk.push(dialog.preview)
    assert desk.widget.overlays.preview_layer is not None
    desk.until(lambda: desk.viewer.layers.selection.active is desk.layer)
    before = desk.layer.data.copy()
    np.testing.assert_array_equal(before, state.annotation.labels)
    desk.push(dialog.apply)
    # The range came from what was painted.
    bright = state.scan.data[3] > 50
    assert ((desk.layer.data[3] == 1) & bright).sum() > 0.95 * bright.sum()
    assert ((desk.layer.data[3] == 1) & ~bright).sum() < 20
    desk.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    np.testing.assert_array_equal(desk.layer.data, before)

    desk.widget.on_screen.go_to(5)
    desk.drag((5, 10, 8), (5, 20, 8))
    dialog.choice.setCurrentText("Fill between slices")
    desk.push(dialog.preview)
    desk.until(lambda: not desk.session.tools.is_looking)
    assert dialog.apply.isEnabled(), desk.notices
    desk.push(dialog.apply)
    assert (desk.layer.data[4] == 1).sum() > 10
    assert not desk.layer.data[2].any()
    # Every tool has its own form, and says what it needs.
    for name in (dialog.choice.itemText(i) for i in range(dialog.choice.count())):
        dialog.choice.setCurrentText(name)
        assert dialog.help.text().endswith(".")
        dialog.settings()
    dialog.choice.setCurrentText("Combine classes")
    desk.push(dialog.preview)
    dialog.close()
