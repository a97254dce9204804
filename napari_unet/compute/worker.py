"""What happens inside the computing process: one generator is run, watched and told to stop.

Everything here runs on a Dask worker. The tables are per process and die with it, so that a lost job cannot leave
another one waiting.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from napari_unet.compute.transport import Parcel, dumps, unwrap, wrap
from napari_unet.domain.errors import EngineError, NapariUnetError, traceback_without_messages

Lane = Literal["quick", "train"]


@dataclass(frozen=True)
class Order:
    """One attempt at one job, as it is sent to the worker.

    Parameters
    ----------
    job, attempt
        Stamped on every message, so that none is taken for another's.
    call : Parcel
        The pickled ``(function, args, kwargs)``.
    lane : str
        ``train`` jobs pause between steps while a ``quick`` one runs.
    threads : int
        CPU threads for torch.
    topic : str
        Where its messages go.
    folder : str
        Where large messages go.
    path : tuple of str
        The client's module search path, so that the worker finds the job where the client found it.
    """

    job: str
    attempt: int
    call: Parcel
    lane: Lane
    threads: int
    topic: str
    folder: str
    path: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: its events, counted, and the pickled result or error."""

    status: Literal["done", "failed", "cancelled"]
    events: int
    parcel: Parcel = b""
    details: str = ""


_changed = threading.Condition()
_quick_running = 0
_cancelled: set[str] = set()
_warm_up: threading.Thread | None = None


def warm_up() -> threading.Thread:
    """Begin to import torch in the background (once), so that the first click finds it there."""
    global _warm_up
    with _changed:
        if _warm_up is None:
            _warm_up = threading.Thread(target=_import_torch, name="warm-up", daemon=True)
            _warm_up.start()
        return _warm_up


def _import_torch() -> None:
    # Without torch a job that needs it says so itself.
    with contextlib.suppress(ImportError):
        import torch
        import torch._dynamo  # noqa: F401  # optimisers import it at their first step, for seconds


def set_threads(threads: int) -> None:
    """Give torch, in the calling thread, so many CPU threads.

    Dask starts its workers with OMP_NUM_THREADS=1, which silently costs the other cores.
    """
    warm_up().join()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def cancel(job: str) -> None:
    """Ask a job of this process to stop at its next yield, or not to begin."""
    with _changed:
        _cancelled.add(job)
        _changed.notify_all()


@contextlib.contextmanager
def _in_lane(lane: Lane) -> Iterator[None]:
    """Count the quick jobs; also when one fails, so that training never waits for a dead one."""
    global _quick_running
    quick = lane == "quick"
    with _changed:
        _quick_running += quick
    try:
        yield
    finally:
        with _changed:
            _quick_running -= quick
            _changed.notify_all()


def _may_go_on(order: Order) -> bool:
    """Hold a training job back while a quick one runs; say whether the job is still wanted."""
    if order.lane == "train":
        with _changed:
            _changed.wait_for(lambda: not _quick_running or order.job in _cancelled)
    return order.job not in _cancelled


class _Messenger:
    """Sends what a job yields, numbered, to whoever listens to the topic."""

    def __init__(self, order: Order) -> None:
        from distributed import get_worker

        self._order = order
        self._log_event = get_worker().log_event
        self.sent = 0

    def started(self) -> None:
        self._send(-1, os.getpid())

    def event(self, value: object) -> None:
        self._send(self.sent, self.pack(value))
        self.sent += 1

    def pack(self, value: object) -> Parcel:
        return wrap(dumps(value), Path(self._order.folder))

    def _send(self, number: int, body: Parcel | int) -> None:
        message = {"job": self._order.job, "attempt": self._order.attempt, "number": number, "body": body}
        self._log_event(self._order.topic, message)


def run(order: Order) -> Outcome:
    """Run a job to its end; nothing it does wrong gets past here.

    Parameters
    ----------
    order : Order
        What to run.

    Returns
    -------
    Outcome
        Its parcel holds the generator's return value, or a :class:`NapariUnetError` fit to be shown.
    """
    messenger = _Messenger(order)
    messenger.started()
    try:
        with _in_lane(order.lane):
            sys.path += [entry for entry in order.path if entry not in sys.path]
            set_threads(order.threads)
            function, args, kwargs = unwrap(order.call)
            finished, value = _drive(order, messenger, function(*args, **kwargs))
            if not finished:
                return Outcome("cancelled", messenger.sent)
            return Outcome("done", messenger.sent, messenger.pack(value))
    except BaseException as error:
        return Outcome("failed", messenger.sent, dumps(_presentable(error)), traceback_without_messages(error))
    finally:
        with _changed:
            _cancelled.discard(order.job)


def _drive(order: Order, messenger: _Messenger, generator: Generator[object, None, object]) -> tuple[bool, object]:
    """Step through a generator; return whether it reached its end, and what it returned."""
    if not _may_go_on(order):
        generator.close()
        return False, None
    while True:
        try:
            event = next(generator)
        except StopIteration as end:
            return True, end.value
        messenger.event(event)
        if not _may_go_on(order):
            generator.close()
            return False, None


def _presentable(error: BaseException) -> NapariUnetError:
    """Return the error as the client may show it: named ones unchanged, others as one sentence without private text."""
    if isinstance(error, NapariUnetError):
        return _portable(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return EngineError("There is not enough memory for this: close other programs or choose smaller patches.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return EngineError("The disk is full: free some space and try again.")
    return EngineError(f"The computation failed unexpectedly ({type(error).__name__}): see the log for the details.")


def _portable(error: NapariUnetError) -> NapariUnetError:
    """Return an error that survives pickling: itself, or its message as the nearest of its kinds that does."""
    kinds = [kind for kind in type(error).__mro__ if issubclass(kind, NapariUnetError)]
    makers: list[Callable[[], NapariUnetError]] = [lambda: error, *(partial(kind, str(error)) for kind in kinds)]
    for make in makers:
        with contextlib.suppress(Exception):
            candidate = make()
            pickle.loads(dumps(candidate))
            return candidate
    return EngineError(str(error))
