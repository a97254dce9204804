"""The old file or the new one, never half of each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from napari_unet.storage.atomic import replace_atomically


def test_it_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / ("n" * 250)  # nearly as long as names may be
    for data in (b"one", b"two", b""):
        replace_atomically(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_changes_nothing(tmp_path, full_disk):
    path = tmp_path / "file"
    replace_atomically(path, b"old")
    with full_disk(), pytest.raises(OSError, match=r"large|space"):
        replace_atomically(path, b"x" * 10_000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_kill_while_writing_leaves_the_old_or_the_new(tmp_path):
    path = tmp_path / "file"
    code = (
        "import sys\nfrom pathlib import Path\nfrom napari_unet.storage.atomic import replace_atomically\n"
        "path = Path(sys.argv[1])\nprint('on', flush=True)\n"
        "while True:\n    for byte in (b'a', b'b'):\n        replace_atomically(path, byte * 300_000)\n"
    )
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        while not path.exists():
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert path.read_bytes() in (b"a" * 300_000, b"b" * 300_000)
