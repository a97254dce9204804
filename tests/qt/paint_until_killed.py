"""A window in which strokes are painted with the mouse until the program is killed; each is told when it is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import napari
from qtpy.QtTest import QTest

from tests.qt.conftest import Desk
from tests.session.test_autosave import scan_of

#: Of the scan that is painted on.
SHAPE = (6, 60, 72)


class Patience:
    """What a desk wants of pytest-qt."""

    def wait(self, milliseconds: int) -> None:
        """Let the window work."""
        QTest.qWait(milliseconds)

    def waitUntil(self, true: Callable[[], bool], timeout: int) -> None:
        """Let the window work until something is so."""
        QTest.qWaitFor(true, timeout)


def main() -> None:
    """Paint line below line, slice after slice."""
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1100, 700)
    _, widget = viewer.window.add_plugin_dock_widget("napari-unet", "Annotate")
    desk = Desk(viewer, widget, Patience())
    desk.open(scan_of(SHAPE))
    desk.layer.brush_size = 3
    state = desk.session.active
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    while True:
        for index in range(SHAPE[0]):
            viewer.dims.set_point(0, index)
            desk.settle()
            for row in range(4, SHAPE[1] - 4, 4):
                desk.drag((index, row, 5), (index, row, 20), (index, row, 40))
                sys.stdout.write(f"{int(state.annotation.painted.sum())} {time.time()}\n")
                sys.stdout.flush()
        desk.session.undo(state)


if __name__ == "__main__":
    main()
