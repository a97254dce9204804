"""What the mouse paints is what the session holds, and every step can be taken back."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import Qt

from napari_unet.domain.labels import LabelSchema
from tests.qt.conftest import Desk, make_scan

pytestmark = pytest.mark.gui

CTRL, SHIFT = Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier


def same(desk: Desk) -> bool:
    """Return whether window and session hold the same labels."""
    return np.array_equal(desk.layer.data, desk.session.active.annotation.labels)


def test_a_stroke_lands_where_the_mouse_was(desk: Desk) -> None:
    desk.open(make_scan())
    annotation = desk.session.active.annotation
    desk.layer.brush_size = 1
    desk.drag((3, 10, 12), (3, 10, 20))
    expected = np.zeros(annotation.labels.shape, bool)
    expected[3, 10, 12:21] = True
    np.testing.assert_array_equal(annotation.labels == 1, expected)
    np.testing.assert_array_equal(annotation.painted, expected)
    assert same(desk)
    desk.key(Qt.Key.Key_Z, CTRL)
    assert not annotation.labels.any()
    assert not annotation.painted.any()
    assert same(desk)
    desk.key(Qt.Key.Key_Z, CTRL | SHIFT)
    np.testing.assert_array_equal(annotation.labels == 1, expected)
    assert same(desk)


def test_erase_fill_and_polygon_are_recorded(desk: Desk) -> None:
    desk.open(make_scan())
    annotation = desk.session.active.annotation
    desk.layer.brush_size = 1
    desk.drag((3, 10, 12), (3, 10, 20))
    desk.push(desk.widget.correct.tools["erase"])
    desk.drag((3, 10, 18), (3, 10, 20))
    assert np.flatnonzero(annotation.labels[3, 10]).tolist() == list(range(12, 18))
    assert annotation.painted[3, 10, 12:21].all()
    desk.push(desk.widget.correct.tools["polygon"])
    for corner in ((3, 20, 10), (3, 30, 10), (3, 30, 20), (3, 20, 20)):
        desk.click(corner)
    desk.key(Qt.Key.Key_Enter)
    assert annotation.labels[3, 22:29, 12:19].all()
    assert not annotation.accepted.any(), "Enter closed the polygon; it did not accept the slice"
    assert same(desk)
    desk.push(desk.widget.correct.tools["fill"])
    desk.click((3, 2, 2))
    assert annotation.labels[3].all()
    assert not annotation.labels[[0, 1, 2, 4, 5]].any()
    for _ in range(4):
        desk.key(Qt.Key.Key_Z, CTRL)
    assert not annotation.labels.any()
    assert not annotation.painted.any()
    assert same(desk)


def test_edits_through_slices_are_recorded_whole(desk: Desk) -> None:
    desk.open(make_scan((8, 40, 48)))
    annotation = desk.session.active.annotation
    desk.layer.n_edit_dimensions = 3
    desk.layer.brush_size = 5
    desk.click((4, 20, 20))
    assert np.flatnonzero(annotation.labels.any(axis=(1, 2))).tolist() == [2, 3, 4, 5, 6]
    assert same(desk)
    desk.layer.n_edit_dimensions = 2
    desk.viewer.dims.order = (1, 0, 2)
    desk.viewer.dims.set_current_step(1, 10)
    desk.viewer.reset_view()
    desk.settle()
    desk.layer.brush_size = 1
    desk.drag((0, 10, 30), (7, 10, 30))
    assert annotation.labels[:, 10, 30].all()
    assert same(desk)


def test_scrolling_in_mid_stroke_loses_nothing(desk: Desk) -> None:
    desk.open(make_scan())
    annotation = desk.session.active.annotation
    desk.layer.brush_size = 1
    desk.press((3, 10, 12))
    desk.move((3, 10, 16))
    desk.viewer.dims.set_current_step(0, 4)
    desk.spin()
    desk.move((4, 10, 20))
    desk.release((4, 10, 20))
    assert annotation.labels[3, 10, 12:17].all()
    assert annotation.labels[4, 10, 20] == 1
    assert same(desk)


def test_undo_waits_for_the_end_of_the_stroke(desk: Desk) -> None:
    desk.open(make_scan())
    annotation = desk.session.active.annotation
    desk.layer.brush_size = 1
    desk.drag((3, 5, 5), (3, 5, 9))
    desk.press((3, 10, 12))
    desk.move((3, 10, 16))
    assert desk.widget.hand.drawing
    desk.key(Qt.Key.Key_Z, CTRL)
    desk.release((3, 10, 16))
    assert not desk.widget.hand.drawing
    assert annotation.labels[3, 5, 5:10].all()
    assert annotation.labels[3, 10, 12:17].all()
    assert same(desk)


def test_what_a_script_paints_is_recorded(desk: Desk) -> None:
    desk.open(make_scan())
    desk.layer.data_setitem((np.array([1, 2]), np.array([3, 3]), np.array([4, 5])), 1)
    assert desk.session.active.annotation.labels[1, 3, 4] == 1
    assert same(desk)
    desk.session.undo(desk.session.active)
    assert same(desk)


@pytest.mark.parametrize("axis", [1, 2])
def test_scans_are_shown_in_the_acquired_plane(desk: Desk, axis: int) -> None:
    shape = [40, 44, 48]
    shape[axis] = 7
    desk.open(make_scan(tuple(shape), axis))
    annotation = desk.session.active.annotation
    assert desk.viewer.dims.not_displayed == (axis,)
    assert desk.viewer.dims.current_step[axis] == 3
    ribbon = desk.widget.correct.ribbon
    desk.qtbot.mouseClick(ribbon, Qt.MouseButton.LeftButton, pos=ribbon.rect().center() * 1.6)
    desk.settle()
    assert desk.viewer.dims.current_step[axis] == desk.session.visible_slice == 5
    desk.layer.brush_size = 3
    where = [10, 10, 10]
    where[axis] = 5
    desk.click(where)
    assert annotation.labels[tuple(where)] == 1
    assert annotation.reviewed_slices().tolist() == [5]
    desk.push(desk.widget.correct.accept_slice)
    assert np.flatnonzero(annotation.accepted).tolist() == [5]
    assert same(desk)


def test_a_picture_and_a_volume_side_by_side(desk: Desk) -> None:
    desk.open(make_scan((6, 40, 48)))
    volume, volume_layer = desk.session.active, desk.layer
    desk.open(make_scan((50, 60), None))
    picture, picture_layer = desk.session.active, desk.layer
    assert picture is not volume
    assert not volume_layer.visible
    desk.layer.brush_size = 1
    desk.drag((10, 12), (10, 20))
    assert picture.annotation.labels[10, 12:21].all()
    assert not volume.annotation.labels.any()
    desk.key(Qt.Key.Key_Enter)
    assert picture.annotation.accepted.all()
    desk.viewer.layers.selection.active = volume_layer
    desk.viewer.reset_view()
    desk.settle()
    assert desk.session.active is volume
    assert volume_layer.visible
    assert not picture_layer.visible
    assert volume_layer.mode == "paint", "the brush is still in the hand"
    desk.layer.name, volume_layer.brush_size = "something else", 1
    desk.viewer.layers.move(desk.viewer.layers.index(volume_layer), 0)
    desk.viewer.layers.selection.active = volume_layer
    desk.drag((3, 10, 12), (3, 10, 20))
    assert volume.annotation.labels[3, 10, 12:21].all()
    assert same(desk)
    desk.key(Qt.Key.Key_Z, CTRL)
    assert not volume.annotation.labels.any()
    assert picture.annotation.labels.any()


def test_keys_work_on_the_canvas(desk: Desk) -> None:
    desk.key(Qt.Key.Key_P)
    assert desk.said.startswith("No scan is open")
    desk.open(make_scan())
    annotation = desk.session.active.annotation
    desk.key(Qt.Key.Key_P)
    assert desk.said.startswith("There is no model yet")
    desk.key(Qt.Key.Key_F)
    assert desk.said.startswith("Nothing has been reviewed yet")
    assert desk.layer.mode == "paint", "P and F are the dock's, not napari's"
    desk.key(Qt.Key.Key_Enter)
    assert np.flatnonzero(annotation.accepted).tolist() == [3]
    desk.key(Qt.Key.Key_Return)
    assert not annotation.accepted.any()
    desk.push(desk.widget.correct.accept_scan)
    assert annotation.accepted.all()
    desk.key(Qt.Key.Key_Z, CTRL)
    assert not annotation.accepted.any()


def test_tools_and_classes_follow_the_layer_and_lead_it(desk: Desk) -> None:
    correct = desk.widget.correct
    desk.session.set_schema(LabelSchema.of("liver", "tumour"))
    assert not correct.tools["paint"].isEnabled()
    desk.open(make_scan())
    assert desk.layer.mode == "paint"
    assert [mode for mode, each in correct.tools.items() if each.isChecked()] == ["paint"]
    desk.push(correct.tools["fill"])
    assert desk.layer.mode == "fill"
    desk.layer.mode = "erase"
    assert [mode for mode, each in correct.tools.items() if each.isChecked()] == ["erase"]
    desk.push(correct.choices[2])
    assert desk.layer.selected_label == 2
    assert desk.layer.mode == "paint", "who chooses a class wants to paint"
    desk.layer.selected_label = 1
    assert correct.choices[1].isChecked()
    desk.layer.selected_label = 7
    assert desk.layer.selected_label == 2
    assert "no class 7" in desk.said
    for each in desk.session.schema.classes:
        np.testing.assert_allclose(desk.layer.get_color(each.id)[:3], each.colour, atol=0.01)
    assert desk.layer.get_color(0) is None or desk.layer.get_color(0)[3] == 0


def test_classes_keep_their_meaning_when_renamed(desk: Desk) -> None:
    from napari_unet.domain.errors import SessionError

    correct = desk.widget.correct
    desk.open(make_scan())
    correct.rename_classes(["liver", "tumour"])
    desk.layer.selected_label = 2
    desk.click((3, 10, 10))
    correct.rename_classes(["Liver", "tumour", "vein"])
    assert desk.session.schema.ids == (1, 2, 3)
    with pytest.raises(SessionError, match="labelled tumour"):
        correct.rename_classes(["Liver", "vein"])
    correct.rename_classes(["tumour", "vein"])
    assert [(c.id, c.name) for c in desk.session.schema.classes] == [(2, "tumour"), (3, "vein")]
    assert desk.layer.selected_label == 2
    with pytest.raises(SessionError, match="name of its own"):
        correct.rename_classes([])


def test_a_removed_layer_closes_the_scan_and_keeps_the_labels(desk: Desk) -> None:
    scan = make_scan()
    desk.open(scan)
    desk.layer.brush_size = 1
    desk.drag((3, 10, 12), (3, 10, 20))
    desk.canvas.hide()
    desk.viewer.layers.remove(desk.layer)
    desk.spin()
    assert desk.session.scans == []
    assert "saved" in desk.said
    assert not any(layer.name.startswith("scan") for layer in desk.viewer.layers)
    desk.open(scan)
    assert desk.session.active.annotation.labels[3, 10, 12:21].all()
    assert same(desk)
    desk.viewer.layers.remove(desk.widget.layers.image(desk.session.active))
    assert desk.session.scans == []


def test_an_unexpected_error_is_a_sentence(desk: Desk) -> None:
    from napari_unet.qt.panels.parts import button

    def fail() -> None:
        raise ZeroDivisionError

    broken = button("Break", "", desk.widget._guard(fail))
    desk.widget.layout().addWidget(broken)
    desk.settle()
    desk.push(broken)
    assert desk.said.startswith("Something unexpected happened")
    broken.deleteLater()
