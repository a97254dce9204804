"""What the active scan is, and what is odd about it."""

from __future__ import annotations

from napari_unet.qt.panels.parts import Panel, line
from napari_unet.session.session import Session

_EMPTY = "Drop a scan onto the window, or choose File > Open Sample > U-Net."


class ScanPanel(Panel):
    """One line about the scan, and one for each warning."""

    def __init__(self, session: Session) -> None:
        super().__init__("Scan")
        self._session = session
        self._about = line(_EMPTY, "Scan")
        self._warnings = line("", "Warnings about the scan")
        self._warnings.setStyleSheet("color: #e69f00;")
        self.body.addWidget(self._about)
        self.body.addWidget(self._warnings)
        session.active_changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Show the active scan."""
        state = self._session.active
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
