"""Jobs for the engine's tests: module-level generators, as the product's are."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_unet.domain.errors import TrainingError
from napari_unet.domain.progress import Progress


@dataclass(frozen=True, eq=False)
class Slab:
    index: int
    labels: np.ndarray


def count(n):
    for i in range(n):
        yield Progress(i / n)
    return n


def mixed(n):
    """Small events between large ones (some of 1 MB)."""
    for i in range(n):
        yield Slab(i, np.full((1 + (i % 3 == 0) * 2**20,), i % 251, np.uint8))
    return np.arange(500_000)


def environment():
    import sys

    torch = sys.modules.get("torch")
    yield Progress(1.0)
    return {
        "pid": os.getpid(),
        "thread": threading.current_thread().name,
        "torch_threads": torch.get_num_threads() if torch else None,
        "omp": os.environ.get("OMP_NUM_THREADS"),
    }


def where_an_array_lies(shared):
    """The process, and the address of an array in it: the same where it was handed over once."""
    yield Progress(0.5)
    return os.getpid(), shared.open().__array_interface__["data"][0], int(shared.open().sum(dtype=np.int64))


def with_settings(resolved):
    import torch

    yield Progress(1.0)
    return torch.get_num_threads()


def total(shared):
    array = shared.open()
    yield Progress(0.5)
    try:
        array[0] = 1
        writable = True
    except ValueError:
        writable = False
    return int(array.sum(dtype=np.int64)), type(array).__name__, writable


def fail(error):
    yield Progress(0.0)
    raise error


class CarriesALock(TrainingError):
    def __init__(self, message):
        super().__init__(message)
        self.lock = threading.Lock()


class NeedsTwo(TrainingError):
    def __init__(self, message, other):
        super().__init__(message)
        self.other = other


def fail_unpicklable(kind):
    yield Progress(0.0)
    if kind == "lock":
        raise CarriesALock("The loss is not a number.")
    if kind == "two":
        raise NeedsTwo("Two things went wrong.", 1)
    error = ValueError("odd")
    error.lock = threading.Lock()
    raise error


def yields_lock():
    yield Progress(0.0)
    yield threading.Lock()


def returns_lock():
    yield Progress(0.0)
    return threading.Lock()


def no_generator():
    return 3


def exits():
    yield Progress(0.0)
    raise SystemExit(3)


def polite(folder):
    """Ends only by being closed; leaves a file that says so."""
    try:
        while True:
            yield os.getpid()
            time.sleep(0.01)
    finally:
        Path(folder, "closed").write_text("closed")


def stubborn(seconds):
    yield os.getpid()
    time.sleep(seconds)
    yield Progress(1.0)


def steps(n, pause):
    """A training: yields the time of each step."""
    for _ in range(n):
        yield time.monotonic()
        time.sleep(pause)


def busy(seconds, error=False):
    """A proposal: returns when it ran."""
    start = time.monotonic()
    yield Progress(0.0)
    while time.monotonic() - start < seconds:
        time.sleep(0.02)
        yield Progress(0.5)
    if error:
        raise ValueError("odd")
    return start, time.monotonic()


def slow_once(marker, seconds):
    """Sleeps the first time, is quick when it is run again."""
    path = Path(marker)
    first = not path.exists()
    path.touch()
    for i in range(int(seconds / 0.05) if first else 3):
        yield i
        time.sleep(0.05)
    return "again" if not first else "first"


def kill_self():
    yield os.getpid()
    time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
    yield None


def kill_self_once(mark):
    """Lose the first worker, and no second one."""
    yield "first"
    if not Path(mark).exists():
        Path(mark).touch()
        time.sleep(0.3)  # what was said is on its way
        os.kill(os.getpid(), signal.SIGKILL)
    yield "second"
    return "done by another"


def total_of(array):
    yield Progress(0.5)
    return int(array.sum())


def name_of_the_worker():
    from distributed import get_worker

    yield Progress(0.5)
    return get_worker().name


def page_faults(megabytes, times):
    """How many pages the system had to empty while a block was asked for and freed so many times."""
    import resource

    yield Progress(0.0)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(times):
        np.ones(megabytes * 2**20, np.uint8)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before
