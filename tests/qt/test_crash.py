"""Strokes of a real mouse in a real window, and a program that is killed while they are painted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from napari_unet.compute.engine import Engine
from napari_unet.session.session import Session
from napari_unet.storage.project_folder import PROJECT_VARIABLE
from napari_unet.storage.verify import verify
from tests.qt.paint_until_killed import SHAPE
from tests.session.test_autosave import scan_of

pytestmark = [pytest.mark.gui, pytest.mark.skipif(sys.platform == "win32", reason="kill -9")]

ROOT = Path(__file__).resolve().parents[2]


def painted_before(project: Path, seconds: float) -> tuple[int, int]:
    """Paint until killed; return the voxels painted half a second before, and all that were told of."""
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path, PROJECT_VARIABLE: str(project)}
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.qt.paint_until_killed"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        cwd=ROOT,
        start_new_session=True,
    )
    with program:
        while (line := program.stdout.readline()) != "begun\n":
            assert line, "the window did not open"
        time.sleep(seconds)
        killed = time.time()
        os.killpg(program.pid, signal.SIGKILL)
        told = [line.split() for line in program.stdout.read().splitlines() if line.count(" ") == 1]
    due = [int(n) for n, at in told if float(at) < killed - 0.5]
    return max(due, default=0), max((int(n) for n, _ in told), default=0)


@pytest.mark.parametrize(
    "kills", [1, pytest.param(int(os.environ.get("KILLS", "10")), marks=pytest.mark.slow)], ids=["once", "often"]
)
def test_no_stroke_older_than_half_a_second_is_lost(tmp_path: Path, kills: int) -> None:
    chance, lost = random.Random(1), []
    for number in range(kills):
        project = tmp_path / str(number)
        due, told = painted_before(project, chance.uniform(2.0, 6.0))
        assert due > 0
        assert list(verify(project)) == []
        session = Session(Engine(), project)
        try:
            annotation = session.add_scan(scan_of(SHAPE)).annotation
            assert annotation.painted.sum() >= due
            np.testing.assert_array_equal(annotation.labels > 0, annotation.painted)
        finally:
            session.close()
        lost.append(max(0, told - int(annotation.painted.sum())))
    print(f"{kills} kills: voxels of the last half second that were lost: {lost}")
