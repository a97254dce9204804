"""Which plane and which slice of the active scan is on screen."""

from __future__ import annotations

import numpy as np
from napari.components import ViewerModel

from napari_unet.qt.scan_layers import ScanLayers
from napari_unet.session.session import Session
from napari_unet.session.state import ScanState


class OnScreen:
    """Shows the acquired plane of a scan that comes up, and the slice that is wanted; tells which is looked at.

    Parameters
    ----------
    viewer : ViewerModel
        Whose point, order and camera are the truth.
    session : Session
    layers : ScanLayers
        Know where the scans lie in the viewer's world.
    """

    def __init__(self, viewer: ViewerModel, session: Session, layers: ScanLayers) -> None:
        self._viewer, self._session, self._layers = viewer, session, layers
        self._turned_to: ScanState | None = None
        session.scan_removed.connect(self._forget)
        session.slice_wanted.connect(self.go_to)
        viewer.dims.events.current_step.connect(self._slice_moved)
        viewer.dims.events.order.connect(self._orient)
        viewer.dims.events.ndisplay.connect(self._orient)

    def close(self) -> None:
        """Let go of the viewer."""
        self._viewer.dims.events.current_step.disconnect(self._slice_moved)
        self._viewer.dims.events.order.disconnect(self._orient)
        self._viewer.dims.events.ndisplay.disconnect(self._orient)

    def slice_of(self, state: ScanState) -> int:
        """Return the index, along a scan's slice axis, of the slice on screen."""
        axis = state.scan.slice_axis
        layer = self._layers.labels(state) or self._layers.image(state)
        if axis is None or layer is None:
            return 0
        point = self._viewer.dims.point[-layer.ndim :]
        return int(np.clip(round(layer.world_to_data(point)[axis]), 0, state.scan.n_slices - 1))

    def shows_slices(self, state: ScanState) -> bool:
        """Return whether the acquired plane of a scan is on screen, and not another one or the whole volume."""
        axis, dims = state.scan.slice_axis, self._viewer.dims
        return axis is None or axis + dims.ndim - len(state.scan.spatial_shape) not in dims.displayed

    def go_to(self, index: int) -> None:
        """Show a slice of the active scan."""
        state = self._session.active
        if state is not None and state.scan.slice_axis is not None:
            offset = self._viewer.dims.ndim - 3
            layer = self._layers.image(state)
            if layer is None:
                return
            point = [0.0] * 3
            point[state.scan.slice_axis] = index
            world = layer.data_to_world(point)[state.scan.slice_axis]
            self._viewer.dims.set_point(offset + state.scan.slice_axis, world)

    def begin(self, state: ScanState) -> None:
        """Show the first scan that there is, all of it."""
        self._turn_to(state)
        self._viewer.reset_view()

    def come_to(self, state: ScanState) -> None:
        """Show a scan that has become the active one, or that was before."""
        if state is not self._turned_to:
            self._turn_to(state)
        self._orient()
        self._slice_moved()

    def _turn_to(self, state: ScanState) -> None:
        """Show the acquired plane of a scan, and a slice of it where none is on screen."""
        self._turned_to = state
        axis, layer, dims = state.scan.slice_axis, self._layers.labels(state), self._viewer.dims
        if axis is None or layer is None:
            return
        # The person may have turned the view of one scan; the next one has planes of its own.
        order = (axis, *(i for i in range(3) if i != axis))
        if dims.ndim == 3 and tuple(dims.order) != order:
            dims.order = order
        position, n = layer.world_to_data(dims.point[-layer.ndim :])[axis], state.scan.n_slices
        if not (-0.5 <= position < n - 0.5) or len(self._layers) == 1:
            middle = [size // 2 for size in layer.data.shape]
            dims.set_point(axis, layer.data_to_world(middle)[axis])

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

    def _slice_moved(self, event: object = None) -> None:
        active = self._session.active
        if active is not None:
            self._session.show_slice(self.slice_of(active))

    def _forget(self, state: ScanState) -> None:
        self._turned_to = None if self._turned_to is state else self._turned_to
