"""Layers over a scan that are only looked at: how unsure the model is, and what a clean-up would change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image
from napari.utils.colormaps import Colormap
from numpy.typing import NDArray
from qtpy.QtCore import QTimer

from napari_unet.qt.layer_data import OVERLAY_KEY, placement
from napari_unet.session.session import Session
from napari_unet.session.state import ScanState

# Its opacity is the uncertainty.
_UNSURE = Colormap([[1.0, 0.6, 0.0, 0.0], [1.0, 0.6, 0.0, 1.0]], name="unsure")
# Of a clean-up: nothing, taken away, put there. Blue and orange differ for everybody, and in brightness too.
_CHANGE = Colormap(
    [[0.0, 0.0, 0.0, 0.0], [1.0, 0.45, 0.0, 1.0], [0.2, 0.7, 1.0, 1.0]],
    controls=[0.0, 0.25, 0.75, 1.0],
    interpolation="zero",
    name="clean-up",
)


class Overlays:
    """Keeps these layers as the session has them.

    Parameters
    ----------
    viewer : ViewerModel
    session : Session
    hand_back : callable
        Selects the labels again: napari selects what was added last, and the brush would be gone.
    """

    def __init__(self, viewer: ViewerModel, session: Session, hand_back: Callable[[], None]) -> None:
        self._viewer, self._session, self._hand_back = viewer, session, hand_back
        self._unsure: dict[ScanState, Image] = {}
        self._change: Image | None = None
        # Those of a dock that was closed: nobody keeps them any more.
        for layer in [each for each in viewer.layers if OVERLAY_KEY in each.metadata]:
            viewer.layers.remove(layer)
        session.uncertainty_changed.connect(self._show_uncertainty)
        session.clean_up_changed.connect(self._show_clean_up)
        session.active_changed.connect(self._show_active)
        session.scan_removed.connect(self._remove)
        viewer.layers.events.removed.connect(self._removed)

    def close(self) -> None:
        """Let go of the viewer; the layers stay to be looked at."""
        self._viewer.layers.events.removed.disconnect(self._removed)

    def uncertainty_layer(self, state: ScanState) -> Image | None:
        """Return the uncertainty layer of a scan, if there is one."""
        return self._unsure.get(state)

    @property
    def preview_layer(self) -> Image | None:
        """The layer of a clean-up that was previewed, if there is one."""
        return self._change

    def _show_uncertainty(self, state: ScanState) -> None:
        layer = self._unsure.get(state)
        if layer is not None:
            if layer.visible:
                layer.refresh()
            return
        assert state.uncertainty is not None
        self._unsure[state] = self._add(
            state,
            state.uncertainty,
            "uncertainty",
            colormap=_UNSURE,
            contrast_limits=(0, 255),
            visible=False,
        )

    def _show_clean_up(self) -> None:
        if self._change is not None:
            layer, self._change = self._change, None
            self._viewer.layers.remove(layer)
        if self._session.clean_up.preview is None:
            return
        state, change = self._session.clean_up.preview
        if len(change):
            shown = np.zeros(state.scan.spatial_shape, np.uint8)
            shown.flat[change.indices] = np.where(change.after == 0, 1, 2)
            options = {"colormap": _CHANGE, "contrast_limits": (0, 2), "interpolation2d": "nearest"}
            self._change = self._add(state, shown, "clean-up preview", **options)

    def _add(self, state: ScanState, data: NDArray, what: str, **options: Any) -> Image:
        layer = Image(
            data,
            name=f"{state.name} {what}",
            blending="translucent",
            metadata={OVERLAY_KEY: True},
            **placement(state.scan),
            **options,
        )
        self._viewer.add_layer(layer)
        QTimer.singleShot(0, self._hand_back)
        return layer

    def _show_active(self) -> None:
        for state, layer in self._unsure.items():
            if state is not self._session.active:
                layer.visible = False

    def _remove(self, state: ScanState) -> None:
        layer = self._unsure.pop(state, None)
        if layer is not None and layer in self._viewer.layers:
            self._viewer.layers.remove(layer)

    def _removed(self, event: Any) -> None:
        """The person may remove them; the next proposal or preview brings them back."""
        self._unsure = {state: layer for state, layer in self._unsure.items() if layer is not event.value}
        if self._change is event.value:
            self._change = None
