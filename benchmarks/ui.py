"""The window against bare napari: start-up, event-loop stalls under load, and the time a stroke takes.

Both windows get the same scan, the same mouse, and the same work beside them (a proposal, then a fine-tune); they run
one after the other in processes of their own. Needs a display with OpenGL::

    xvfb-run --server-args="-screen 0 1920x1200x24 +extension GLX" python benchmarks/ui.py --json -
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_SEED = 1
_STROKE_PIXELS = 60
_PAUSE_MS = 60
_DOCK_WIDTH = 440


def _window(with_dock: bool) -> tuple[Any, Any, Any]:
    """Return viewer, dock (or None) and Labels layer, with the phantom loaded and a brush in hand."""
    import napari

    from napari_unet.io.samples import ct_phantom

    scan, truth, schema = ct_phantom(_SEED, "thin")
    viewer = napari.Viewer()
    viewer.window.resize(1400, 900)
    if with_dock:
        _, dock = viewer.window.add_plugin_dock_widget("napari-unet", "Annotate")
        dock.session.set_schema(schema)
        state = dock.session.add_scan(scan, truth)
        return viewer, dock, dock.layers.labels(state)
    from qtpy.QtWidgets import QWidget

    # As wide as the Annotate dock, so that both canvases have one size.
    empty = QWidget()
    empty.setMinimumWidth(_DOCK_WIDTH)
    viewer.window.add_dock_widget(empty, area="right", name="empty")
    viewer.add_image(scan.data, scale=scan.spacing_or_unit)
    layer = viewer.add_labels(truth.copy(), scale=scan.spacing_or_unit)
    layer.mode, layer.brush_size, layer.selected_label = "paint", 8, 1
    return viewer, None, layer


def _train_and_propose(session: Any) -> None:
    """Fine-tune for as long as it takes, and propose once there is a model."""
    session.accept_slices(session.active)
    session.learning.begin(3600)


def load() -> None:
    """Do, without a window, the work that the plugin's session does beside its own window; until stdin ends."""
    from napari_unet.compute.engine import Engine
    from napari_unet.io.samples import ct_phantom
    from napari_unet.session.session import Session

    scan, truth, schema = ct_phantom(_SEED, "thin")
    session = Session(Engine(), Path(tempfile.mkdtemp()), schema)
    session.start()
    session.add_scan(scan, truth)
    _train_and_propose(session)
    while session.learning.run.last is None:
        session.poll()
        time.sleep(0.05)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    session.close()


