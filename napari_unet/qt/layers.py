"""Keeps napari's layers and the session's scans the same.

The session's labels are the truth and each Labels layer shows a copy: what the person paints is read from the layer
after each stroke, what the session changes is written into it. napari's own undo is emptied after each stroke and its
keys lead to the session's, because after a slab has streamed in napari's would take back the slab and leave the stroke.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from numpy.typing import NDArray
from psygnal import Signal
from qtpy.QtCore import QTimer

from napari_unet.domain.errors import NapariUnetError
from napari_unet.qt.layer_data import (
    OVERLAY_KEY,
    SCAN_KEY,
    image_arguments,
    label_colours,
    picture,
    placement,
    scan_of_layer,
)
from napari_unet.session.session import LabelsChanged, Session
from napari_unet.session.state import ScanState

#: What napari does while one of this program's own tools is in the hand.
_MODE_OF = {"smart": "paint", "piece": "pan_zoom"}

# Labels layers whose dock was closed: nothing records what is painted on them. A dock opened later replaces them.
_left_behind: weakref.WeakSet[Labels] = weakref.WeakSet()


class LayerBinder:
    """One image and one Labels layer for each scan of a session.

    Parameters
    ----------
    viewer : ViewerModel
    session : Session
    say : callable
        Shows one sentence to the person.
    bind_keys : callable
        Binds the window's keys to a Labels layer, undo and redo among them: they would otherwise be napari's.
    """

    tool_changed = Signal()  # brush, eraser... or class of the active Labels layer: read ``tool``, ``selected_label``
    piece_clicked = Signal(ScanState, tuple)  # with the index of the voxel, while the tool is ``piece``

    def __init__(
        self,
        viewer: ViewerModel,
        session: Session,
        say: Callable[[str], None],
        bind_keys: Callable[[Labels], None],
    ) -> None:
        self._viewer, self._session, self._say, self._bind_keys = viewer, session, say, bind_keys
        self._images: dict[ScanState, Image] = {}
        self._labels: dict[ScanState, Labels] = {}
        self._adopting: Image | None = None
        self._turned_to: ScanState | None = None
        self._busy = False
        #: Tools of this program beside napari's: ``smart`` (a brush) and ``piece`` (which pans but for clicks).
        self._own_tool: str | None = None
        self._is_ball = False
        self._path: list[NDArray] = []
        # A stroke of a brush of this program's that has ended and is about to take the place of napari's.
        self._own_stroke: tuple[ScanState, Any, NDArray, int] | None = None
        session.scan_added.connect(self._add_layers)
        session.scan_removed.connect(self._remove_layers)
        session.labels_changed.connect(self._show_change)
        session.schema_changed.connect(self._recolour)
        session.active_changed.connect(self._show_active)
        viewer.layers.events.inserted.connect(self._layer_inserted)
        viewer.layers.events.removed.connect(self._layer_removed)
        viewer.layers.selection.events.active.connect(self._layer_selected)
        viewer.dims.events.current_step.connect(self._slice_moved)
        viewer.dims.events.order.connect(self._orient)
        viewer.dims.events.ndisplay.connect(self._orient)
        for layer in list(viewer.layers):
            self._adopt(layer)

    def close(self) -> None:
        """Let go of the viewer; layers stay to be looked at, but can no longer be painted on."""
        events = self._viewer.layers.events
        events.inserted.disconnect(self._layer_inserted)
        events.removed.disconnect(self._layer_removed)
        self._viewer.layers.selection.events.active.disconnect(self._layer_selected)
        self._viewer.dims.events.current_step.disconnect(self._slice_moved)
        self._viewer.dims.events.order.disconnect(self._orient)
        self._viewer.dims.events.ndisplay.disconnect(self._orient)
        for layer in self._labels.values():
            layer.events.paint.disconnect(self._painted)
            layer.events.mode.disconnect(self._tool_moved)
            layer.events.selected_label.disconnect(self._class_chosen)
            layer.events.brush_size.disconnect(self._brush_resized)
            layer.events.visible.disconnect(self._shown)
            layer.mouse_drag_callbacks.remove(self._follow)
            layer.editable = False
            _left_behind.add(layer)

    def labels_layer(self, state: ScanState) -> Labels | None:
        """Return the Labels layer of a scan, if it is still there."""
        return self._labels.get(state)

    def image_layer(self, state: ScanState) -> Image | None:
        """Return the image layer of a scan, if it is still there."""
        return self._images.get(state)

    @property
    def drawing(self) -> bool:
        """Whether a stroke is under way: until it ends, nothing may write into the layer."""
        return any(layer._block_history for layer in self._labels.values())

    @property
    def active_labels(self) -> Labels | None:
        """The Labels layer of the active scan."""
        active = self._session.active
        return self._labels.get(active) if active is not None else None

    @property
    def tool(self) -> str:
        """Tool in the hand: ``smart``, ``piece``, or napari's name of the active layer's mode; empty without a scan."""
        layer = self.active_labels
        return "" if layer is None else self._own_tool or str(layer.mode)

    def take(self, tool: str) -> None:
        """Take a tool into the hand; see :attr:`tool`."""
        layer = self.active_labels
        if layer is not None:
            layer.visible = True
            self._own_tool = None
            layer.mode = _MODE_OF.get(tool, tool)
            self._own_tool = tool if tool in _MODE_OF else None
        self.tool_changed.emit()

    @property
    def is_ball(self) -> bool:
        """Whether brush and eraser reach into the slices around."""
        return self._is_ball

    def set_ball(self, on: bool) -> None:
        """Have brush and eraser be balls, or discs again."""
        self._is_ball = on
        self.tool_changed.emit()

    @property
    def brush_mm(self) -> float | None:
        """Diameter of the brush in mm, or in voxels where the spacing is not known; None without a scan."""
        layer = self.active_labels
        return None if layer is None else float(layer.brush_size) * self._brush_unit(layer)

    def set_brush_mm(self, diameter: float) -> None:
        """Change the diameter of the brush."""
        layer = self.active_labels
        if layer is not None:
            layer.brush_size = max(1, round(diameter / self._brush_unit(layer)))

    def _brush_unit(self, layer: Labels) -> float:
        # napari's brush is as wide as so many of the narrower of the voxel's two sides on the screen.
        extra = self._viewer.dims.ndim - layer.ndim
        shown = [axis - extra for axis in self._viewer.dims.displayed[-2:] if axis >= extra]
        return float(min(layer.scale[axis] for axis in shown or range(layer.ndim)))

    def finish_polygon(self) -> bool:
        """Paint the polygon that is being drawn; returns whether there was one."""
        layer = self.active_labels
        if layer is None or str(layer.mode) != "polygon" or not layer._overlays["polygon"].points:
            return False
        layer._overlays["polygon"].add_polygon_to_labels(layer)
        return True

    def hand_back(self) -> None:
        """Select the labels of the active scan again, with the tool that was in hand."""
        layer = self.active_labels
        if layer is not None and self._viewer.layers.selection.active is not layer:
            mode, own = layer.mode, self._own_tool
            self._viewer.layers.selection.active = layer
            layer.mode = mode
            self._own_tool = own

    def undo(self) -> None:
        """Take back the last step on the active scan; not while the mouse draws."""
        if self._session.active is not None and not self.drawing:
            self._session.undo(self._session.active)

    def redo(self) -> None:
        """Do the last undone step on the active scan again; not while the mouse draws."""
        if self._session.active is not None and not self.drawing:
            self._session.redo(self._session.active)

    # -- from the session to the layers ------------------------------------------------------------------------

    def _add_layers(self, state: ScanState) -> None:
        self._busy = True
        try:
            image = self._adopting
            if image is None:
                image = Image(picture(state.scan), **image_arguments(state.scan, state.name))
                self._viewer.add_layer(image)
            else:
                # A file's name may be a patient's.
                image.name = state.name
            self._images[state] = image
            for old in [each for each in self._viewer.layers if each in _left_behind]:
                if old.metadata.get(SCAN_KEY) is state.scan:
                    self._viewer.layers.remove(old)
            layer = Labels(
                state.annotation.labels.copy(),
                name=f"{state.name} labels",
                opacity=0.5,
                metadata={SCAN_KEY: state.scan},
                **placement(state.scan),
            )
            self._labels[state] = layer
            self._viewer.add_layer(layer)
            self._bind(state, layer)
        finally:
            self._busy = False
        # napari selects a layer only after everyone has heard of its insertion; the labels shall have the last word.
        QTimer.singleShot(0, self._show_active)
        if len(self._labels) == 1:
            self._turn_to(state)
            self._viewer.reset_view()

    def _bind(self, state: ScanState, layer: Labels) -> None:
        layer.events.paint.connect(self._painted)
        layer.events.mode.connect(self._tool_moved)
        layer.events.selected_label.connect(self._class_chosen)
        layer.events.brush_size.connect(self._brush_resized)
        layer.events.visible.connect(self._shown)
        # First, so that it has seen the whole path when napari tells of the stroke.
        layer.mouse_drag_callbacks.insert(0, self._follow)
        self._bind_keys(layer)
        self._colour(layer)
        layer.selected_label = self._session.schema.ids[0]
        layer.brush_size = 8
        layer.mode = "paint"

    def _remove_layers(self, state: ScanState) -> None:
        self._turned_to = None if self._turned_to is state else self._turned_to
        self._busy = True
        try:
            for layer in (self._labels.pop(state, None), self._images.pop(state, None)):
                if layer is not None and layer in self._viewer.layers:
                    self._viewer.layers.remove(layer)
        finally:
            self._busy = False

    def _show_change(self, change: LabelsChanged) -> None:
        layer = self._labels.get(change.state)
        if layer is None or change.correction.labels is None:
            return
        layer._reset_history()
        if change.origin == "session":
            change.correction.labels.apply(layer.data)
            layer.refresh()

    def _recolour(self) -> None:
        for layer in self._labels.values():
            self._colour(layer)
            if layer.selected_label not in self._session.schema.ids:
                layer.selected_label = self._session.schema.ids[0]

    def _colour(self, layer: Labels) -> None:
        layer.colormap = label_colours(self._session.schema)

    def _show_active(self) -> None:
        active = self._session.active
        for state, image in self._images.items():
            for layer in (image, self._labels.get(state)):
                # Saying it again would make napari forget the layer's tool.
                if layer is not None and layer.visible != (state is active):
                    layer.visible = state is active
        if active is not None and active in self._labels:
            layer = self._labels[active]
            if self._viewer.layers.selection.active is not layer:
                self._viewer.layers.selection.active = layer
            if active is not self._turned_to:
                self._turn_to(active)
            self._orient()
            self._slice_moved()
        self.tool_changed.emit()

    def _orient(self, event: object = None) -> None:
        """Have bodies stand as they are read: left on the right, and the head up where it is on the screen.

        As napari starts, x, y and z make a left hand, so that a body in LPS would be its own mirror image in 3D, and z
        runs down the screen.
        """
        active, dims = self._session.active, self._viewer.dims
        if active is None or len(active.scan.spatial_shape) < 3:
            return
        upright = dims.ndisplay == 2 and dims.displayed[0] == dims.ndim - 3
        self._viewer.camera.orientation = ("away", "up" if upright else "down", "right")

    def _turn_to(self, state: ScanState) -> None:
        """Show the acquired plane of a scan, and a slice of it where none is on screen."""
        self._turned_to = state
        axis, layer, dims = state.scan.slice_axis, self._labels[state], self._viewer.dims
        if axis is None:
            return
        # The person may have turned the view of one scan; the next one has planes of its own.
        order = (axis, *(i for i in range(3) if i != axis))
        if dims.ndim == 3 and tuple(dims.order) != order:
            dims.order = order
        position, n = layer.world_to_data(dims.point[-layer.ndim :])[axis], state.scan.n_slices
        if not (-0.5 <= position < n - 0.5) or len(self._labels) == 1:
            middle = [size // 2 for size in layer.data.shape]
            dims.set_point(axis, layer.data_to_world(middle)[axis])

    def shows_slices(self, state: ScanState) -> bool:
        """Return whether the acquired plane of a scan is on screen, and not another one or the whole volume."""
        axis, dims = state.scan.slice_axis, self._viewer.dims
        return axis is None or axis + dims.ndim - len(state.scan.spatial_shape) not in dims.displayed

    # -- from the layers to the session ------------------------------------------------------------------------

    def _tool_moved(self, event: Any = None) -> None:
        # By napari's own buttons and keys; of a layer that is hidden napari takes the tool by itself.
        if self._own_tool is not None and event is not None and event.source.visible:
            self._own_tool = self._own_tool if str(event.mode) == _MODE_OF[self._own_tool] else None
        self.tool_changed.emit()

    def _shown(self, event: Any) -> None:
        """Give the tool back to a layer that was hidden for a while."""
        layer: Any = event.source
        if self._own_tool is not None and layer.visible and layer == self.active_labels:
            layer.mode = _MODE_OF[self._own_tool]

    def _brush_resized(self, event: object = None) -> None:
        self.tool_changed.emit()

    def _follow(self, layer: Labels, event: Any) -> Iterator[None]:
        """Take down where the mouse goes while its button is held, in voxels; tell of a click on a piece."""
        start = np.asarray(layer.world_to_data(event.position))
        self._path = [start]
        left, moved = event.button == 1, False
        yield
        while event.type == "mouse_move":
            moved = True
            self._path.append(np.asarray(layer.world_to_data(event.position)))
            yield
        state = next((each for each, known in self._labels.items() if known is layer), None)
        # In three dimensions the mouse is at no voxel: napari finds what its ray hits.
        if state is None or not left or self._viewer.dims.ndisplay != 2:
            return
        if self._own_tool == "piece" and not moved:
            index = tuple(int(at) for at in np.round(start))
            if all(0 <= at < n for at, n in zip(index, layer.data.shape, strict=True)):
                self.piece_clicked.emit(state, index)
        elif str(layer.mode) in ("paint", "erase") and (self._own_tool == "smart" or self._is_ball):
            value = 0 if str(layer.mode) == "erase" else int(layer.selected_label)
            self._own_stroke = state, layer, np.round(self._path), value
            # Once napari has ended its own stroke, which it tells of only where it has changed something.
            QTimer.singleShot(0, self._paint_own)

    def _class_chosen(self, event: Any) -> None:
        layer, ids = event.source, self._session.schema.ids
        if layer.selected_label not in (0, *ids):
            # napari offers any number; a label without a class could neither be learnt nor exported.
            self._say(f"There is no class {layer.selected_label}: add one with Classes... first.")
            layer.selected_label = ids[-1]
        self.tool_changed.emit()

    def _painted(self, event: Any) -> None:
        """Hand a finished stroke, fill or polygon to the session."""
        state = next((s for s, layer in self._labels.items() if layer is event.source), None)
        if state is not None:
            layer = self._labels[state]
            kind = {"fill": "fill", "erase": "erase"}.get(str(layer.mode), "stroke")
            axis = state.scan.slice_axis
            for atom in event.value:
                _write(atom, layer.data)
            slices = slice(None) if axis is None else _slices_of(event.value, axis)
            if self._own_stroke is not None and self._own_stroke[1] is layer:
                # The disc that napari has painted: what its own brush covers follows.
                layer._reset_history()
                self._show_truth(state, layer, slices)
                return
            self._session.record_edit(state, layer.data, slices, kind)
            if self._session.tools.protects:
                # Some of it may have been put back, and napari writes a polygon only after it has told of it.
                QTimer.singleShot(0, lambda: self._show_truth(state, layer, slices))

    def _show_truth(self, state: ScanState, layer: Any, slices: slice) -> None:
        """Have the layer show some slices as the session has them."""
        if self._labels.get(state) == layer:
            index = state.annotation.slice_index(slices)
            layer.data[index] = state.annotation.labels[index]
            layer.refresh()

    def _paint_own(self) -> None:
        """Carry out the stroke of a brush of this program's."""
        if self._own_stroke is None:
            return
        (state, layer, path, value), self._own_stroke = self._own_stroke, None
        if self._labels.get(state) != layer:
            return
        extra = self._viewer.dims.ndim - layer.ndim
        across = [axis for axis in range(layer.ndim) if axis + extra not in self._viewer.dims.displayed]
        try:
            self._session.tools.stroke(
                state,
                path,
                float(layer.brush_size) * self._brush_unit(layer) / 2,
                value,
                across=across[0] if across else None,
                ball=self._is_ball,
                smart=self._own_tool == "smart",
            )
        except NapariUnetError as error:
            self._say(str(error))

    def slice_on_screen(self, state: ScanState) -> int:
        """Return the index, along the slice axis, of the slice on screen."""
        axis = state.scan.slice_axis
        layer = self._labels.get(state) or self._images.get(state)
        if axis is None or layer is None:
            return 0
        point = self._viewer.dims.point[-layer.ndim :]
        return int(np.clip(round(layer.world_to_data(point)[axis]), 0, state.scan.n_slices - 1))

    def _slice_moved(self, event: object = None) -> None:
        active = self._session.active
        if active is not None:
            self._session.show_slice(self.slice_on_screen(active))

    def _layer_inserted(self, event: object) -> None:
        if not self._busy:
            self._adopt(event.value)  # type: ignore[attr-defined]

    def _adopt(self, layer: Layer) -> None:
        if not isinstance(layer, Image) or OVERLAY_KEY in layer.metadata:
            return
        try:
            scan = scan_of_layer(layer)
            self._adopting = layer
            n = len(self._session.scans)
            self._session.add_scan(scan)
            if len(self._session.scans) == n:
                self._viewer.layers.remove(layer)
        except NapariUnetError as error:
            self._say(str(error))
        finally:
            self._adopting = None

    def _layer_removed(self, event: object) -> None:
        if self._busy:
            return
        layer = event.value  # type: ignore[attr-defined]
        for state in list(self._session.scans):
            if self._images.get(state) is layer:
                self._session.remove_scan(state)
            elif self._labels.get(state) is layer:
                del self._labels[state]
                if self._session.remove_scan(state):
                    self._say(f"{state.name} was closed. Its labels are saved, and come back when you open it again.")

    def _layer_selected(self, event: object) -> None:
        layer = self._viewer.layers.selection.active
        for state in self._session.scans:
            if layer is not None and layer in (self._images.get(state), self._labels.get(state)):
                self._session.activate(state)


def _write(atom: Any, data: NDArray) -> None:
    """Write an atom of a napari history item into the labels.

    Napari tells of a polygon just before it writes it; of strokes and fills afterwards, which makes this a repetition.
    """
    if isinstance(atom, tuple) and not hasattr(atom, "slice_key"):
        data[atom[0]] = atom[2]
    else:
        data[atom.slice_key][... if atom.mask is None else atom.mask] = atom.new_value


def _slices_of(item: Iterable[Any], axis: int) -> slice:
    """Return the indices along an axis that the atoms of a napari history item reach.

    The slice on screen would not do: people scroll in mid-stroke, and edit in three dimensions.
    """
    starts, stops = [], []
    for atom in item:
        where = (atom.slice_key if hasattr(atom, "slice_key") else atom[0])[axis]
        if isinstance(where, slice):
            starts.append(where.start or 0)
            stops.append(where.stop)
        else:
            starts.append(int(np.min(where)))
            stops.append(int(np.max(where)) + 1)
    return slice(min(starts), None if None in stops else max(stops)) if starts else slice(0)
