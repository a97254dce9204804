"""Makes the pictures of the window in ``docs/images``; run it on a screen (or under Xvfb): ``make screenshots``."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
_TRAINING_SECONDS = 60


def main() -> None:
    """Do the journey on two computed patients and picture the window."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NAPARI_UNET_PROJECT"] = folder
        import napari
        from qtpy.QtWidgets import QApplication

        from napari_unet.io.samples import ct_phantom

        viewer = napari.Viewer()
        viewer.window.resize(1366, 768)
        _, dock = viewer.window.add_plugin_dock_widget("napari-unet", "Annotate")
        session = dock.session

        def until(true) -> None:
            while not true():
                QApplication.processEvents()
                time.sleep(0.01)

        def rest(seconds: float) -> None:
            end = time.monotonic() + seconds
            until(lambda: time.monotonic() > end)

        scan, truth, schema = ct_phantom(1, "thick")
        session.set_schema(schema)
        first = session.add_scan(scan, truth)
        session.accept_slices(first)
        IMAGES.mkdir(exist_ok=True)
        session.planning.set_value("augmentation.noise", 0.1)
        dock.improve.open_settings()
        form = dock.improve.form
        until(lambda: form.tabs.isEnabled())
        form.show_setting("augmentation.noise")
        rest(1)
        form.grab().save(str(IMAGES / "settings.png"))
        form.close()
        session.planning.clear()
        session.learning.begin(_TRAINING_SECONDS)
        until(lambda: session.learning.verdict is not None)
        session.learning.use_new()
        second = session.add_scan(ct_phantom(4, "thick")[0])
        viewer.dims.set_current_step(0, 16)
        session.proposals.begin()
        until(lambda: session.proposals.run is not None and session.proposals.run.is_over)
        session.accept_slices(second, [14, 15])
        session.learning.begin(_TRAINING_SECONDS)
        until(lambda: session.learning.verdict is not None)
        rest(12)  # napari's own notes fade
        viewer.window._qt_window.grab().save(str(IMAGES / "annotate.png"))
        dock.shut_down()
        viewer.close()


if __name__ == "__main__":
    main()
