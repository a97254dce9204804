"""Layers over a scan that are only looked at: how unsure the model is, what would change, where readers differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from napari.utils.colormaps import Colormap
from numpy.typing import NDArray
from qtpy.QtCore import QTimer

from napari_unet.qt.layer_data import OVERLAY_KEY, SCAN_KEY, label_colours, placement
from napari_unet.session.session import Session
from napari_unet.session.state import ScanState

# Its opacity is the uncertainty.
_UNSURE = Colormap([[1.0, 0.6, 0.0, 0.0], [1.0, 0.6, 0.0, 1.0]], name="unsure")
# Of a preview: nothing, taken away, put there. Blue and orange differ for everybody, and in brightness too.
_CHANGE = Colormap(
    [[0.0, 0.0, 0.0, 0.0], [1.0, 0.45, 0.0, 1.0], [0.2, 0.7, 1.0, 1.0]],
    controls=[0.0, 0.25, 0.75, 1.0],
    interpolation="zero",
    name="preview",
)
_DIFFERENCE = Colormap([[0.0, 0.0, 0.0, 0.0], [1.0, 0.1, 0.6, 1.0]], name="differences")


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
        self._compared: list[Layer] = []
        self._others: NDArray | None = None  # what the first of them shows
        self._hidden: Labels | None = None  # one's own labels, while the others are shown alone
        # Those of a dock that was closed: nobody keeps them any more.
        for layer in [each for each in viewer.layers if OVERLAY_KEY in each.metadata]:
            viewer.layers.remove(layer)
        session.proposals.uncertainty_changed.connect(self._show_uncertainty)
        session.clean_up.changed.connect(self._show_preview)
        session.tools.changed.connect(self._show_preview)
        session.comparison.changed.connect(self._show_comparison)
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
        """The layer of what was previewed, if there is one."""
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

    def _show_preview(self) -> None:
        if self._change is not None:
            layer, self._change = self._change, None
            self._viewer.layers.remove(layer)
        preview = self._session.clean_up.preview or self._session.tools.preview
        if preview is None:
            return
        state, change = preview
        if len(change):
            shown = np.zeros(state.scan.spatial_shape, np.uint8)
            shown.flat[change.indices] = np.where(change.after == 0, 1, 2)
            options = {"colormap": _CHANGE, "contrast_limits": (0, 2), "interpolation2d": "nearest"}
            self._change = self._add(state, shown, "preview", **options)

    def _show_comparison(self) -> None:
        """Show the other labels as outlines, and where they differ as a shade."""
        comparison = self._session.comparison
        state, others = comparison.state, comparison.others
        if state is None or others is None:
            compared, self._compared = self._compared, []
            if self._hidden is not None:
                self._hidden.visible, self._hidden = True, None
            for layer in [each for each in compared if each in self._viewer.layers]:
                self._viewer.layers.remove(layer)
            self._hand_back()
            return
        differing = comparison.differences().view(np.uint8)
        if self._compared and self._others is others:
            self._compared[1].data = differing
            return
        stale, self._compared, self._others = self._compared, [], others
        for layer in [each for each in stale if each in self._viewer.layers]:
            self._viewer.layers.remove(layer)
        outlines = Labels(
            others.view(np.uint8) if others.dtype == bool else others,
            name=f"{state.name} other labels",
            colormap=label_colours(self._session.schema),
            metadata={OVERLAY_KEY: True},
            **placement(state.scan),
        )
        outlines.contour = 2
        outlines.editable = False
        self._viewer.add_layer(outlines)
        shade = self._add(
            state,
            differing,
            "differences",
            colormap=_DIFFERENCE,
            contrast_limits=(0, 1),
            interpolation2d="nearest",
            opacity=0.6,
        )
        self._compared = [outlines, shade]

    def blink(self) -> None:
        """Show the other labels alone, or one's own again; without a comparison, those from before the proposal."""
        comparison = self._session.comparison
        if comparison.state is None:
            self._session.comparison.with_before()
        if not self._compared:
            return
        own, others = self._own(), self._compared[0]
        assert isinstance(others, Labels)
        showing_others = own is not None and not own.visible
        if own is not None:
            own.visible = showing_others
            self._hidden = None if showing_others else own
        others.contour = 2 if showing_others else 0
        self._compared[1].visible = showing_others

    def _own(self) -> Labels | None:
        state = self._session.comparison.state
        known = self._viewer.layers
        return next((each for each in known if isinstance(each, Labels) and _shows(each, state)), None)

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
        if event.value in self._compared:
            # Without one of the two the other says little.
            self._compared = [each for each in self._compared if each is not event.value]
            self._session.comparison.end()


def _shows(layer: Labels, state: ScanState | None) -> bool:
    """Return whether a layer is the one that a scan is painted on."""
    return state is not None and layer.metadata.get(SCAN_KEY) is state.scan
