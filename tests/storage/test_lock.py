"""One program writes to a project; the lock says who, and does not outlive it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from napari_unet.domain.errors import ProjectError
from napari_unet.storage.lock import LOCK, ProjectLock

HOLD = """
import sys, time
from pathlib import Path
from napari_unet.storage.lock import ProjectLock
print(ProjectLock(Path(sys.argv[1])).take(), flush=True)
time.sleep(60)
"""


def test_it_is_given_back(tmp_path):
    one, two = ProjectLock(tmp_path), ProjectLock(tmp_path)
    assert one.take() is None
    assert one.take() is None
    holder = two.take()
    assert holder.pid == os.getpid()
    assert f"process {os.getpid()}" in holder.in_words()
    two.release()  # it is not its own
    assert two.take() is not None
    one.release()
    assert two.take() is None
    two.release()
    assert not (tmp_path / LOCK).exists()


def test_another_program_holds_it_until_it_ends(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "None\n"
        lock = ProjectLock(tmp_path)
        assert lock.take().pid == program.pid
        program.kill()
    assert lock.take() is None, "what was killed gives nothing back, and is taken over"
    lock.release()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"host": "here"}', '{"host": 1, "pid": "x", "started": 0, "since": ""}']
)
def test_one_that_says_nothing_is_taken_over(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    lock = ProjectLock(tmp_path)
    assert lock.take() is None
    lock.release()


def test_of_another_computer_nothing_is_known(tmp_path):
    said = {"host": "another", "pid": 1, "started": 0.0, "since": "2026-11-23T10:00:00+00:00"}
    (tmp_path / LOCK).write_text(json.dumps(said))
    assert (
        "another program on another (process 1, since 2026-11-23 10:00 UTC)" in ProjectLock(tmp_path).take().in_words()
    )


def test_a_number_that_is_used_again_is_another_program(tmp_path):
    lock = ProjectLock(tmp_path)
    lock.take()
    said = json.loads((tmp_path / LOCK).read_text())
    (tmp_path / LOCK).write_text(json.dumps({**said, "started": said["started"] - 1000}))
    other = ProjectLock(tmp_path)
    assert other.take() is None
    other.release()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ProjectError):
        ProjectLock(tmp_path / "nowhere").take()
