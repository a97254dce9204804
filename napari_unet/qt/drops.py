"""Scans dropped onto the window are opened by this plugin, without napari's question which of its readers to use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtGui import QDropEvent, QGuiApplication
from qtpy.QtWidgets import QMainWindow, QWidget

from napari_unet.io.registry import can_read


class DropOpener(QObject):
    """Watches for drops while the dock is open.

    Parameters
    ----------
    parent : QObject
        Keeps this alive.
    open_path : callable
        Opens one scan and says what goes wrong.
    """

    def __init__(self, parent: QObject, open_path: Callable[[Path], None]) -> None:
        super().__init__(parent)
        self._open = open_path
        self._closed = False

    def watch(self, window: QMainWindow) -> None:
        """Watch everything in the middle of the window that takes drops."""
        middle = window.centralWidget()
        if middle is not None:
            for widget in (middle, *middle.findChildren(QWidget)):
                if widget.acceptDrops():
                    widget.installEventFilter(self)

    def close(self) -> None:
        """Leave drops to napari again."""
        self._closed = True

    def eventFilter(self, watched: Any, event: QEvent) -> bool:
        """Open what was dropped if all of it is ours; with Alt (choose a reader) or Shift (stack) napari does."""
        if self._closed or event.type() != QEvent.Type.Drop:
            return False
        if QGuiApplication.keyboardModifiers() & (Qt.KeyboardModifier.AltModifier | Qt.KeyboardModifier.ShiftModifier):
            return False
        assert isinstance(event, QDropEvent)
        data = event.mimeData()
        urls = data.urls() if data is not None else []
        # Through Path: a folder comes with a slash at its end.
        paths = [str(Path(url.toLocalFile())) for url in urls if url.isLocalFile()]
        if not paths or len(paths) < len(urls) or not all(can_read(path) for path in paths):
            return False
        event.acceptProposedAction()
        for path in paths:
            self._open(Path(path))
        return True
