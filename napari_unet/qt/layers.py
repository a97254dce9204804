"""Keeps napari's layers and the session's scans the same.

The session's labels are the truth and each Labels layer shows a copy: what the person paints is read from the layer
after each stroke, what the session changes is written into it. napari's own undo is emptied after each stroke and its
keys lead to the session's, because after a slab has streamed in napari's would take back the slab and leave the stroke.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from napari.utils.colormaps import DirectLabelColormap
from qtpy.QtCore import QTimer

from napari_unet.domain.errors import NapariUnetError
from napari_unet.domain.labels import LabelSchema
from napari_unet.qt.layer_data import image_arguments, placement, scan_of_layer
from napari_unet.session.session import LabelsChanged, Session
from napari_unet.session.state import ScanState

_log = logging.getLogger(__name__)


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
        for layer in list(viewer.layers):
            self._adopt(layer)

    def close(self) -> None:
        """Let go of the viewer; layers stay."""
        events = self._viewer.layers.events
        events.inserted.disconnect(self._layer_inserted)
        events.removed.disconnect(self._layer_removed)
        self._viewer.layers.selection.events.active.disconnect(self._layer_selected)
        self._viewer.dims.events.current_step.disconnect(self._slice_moved)
        for layer in self._labels.values():
            layer.events.paint.disconnect(self._painted)

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

    # -- from the session to the layers ------------------------------------------------------------------------

    def _add_layers(self, state: ScanState) -> None:
        self._busy = True
        try:
            image = self._adopting
            if image is None:
                image = Image(state.scan.data, **image_arguments(state.scan, state.name))
                self._viewer.add_layer(image)
            else:
                # A file's name may be a patient's.
                image.name = state.name
            self._images[state] = image
            layer = Labels(
                state.annotation.labels.copy(), name=f"{state.name} labels", opacity=0.5, **placement(state.scan)
            )
            self._labels[state] = layer
            self._viewer.add_layer(layer)
            self._bind(state, layer)
        finally:
            self._busy = False
        # napari selects a layer only after everyone has heard of its insertion; the labels shall have the last word.
        QTimer.singleShot(0, self._show_active)
        if state.scan.slice_axis:
            others = [i for i in range(3) if i != state.scan.slice_axis]
            self._viewer.dims.order = (state.scan.slice_axis, *others)
        if len(self._labels) == 1:
            self._viewer.reset_view()
            self._centre(state)

    def _bind(self, state: ScanState, layer: Labels) -> None:
        layer.events.paint.connect(self._painted)
        layer.bind_key("Control-Z", lambda _: self._session.undo(state), overwrite=True)
        layer.bind_key("Control-Shift-Z", lambda _: self._session.redo(state), overwrite=True)
        for key, action in self._keys.items():
            layer.bind_key(key, lambda _, act=action: act(), overwrite=True)
        self._colour(layer)
        layer.selected_label = self._session.schema.ids[0]
        layer.brush_size = 8
        layer.mode = "paint"

    def _remove_layers(self, state: ScanState) -> None:
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

    def _colour(self, layer: Labels) -> None:
        schema: LabelSchema = self._session.schema
        colours: dict[int | None, object] = {c.id: (*c.colour, 1.0) for c in schema.classes}
        layer.colormap = DirectLabelColormap(color_dict={0: "transparent", None: (0.5, 0.5, 0.5, 1.0), **colours})

    def _show_active(self) -> None:
        active = self._session.active
        for state, image in self._images.items():
            shown = state is active
            image.visible = shown
            if state in self._labels:
                self._labels[state].visible = shown
        if active is not None and active in self._labels:
            layer = self._labels[active]
            if self._viewer.layers.selection.active is not layer:
                self._viewer.layers.selection.active = layer
            self._slice_moved()

    def _centre(self, state: ScanState) -> None:
        axis = state.scan.slice_axis
        if axis is not None:
            self._viewer.dims.set_current_step(axis, state.scan.n_slices // 2)

    # -- from the layers to the session ------------------------------------------------------------------------

    def _painted(self, event: object) -> None:
        state = next((s for s, layer in self._labels.items() if layer is event.source), None)  # type: ignore[attr-defined]
        if state is not None:
            self.take_stroke(state)

    def take_stroke(self, state: ScanState) -> None:
        """Hand what was painted on a scan's layer to the session."""
        layer = self._labels[state]
        kind = {"fill": "fill", "erase": "erase"}.get(str(layer.mode), "stroke")
        self._session.record_edit(state, layer.data, self._editable_slices(state, layer), kind)

    def _editable_slices(self, state: ScanState, layer: Labels) -> slice:
        """Return the slices that painting may have reached: the one on screen, or all."""
        axis = state.scan.slice_axis
        if axis is None:
            return slice(None)
        flat = layer.n_edit_dimensions == 2 and self._viewer.dims.ndisplay == 2
        if not flat or axis in self._viewer.dims.displayed:
            return slice(None)
        index = self.slice_on_screen(state)
        return slice(index, index + 1)

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
        if not isinstance(layer, Image):
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
                self._say(
                    f"The labels of {state.name} were removed from view; they are saved, and come back when the scan is opened again."
                )
                self._session.remove_scan(state)

    def _layer_selected(self, event: object) -> None:
        layer = self._viewer.layers.selection.active
        for state in self._session.scans:
            if layer is not None and layer in (self._images.get(state), self._labels.get(state)):
                self._session.activate(state)
