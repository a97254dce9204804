"""The hand that paints: which tool it holds, how large its brush is, and strokes that are not napari's own.

napari paints its disc while the mouse moves; what a brush of this program's makes of the path takes its place when the
button is let go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Labels
from numpy.typing import NDArray
from psygnal import Signal
from qtpy.QtCore import QTimer

from napari_unet.domain.errors import NapariUnetError
from napari_unet.qt.scan_layers import ScanLayers
from napari_unet.session.session import Session
from napari_unet.session.state import ScanState

#: What napari does while one of this program's own tools is in the hand.
_MODE_OF = {"smart": "paint", "piece": "pan_zoom"}


class Hand:
    """The tool in the hand, on the Labels layer of the active scan.

    Parameters
    ----------
    viewer : ViewerModel
    session : Session
        Carries out the strokes, and takes them back.
    layers : ScanLayers
        What there is to paint on.
    say : callable
        Shows one sentence to the person.
    """

    changed = Signal()  # another tool, brush, class or layer: read ``tool``, ``brush_mm``, ``is_ball``
    piece_clicked = Signal(ScanState, tuple)  # with the index of the voxel, while the tool is ``piece``

    def __init__(self, viewer: ViewerModel, session: Session, layers: ScanLayers, say: Callable[[str], None]) -> None:
        self._viewer, self._session, self._layers, self._say = viewer, session, layers, say
        #: Tools of this program beside napari's: ``smart`` (a brush) and ``piece`` (which pans but for clicks).
        self._own_tool: str | None = None
        self._is_ball = False
        self._path: list[NDArray] = []
        # A stroke of a brush of this program's that has ended and is about to take the place of napari's.
        self._own_stroke: tuple[ScanState, Any, NDArray, int] | None = None

    # -- the layers -----------------------------------------------------------------------------------------------

    def begin_on(self, layer: Labels) -> None:
        """Take a Labels layer in hand, which has just come, with the brush and the first class."""
        layer.events.mode.connect(self._tool_moved)
        layer.events.selected_label.connect(self._class_chosen)
        layer.events.brush_size.connect(self._brush_resized)
        layer.events.visible.connect(self._shown)
        # First, so that it has seen the whole path when napari tells of the stroke.
        layer.mouse_drag_callbacks.insert(0, self._follow)
        layer.selected_label = self._session.schema.ids[0]
        layer.brush_size = 8
        layer.mode = "paint"

    def let_go_of(self, layer: Labels) -> None:
        """Follow a Labels layer no longer."""
        layer.events.mode.disconnect(self._tool_moved)
        layer.events.selected_label.disconnect(self._class_chosen)
        layer.events.brush_size.disconnect(self._brush_resized)
        layer.events.visible.disconnect(self._shown)
        layer.mouse_drag_callbacks.remove(self._follow)

    def come_over(self) -> None:
        """Tell that it is over another layer now, or over none."""
        self.changed.emit()

    def hand_back(self) -> None:
        """Select the labels of the active scan again, with the tool that was in hand."""
        layer = self._layers.active_labels
        if layer is not None and self._viewer.layers.selection.active is not layer:
            mode, own = layer.mode, self._own_tool
            self._viewer.layers.selection.active = layer
            layer.mode = mode
            self._own_tool = own

    # -- tools ----------------------------------------------------------------------------------------------------

    @property
    def tool(self) -> str:
        """Tool in the hand: ``smart``, ``piece``, or napari's name of the active layer's mode; empty without a scan."""
        layer = self._layers.active_labels
        return "" if layer is None else self._own_tool or str(layer.mode)

    def take(self, tool: str) -> None:
        """Take a tool into the hand; see :attr:`tool`."""
        layer = self._layers.active_labels
        if layer is not None:
            layer.visible = True
            self._own_tool = None
            layer.mode = _MODE_OF.get(tool, tool)
            self._own_tool = tool if tool in _MODE_OF else None
        self.changed.emit()

    @property
    def is_ball(self) -> bool:
        """Whether brush and eraser reach into the slices around."""
        return self._is_ball

    def set_ball(self, on: bool) -> None:
        """Have brush and eraser be balls, or discs again."""
        self._is_ball = on
        self.changed.emit()

    @property
    def brush_mm(self) -> float | None:
        """Diameter of the brush in mm, or in voxels where the spacing is not known; None without a scan."""
        layer = self._layers.active_labels
        return None if layer is None else float(layer.brush_size) * self._brush_unit(layer)

    def set_brush_mm(self, diameter: float) -> None:
        """Change the diameter of the brush."""
        layer = self._layers.active_labels
        if layer is not None:
            layer.brush_size = max(1, round(diameter / self._brush_unit(layer)))

    def _brush_unit(self, layer: Labels) -> float:
        # napari's brush is as wide as so many of the narrower of the voxel's two sides on the screen.
        extra = self._viewer.dims.ndim - layer.ndim
        shown = [axis - extra for axis in self._viewer.dims.displayed[-2:] if axis >= extra]
        return float(min(layer.scale[axis] for axis in shown or range(layer.ndim)))

    def _tool_moved(self, event: Any = None) -> None:
        # By napari's own buttons and keys; of a layer that is hidden napari takes the tool by itself.
        if self._own_tool is not None and event is not None and event.source.visible:
            self._own_tool = self._own_tool if str(event.mode) == _MODE_OF[self._own_tool] else None
        self.changed.emit()

    def _shown(self, event: Any) -> None:
        """Give the tool back to a layer that was hidden for a while."""
        layer: Any = event.source
        if self._own_tool is not None and layer.visible and layer == self._layers.active_labels:
            layer.mode = _MODE_OF[self._own_tool]

    def _brush_resized(self, event: object = None) -> None:
        self.changed.emit()

    def _class_chosen(self, event: Any) -> None:
        layer, ids = event.source, self._session.schema.ids
        if layer.selected_label not in (0, *ids):
            # napari offers any number; a label without a class could neither be learnt nor exported.
            self._say(f"There is no class {layer.selected_label}: add one with Classes... first.")
            layer.selected_label = ids[-1]
        self.changed.emit()

    # -- strokes --------------------------------------------------------------------------------------------------

    @property
    def drawing(self) -> bool:
        """Whether a stroke is under way: until it ends, nothing may write into the layer."""
        return any(layer._block_history for layer in self._layers.all_labels)

    def undo(self) -> None:
        """Take back the last step on the active scan; not while the mouse draws."""
        if self._session.active is not None and not self.drawing:
            self._session.undo(self._session.active)

    def redo(self) -> None:
        """Do the last undone step on the active scan again; not while the mouse draws."""
        if self._session.active is not None and not self.drawing:
            self._session.redo(self._session.active)

    def finish_polygon(self) -> bool:
        """Paint the polygon that is being drawn; returns whether there was one."""
        layer = self._layers.active_labels
        if layer is None or str(layer.mode) != "polygon" or not layer._overlays["polygon"].points:
            return False
        layer._overlays["polygon"].add_polygon_to_labels(layer)
        return True

    def is_about_to_paint(self, layer: Labels) -> bool:
        """Return whether a stroke of its own is about to take the place of what napari has painted on a layer."""
        return self._own_stroke is not None and self._own_stroke[1] is layer

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
        state = self._layers.painted_on(layer)
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

    def _paint_own(self) -> None:
        """Carry out the stroke of a brush of this program's."""
        if self._own_stroke is None:
            return
        (state, layer, path, value), self._own_stroke = self._own_stroke, None
        if self._layers.labels(state) != layer:
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
