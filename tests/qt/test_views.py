"""The planes beside the canvas, a second series, volumes and surfaces: what is drawn is what is there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
from qtpy.QtGui import QMouseEvent, QWheelEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from napari_unet.domain.geometry import Geometry
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.qt.ortho import ViewsWidget
from napari_unet.qt.plane_picture import PlanePane
from tests.qt.conftest import Desk, make_scan

pytestmark = pytest.mark.gui

_SPACING = (4.0, 1.5, 1.0)
_SHAPE = (12, 30, 40)


def placed(slice_axis: int = 0, first: tuple[float, ...] = (-20.0, -40.0, 100.0)) -> Scan:
    """Return a scan of which it is known where it stands, without noise that rounding could hide in."""
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = _SPACING
    affine[:, 3] = (*first, 1)
    scan = make_scan(_SHAPE, slice_axis)
    return replace(scan, geometry=Geometry(_SPACING, affine), window=(0.0, 255.0), data=np.clip(scan.data, 0, 255))


def views_of(desk: Desk) -> ViewsWidget:
    """Open the dock by its button."""
    desk.push(desk.widget.scan.views)
    desk.settle()
    (views,) = [each for each in desk.viewer.window.dock_widgets.values() if isinstance(each, ViewsWidget)]
    return views


def place(pane: PlanePane, index: tuple[float, ...]) -> QPoint:
    """Return where a voxel lies in a pane."""
    return pane.place_on_screen(*pane.plane.place(index, _SHAPE)).toPoint()


def press(pane: PlanePane, index: tuple[float, ...], desk: Desk) -> None:
    QTest.mouseClick(pane, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, place(pane, index))
    desk.spin()


def grey(desk: Desk, pane: PlanePane, index: int) -> np.ndarray:
    """Return what a pane must show of the scan alone."""
    cut = np.take(desk.session.active.scan.data, index, pane.plane.axis)
    return np.clip(cut[::-1] if pane.plane.axis else cut, 0, 255).astype(np.uint8)


def test_the_views_go_through_one_point(desk: Desk) -> None:
    views = views_of(desk)
    # What the canvas draws is another test's matter, and takes its time.
    desk.canvas.hide()
    for slice_axis in range(3):
        check_views(desk, views, slice_axis)
    # napari's slider moves them, and napari's 3D view leaves all three to them.
    desk.viewer.dims.set_point(0, float(desk.layer.data_to_world((1, 1, 1))[0]))
    desk.spin()
    assert views.point(desk.session.active)[0] == 1
    desk.viewer.dims.ndisplay = 3
    desk.spin()
    assert all(pane.isVisible() for pane in views.panes)


def check_views(desk: Desk, views: ViewsWidget, slice_axis: int) -> None:
    """Go through a scan of one plane by mouse and keys."""
    desk.session.add_scan(placed(slice_axis))
    desk.spin()
    state = desk.session.active
    assert [pane.plane.axis for pane in views.panes if pane.isVisible()] == [i for i in range(3) if i != slice_axis]
    first, second = (pane for pane in views.panes if pane.isVisible())
    # What is drawn is the plane of the array, of the right proportions.
    target = (7, 11, 23)
    press(first, target, desk)
    press(second, target, desk)
    assert views.point(state) == target
    world = desk.viewer.dims.point
    np.testing.assert_allclose(world, np.array(target) * _SPACING + (100, -40, -20), atol=1e-6)
    assert desk.widget.on_screen.slice_of(state) == target[slice_axis]
    for pane in (first, second):
        np.testing.assert_allclose(pane.shown.pixels[..., 0], grey(desk, pane, target[pane.plane.axis]), atol=1)
        origin, there = place(pane, (0, 0, 0)), place(pane, tuple(n - 1 for n in _SHAPE))
        wide, high = abs(there.x() - origin.x()), abs(there.y() - origin.y())
        mm = [(n - 1) * s for n, s in zip(_SHAPE, _SPACING, strict=True)]
        assert wide / high == pytest.approx(mm[pane.plane.columns] / mm[pane.plane.rows], rel=0.05)
        assert place(pane, target) == pane.place_on_screen(*pane.shown.cross).toPoint()
    # Dragging, the wheel and the keys.
    other = tuple(5 if axis != first.plane.axis else target[axis] for axis in range(3))
    QTest.mousePress(first, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, place(first, target))
    left, none = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    where = QPointF(place(first, other))
    QApplication.sendEvent(first, QMouseEvent(QEvent.Type.MouseMove, where, Qt.MouseButton.NoButton, left, none))
    desk.spin()
    assert views.point(state) == other
    notch = QPoint(0, -120)
    wheel = QWheelEvent(
        where, where, QPoint(), notch, Qt.MouseButton.NoButton, none, Qt.ScrollPhase.NoScrollPhase, False
    )
    QApplication.sendEvent(second, wheel)
    QTest.keyClick(second, Qt.Key.Key_Down)
    desk.spin()
    axis = second.plane.axis
    assert views.point(state)[axis] == other[axis] - 2
    assert second.shown.title.endswith(f" {other[axis] - 1} / {_SHAPE[axis]}")
    np.testing.assert_allclose(second.shown.pixels[..., 0], grey(desk, second, other[axis] - 2), atol=1)


def test_the_views_follow_strokes_colours_windows_and_scans(desk: Desk) -> None:
    said = views_of(desk)
    assert "No scan" in said.said.text()
    desk.open(placed())
    views, state = said, desk.session.active
    coronal = views.panes[1]
    desk.viewer.dims.set_point([0, 1], [100 + 4 * 6.0, -40 + 1.5 * 15])
    desk.spin()
    assert coronal.shown.borders == {"left": "R", "right": "L", "top": "H", "bottom": "F"}
    assert coronal.accessibleName() == "Coronal  16 / 30"
    desk.drag((6, 15, 10), (6, 15, 25))
    desk.spin()
    row = _SHAPE[0] - 1 - 6
    orange = 255 * np.array(desk.session.schema.classes[0].colour)
    expected = 0.5 * orange + 0.5 * grey(desk, coronal, 15)[row, 17]
    np.testing.assert_allclose(coronal.shown.pixels[row, 17, :3], expected, atol=2.5)
    desk.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert np.ptp(coronal.shown.pixels[row, 17, :3]) == 0
    # Another colour of the class, another window, a hidden overlay.
    desk.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier)
    blue = desk.session.schema.classes[0].model_copy(update={"colour": (0.0, 0.0, 1.0)})
    desk.session.set_schema(LabelSchema(classes=(blue,)))
    desk.spin()
    assert coronal.shown.pixels[row, 17, 2] > coronal.shown.pixels[row, 17, 0] + 100
    image = desk.widget.layers.image(state)
    image.contrast_limits = (-255.0, 0.0)
    desk.layer.visible = False
    desk.spin()
    assert (coronal.shown.pixels == 255).all()
    # Shift and the mouse over napari's canvas.
    point = QPointF(desk.at((6, 8, 31)))
    kinds = Qt.MouseButton.NoButton, Qt.MouseButton.NoButton, Qt.KeyboardModifier.ShiftModifier
    QApplication.sendEvent(desk.canvas, QMouseEvent(QEvent.Type.MouseMove, point, *kinds))
    desk.settle()
    assert views.point(state) == (6, 8, 31)
    # A single picture, no scan at all, and the dock closed before and after the other.
    desk.open(make_scan((40, 48), None))
    assert "single picture" in views.said.text()
    assert not any(pane.isVisible() for pane in views.panes)
    desk.canvas.hide()
    desk.viewer.layers.remove(image)
    desk.session.remove_scan(desk.session.active)
    desk.spin()
    assert "No scan" in views.said.text()
    desk.viewer.window.remove_dock_widget(views)
    desk.spin()
    again = views_of(desk)
    assert again is not views
    desk.viewer.window.remove_dock_widget(desk.widget)
    desk.settle()
    assert not desk.viewer.window.dock_widgets
    # Asked for from napari's menu, it brings the Annotate dock with it.
    _, alone = desk.viewer.window.add_plugin_dock_widget("napari-unet", "Views")
    desk.settle()
    assert len(desk.viewer.window.dock_widgets) == 2
    assert "No scan" in alone.said.text()
    alone._annotate.shut_down()
    desk.settle()


def test_a_second_series_volumes_and_surfaces(desk: Desk) -> None:
    scan = placed()
    desk.open(scan)
    state, second = desk.session.active, desk.widget.second
    views = views_of(desk)
    # On another grid: twice as fine across the slices, and begun elsewhere.
    fine = np.repeat(scan.data, 2, axis=0)
    affine = scan.geometry.affine.copy()
    affine[2, 0], affine[2, 3] = 2.0, 99.0
    desk.widget._guard(second.overlay)(state, Scan(fine, "zyx", Geometry((2.0, 1.5, 1.0), affine), slice_axis=0))
    desk.until(lambda: not second.is_busy)
    desk.spin()
    (layer,) = second.layers(state)
    assert [each.name for each in desk.viewer.layers] == ["scan 1", "scan 1 second series", "scan 1 labels"]
    assert len(desk.session.scans) == 1
    assert (layer.opacity, layer.colormap.name) == (0.4, "inferno")
    np.testing.assert_allclose(layer.data, scan.data, atol=1e-3)
    assert desk.viewer.layers.selection.active is desk.layer
    desk.spin()
    assert np.ptp(views.panes[1].shown.pixels[..., :3].astype(int), axis=-1).max() > 20, "it is in the other planes too"
    nowhere = Scan(scan.data, "zyx", Geometry(_SPACING), slice_axis=0)
    desk.widget._guard(second.overlay)(state, nowhere)
    assert "does not say where it stands" in desk.said
    # Volumes follow the labels once the hand rests.
    desk.push(desk.widget.scan.volumes)
    dialog = desk.widget.volumes
    assert dialog.table.item(0, 1).text() == "0.00"
    desk.drag((6, 15, 10), (6, 15, 25))
    desk.until(lambda: dialog.table.item(0, 1).text() != "0.00", 5)
    ml = (state.annotation.labels == 1).sum() * 4 * 1.5 / 1000
    assert dialog.table.item(0, 1).text() == f"{ml:.2f}"
    assert [dialog.table.item(1, column).text() for column in range(3)] == ["total", f"{ml:.2f}", "1"]
    desk.canvas.hide()
    seen = desk.viewer.camera.center, desk.viewer.camera.zoom
    desk.push(dialog.solid)
    image = desk.widget.layers.image(state)
    assert desk.viewer.dims.ndisplay == 3
    assert not image.visible
    assert desk.layer.visible
    assert desk.layer.rendering == "iso_categorical"
    desk.push(dialog.solid)
    assert desk.viewer.dims.ndisplay == 2
    assert (desk.viewer.camera.center, desk.viewer.camera.zoom) == seen
    assert image.visible
    dialog.close()
    desk.session.remove_scan(state)
    assert not desk.viewer.layers
