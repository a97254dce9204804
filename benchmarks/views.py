"""How long the planes beside the canvas take: cut, coloured and drawn at another point of a large scan.

Each figure is the time of one refresh of the Views dock, its planes drawn into a picture, over random points. The rest
of the window is left out: napari draws it whenever the slice changes, with these planes or without. Needs a display::

    xvfb-run --server-args="-screen 0 1920x1200x24 +extension GLX" python benchmarks/views.py --json -
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time

import numpy as np

from benchmarks.record import circumstances

_SHAPE = (300, 512, 512)
_POINTS = 60


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", default="-", help="file for the figures, or - for the screen")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NAPARI_UNET_PROJECT"] = folder
        os.environ.setdefault("NAPARI_CONFIG", "")
        figures = _measure()
    result = {**circumstances(("napari", "numpy", "PyQt5", "PyQt6")), "shape": _SHAPE, "refresh_ms": figures}
    text = json.dumps(result, indent=1)
    if arguments.json == "-":
        print(text)
    else:
        with open(arguments.json, "w", encoding="utf-8") as file:
            file.write(text + "\n")


def _measure() -> dict[str, float]:
    import napari
    from qtpy.QtWidgets import QApplication

    from napari_unet.domain.geometry import Geometry
    from napari_unet.domain.scan import Scan

    rng = np.random.default_rng(0)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = 1.0
    affine[3, 3] = 1
    scan = Scan(rng.integers(0, 400, _SHAPE, np.int16), "zyx", Geometry((1.0, 1.0, 1.0), affine), slice_axis=0)
    labels = np.zeros(_SHAPE, np.uint8)
    labels[60:240, 100:400, 100:400] = 1
    viewer = napari.Viewer()
    viewer.window.resize(1366, 768)
    _, dock = viewer.window.add_plugin_dock_widget("napari-unet", "Annotate")
    dock.session.add_scan(scan, labels)
    _, views = viewer.window.add_plugin_dock_widget("napari-unet", "Views")
    QApplication.processEvents()
    viewer.window._qt_viewer.canvas.native.hide()
    wall, cpu = [], []
    for point in rng.uniform(0, _SHAPE, (_POINTS, 3)):
        viewer.dims.set_point([0, 1, 2], list(point))
        QApplication.processEvents()
        views._timer.stop()
        before = time.perf_counter(), time.thread_time()
        views.refresh()
        for pane in views.panes:
            if pane.isVisible():
                pane.grab()
        wall.append(1e3 * (time.perf_counter() - before[0]))
        cpu.append(1e3 * (time.thread_time() - before[1]))
    dock.shut_down()
    viewer.close()
    return {
        "median": round(float(np.median(wall)), 2),
        "worst": round(max(wall), 2),
        "median_cpu": round(float(np.median(cpu)), 2),
        "points": _POINTS,
    }


if __name__ == "__main__":
    main()
