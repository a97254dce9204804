"""What happens inside a computing process: one generator is run, watched and told to stop.

Everything here runs on a Dask worker, on this computer or in a cluster. The tables are per process and die with it, so
that a lost job cannot leave another one waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import pickle
import platform
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from napari_unet import __version__
from napari_unet.compute.allocator import keep_freed_memory
from napari_unet.compute.device import available_cores
from napari_unet.compute.transport import INLINE_BYTES, Parcel, arrays_at_hand, dumps, unwrap, wrap
from napari_unet.domain.errors import ClusterError, EngineError, NapariUnetError, traceback_without_messages

Lane = Literal["quick", "train", "folder"]
#: The name under which a call comes that is too large for its order.
CALL = "call"


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
        All but ``quick`` jobs pause at their yields while a ``quick`` one runs in the same process.
    threads : int
        CPU threads for torch; 0: all cores of the worker's computer.
    topic : str
        Where its messages go.
    folder : str or None
        Where large messages go; None: the client sees no folder of the worker's, and they go with the outcome.
    path : tuple of str
        The client's module search path, so that the worker finds the job where the client found it.
    version : str
        The client's, of this package.
    """

    job: str
    attempt: int
    call: Parcel
    lane: Lane
    threads: int
    topic: str
    folder: str | None = None
    path: tuple[str, ...] = ()
    version: str = __version__

    @property
    def key(self) -> str:
        """Dask's name for it."""
        return f"napari-unet-{self.job}-{self.attempt}"


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: its events, counted, and the pickled result or error.

    Parameters
    ----------
    status : str
    events : int
        How many were sent or are kept.
    parcel : Parcel
        The result, or the error.
    details : str
        Where an error arose; for the log.
    kept : tuple of (int, Parcel)
        Events too large for a message, with their numbers.
    """

    status: Literal["done", "failed", "cancelled"]
    events: int
    parcel: Parcel = b""
    details: str = ""
    kept: tuple[tuple[int, Parcel], ...] = ()


@dataclass(frozen=True)
class WorkerFacts:
    """What a client wants to know of a worker: versions, and the names of its GPUs."""

    version: str
    python: str
    gpus: tuple[str, ...]


def versions() -> tuple[str, str]:
    """Return the versions of this package and of Python, where this runs."""
    return __version__, ".".join(platform.python_version_tuple()[:2])


async def facts() -> WorkerFacts:
    """Return what there is to know of the worker this runs on."""
    # Seconds of imports, beside the worker's event loop.
    gpus = await asyncio.to_thread(_gpus)
    return WorkerFacts(*versions(), gpus)


def _gpus() -> tuple[str, ...]:
    try:
        import torch

        return tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    except Exception:  # no torch, or no driver
        return ()


_changed = threading.Condition()
_quick_running = 0
_cancelled: set[str] = set()
_warm_up: threading.Thread | None = None


def warm_up() -> threading.Thread:
    """Make the process one that runs networks: import torch in the background, once, and keep freed memory."""
    global _warm_up
    with _changed:
        if _warm_up is None:
            keep_freed_memory()
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
    """Hold a long job back while a quick one runs; say whether the job is still wanted."""
    if order.lane != "quick":
        with _changed:
            _changed.wait_for(lambda: not _quick_running or order.job in _cancelled)
    return order.job not in _cancelled and not _was_released(order)


def _was_released(order: Order) -> bool:
    """Return whether the client that wants the job is gone: Dask lets its tasks go, but cannot stop one that runs."""
    from distributed import get_worker

    task = get_worker().state.tasks.get(order.key)
    return task is not None and task.state == "cancelled"


class _Messenger:
    """Sends what a job yields, numbered, to whoever listens to the topic."""

    def __init__(self, order: Order) -> None:
        from distributed import get_worker

        self._order = order
        self._log_event = get_worker().log_event
        self.sent = 0
        self.kept: list[tuple[int, Parcel]] = []

    def started(self) -> None:
        self._send(-1, os.getpid())

    def event(self, value: object) -> None:
        body = self.pack(value)
        if isinstance(body, bytes) and len(body) > INLINE_BYTES:
            self.kept.append((self.sent, body))
        else:
            self._send(self.sent, body)
        self.sent += 1

    def pack(self, value: object) -> Parcel:
        return wrap(dumps(value), None if self._order.folder is None else Path(self._order.folder))

    def _send(self, number: int, body: Parcel | int) -> None:
        message = {"job": self._order.job, "attempt": self._order.attempt, "number": number, "body": body}
        self._log_event(self._order.topic, message)


def run(order: Order, arrays: Mapping[str, Any] | None = None) -> Outcome:
    """Run a job to its end; nothing it does wrong gets past here.

    Parameters
    ----------
    order : Order
        What to run.
    arrays : mapping of str to array, optional
        What came with it, by the names in its :class:`~napari_unet.compute.transport.SharedArray`; and, as
        :data:`CALL`, what is to be called.

    Returns
    -------
    Outcome
        Its parcel holds the generator's return value, or a :class:`NapariUnetError` fit to be shown.
    """
    messenger = _Messenger(order)
    messenger.started()
    try:
        if order.version != __version__:
            raise ClusterError(
                f"A worker of the cluster runs napari-unet {__version__}, this computer runs {order.version}: install "
                "the same version on both."
            )
        arrays = arrays or {}
        with _in_lane(order.lane), arrays_at_hand(arrays):
            sys.path += [entry for entry in order.path if entry not in sys.path]
            set_threads(order.threads or available_cores())
            function, args, kwargs = unwrap(order.call or arrays[CALL])
            finished, value = _drive(order, messenger, function(*args, **kwargs))
            if not finished:
                return Outcome("cancelled", messenger.sent)
            return Outcome("done", messenger.sent, messenger.pack(value), kept=tuple(messenger.kept))
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
