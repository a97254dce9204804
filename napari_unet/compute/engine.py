"""The engine: runs jobs in other processes, here or in a cluster, and brings what they say to the caller's thread.

A job is a plain generator function. The window never waits for it, and a crash in it never reaches the window. No Qt
here: whoever has an event loop passes ``wake`` and calls :meth:`Engine.poll`; whoever has none calls
:meth:`Engine.wait`.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Literal

import cloudpickle
from numpy.typing import NDArray

from napari_unet.compute.cluster import Cluster, ClusterInfo
from napari_unet.compute.device import available_cores
from napari_unet.compute.dispatch import Dispatcher
from napari_unet.compute.local import ThisComputer
from napari_unet.compute.place import Place
from napari_unet.compute.task import Task, Verdict
from napari_unet.compute.transport import SharedArray
from napari_unet.compute.worker import Lane
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ClusterError, EngineError, NapariUnetError

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 0.2

EngineState = Literal["stopped", "starting", "ready", "away", "failed", "closed"]
JobState = Literal["queued", "running", "done", "failed", "cancelled"]


class Job:
    """One submitted job. Its state changes only while the caller's thread is in :meth:`Engine.poll` or ``wait``.

    Attributes
    ----------
    id : str
    state : str
        ``queued``, ``running``, ``done``, ``failed`` or ``cancelled``.
    """

    def __init__(self, callbacks: dict[str, Callable[..., object] | None]) -> None:
        self.id = uuid.uuid4().hex
        self.state: JobState = "queued"
        self._callbacks = callbacks
        self._cancel_requested = False
        self._stop: Callable[[], None] = lambda: None

    @property
    def is_over(self) -> bool:
        """Whether the job is done, failed or cancelled, and its last callback was called."""
        return self.state in ("done", "failed", "cancelled")

    def cancel(self) -> None:
        """Stop the job, soon: from here on it calls nothing but ``on_cancelled``. Does nothing when it is over."""
        if not self.is_over and not self._cancel_requested:
            self._cancel_requested = True
            self._stop()

    def _receive(self, verdict: Verdict, value: Any) -> None:
        """Take one message, on the caller's thread."""
        if self.is_over:
            return
        if verdict == "running":
            self.state = "running"
        elif verdict == "event":
            if not self._cancel_requested:
                self._call("event", value)
        elif verdict == "cancelled" or self._cancel_requested:
            self.state = "cancelled"
            self._call("cancelled")
        else:
            self.state = "done" if verdict == "result" else "failed"
            self._call(verdict, value)

    def _call(self, name: str, *values: Any) -> None:
        callback = self._callbacks[name]
        if callback is not None:
            callback(*values)


