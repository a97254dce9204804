"""The Views dock: the other orthogonal planes of the active scan beside napari's canvas, all through one point.

The point is napari's own (``viewer.dims``), so that every view moves with every other; nothing is kept here but what is
on screen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Layer
from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtWidgets import QDockWidget, QMainWindow, QMenu, QVBoxLayout, QWidget

from napari_unet.domain.planes import Plane
from napari_unet.qt.panels.parts import button, line
from napari_unet.qt.plane_picture import PlanePane, PlanePicture, blended, grey_picture, rgb_picture, with_labels
from napari_unet.session.state import ScanState

if TYPE_CHECKING:
    from napari import Viewer

    from napari_unet.qt.annotate import AnnotateWidget

#: Object name of the Annotate dock's widget.
ANNOTATE = "napari-unet-annotate"
_PLUGIN = "napari-unet"
# On a screen of 1366 x 768 the canvas keeps as much as the planes, and no word of the Annotate dock is cut off.
_WIDTH, _ANNOTATE_WIDTH = 240, 400
_NO_SCAN = "No scan is open."
_FLAT = "This is a single picture: it has no other planes."
_LAYER_EVENTS = ("visible", "opacity", "contrast_limits", "colormap", "gamma", "data")


class ViewsWidget(QWidget):
    """Axial, coronal and sagittal planes of the active scan; those that napari's canvas does not show.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        Given by napari, which knows this name. Its Annotate dock is opened where it is not open yet.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.setObjectName("napari-unet-views")
        self._viewer = napari_viewer
        self._annotate = _annotate_dock(napari_viewer)
        self._session, self._layers = self._annotate.session, self._annotate.layers
        self._closed = self._placed = False
        self._watched: list[Layer] = []
        self.said = line("", "Views")
        self.said.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.panes = tuple(PlanePane(axis, self._point_at, self._scroll) for axis in range(3))
        self.second = button(
            "Overlay a second series...",
            "Lay another series of the same patient over this scan, where its file places it.",
            lambda: None,
        )
        self.second.setMenu(self._second_menu())
        column = QVBoxLayout(self)
        column.setContentsMargins(2, 8, 2, 2)
        column.setSpacing(3)
        column.addWidget(self.said, 1)
        for pane in self.panes:
            column.addWidget(pane, 1)
        column.addWidget(self.second)
        self.setMinimumWidth(220)
        # However many things change at once, the planes are cut once.
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(0)
        self._timer.timeout.connect(self.refresh)
        self._connected = self._connect()
        napari_viewer.mouse_move_callbacks.append(self._follow_mouse)
        self.refresh()

    def _connect(self) -> list[tuple[Any, Callable[..., None]]]:
        session, dims = self._session, self._viewer.dims.events
        wanted = (
            (session.active_changed, self._ask),
            (session.labels_changed, self._ask),
            (session.schema_changed, self._ask),
            (session.scan_removed, self._ask),
            (dims.current_step, self._ask),
            (dims.order, self._ask),
            (dims.ndisplay, self._ask),
            (self._viewer.layers.events.inserted, self._ask),
            (self._viewer.layers.events.removed, self._ask),
            (self._annotate.closing, self.close_dock),
        )
        for signal, slot in wanted:
            signal.connect(slot)
        return list(wanted)

    # -- what is shown -----------------------------------------------------------------------------------------

    def _ask(self, *_: object) -> None:
        if not self._closed:
            self._timer.start()

    def refresh(self) -> None:
        """Cut and draw the planes that napari does not show."""
        if self._closed:
            return
        state = self._session.active
        image = self._layers.image(state) if state is not None else None
        is_volume = state is not None and image is not None and len(state.scan.spatial_shape) == 3
        self._watch(state if is_volume else None)
        self.said.setText(_NO_SCAN if state is None or image is None else _FLAT)
        self.said.setVisible(not is_volume)
        self.second.setEnabled(is_volume)
        offset = self._viewer.dims.ndim - 3
        point = self.point(state) if is_volume and state is not None else ()
        for pane in self.panes:
            shown = is_volume and pane.plane.axis + offset in self._viewer.dims.displayed
            pane.setVisible(shown)
            pane.show_picture(self._picture(state, pane.plane, point) if shown and state is not None else None)

    def point(self, state: ScanState) -> tuple[int, ...]:
        """Return the voxel of a scan that the views go through, by napari's dims; the nearest where it is outside."""
        layer = self._layers.image(state)
        assert layer is not None
        found = layer.world_to_data(self._viewer.dims.point[-layer.ndim :])
        return tuple(int(np.clip(round(at), 0, n - 1)) for at, n in zip(found, state.scan.spatial_shape, strict=True))

    def _picture(self, state: ScanState, plane: Plane, point: tuple[int, ...]) -> PlanePicture:
        image, labels = self._layers.image(state), self._layers.labels(state)
        assert image is not None
        scan, index = state.scan, point[plane.axis]
        pixels = _coloured(image, plane, index)
        for second in self._annotate.second.layers(state):
            if second.visible:
                pixels = blended(pixels, _coloured(second, plane, index), second.opacity)
        if labels is not None and labels.visible:
            found = plane.cut(state.annotation.labels, index)
            pixels = with_labels(pixels, found, self._session.schema, labels.opacity)
        spacing = scan.spacing_or_unit
        return PlanePicture(
            f"{plane.name(scan.geometry)}  {index + 1} / {scan.spatial_shape[plane.axis]}",
            pixels,
            (spacing[plane.rows], spacing[plane.columns]),
            plane.place(point, scan.spatial_shape),
            plane.borders(scan.geometry),
        )

    def _watch(self, state: ScanState | None) -> None:
        """Listen to the layers of a scan, and no longer to others."""
        wanted: list[Layer] = []
        if state is not None:
            candidates = (self._layers.image(state), self._layers.labels(state))
            wanted = [layer for layer in (*candidates, *self._annotate.second.layers(state)) if layer is not None]
        for layer in [each for each in self._watched if each not in wanted]:
            self._hear(layer, False)
        for layer in [each for each in wanted if each not in self._watched]:
            self._hear(layer, True)
        self._watched = wanted

    def _hear(self, layer: Layer, on: bool) -> None:
        for name in _LAYER_EVENTS:
            emitter = getattr(layer.events, name, None)
            if emitter is not None:
                (emitter.connect if on else emitter.disconnect)(self._ask)

    # -- what is asked for -------------------------------------------------------------------------------------

    def _go_to(self, indices: dict[int, int]) -> None:
        """Have napari, and so all views, go through other voxels along some axes."""
        state = self._session.active
        layer = self._layers.image(state) if state is not None else None
        if state is None or layer is None:
            return
        point = list(self.point(state))
        for axis, index in indices.items():
            point[axis] = min(state.scan.spatial_shape[axis] - 1, max(0, index))
        world = layer.data_to_world(point)
        offset = self._viewer.dims.ndim - 3
        self._viewer.dims.set_point([offset + axis for axis in range(3)], [float(at) for at in world])

    def _point_at(self, plane: Plane, row: float, column: float) -> None:
        state = self._session.active
        if state is not None:
            self._go_to(plane.indices(row, column, state.scan.spatial_shape))

    def _scroll(self, axis: int, by: int) -> None:
        state = self._session.active
        if state is not None and self._layers.image(state) is not None:
            self._go_to({axis: self.point(state)[axis] + by})

    def _follow_mouse(self, viewer: object, event: Any) -> None:
        """Follow the mouse over napari's canvas while Shift is held, as other programs do."""
        state = self._session.active
        if state is None or self._viewer.dims.ndisplay != 2 or "Shift" not in event.modifiers or event.is_dragging:
            return
        layer = self._layers.image(state)
        if layer is not None and layer.ndim == 3:
            found = layer.world_to_data(event.position[-3:])
            offset = self._viewer.dims.ndim - 3
            self._go_to({axis: round(found[axis]) for axis in range(3) if axis + offset in event.dims_displayed})

    def _second_menu(self) -> QMenu:
        menu = QMenu(self)
        for text, ask in (
            ("From a file...", self._annotate.second.ask_for_file),
            ("From a DICOM folder...", self._annotate.second.ask_for_folder),
        ):
            made = menu.addAction(text)
            made.triggered.connect(lambda _=False, ask=ask: ask(self))
        return menu

    # -- the dock ----------------------------------------------------------------------------------------------

    def let_go(self) -> None:
        """Let go of the viewer and the session; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._timer.stop()
        for signal, slot in self._connected:
            signal.disconnect(slot)
        for layer in self._watched:
            self._hear(layer, False)
        self._watched = []
        self._viewer.mouse_move_callbacks.remove(self._follow_mouse)

    def close_dock(self) -> None:
        """Close with the Annotate dock."""
        self.let_go()
        parent = self.parent()
        if isinstance(parent, QDockWidget):
            parent.hide()
            # While napari closes its window, or another dock, this one may not be taken out.
            QTimer.singleShot(0, lambda: _take_out(self._viewer, self))

    def event(self, event: QEvent) -> bool:
        """Let go when the dock is closed by its cross: napari then takes the dock's widget out and keeps it."""
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self.let_go()
        return super().event(event)

    def closeEvent(self, event: Any) -> None:
        """Let go with the dock."""
        self.let_go()
        super().closeEvent(event)

    def showEvent(self, event: Any) -> None:
        """Stand between the canvas and the Annotate dock, at first."""
        super().showEvent(event)
        if not self._placed:
            self._placed = True
            QTimer.singleShot(0, self._stand_beside)
        self._ask()

    def _stand_beside(self) -> None:
        dock, other = self.parent(), self._annotate.parent()
        window = dock.parent() if isinstance(dock, QDockWidget) else None
        if (
            isinstance(window, QMainWindow)
            and isinstance(other, QDockWidget)
            and window.dockWidgetArea(dock) == window.dockWidgetArea(other)
        ):
            window.splitDockWidget(dock, other, Qt.Orientation.Horizontal)
            window.resizeDocks([dock, other], [_WIDTH, _ANNOTATE_WIDTH], Qt.Orientation.Horizontal)


def _coloured(layer: Image, plane: Plane, index: int) -> np.ndarray:
    cut = plane.cut(layer.data, index)
    if layer.rgb:
        return rgb_picture(cut)
    ramp = np.linspace(0, 1, 256) ** layer.gamma
    colours = np.rint(255 * layer.colormap.map(ramp)[:, :3]).astype(np.uint8)
    return grey_picture(cut, layer.contrast_limits, colours)


def _annotate_dock(viewer: Viewer) -> AnnotateWidget:
    for widget in viewer.window.dock_widgets.values():
        if isinstance(widget, QWidget) and widget.objectName() == ANNOTATE:
            return widget
    return viewer.window.add_plugin_dock_widget(_PLUGIN, "Annotate")[1]


def _take_out(viewer: Viewer, widget: QWidget) -> None:
    try:
        viewer.window.remove_dock_widget(widget)
    except (LookupError, RuntimeError, AttributeError):
        return  # its window is gone
