"""Keeps napari's layers and the session's scans the same.

The session's labels are the truth and each Labels layer shows a copy: what the person paints is read from the layer
after each stroke, what the session changes is written into it. napari's own undo is emptied after each stroke and its
keys lead to the session's, because after a slab has streamed in napari's would take back the slab and leave the stroke.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from napari.utils.colormaps import DirectLabelColormap
from numpy.typing import NDArray
from psygnal import Signal
from qtpy.QtCore import QTimer

from napari_unet.domain.errors import NapariUnetError
from napari_unet.domain.labels import LabelSchema
from napari_unet.qt.layer_data import OVERLAY_KEY, SCAN_KEY, image_arguments, picture, placement, scan_of_layer
from napari_unet.session.session import LabelsChanged, Session
from napari_unet.session.state import ScanState

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
    keys : dict
        Key bindings of each Labels layer, besides undo and redo: they would otherwise be napari's.
    """

    tool_changed = Signal()  # brush, eraser... or class of the active Labels layer: read ``mode``, ``selected_label``

    def __init__(
        self,
        viewer: ViewerModel,
        session: Session,
        say: Callable[[str], None],
        keys: dict[str, Callable[[], None]],
    ) -> None:
        self._viewer, self._session, self._say, self._keys = viewer, session, say, keys
        self._images: dict[ScanState, Image] = {}
        self._labels: dict[ScanState, Labels] = {}
        self._adopting: Image | None = None
        self._turned_to: ScanState | None = None
        self._busy = False
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
    def mode(self) -> str:
        """Tool of the active Labels layer, by napari's name; empty without one."""
        layer = self.active_labels
        return str(layer.mode) if layer is not None else ""

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
            mode = layer.mode
            self._viewer.layers.selection.active = layer
            layer.mode = mode

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
        for key, action in self._keys.items():
            layer.bind_key(key, lambda _, act=action: act(), overwrite=True)
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
        schema: LabelSchema = self._session.schema
        colours: dict[int | None, object] = {c.id: (*c.colour, 1.0) for c in schema.classes}
        layer.colormap = DirectLabelColormap(color_dict={0: "transparent", None: (0.5, 0.5, 0.5, 1.0), **colours})

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

    def _tool_moved(self, event: object = None) -> None:
        self.tool_changed.emit()

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
            self._session.record_edit(state, layer.data, slices, kind)

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
