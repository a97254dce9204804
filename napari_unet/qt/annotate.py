"""The Annotate dock: puts the session, the layers and the panels together. It decides nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Image
from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtWidgets import QApplication, QFrame, QLabel, QMainWindow, QScrollArea, QVBoxLayout, QWidget

from napari_unet.compute.engine import Engine
from napari_unet.domain.progress import Notice
from napari_unet.domain.scan import Scan
from napari_unet.qt.bridge import Bridge, guarded
from napari_unet.qt.choosing import read_asking
from napari_unet.qt.drops import DropOpener
from napari_unet.qt.layer_data import image_arguments, picture
from napari_unet.qt.layers import LayerBinder
from napari_unet.qt.overlays import Overlays
from napari_unet.qt.panels.correct import CorrectPanel
from napari_unet.qt.panels.finish import FinishPanel
from napari_unet.qt.panels.improve import ImprovePanel
from napari_unet.qt.panels.parts import line
from napari_unet.qt.panels.propose import ProposePanel
from napari_unet.qt.panels.scan import ScanPanel
from napari_unet.session.log import log_to_file
from napari_unet.session.models import find_model
from napari_unet.session.session import Session
from napari_unet.storage.project_folder import default_project

if TYPE_CHECKING:
    from napari import Viewer

_WARM_UP_AFTER_MS = 150


class AnnotateWidget(QWidget):
    """The journey from scan to mask, in one dock.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        Given by napari, which knows this name.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        log_to_file()
        self.setObjectName("napari-unet-annotate")
        self._closed = False
        self._window: QMainWindow | None = None
        viewer = napari_viewer
        self.session = Session(Engine(wake=self._wake), default_project())
        self._keys: dict[str, Callable[[], None]] = {
            "P": self._guard(self.session.propose),
            "F": self._guard(lambda: self.improve.start()),
            "Enter": self._guard(self._enter),
            "Control-Z": self._guard(lambda: self.binder.undo()),
            "Control-Shift-Z": self._guard(lambda: self.binder.redo()),
        }
        self._viewer = viewer
        self._notice = line("", "Messages")
        self.binder = LayerBinder(viewer, self.session, self.say, self._keys)
        self.overlays = Overlays(viewer, self.session, self.binder.hand_back)
        self._bridge = Bridge(self, self.session.poll, lambda: self.binder.drawing)
        self._drops = DropOpener(self, self.open_path)
        self.scan = ScanPanel(self.session, self.binder)
        self.propose = ProposePanel(self.session, self._guard)
        self.correct = CorrectPanel(self.session, self.binder, self._guard, self._go_to)
        self.improve = ImprovePanel(self.session, self._guard)
        self.finish = FinishPanel(self.session, self._guard, self.say)
        self._lay_out()
        self.session.notified.connect(self._show_notice)
        for key, action in self._keys.items():
            viewer.bind_key(key, lambda _, act=action: act(), overwrite=True)
        viewer.dims.events.current_step.connect(self._slice_moved)
        application = QApplication.instance()
        assert application is not None
        application.aboutToQuit.connect(self.shut_down)
        # The window comes first: what the engine imports, in a thread of this process, would hold it up.
        QTimer.singleShot(_WARM_UP_AFTER_MS, self._warm_up)

    def say(self, message: str) -> None:
        """Show one sentence to the person."""
        self._notice.setText(message)
        self._notice.show()

    def open_path(self, path: Path) -> None:
        """Open a scan, asking what its source leaves open; what is wrong is said in the dock."""

        def read_and_show() -> None:
            scan = read_asking(path)
            if scan is not None:
                self.show_scan(scan)

        self._guard(read_and_show)()

    def show_scan(self, scan: Scan) -> None:
        """Show a scan; one that cannot be worked on is there to be looked at, and the dock says why."""
        self._viewer.add_layer(Image(picture(scan), **image_arguments(scan, "scan")))

    def shut_down(self) -> None:
        """Stop the work and save what is unsaved; called when dock or window closes, and safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._bridge.close()
        self._drops.close()
        self.overlays.close()
        self.binder.close()
        self.improve.close_settings()
        self.correct.close_dialogs()
        self.propose.close_dialog()
        self._viewer.dims.events.current_step.disconnect(self._slice_moved)
        for key in self._keys:
            self._viewer.bind_key(key, None)
        if self._window is not None:
            self._window.removeEventFilter(self)
            self._window = None
        self.session.close()

    def eventFilter(self, watched: Any, event: QEvent) -> bool:
        """Shut down once napari's window has closed: napari does not tell its docks, and may ask the person first."""
        if event.type() == QEvent.Type.Hide and not event.spontaneous():
            self.shut_down()
        return False

    def event(self, event: QEvent) -> bool:
        """Shut down when the dock is closed by its cross: napari then takes the dock's widget out and keeps it."""
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self.shut_down()
        return super().event(event)

    def showEvent(self, event: Any) -> None:
        """Watch the window that the dock has come into."""
        super().showEvent(event)
        parent = self.parent()
        while parent is not None and not isinstance(parent, QMainWindow):
            parent = parent.parent()
        if parent is not None and parent is not self._window:
            self._window = parent
            parent.installEventFilter(self)
            self._drops.watch(parent)

    def closeEvent(self, event: Any) -> None:
        """Shut down with the dock."""
        self.shut_down()
        super().closeEvent(event)

    def _warm_up(self) -> None:
        if not self._closed:
            self.session.start()
            if self.session.model is None:
                self._guard(lambda: self.session.begin_anew(find_model(None)))()

    def _wake(self) -> None:
        bridge = getattr(self, "_bridge", None)
        if bridge is not None:
            bridge.wake()

    def _guard(self, action: Callable[..., Any]) -> Callable[..., None]:
        return guarded(self.say, action)

    def _show_notice(self, notice: Notice) -> None:
        self.say(notice.message)

    def _enter(self) -> None:
        if not self.binder.finish_polygon():
            self.correct.accept_visible()

    def _slice_moved(self, event: object = None) -> None:
        self.correct.ribbon.update()

    def _go_to(self, index: int) -> None:
        state = self.session.active
        if state is not None and state.scan.slice_axis is not None:
            offset = self._viewer.dims.ndim - 3
            layer = self.binder.image_layer(state)
            if layer is None:
                return
            point = [0.0] * 3
            point[state.scan.slice_axis] = index
            world = layer.data_to_world(point)[state.scan.slice_axis]
            self._viewer.dims.set_point(offset + state.scan.slice_axis, world)

    def _lay_out(self) -> None:
        content = QWidget()
        column = QVBoxLayout(content)
        column.setContentsMargins(4, 4, 4, 4)
        column.setSpacing(6)
        self._notice.setStyleSheet("background: #2d4a5e; color: white; padding: 5px; border-radius: 3px;")
        self._notice.hide()
        for widget in (self._notice, self.scan, self.propose, self.correct, self.improve, self.finish):
            column.addWidget(widget)
        caution = QLabel("For research use only.")
        caution.setStyleSheet("color: gray;")
        column.addWidget(caution)
        column.addStretch(1)
        scroll = QScrollArea()
        scroll.setWidget(content)
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(scroll)
        self.setMinimumWidth(340)