def paint(with_dock: bool, seconds: float) -> dict[str, float]:
    """Paint and scroll for a while beside a fine-tune; return the longest stall and the median stroke, in ms."""
    from qtpy.QtCore import QEvent, QPoint, QPointF, Qt, QTimer
    from qtpy.QtGui import QMouseEvent
    from qtpy.QtTest import QTest
    from qtpy.QtWidgets import QApplication

    viewer, dock, layer = _window(with_dock)
    helper = None
    if dock is not None:
        _train_and_propose(dock.session)
        while dock.session.learning.run.last is None:
            QTest.qWait(50)
    else:
        helper = subprocess.Popen(
            [sys.executable, __file__, "--role", "load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert helper.stdout is not None
        helper.stdout.readline()
    QTest.qWait(1000)
    canvas = viewer.window._qt_viewer.canvas.native
    left, none = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    ticks: list[float] = [time.perf_counter()]
    gaps: list[float] = []

    def tick() -> None:
        now = time.perf_counter()
        gaps.append(now - ticks[-1])
        ticks.append(now)

    timer = QTimer()
    timer.timeout.connect(tick)
    timer.start(1)
    strokes: list[float] = []
    until = time.perf_counter() + seconds
    n = 0
    while time.perf_counter() < until:
        start = QPoint(canvas.width() // 2 - _STROKE_PIXELS // 2, canvas.height() // 2 + n % 40)
        began = time.perf_counter()
        QTest.mousePress(canvas, left, none, start)
        for step in range(1, 11):
            point = QPointF(start + QPoint(step * _STROKE_PIXELS // 10, 0))
            QApplication.sendEvent(
                canvas, QMouseEvent(QEvent.Type.MouseMove, point, Qt.MouseButton.NoButton, left, none)
            )
            QApplication.processEvents()
        QTest.mouseRelease(canvas, left, none, start + QPoint(_STROKE_PIXELS, 0))
        QApplication.processEvents()
        strokes.append(time.perf_counter() - began)
        viewer.dims.set_current_step(0, (n * 3) % layer.data.shape[0])
        QTest.qWait(_PAUSE_MS)
        n += 1
    timer.stop()
    size = canvas.size()
    if dock is not None:
        dock.shut_down()
    if helper is not None:
        helper.communicate()
    viewer.close()
    ordered = sorted(gaps)
    return {
        "canvas_pixels": float(size.width() * size.height()),
        "longest_stall_ms": 1000 * ordered[-1],
        "stall_p99_ms": 1000 * ordered[int(0.99 * len(ordered))],
        "stroke_ms": 1000 * statistics.median(strokes),
        "strokes": float(len(strokes)),
    }


def start(with_dock: bool) -> None:
    """Open the window and leave as soon as it answers."""
    import napari
    from qtpy.QtCore import QTimer
    from qtpy.QtWidgets import QApplication

    viewer = napari.Viewer()
    if with_dock:
        viewer.window.add_plugin_dock_widget("napari-unet", "Annotate")
    viewer.window._qt_window.repaint()
    QTimer.singleShot(0, lambda: (sys.stdout.write("usable\n"), sys.stdout.flush(), QApplication.quit()))
    napari.run()
    os._exit(0)


def _measure_start(role: str) -> float:
    """Return the seconds from a process's start to a window that answers."""
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, __file__, "--role", role], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while (line := process.stdout.readline()) and "usable" not in line:
            pass
        return time.perf_counter() - began


def _run_role(role: str, seconds: float) -> dict[str, float]:
    out = subprocess.run(
        [sys.executable, __file__, "--role", role, "--seconds", str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    return json.loads(out.strip().splitlines()[-1])


def main() -> None:
    """Measure, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of 5 seconds")
    parser.add_argument("--json", metavar="FILE", default="-")
    parser.add_argument(
        "--device", default="auto", help="taken for the uniformity of all benchmarks; the work is small"
    )
    parser.add_argument("--role", choices=["load", "bare", "dock", "start-bare", "start-dock"], help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=15.0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role is None:
        _report(given.quick, given.json)
        return
    os.environ["NAPARI_CONFIG"] = ""
    os.environ["NAPARI_UNET_PROJECT"] = tempfile.mkdtemp()
    if given.role == "load":
        load()
    elif given.role.startswith("start"):
        start(given.role == "start-dock")
    else:
        figures = paint(given.role == "dock", given.seconds)
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()
        os._exit(0)


def _report(quick: bool, where: str) -> None:
    rounds, seconds = (1, 5.0) if quick else (3, 15.0)
    starts: dict[str, list[float]] = {"start-bare": [], "start-dock": []}
    for _ in range(2 if quick else 5):
        for role, found in starts.items():
            found.append(_measure_start(role))
    runs: dict[str, list[dict[str, float]]] = {"bare": [], "dock": []}
    for _ in range(rounds):
        for role, results in runs.items():
            results.append(_run_role(role, seconds))
    middle = {
        role: {key: statistics.median(r[key] for r in results) for key in results[0]} for role, results in runs.items()
    }
    figures = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "seed": _SEED,
        "start_s": {role.removeprefix("start-"): statistics.median(found) for role, found in starts.items()},
        "under_load": middle,
        "ratios": {
            "start_seconds_more": statistics.median(starts["start-dock"]) - statistics.median(starts["start-bare"]),
            "stall_ms_more": middle["dock"]["longest_stall_ms"] - middle["bare"]["longest_stall_ms"],
            "stroke": middle["dock"]["stroke_ms"] / middle["bare"]["stroke_ms"],
        },
    }
    text = json.dumps(figures, indent=2)
    if where == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(where).write_text(text + "\n")


if __name__ == "__main__":
    main()
