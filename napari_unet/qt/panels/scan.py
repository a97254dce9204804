"""What the active scan is, what is odd about it, and which intensities are shown."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtWidgets import QComboBox, QLabel

from napari_unet.qt.layer_data import CT_WINDOWS, whole_window
from napari_unet.qt.looks import look_like
from napari_unet.qt.panels.parts import Calm, Panel, button, line
from napari_unet.qt.scan_layers import ScanLayers
from napari_unet.session.session import Session

_EMPTY = "Drop a scan onto the window, or choose File > Open Sample > U-Net."


class ScanPanel(Panel):
    """One line about the scan, one for each warning, the windows of CT, and what else can be looked at."""

    def __init__(
        self, session: Session, layers: ScanLayers, open_views: Callable[[], None], open_volumes: Callable[[], None]
    ) -> None:
        super().__init__("Scan")
        self._session, self._layers = session, layers
        self._about = line(_EMPTY, "Scan")
        self._warnings = line("", "Warnings about the scan")
        look_like(self._warnings, "warning")
        self.body.addWidget(self._about)
        self.body.addWidget(self._warnings)
        self.window_choice = QComboBox()
        self.window_choice.setAccessibleName("Intensity window")
        self.window_choice.setToolTip("Which intensities are shown, from black to white.")
        Calm(self.window_choice)
        self._window_label = QLabel("Window")
        self.row(self._window_label, self.window_choice).setStretch(1, 1)
        self.window_choice.activated.connect(self._choose_window)
        self.views = button("Views...", "The other planes of the scan beside this one.", open_views)
        self.volumes = button("Volumes...", "How large each class is, and the labels in 3D.", open_volumes)
        self.row(self.views, self.volumes)
        session.active_changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Show the active scan."""
        state = self._session.active
        self._show_windows()
        if state is None:
            self._about.setText(_EMPTY)
            self._warnings.hide()
            return
        scan = state.scan
        parts = [state.name, " x ".join(str(n) for n in scan.spatial_shape[::-1])]
        if scan.geometry.spacing is not None:
            parts.append(" x ".join(f"{s:.3g}" for s in scan.geometry.spacing[::-1]) + " mm")
        else:
            parts.append("pixels (size unknown)")
        if scan.modality:
            parts.append(scan.modality)
        self._about.setText("  ·  ".join(parts))
        self._warnings.setText("\n".join(f"! {warning}" for warning in scan.warnings))
        self._warnings.setVisible(bool(scan.warnings))

    def _show_windows(self) -> None:
        state = self._session.active
        layer = self._layers.image(state) if state is not None else None
        is_ct = state is not None and layer is not None and state.scan.modality == "CT"
        self._window_label.setVisible(is_ct)
        self.window_choice.setVisible(is_ct)
        self.window_choice.clear()
        if state is None or layer is None or not is_ct:
            return
        if state.scan.window is not None:
            self.window_choice.addItem("as stored", state.scan.window)
        for name, window in CT_WINDOWS.items():
            self.window_choice.addItem(f"{name}  ({window[0]:g} to {window[1]:g} HU)", window)
        self.window_choice.addItem("everything", None)
        places = [i for i in range(self.window_choice.count()) if self._window_at(i) == tuple(layer.contrast_limits)]
        self.window_choice.setCurrentIndex(places[0] if places else self.window_choice.count() - 1)

    def _window_at(self, index: int) -> tuple[float, float] | None:
        stored = self.window_choice.itemData(index)
        return None if stored is None else (float(stored[0]), float(stored[1]))

    def _choose_window(self, index: int) -> None:
        state = self._session.active
        layer = self._layers.image(state) if state is not None else None
        if state is not None and layer is not None:
            layer.contrast_limits = self._window_at(index) or whole_window(state.scan)
