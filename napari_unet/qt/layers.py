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
from numpy.typing import NDArray
from qtpy.QtCore import QTimer

from napari_unet.domain.errors import NapariUnetError
from napari_unet.qt.hand import Hand
from napari_unet.qt.layer_data import (
    OVERLAY_KEY,
    SCAN_KEY,
    image_arguments,
    label_colours,
    picture,
    placement,
    scan_of_layer,
)
from napari_unet.qt.on_screen import OnScreen
from napari_unet.qt.scan_layers import ScanLayers
from napari_unet.session.session import LabelsChanged, Session
from napari_unet.session.state import ScanState

# Labels layers whose dock was closed: nothing records what is painted on them. A dock opened later replaces them.
_left_behind: weakref.WeakSet[Labels] = weakref.WeakSet()


class LayerBinder:
    """One image and one Labels layer for each scan of a session, and a scan for each image that comes.

    Parameters
    ----------
    viewer : ViewerModel
    session : Session
    layers : ScanLayers
        Where others find the layers.
    on_screen : OnScreen
        Turns to the scan that becomes the active one.
    hand : Hand
        Takes new layers in hand.
    say : callable
        Shows one sentence to the person.
    bind_keys : callable
        Binds the window's keys to a Labels layer, undo and redo among them: they would otherwise be napari's.
    """

    def __init__(
        self,
        viewer: ViewerModel,
        session: Session,
        layers: ScanLayers,
        on_screen: OnScreen,
        hand: Hand,
        say: Callable[[str], None],
        bind_keys: Callable[[Labels], None],
    ) -> None:
        self._viewer, self._session, self._say, self._bind_keys = viewer, session, say, bind_keys
        self._layers, self._on_screen, self._hand = layers, on_screen, hand
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
        for layer in list(viewer.layers):
            self._adopt(layer)

    def close(self) -> None:
        """Let go of the viewer; layers stay to be looked at, but can no longer be painted on."""
        events = self._viewer.layers.events
        events.inserted.disconnect(self._layer_inserted)
        events.removed.disconnect(self._layer_removed)
        self._viewer.layers.selection.events.active.disconnect(self._layer_selected)
        for layer in self._layers.all_labels:
            layer.events.paint.disconnect(self._painted)
            self._hand.let_go_of(layer)
            layer.editable = False
            _left_behind.add(layer)

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
            self._layers.put_image(state, image)
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
            self._layers.put_labels(state, layer)
            self._viewer.add_layer(layer)
            layer.events.paint.connect(self._painted)
            self._bind_keys(layer)
            self._colour(layer)
            self._hand.begin_on(layer)
        finally:
            self._busy = False
        # napari selects a layer only after everyone has heard of its insertion; the labels shall have the last word.
        QTimer.singleShot(0, self._show_active)
        if len(self._layers) == 1:
            self._on_screen.begin(state)

    def _remove_layers(self, state: ScanState) -> None:
        gone = self._layers.of(state)
        self._layers.forget(state)
        self._busy = True
        try:
            for layer in reversed(gone):
                if layer in self._viewer.layers:
                    self._viewer.layers.remove(layer)
        finally:
            self._busy = False

    def _show_change(self, change: LabelsChanged) -> None:
        layer = self._layers.labels(change.state)
        if layer is None or change.correction.labels is None:
            return
        layer._reset_history()
        if change.origin == "session":
            change.correction.labels.apply(layer.data)
            layer.refresh()

    def _recolour(self) -> None:
        for layer in self._layers.all_labels:
            self._colour(layer)
            if layer.selected_label not in self._session.schema.ids:
                layer.selected_label = self._session.schema.ids[0]

    def _colour(self, layer: Labels) -> None:
        layer.colormap = label_colours(self._session.schema)

    def _show_active(self) -> None:
        active = self._session.active
        for state in self._layers.scans:
            for layer in self._layers.of(state):
                # Saying it again would make napari forget the layer's tool.
                if layer.visible != (state is active):
                    layer.visible = state is active
        labels = self._layers.active_labels
        if active is not None and labels is not None:
            if self._viewer.layers.selection.active is not labels:
                self._viewer.layers.selection.active = labels
            self._on_screen.come_to(active)
        self._hand.come_over()

    # -- from the layers to the session ------------------------------------------------------------------------

    def _painted(self, event: Any) -> None:
        """Hand a finished stroke, fill or polygon to the session."""
        layer: Any = event.source
        state = self._layers.painted_on(layer)
        if state is not None:
            kind = {"fill": "fill", "erase": "erase"}.get(str(layer.mode), "stroke")
            axis = state.scan.slice_axis
            for atom in event.value:
                _write(atom, layer.data)
            slices = slice(None) if axis is None else _slices_of(event.value, axis)
            if self._hand.is_about_to_paint(layer):
                # The disc that napari has painted: what the hand's own brush covers follows.
                layer._reset_history()
                self._show_truth(state, layer, slices)
                return
            self._session.record_edit(state, layer.data, slices, kind)
            if self._session.tools.protects:
                # Some of it may have been put back, and napari writes a polygon only after it has told of it.
                QTimer.singleShot(0, lambda: self._show_truth(state, layer, slices))

    def _show_truth(self, state: ScanState, layer: Any, slices: slice) -> None:
        """Have the layer show some slices as the session has them."""
        if self._layers.labels(state) == layer:
            index = state.annotation.slice_index(slices)
            layer.data[index] = state.annotation.labels[index]
            layer.refresh()

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
            if self._layers.image(state) is layer:
                self._session.remove_scan(state)
            elif self._layers.labels(state) is layer:
                self._layers.forget_labels(state)
                if self._session.remove_scan(state):
                    self._say(f"{state.name} was closed. Its labels are saved, and come back when you open it again.")

    def _layer_selected(self, event: object) -> None:
        layer = self._viewer.layers.selection.active
        for state in self._session.scans:
            if layer is not None and layer in self._layers.of(state):
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
