"""The Annotate dock: puts the session, the layers and the panels together. It decides nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Image
from napari.settings import get_settings
from psygnal import Signal
from qtpy.QtCore import QEvent, QSize, QTimer
from qtpy.QtWidgets import QApplication, QDialog, QLabel, QMainWindow, QVBoxLayout, QWidget

from napari_unet.compute.engine import Engine
from napari_unet.domain.progress import Notice
from napari_unet.domain.scan import Scan
from napari_unet.qt.actions import Actions
from napari_unet.qt.bridge import Bridge, guarded
from napari_unet.qt.choosing import read_asking
from napari_unet.qt.drops import DropOpener
from napari_unet.qt.hand import Hand
from napari_unet.qt.layer_data import image_arguments, picture
from napari_unet.qt.layers import LayerBinder
from napari_unet.qt.looks import look_like, style_sheet
from napari_unet.qt.on_screen import OnScreen
from napari_unet.qt.overlays import Overlays
from napari_unet.qt.panels.correct import TOOLS, CorrectPanel
from napari_unet.qt.panels.finish import FinishPanel
from napari_unet.qt.panels.guide import Guide
from napari_unet.qt.panels.improve import ImprovePanel
from napari_unet.qt.panels.keys import KeysDialog
from napari_unet.qt.panels.parts import Column, line
from napari_unet.qt.panels.project import ProjectBar
from napari_unet.qt.panels.propose import ProposePanel
from napari_unet.qt.panels.scan import ScanPanel
from napari_unet.qt.panels.volumes import VolumesDialog
from napari_unet.qt.scan_layers import ScanLayers
from napari_unet.qt.second_series import SecondSeries
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

    closing = Signal()

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        log_to_file()
        self.setObjectName("napari-unet-annotate")
        self._closed = False
        self._window: QMainWindow | None = None
        viewer = napari_viewer
        self.session = Session(Engine(wake=self._wake), default_project())
        self.actions = Actions(self._guard)
        self.keys: KeysDialog | None = None
        self._viewer = viewer
        self._notice = line("", "Messages")
        self.layers = ScanLayers(self.session)
        self.on_screen = OnScreen(viewer, self.session, self.layers)
        self.hand = Hand(viewer, self.session, self.layers, self.say)
        self._binder = LayerBinder(
            viewer, self.session, self.layers, self.on_screen, self.hand, self.say, self.actions.bind
        )
        self.overlays = Overlays(viewer, self.session, self.hand.hand_back)
        self.second = SecondSeries(viewer, self.session, self.hand.hand_back, self._guard, self.say)
        self._bridge = Bridge(self, self.session.poll, lambda: self.hand.drawing)
        self._drops = DropOpener(self, self.open_path)
        self.project = ProjectBar(self.session, self._guard, self.say)
        self.guide = Guide(self.session, self._guard)
        self.project.guide_wanted.connect(self.guide.show_again)
        self.volumes = VolumesDialog(self.session, viewer, self.layers, self)
        self.scan = ScanPanel(self.session, self.layers, self._guard(self.open_views), self._guard(self.volumes.show))
        self.propose = ProposePanel(self.session, self._guard)
        self.correct = CorrectPanel(self.session, self.layers, self.on_screen, self.hand, self._guard)
        self.improve = ImprovePanel(self.session, self._guard)
        self.finish = FinishPanel(self.session, self._guard, self.say)
        self._lay_out()
        self.session.notified.connect(self._show_notice)
        self._list_actions()
        viewer.dims.events.current_step.connect(self._slice_moved)
        viewer.events.theme.connect(self._follow_theme)
        get_settings().appearance.events.font_size.connect(self._follow_theme)
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

    def open_keys(self) -> None:
        """Open the list of keys, to change them."""
        if self.keys is None:
            self.keys = KeysDialog(self.actions, self)
        self.keys.show()
        self.keys.raise_()

    def show_scan(self, scan: Scan) -> None:
        """Show a scan; one that cannot be worked on is there to be looked at, and the dock says why."""
        self._viewer.add_layer(Image(picture(scan), **image_arguments(scan, "scan")))

    def open_views(self) -> None:
        """Show the other planes of the scan beside the canvas."""
        dock, _ = self._viewer.window.add_plugin_dock_widget("napari-unet", "Views")
        dock.show()
        dock.raise_()

    def shut_down(self) -> None:
        """Stop the work and save what is unsaved; called when dock or window closes, and safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self.closing.emit()
        self._bridge.close()
        self._drops.close()
        self.overlays.close()
        self.second.close()
        self.volumes.let_go()
        self._binder.close()
        self.on_screen.close()
        self.improve.close_settings()
        self.correct.close_dialogs()
        self.propose.close_dialog()
        self.project.close()
        if self.keys is not None:
            self.keys.close()
        self._viewer.dims.events.current_step.disconnect(self._slice_moved)
        self._viewer.events.theme.disconnect(self._follow_theme)
        get_settings().appearance.events.font_size.disconnect(self._follow_theme)
        self.actions.close()
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
            if self.session.models.in_use is None:
                self._guard(lambda: self.session.models.begin_anew(find_model(None)))()

    def _wake(self) -> None:
        bridge = getattr(self, "_bridge", None)
        if bridge is not None:
            bridge.wake()

    def _guard(self, action: Callable[..., Any]) -> Callable[..., None]:
        return guarded(self.say, action)

    def _show_notice(self, notice: Notice) -> None:
        self.say(notice.message)

    def _enter(self) -> None:
        if not self.hand.finish_polygon():
            self.correct.accept_visible()

    def _list_actions(self) -> None:
        """Say what can be done by keys and commands, and bind the keys."""
        add, session, correct = self.actions.add, self.session, self.correct
        add("propose", "Propose", "P", session.proposals.begin, "Let the model mask the scan.")
        add("fine_tune", "Fine-tune", "F", self.improve.start, "Learn from everything accepted and painted so far.")
        add("accept_slice", "Accept slice", "Enter", self._enter, "End a polygon; else accept the slice, or open it.")
        add("accept_scan", "Accept scan", "", correct.accept_all, "Accept all slices as they stand.")
        add("next_to_check", "Next to check", "N", session.next_to_check, "Go to the slice where a look pays most.")
        add("blink", "Before and after", "B", self.overlays.blink, "Show the labels from before, or those of now.")
        add("undo", "Undo", "Control-Z", self.hand.undo, "Take back the last step.")
        add("redo", "Redo", "Control-Shift-Z", self.hand.redo, "Do it again.")
        for key, (tool, title, tip) in zip("2S143I6", TOOLS, strict=True):
            add(tool, title, key, partial(self.hand.take, tool), tip)
        add("tools", "Tools...", "T", correct.open_tools, "Between slices, grow, threshold, margin, split...")
        add("clean_up", "Clean up...", "", correct.open_clean_up, "Remove islands, fill holes, smooth.")
        add("classes", "Classes...", "", correct.open_classes, "Name the classes, add or remove some.")
        add("keys", "Keys...", "", self.open_keys, "Read and change the keys.")
        add("export_mask", "Export mask...", "", self.finish.ask, "Write the mask where viewers find it in place.")
        add("whole_folder", "Whole folder...", "", self.finish.ask_for_folder, "Mask every scan of a folder.")
        self.actions.bind(self._viewer)
        self.actions.show_on(self)
        self.project.keys_wanted.connect(self.open_keys)

    def _slice_moved(self, event: object = None) -> None:
        self.correct.ribbon.update()

    def _lay_out(self) -> None:
        content = QWidget()
        column = QVBoxLayout(content)
        column.setContentsMargins(4, 4, 4, 4)
        column.setSpacing(6)
        look_like(self._notice, "notice")
        self._notice.hide()
        panels = (self.scan, self.propose, self.correct, self.improve, self.finish)
        for widget in (self.project, self.guide, self._notice, *panels):
            column.addWidget(widget)
        caution = QLabel("For research use only.")
        look_like(caution, "faint")
        column.addWidget(caution)
        column.addStretch(1)
        content.setMinimumWidth(340)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(Column(content))
        self._follow_theme()

    def _follow_theme(self, event: object = None) -> None:
        self.setStyleSheet(style_sheet(self._viewer.theme, get_settings().appearance.font_size))
        QTimer.singleShot(0, self._make_room)

    def _make_room(self) -> None:
        """Give dialogs that are open the size that other letters need."""
        for dialog in self.findChildren(QDialog):
            layout = dialog.layout()
            if not self._closed and layout is not None:
                layout.activate()
                wide = max(dialog.width(), layout.totalMinimumSize().width())
                high = max(layout.totalMinimumSize().height(), layout.totalHeightForWidth(wide))
                dialog.resize(dialog.size().expandedTo(QSize(wide, high)))
