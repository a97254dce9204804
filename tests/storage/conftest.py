"""A disk that is full, without one."""

from __future__ import annotations

import contextlib

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
