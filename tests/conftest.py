"""What every test gets: folders of its own instead of the user's, few threads, and no leftovers.

A test that leaves a non-daemon thread, a child process or an open window behind fails.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import hypothesis
import psutil
import pytest

from napari_unet.domain.compute import PATIENT_THREADS

#: Fixtures that keep processes and threads of their own for longer than one test.
_LONG_LIVED = frozenset({"engine", "window", "cluster", "remote"})
_PATIENCE_SECONDS = 5.0

_home = tempfile.TemporaryDirectory(prefix="napari-unet-tests-")


# A busy machine is no fault of the code's.
hypothesis.settings.register_profile("napari-unet", deadline=None, max_examples=50)
hypothesis.settings.load_profile("napari-unet")


def pytest_configure() -> None:
    # Before anything is imported: platformdirs and napari look these up once.
    for kind in ("CONFIG", "DATA", "STATE", "CACHE"):
        os.environ[f"XDG_{kind}_HOME"] = str(Path(_home.name) / kind.lower())
    # Test arrays are tiny: threads would only get into each other's way, and sums in one order are repeatable.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name, value in PATIENT_THREADS.items():
        os.environ.setdefault(name, value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # On several cores the tests of a file stay together, since they share engines and models; so do those with windows,
    # which share a screen, a keyboard and a mouse.
    for item in items:
        room = item.path.parent.name
        group = "windows" if item.get_closest_marker("gui") else f"{room}/{item.path.stem}"
        item.add_marker(pytest.mark.xdist_group(group))
    # The longest of these groups first, so that no core is left with it in the end.
    items.sort(key=lambda item: item.get_closest_marker("gui") is None)


def pytest_unconfigure() -> None:
    _home.cleanup()


def _threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()}


def _children() -> set[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    alive = {p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE and not _is_python_helper(p)}
    return {process for process in alive if not _is_of_a_cluster(process)}


def _is_of_a_cluster(process: psutil.Process) -> bool:
    """Return whether it belongs to a cluster of several tests, which starts workers when it likes."""
    clusters = sys.modules.get("tests.compute.cluster")
    if clusters is None:
        return False
    try:
        return any(each.pid in clusters.RUNNING for each in (process, *process.parents()))
    except psutil.Error:
        return True


def _is_python_helper(process: psutil.Process) -> bool:
    # Python's own resource tracker lives as long as the interpreter, whoever first needed it.
    try:
        return "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    except psutil.Error:
        return True


def _windows() -> set[object]:
    """Return the visible top-level widgets, if Qt is in use at all; it is never imported for this."""
    widgets = sys.modules.get("qtpy.QtWidgets")
    application = widgets and widgets.QApplication.instance()
    return {w for w in application.topLevelWidgets() if w.isVisible()} if application else set()


def _left_over(before: set, look: object) -> set:
    """Return what is still there after some patience: things end a moment after they were asked to."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while left := look() - before:  # type: ignore[operator]
        if time.monotonic() > deadline:
            return left
        time.sleep(0.02)
    return set()


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest):
    """Fail a test that leaves threads, processes or windows behind."""
    shared = _LONG_LIVED & set(request.fixturenames)
    before = _threads(), _children(), _windows()
    yield
    looks = {"windows": (before[2], _windows)}
    if not shared:
        looks |= {"threads": (before[0], _threads), "processes": (before[1], _children)}
    for what, (known, look) in looks.items():
        left = _left_over(known, look)
        if left:
            pytest.fail(f"this test left {what} behind: {sorted(map(repr, left))}")


@pytest.fixture(autouse=True)
def nobodys_preferences():
    """Forget what a test chose for all projects: the next one is somebody else."""
    yield
    (Path(os.environ["XDG_CONFIG_HOME"]) / "napari-unet" / "preferences.json").unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def log_as_before():
    """Undo what starting the program does to the log, so that later tests hear it again."""
    log = logging.getLogger("napari_unet")
    handlers, level, propagate = list(log.handlers), log.level, log.propagate
    yield
    for handler in set(log.handlers) - set(handlers):
        handler.close()
    log.handlers[:], log.level, log.propagate = handlers, level, propagate


@pytest.fixture(scope="session", autouse=True)
def nothing_left_at_the_end():
    """Fail if the longer-lived fixtures left something behind when they ended."""
    before = _threads(), _children()
    yield
    left = _left_over(before[0], _threads) | _left_over(before[1], _children)
    if left:
        pytest.fail(f"the test run left these behind: {sorted(map(repr, left))}")