class Engine:
    """Jobs in a computing process on this computer, or on the workers of a Dask cluster.

    A lane runs its jobs in the order of submission: here one at a time, in a cluster as many as it has room for. Long
    jobs pause at their yields while a ``quick`` one runs in the same process. Jobs must be repeatable: one whose
    process has to be killed because *another* job did not stop, or whose worker was lost, is started again by itself,
    and its events begin anew.

    Parameters
    ----------
    wake : callable or None
        Called without arguments, from any thread, once something waits for :meth:`poll` (once per batch), and when
        the state changes.
    threads : int or None
        CPU threads of each job, unless a :class:`~napari_unet.domain.compute.ResolvedCompute` among its arguments
        says otherwise. None: all cores.
    address : str or None
        Of a running Dask scheduler, such as ``tls://host:8786``; None: this computer.
    insecure : bool
        Allow a cluster that is reached over a network without encryption.

    Raises
    ------
    ClusterError
        The address is none, or not encrypted.
    """

    def __init__(
        self,
        *,
        wake: Callable[[], None] | None = None,
        threads: int | None = None,
        address: str | None = None,
        insecure: bool = False,
    ) -> None:
        self._wake = wake
        self._threads = threads
        self._cluster = None if address is None else Cluster(address, insecure)
        self._state: EngineState = "stopped"
        self._trouble: str | None = None
        self._lock = threading.Lock()
        self._arrived = threading.Event()
        self._queue: deque[Callable[[], object]] = deque()
        self._jobs: dict[str, Job] = {}
        self._place: Place | None = None
        self._dispatcher: Dispatcher | None = None

    @property
    def state(self) -> EngineState:
        """``stopped``, ``starting``, ``ready``, ``away``, ``failed`` or ``closed`` (for good).

        A cluster that is ``away`` is looked for until it is back, and one that ``failed`` is tried again with the next
        job; where this computer failed, :meth:`start` tries again.
        """
        return self._state

    @property
    def wake(self) -> Callable[[], None] | None:
        """What is called once something waits for :meth:`poll`."""
        return self._wake

    @property
    def address(self) -> str | None:
        """The scheduler's address; None for this computer."""
        return None if self._cluster is None else self._cluster.address

    @property
    def trouble(self) -> str | None:
        """One sentence about an engine that is away or has failed."""
        return self._trouble

    @property
    def cluster(self) -> ClusterInfo | None:
        """What the cluster has, once the engine was ready; None for this computer."""
        return None if self._cluster is None else self._cluster.info

    @property
    def width(self) -> int:
        """How many jobs of the lane ``folder`` it is worth to have in flight."""
        return self._where().room("folder")

    @property
    def is_remote(self) -> bool:
        """Whether jobs run in a cluster, which sees no file of this computer."""
        return self._cluster is not None

    def start(self) -> None:
        """Start the computing process in the background; returns at once and may be called again.

        Raises
        ------
        EngineError
            The engine was closed.
        """
        if self._state == "closed":
            raise EngineError("The computing process has been closed: restart the program to compute again.")
        if self._state in ("starting", "ready", "away"):
            return
        self._state, self._trouble = "starting", None
        self._dispatcher = Dispatcher(self._where(), self._set_state)
        self._dispatcher.start()

    def share(self, key: str, array: NDArray) -> SharedArray:
        """Hand an array over, once per key: as a file that jobs map into memory, or to a cluster once a job needs it.

        Returns at once; it travels in the background, and a job that is given the handle begins once it is there.

        Parameters
        ----------
        key : str
            Names the content: a hash of it, such as a scan's fingerprint.
        array : array of any shape and numeric dtype
            Must not change afterwards.

        Returns
        -------
        SharedArray
            To be passed to :meth:`submit`; the job calls its ``open()``.
        """
        if self._state == "closed":
            raise EngineError("The computing process has been closed: restart the program to compute again.")
        return self._where().share(key, array)

    def forget(self, key: str) -> None:
        """Remove a shared array's file: its scan was closed. Jobs not yet running must not need it."""
        if self._place is not None:
            self._place.forget(key)

    def submit(
        self,
        function: Callable[..., Generator[Any, None, Any]],
        /,
        *args: Any,
        lane: Lane = "quick",
        on_event: Callable[[Any], object] | None = None,
        on_result: Callable[[Any], object] | None = None,
        on_error: Callable[[NapariUnetError], object] | None = None,
        on_cancelled: Callable[[], object] | None = None,
        **kwargs: Any,
    ) -> Job:
        """Run a generator function in the computing process; starts the engine if need be.

        Parameters
        ----------
        function : generator function
            Of a module (or of the user's script). It and its arguments are pickled now, so that later changes do
            not reach the job; large arrays belong into :meth:`share`.
        lane : {"quick", "train", "folder"}
            What a person waits for; a training; one of many scans.
        on_event : callable or None
            Takes each yielded object, in order.
        on_result : callable or None
            Takes the generator's return value.
        on_error : callable or None
            Takes the error that ended the job: the job's own where it is a ``NapariUnetError``, otherwise an
            ``EngineError`` of one sentence (the details go to the log).
        on_cancelled : callable or None
            Called once a cancelled job has stopped. Then no other end is announced.

        Returns
        -------
        Job
            All its callbacks are called by :meth:`poll` or :meth:`wait`.
        """
        job = Job({"event": on_event, "result": on_result, "error": on_error, "cancelled": on_cancelled})
        self._jobs[job.id] = job
        try:
            call = cloudpickle.dumps((function, args, kwargs))
        except Exception:
            logger.exception("A job cannot be pickled")
            self._tell(job, "error", EngineError("This job cannot be handed to the computing process: see the log."))
            return job
        if self._state == "failed" and self._cluster is None:
            self._tell(job, "error", self._failure())
            return job
        self.start()
        dispatcher = self._dispatcher
        assert dispatcher is not None
        threads = self._threads_for(args, kwargs)
        task = Task(job.id, lane, threads, call, lambda verdict, value: self._tell(job, verdict, value))
        job._stop = lambda: dispatcher.cancel(task)
        if not dispatcher.submit(task):
            self._tell(job, "error", self._failure())
        return job

    def steps(
        self, function: Callable[..., Generator[Any, None, Any]], /, *args: Any, lane: Lane = "quick"
    ) -> Generator[Any, None, Any]:
        """Run a job as if it ran here: yields its events, returns its result, raises its error.

        For callers without an event loop. Closing the generator cancels the job.
        """
        arrived: deque[Any] = deque()
        ended: list[Any] = []
        callbacks: dict[str, Any] = {"on_event": arrived.append, "on_result": ended.append, "on_error": ended.append}
        job = self.submit(function, *args, lane=lane, **callbacks)
        try:
            while True:
                self.poll()
                while arrived:
                    yield arrived.popleft()
                if job.is_over:
                    break
                self._arrived.wait(_WAIT_SECONDS)
        finally:
            job.cancel()
        if job.state == "failed":
            raise ended[0]
        if job.state == "cancelled":
            raise EngineError("The computing process was closed before it was done.")
        return ended[0]

    def poll(self) -> None:
        """Call the callbacks of everything that has arrived, on this thread, in order.

        What a callback raises is logged; the next ones are called all the same.
        """
        self._arrived.clear()
        for _ in range(len(self._queue)):
            try:
                arrived = self._queue.popleft()
            except IndexError:  # a callback called poll itself
                return
            try:
                arrived()
            except Exception:
                logger.exception("A callback failed")

    def wait(self, job: Job, timeout: float | None = None) -> None:
        """Poll until a job is over.

        Raises
        ------
        TimeoutError
            It is not over after so many seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self.poll()
            if job.is_over:
                return
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"job {job.id} is still {job.state} after {timeout} s")
            # Not for ever at once: on Windows nothing else lets a Ctrl-C through.
            self._arrived.wait(_WAIT_SECONDS if left is None else min(left, _WAIT_SECONDS))

    def close(self, timeout: float = 2.0) -> None:
        """Cancel all jobs, end the processes and remove every file; may be called twice. No callback comes after.

        Parameters
        ----------
        timeout : float
            Seconds after which what has not ended is killed.
        """
        if self._state == "closed":
            return
        self._state = "closed"
        atexit.unregister(self.close)
        if self._dispatcher is not None:
            self._dispatcher.close(timeout)
        self._queue.clear()
        for job in self._jobs.values():
            job.state = "cancelled"
        self._jobs.clear()
        if self._place is not None:
            self._place.close()
        self._arrived.set()

    def _where(self) -> Place:
        if self._place is None:
            self._place = self._cluster or ThisComputer()
            atexit.register(self.close)
        return self._place

    def _failure(self) -> EngineError:
        kind = EngineError if self._cluster is None else ClusterError
        return kind(self._trouble or self._where().unreachable)

    def _threads_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        for value in (*args, *kwargs.values()):
            if isinstance(value, ResolvedCompute):
                return value.threads
        # A cluster's workers know how many cores they have.
        return self._threads or (0 if self.is_remote else available_cores())

    def _set_state(self, state: EngineState, trouble: str | None) -> None:
        if self._state != "closed":
            self._state, self._trouble = state, trouble
            self.notify()

    def call(self, function: Callable[[], object]) -> None:
        """Have a function called by the next poll, on its thread; from any thread."""
        self._queue.append(function)
        self.notify()

    def _tell(self, job: Job, verdict: Verdict, value: Any) -> None:
        self.call(lambda: self._deliver(job, verdict, value))

    def _deliver(self, job: Job, verdict: Verdict, value: Any) -> None:
        try:
            job._receive(verdict, value)
        finally:
            if job.is_over:
                self._jobs.pop(job.id, None)

    def notify(self) -> None:
        """Ask for a poll, from any thread: only the first thing to arrive after a poll does."""
        with self._lock:
            first = not self._arrived.is_set()
            self._arrived.set()
        if first and self._wake is not None:
            try:
                self._wake()
            except Exception:
                logger.exception("The engine's wake callback failed")
