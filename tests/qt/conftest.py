"""A real window with the Annotate dock, and a hand that uses mouse and keys."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# The person's own napari settings are neither read nor written.
os.environ.setdefault("NAPARI_CONFIG", "")

from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QWidget

from napari_unet.domain.geometry import Geometry
from napari_unet.domain.progress import Notice
from napari_unet.domain.scan import Scan
from napari_unet.qt.annotate import AnnotateWidget
from napari_unet.session.session import Session
from napari_unet.storage.project_folder import PROJECT_VARIABLE

_seeds = itertools.count()


def make_scan(shape: tuple[int, ...] = (6, 40, 48), slice_axis: int | None = 0) -> Scan:
    """Return a scan of noise with a bright ball, or disc in 2D; another one at each call."""
    # Labels of a scan that was open before come back by the hash of its voxels.
    random = np.random.default_rng(next(_seeds))
    grid = np.indices(shape)
    middle = [(n - 1) / 2 for n in shape]
    inside = sum(((axis - m) / (n / 3)) ** 2 for axis, m, n in zip(grid, middle, shape, strict=True)) < 1
    data = (random.normal(0, 15, shape) + 100 * inside).astype(np.float32)
    return Scan(data, "zyx"[-len(shape) :], Geometry((2.0,) * len(shape)), slice_axis=slice_axis)


class Desk:
    """Viewer, dock and session, with the mouse and the keyboard in front of them."""

    def __init__(self, viewer: Any, widget: AnnotateWidget, qtbot: Any) -> None:
        self.viewer, self.widget, self.qtbot = viewer, widget, qtbot
        self.notices: list[str] = []
        widget.session.notified.connect(self.hear)

    def hear(self, notice: Notice) -> None:
        """Keep what the session says."""
        self.notices.append(notice.message)

    @property
    def session(self) -> Session:
        """What the window shows."""
        return self.widget.session

    @property
    def canvas(self) -> QWidget:
        """The widget that is painted on."""
        return self.viewer.window._qt_viewer.canvas.native

    @property
    def layer(self) -> Any:
        """Labels layer of the active scan."""
        return self.widget.layers.active_labels

    @property
    def said(self) -> str:
        """The sentence in the dock."""
        return self.widget._notice.text() if self.widget._notice.isVisible() else ""

    def spin(self, times: int = 5) -> None:
        """Let the event loop work off what waits."""
        for _ in range(times):
            QApplication.processEvents()

    def open(self, scan: Scan) -> None:
        """Show a scan and let the canvas draw it."""
        self.session.add_scan(scan)
        self.settle()

    def settle(self) -> None:
        """Wait until the canvas has been drawn with its present camera."""
        self.qtbot.wait(120)

    def at(self, index: Sequence[float]) -> QPoint:
        """Return where on the canvas a voxel of the active scan lies."""
        view = self.viewer.window._qt_viewer.canvas.view
        world = self.layer.data_to_world(index)
        extra = self.viewer.dims.ndim - len(world)
        shown = [world[axis - extra] for axis in self.viewer.dims.displayed][::-1]
        x, y = (view.transform * view.scene.transform).map(shown)[:2]
        return QPoint(round(x), round(y))

    def press(self, index: Sequence[float]) -> None:
        """Press the left button over a voxel."""
        QTest.mousePress(self.canvas, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, self.at(index))
        self.spin()

    def move(self, index: Sequence[float]) -> None:
        """Move over a voxel; napari takes in one move in five milliseconds."""
        # QTest.mouseMove carries no buttons, so that napari would not know of a drag.
        from qtpy.QtCore import QEvent, QPointF
        from qtpy.QtGui import QMouseEvent

        point = QPointF(self.at(index))
        left = Qt.MouseButton.LeftButton
        event = QMouseEvent(QEvent.Type.MouseMove, point, Qt.MouseButton.NoButton, left, Qt.KeyboardModifier.NoModifier)
        QApplication.sendEvent(self.canvas, event)
        self.qtbot.wait(15)

    def release(self, index: Sequence[float]) -> None:
        """Let the button go over a voxel."""
        QTest.mouseRelease(self.canvas, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, self.at(index))
        self.spin()

    def drag(self, *path: Sequence[float]) -> None:
        """Draw a stroke through voxels."""
        self.press(path[0])
        for index in path[1:]:
            self.move(index)
        self.release(path[-1])

    def click(self, index: Sequence[float]) -> None:
        """Press and let go."""
        self.press(index)
        self.release(index)
        # Two clicks within this time would be a double click.
        self.qtbot.wait(QApplication.doubleClickInterval() + 20)

    def key(self, key: Any, modifier: Any = Qt.KeyboardModifier.NoModifier) -> None:
        """Press a key while the canvas has the focus."""
        self.canvas.setFocus()
        QTest.keyClick(self.canvas, key, modifier)
        self.spin()

    def push(self, button: QWidget) -> None:
        """Click on a button."""
        QTest.mouseClick(button, Qt.MouseButton.LeftButton)
        self.spin()

    def until(self, true: Callable[[], bool], seconds: float = 60) -> None:
        """Wait for something."""
        self.qtbot.waitUntil(true, timeout=round(1000 * seconds))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_napari_viewer: Any, qtbot: Any) -> Iterator[Desk]:
    """A window of this test alone, whose leaks napari's fixture looks for.

    One window for several tests would be quicker, but Mesa 22's software renderer crashes when it draws after a layer
    with a geometry shader has been removed (napari by itself does it too), so tests that remove layers hide the canvas.
    """
    monkeypatch.setenv(PROJECT_VARIABLE, str(tmp_path / "project"))
    viewer = make_napari_viewer(show=True)
    viewer.window.resize(1100, 700)
    _, widget = viewer.window.add_plugin_dock_widget("napari-unet", "Annotate")
    made = Desk(viewer, widget, qtbot)
    made.settle()
    yield made
    widget.shut_down()
