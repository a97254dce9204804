"""One engine for all tests of this room: starting one costs seconds."""

from __future__ import annotations

import contextlib

import pytest

from napari_unet.compute.engine import Engine


class Heard:
    """Collects what one job says; its methods are the callbacks."""

    def __init__(self):
        self.events, self.results, self.errors, self.cancelled = [], [], [], 0

    def _stop(self):
        self.cancelled += 1

    @property
    def callbacks(self):
        return {
            "on_event": self.events.append,
            "on_result": self.results.append,
            "on_error": self.errors.append,
            "on_cancelled": self._stop,
        }


def finish(engine, function, *args, **kwargs):
    """Run a job to its end and return what was heard of it."""
    heard = Heard()
    heard.job = engine.submit(function, *args, **kwargs, **heard.callbacks)
    engine.wait(heard.job, 60)
    return heard


def begin(engine, function, *args, **kwargs):
    """Submit a job and return once its first event has arrived."""
    heard = Heard()
    heard.job = engine.submit(function, *args, **kwargs, **heard.callbacks)
    poll_until(engine, lambda: heard.events)
    return heard


def poll_until(engine, condition, seconds=60.0):
    import time

    deadline = time.monotonic() + seconds
    while not condition():
        engine.poll()
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.005)


@pytest.fixture(scope="package")
def engine():
    with contextlib.closing(Engine(threads=2)) as engine:
        engine.start()
        yield engine
