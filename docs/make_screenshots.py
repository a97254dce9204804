"""Makes the pictures of the window in ``docs/images``; run it on a screen (or under Xvfb): ``make screenshots``.

One journey on computed patients, at 1366 x 768, with a project, preferences and readers of its own.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

IMAGES = Path(__file__).parent / "images"
_TRAINING_SECONDS = 60
# A small laptop's; and that of the picture which shows the whole dock.
_SIZE, _TALL = (1366, 768), (1600, 1060)
# napari's own notes and what the panels say in passing are gone by then.
_REST_SECONDS = 12


class Camera:
    """Waits for the window and pictures it."""

    def until(self, true: Callable[[], object]) -> None:
        """Let the window live until something is so."""
        from qtpy.QtWidgets import QApplication

        while not true():
            QApplication.processEvents()
            time.sleep(0.01)

    def rest(self, seconds: float = 1.0) -> None:
        """Let the window live for a while."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end)

    def take(self, widget, name: str) -> None:
        """Picture a widget as it is now, without napari's own notes."""
        from napari._qt.dialogs.qt_notification import NapariQtNotification

        self.rest()
        for note in widget.findChildren(NapariQtNotification):
            note.close()
        self.rest(0.2)
        widget.grab().save(str(IMAGES / f"{name}.png"))


def main() -> None:
    """Do the journey and picture what it comes by."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NAPARI_UNET_PROJECT"] = str(Path(folder) / "abdomen")
        os.environ["NAPARI_UNET_READER"] = "AB"
        # Nothing of the person's own: whoever makes the pictures may have chosen a theme, keys or projects.
        os.environ["NAPARI_CONFIG"] = str(Path(folder) / "napari.yaml")
        os.environ["XDG_CONFIG_HOME"] = str(Path(folder) / "config")
        import napari

        viewer = napari.Viewer()
        viewer.window.resize(*_SIZE)
        _, dock = viewer.window.add_plugin_dock_widget("napari-unet", "Annotate")
        IMAGES.mkdir(exist_ok=True)
        camera = Camera()
        begin(camera, viewer, dock)
        tools(camera, viewer, dock)
        dialogs(camera, dock)
        sides(camera, viewer, dock)
        dock.shut_down()
        viewer.close()


def begin(camera: Camera, viewer, dock) -> None:
    """Open the window for the first time, teach a model, let it propose, correct, teach again."""
    from napari_unet.io.samples import ct_phantom

    session, window = dock.session, viewer.window._qt_window
    camera.rest(_REST_SECONDS)
    camera.take(window, "first-steps")
    scan, truth, schema = ct_phantom(1, "thick")
    session.set_schema(schema)
    first = session.add_scan(scan, truth)
    session.accept_slices(first)
    session.planning.set_value("augmentation.noise", 0.1)
    dock.improve.open_settings()
    form = dock.improve.form
    camera.until(lambda: form.tabs.isEnabled())
    form.show_setting("augmentation.noise")
    camera.take(form, "settings")
    form.close()
    session.planning.clear()
    session.learning.begin(_TRAINING_SECONDS)
    camera.until(lambda: session.learning.verdict is not None)
    session.learning.use_new()
    second = session.add_scan(ct_phantom(4, "thick")[0])
    viewer.dims.set_current_step(0, 16)
    session.proposals.begin()
    camera.until(lambda: session.proposals.is_over)
    session.accept_slices(second, [14, 15])
    session.learning.begin(_TRAINING_SECONDS)
    camera.rest(_TRAINING_SECONDS / 2)
    camera.take(dock.improve, "training")
    camera.until(lambda: session.learning.verdict is not None)
    camera.rest(_REST_SECONDS)
    dock.guide.hide()
    window.resize(*_TALL)
    camera.take(window, "annotate")
    window.resize(*_SIZE)
    session.learning.use_new()


def tools(camera: Camera, viewer, dock) -> None:
    """Preview a tool on the canvas; look at the pieces of a clean-up."""
    session, window = dock.session, viewer.window._qt_window
    dock.correct.open_tools()
    dialog = dock.correct.dialog
    dialog.choice.setCurrentText("Margin")
    dialog._editors["by_mm"].setValue(5)
    dialog.preview.click()
    camera.until(lambda: session.tools.preview is not None)
    camera.take(dialog, "tools")
    camera.take(window, "tools-preview")
    dialog.close()
    dock.correct.open_clean_up()
    camera.take(dock.correct.clean_up, "clean-up")
    dock.correct.clean_up.close()
    dock.correct.open_classes()
    camera.take(dock.correct.classes, "classes")
    dock.correct.classes.close()


def dialogs(camera: Camera, dock) -> None:
    """Picture what the project's menu opens: scans, models, earlier states, another reader; and the keys."""
    session, project = dock.session, dock.project
    state = session.active
    project.open_scans()
    camera.take(project.scans, "scans")
    project.scans.close()
    project.open_models()
    camera.take(project.models, "models")
    project.models.close()
    project.open_compare()
    # Another reader's mask: hers is a voxel off.
    session.comparison.begin(state, np.roll(state.annotation.labels, 1, axis=2), "CD")
    project.compare.measure()
    camera.take(project.compare, "compare")
    project.compare.close()
    dock.correct.open_earlier()
    camera.take(dock.correct.earlier, "earlier")
    dock.correct.earlier.close()
    dock.open_keys()
    camera.take(dock.keys, "keys")
    dock.keys.close()


def sides(camera: Camera, viewer, dock) -> None:
    """Picture the other planes, the volumes, and the labels as surfaces."""
    window = viewer.window._qt_window
    dock.volumes.show()
    camera.rest(2)
    camera.take(dock.volumes, "volumes")
    dock.volumes.solid.click()
    camera.rest(3)
    camera.take(window, "surfaces")
    dock.volumes.solid.click()
    dock.volumes.close()
    dock.open_views()
    camera.rest(2)
    camera.take(window, "views")


if __name__ == "__main__":
    main()
