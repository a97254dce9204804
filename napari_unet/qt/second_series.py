"""Another series of the same patient over the active scan, only to be looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image
from numpy.typing import NDArray
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFileDialog, QWidget

from napari_unet.domain.errors import ScanError, SessionError
from napari_unet.domain.scan import Scan
from napari_unet.io.alignment import has_same_grid, resample_planes, voxel_to_voxel
from napari_unet.qt.choosing import read_asking
from napari_unet.qt.layer_data import OVERLAY_KEY, placement, whole_window
from napari_unet.session.session import Session
from napari_unet.session.state import ScanState

_SAID = "The second series lies over {name} where its file places it: the two were not registered."


class SecondSeries:
    """Lays further series over scans, and takes them away with their scans.

    Parameters
    ----------
    viewer : ViewerModel
    session : Session
    hand_back : callable
        Selects the labels again.
    guard : callable
        Makes of an action one that says its error.
    say : callable
        Shows one sentence.
    """

    def __init__(
        self,
        viewer: ViewerModel,
        session: Session,
        hand_back: Callable[[], None],
        guard: Callable[[Callable[..., Any]], Callable[..., None]],
        say: Callable[[str], None],
    ) -> None:
        self._viewer, self._session, self._hand_back = viewer, session, hand_back
        self._guard, self._say = guard, say
        self._layers: dict[ScanState, list[Image]] = {}
        self._work: Iterator[float] | None = None
        self._timer = QTimer()
        self._timer.setInterval(0)
        self._timer.timeout.connect(guard(self._go_on))
        session.active_changed.connect(self._show_active)
        session.scan_removed.connect(self._remove)
        viewer.layers.events.removed.connect(self._removed)

    def close(self) -> None:
        """Let go of the viewer; the layers stay to be looked at."""
        self._timer.stop()
        self._viewer.layers.events.removed.disconnect(self._removed)

    def layers(self, state: ScanState) -> list[Image]:
        """Return the series that lie over a scan."""
        return list(self._layers.get(state, []))

    @property
    def is_busy(self) -> bool:
        """Whether a series is being brought onto the scan's grid."""
        return self._work is not None

    def ask_for_file(self, parent: QWidget) -> None:
        """Ask for a file and lay it over the active scan."""
        chosen, _ = QFileDialog.getOpenFileName(parent, "A second series of the same patient")
        if chosen:
            self.open(Path(chosen))

    def ask_for_folder(self, parent: QWidget) -> None:
        """Ask for a folder of DICOM files and lay it over the active scan."""
        chosen = QFileDialog.getExistingDirectory(parent, "The folder of a second series of the same patient")
        if chosen:
            self.open(Path(chosen))

    def open(self, path: Path) -> None:
        """Read a series and lay it over the active scan; what is wrong is said."""

        def read_and_overlay() -> None:
            state = self._require_scan()
            scan = read_asking(path)
            if scan is not None:
                self.overlay(state, scan)

        self._guard(read_and_overlay)()

    def overlay(self, state: ScanState, scan: Scan) -> None:
        """Lay a series over a scan; on another grid it is brought onto the scan's, some planes at a time.

        Raises
        ------
        ScanError
            Either is no volume of single intensities, stands nowhere that is known, or is somewhere else.
        SessionError
            Another series is still being brought here.
        """
        if self._work is not None:
            raise SessionError("A second series is being laid over a scan: wait for it first.")
        if len(state.scan.spatial_shape) != 3 or len(scan.spatial_shape) != 3:
            raise ScanError("Only volumes can be laid over each other: this is a single picture.")
        if scan.has_channels or scan.is_lazy:
            raise ScanError("A second series has one intensity for each voxel and fits in memory: choose another one.")
        voxel_to_voxel(state.scan, scan)
        if has_same_grid(state.scan, scan):
            self._add(state, scan.data, scan)
            return
        self._say("Bringing the second series onto the grid of this scan...")
        self._work = self._resample(state, scan)
        self._timer.start()

    def _resample(self, state: ScanState, scan: Scan) -> Iterator[float]:
        # The window lives on between the planes; the layer comes when it is whole.
        out = np.zeros(state.scan.spatial_shape, np.float32)
        yield from resample_planes(state.scan, scan, out)
        if state in self._session.scans:
            self._add(state, out, scan)

    def _go_on(self) -> None:
        try:
            assert self._work is not None
            next(self._work)
        except BaseException as end:
            self._timer.stop()
            self._work = None
            if not isinstance(end, StopIteration):
                raise

    def _add(self, state: ScanState, data: NDArray, scan: Scan) -> None:
        layer = Image(
            data,
            name=f"{state.name} second series",
            metadata={OVERLAY_KEY: True},
            opacity=0.4,
            colormap="inferno",
            # What it does not reach stays as it is.
            blending="additive",
            contrast_limits=scan.window or whole_window(scan),
            visible=state is self._session.active,
            **placement(state.scan),
        )
        self._layers.setdefault(state, []).append(layer)
        self._viewer.add_layer(layer)
        below = next((i for i, each in enumerate(self._viewer.layers) if each.name == f"{state.name} labels"), None)
        if below is not None:
            self._viewer.layers.move(len(self._viewer.layers) - 1, below)
        QTimer.singleShot(0, self._hand_back)
        self._say(_SAID.format(name=state.name))

    def _require_scan(self) -> ScanState:
        state = self._session.active
        if state is None:
            raise SessionError("No scan is open: open the one that is segmented first.")
        return state

    def _show_active(self) -> None:
        for state, layers in self._layers.items():
            for layer in layers:
                if layer.visible != (state is self._session.active):
                    layer.visible = state is self._session.active

    def _remove(self, state: ScanState) -> None:
        for layer in self._layers.pop(state, []):
            if layer in self._viewer.layers:
                self._viewer.layers.remove(layer)

    def _removed(self, event: Any) -> None:
        """The person may remove them."""
        self._layers = {
            state: [each for each in layers if each is not event.value] for state, layers in self._layers.items()
        }
