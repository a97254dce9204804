"""Values on their way between two processes."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from napari_unet.compute.transport import INLINE_BYTES, SharedArrays, discard, dumps, unwrap, wrap
from napari_unet.domain.errors import EngineError


def test_small_values_stay_bytes_and_large_ones_become_files(tmp_path):
    small, large = wrap(dumps(3), tmp_path), wrap(dumps(np.arange(INLINE_BYTES)), tmp_path)
    assert isinstance(small, bytes)
    assert isinstance(large, str)
    assert unwrap(small) == 3
    np.testing.assert_array_equal(unwrap(large), np.arange(INLINE_BYTES))
    discard(small)
    discard(large)
    discard(large)
    assert list(tmp_path.iterdir()) == []


def test_what_lives_in_main_travels_by_value():
    script = (
        "import sys\n"
        "from napari_unet.compute.transport import dumps\n"
        "class Here:\n    value = 7\n"
        "sys.stdout.buffer.write(dumps(Here()))\n"
    )
    data = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    assert unwrap(data).value == 7


def test_only_the_arrays_a_job_speaks_of_are_waited_for(tmp_path):
    shared = SharedArrays(tmp_path)
    disk = threading.Event()
    shared._writer.submit(disk.wait)  # a slow disk
    handle = shared.put("a", np.ones(10))
    other = shared.put("b", np.ones(10))
    assert len(shared.pending(dumps((len, (handle,), {})))) == 1
    assert len(shared.pending(dumps((len, (), {"x": [handle, other]})))) == 2
    assert shared.pending(dumps((len, (3,), {}))) == []
    disk.set()
    shared.forget("b")
    assert shared.pending(dumps(other)) == []
    shared.forget("a")
    shared._writer.submit(int).result()
    shared.close()
    assert list(tmp_path.iterdir()) == []


def test_an_array_that_could_not_be_written_says_so_and_may_be_tried_again(tmp_path, caplog):
    folder = tmp_path / "missing"
    shared = SharedArrays(folder)
    handle = shared.put("a", np.arange(3))
    (written,) = shared.pending(dumps(handle)) or [None]
    if written is not None:
        assert isinstance(written.exception(timeout=10), OSError)
    with pytest.raises(EngineError, match="disk space"):
        handle.open()
    folder.mkdir()
    again = shared.put("a", np.arange(3))
    for pending in shared.pending(dumps(again)):
        pending.result(timeout=10)
    np.testing.assert_array_equal(again.open(), np.arange(3))
    shared.close()
    assert "could not be shared" in caplog.text
