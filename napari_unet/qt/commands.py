"""The commands of napari's palette and menus: each does an action of the Annotate dock, which is opened if need be."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import napari

from napari_unet.domain.errors import SessionError

if TYPE_CHECKING:
    from napari_unet.qt.annotate import AnnotateWidget


def annotate_dock() -> AnnotateWidget:
    """Return the Annotate dock of the current viewer, in sight; opened if it is not.

    Raises
    ------
    SessionError
        There is no window.
    """
    viewer = napari.current_viewer()
    if viewer is None:
        raise SessionError("There is no napari window: open one first.")
    dock, widget = viewer.window.add_plugin_dock_widget("napari-unet", "Annotate")
    dock.show()
    dock.raise_()
    return widget


def _command(action: str) -> Callable[[], None]:
    def run() -> None:
        annotate_dock().actions.run(action)

    return run


propose = _command("propose")
fine_tune = _command("fine_tune")
accept_slice = _command("accept_slice")
accept_scan = _command("accept_scan")
next_to_check = _command("next_to_check")
blink = _command("blink")
undo = _command("undo")
redo = _command("redo")
tools = _command("tools")
clean_up = _command("clean_up")
classes = _command("classes")
keys = _command("keys")
export_mask = _command("export_mask")
whole_folder = _command("whole_folder")
