"""A disk that is full, without one."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def full_disk():
    """A context in which the system refuses to write more than a few bytes to any file."""
    resource = pytest.importorskip("resource", reason="only Unix limits the size of files")

    @contextlib.contextmanager
    def limited(n_bytes=100):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def foreign_folder():
    """A folder, and a context in which it can be read and not written, whoever runs the tests."""
    if sys.platform == "win32":
        pytest.skip("permissions of folders are Unix's")

    @contextlib.contextmanager
    def reading(folder):
        folder.chmod(0o555)
        for path in folder.iterdir():
            path.chmod(0o444)
        am_root = os.geteuid() == 0
        if am_root:
            os.seteuid(65534)
        try:
            yield
        finally:
            if am_root:
                os.seteuid(0)
            folder.chmod(0o755)

    # Others may not enter the folders that pytest makes.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name), reading
