"""The engine's own thread: it starts the cluster, sends one job per lane, watches it, and starts over what broke.

What it does runs on one event loop, so that little needs a lock; the way in is :meth:`Dispatcher.submit` and its
siblings, the way out each task's ``tell``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

import psutil

from napari_unet.compute import worker
from napari_unet.compute.local import SessionFolder, end_processes, find_processes, kill_processes, open_cluster
from napari_unet.compute.transport import discard, unwrap, wrap
from napari_unet.compute.worker import Lane, Order, Outcome
from napari_unet.domain.errors import EngineError, NapariUnetError

logger = logging.getLogger(__name__)

Verdict = Literal["running", "event", "result", "error", "cancelled"]
DispatcherState = Literal["starting", "ready", "failed"]

#: A job that has not stopped so many seconds after it was asked to is killed with its process.
KILL_AFTER_SECONDS = 2.0
_START_SECONDS = 60.0
_HEALTH_CHECK_SECONDS = 0.5
_NOTICE_SECONDS = 5.0
_QUIET_SECONDS = 1.0
#: The nanny logs which signal ended a worker a little after the scheduler has missed it.
_LAST_WORDS_SECONDS = 0.2
_MOST_ATTEMPTS = 3

_LOST = "The computing process was lost (it may have run out of memory): it has been started again, please try again."
NOT_STARTED = "The computing process could not be started: see the log for the details, then restart the program."
_NOT_SENT = "This job could not be handed to the computing process: see the log for the details, then try again."
_GARBLED = "The answer of the computing process could not be understood: see the log for the details, then try again."


@dataclass(eq=False)
class Task:
    """One job on its way: what to run, whom to tell, and how far its present attempt is.

    Parameters
    ----------
    id, lane, threads
        As in :class:`~napari_unet.compute.worker.Order`.
    call : bytes
        The pickled ``(function, args, kwargs)``.
    shares : list of Future
        Arrays that must be written before the job can begin.
    tell : callable
        Takes a verdict and its value; called on the dispatcher's thread.
    """

    id: str
    lane: Lane
    threads: int
    call: bytes
    shares: list[Future[None]]
    tell: Callable[[Verdict, Any], None]
    attempt: int = 0
    received: int = 0
    pid: int | None = None
    garbled: bool = False

    def __post_init__(self) -> None:
        self.stop = asyncio.Event()

    def begin_attempt(self) -> None:
        """Forget the previous attempt: what it still sends is not counted."""
        self.attempt += 1
        self.received = 0
        self.pid = None

    def take(self, number: int, body: Any) -> None:
        """Take one message of the worker."""
        if number < 0:
            self.pid = body
            self.tell("running", None)
            return
        try:
            value = unwrap(body)
        except Exception:
            logger.exception("Event %d of job %s cannot be read", number, self.id)
            self.garbled = True
            return
        finally:
            discard(body)
        self.received += 1
        self.tell("event", value)


class Dispatcher:
    """Runs tasks on the local cluster, from a thread of its own.

    Parameters
    ----------
    folder : SessionFolder
    on_state : callable
        Told ``ready``, ``starting`` (again, after a loss) or ``failed``, on the dispatcher's thread.
    """

    def __init__(self, folder: SessionFolder, on_state: Callable[[DispatcherState], None]) -> None:
        self._folder = folder
        self._on_state = on_state
        self._topic = f"napari-unet-{folder.path.name}"
        self._thread = threading.Thread(target=self._run_thread, name="napari-unet-engine", daemon=True)
        self._lock = threading.Lock()  # guards the inbox, the loop's existence and the end
        self._inbox: deque[Callable[[], None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = False
        self._closing = False
        self._queues: dict[Lane, deque[Task]] = {"quick": deque(), "train": deque()}
        self._busy: dict[Lane, Task] = {}
        self._attempts: set[asyncio.Task[None]] = set()
        self._client: Any = None  # while the cluster is there
        self._killed: set[int] = set()  # workers that were killed to stop a job

    def start(self) -> None:
        """Begin, and return at once."""
        self._thread.start()

    def submit(self, task: Task) -> bool:
        """Run a task once its lane is free; from any thread. False if the dispatcher has ended."""
        return self._post(lambda: self._enqueue(task))

    def cancel(self, task: Task) -> None:
        """Stop a task; from any thread. It is told ``cancelled`` when it has stopped."""
        self._post(lambda: self._cancel(task))

    def close(self, timeout: float) -> None:
        """Stop everything within about so many seconds; from any thread. Nobody is told."""
        self._post(lambda: self._begin_to_close(timeout / 2))
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _post(self, action: Callable[[], None]) -> bool:
        with self._lock:
            if self._over:
                return False
            self._inbox.append(action)
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._drain)
        return True

    def _drain(self) -> None:
        while self._inbox:
            self._inbox.popleft()()

    # Below, everything runs on the dispatcher's thread.

    def _run_thread(self) -> None:
        try:
            # A second of imports, here rather than on the caller's thread.
            from distributed.config import get_loop_factory

            _silence_dask()
            with asyncio.Runner(loop_factory=get_loop_factory()) as runner, contextlib.suppress(asyncio.CancelledError):
                runner.run(self._main())
        except Exception:
            logger.exception("The computing processes did not start. They wrote:\n%s", self._folder.log_tail())
        finally:
            kill_processes(find_processes(self._folder.path))
            with self._lock:
                self._loop = None
                self._over = True
            self._client = None
            self._drain()
            if not self._closing:
                self._on_state("failed")
                for queue in self._queues.values():
                    for task in queue:
                        task.tell("error", EngineError(NOT_STARTED))

    async def _main(self) -> None:
        self._main_task = asyncio.current_task()
        with self._lock:
            self._loop = asyncio.get_running_loop()
        self._drain()
        while not self._closing:
            await self._serve()

    async def _serve(self) -> None:
        """Open the cluster and keep it busy until it breaks; closing the engine cancels this."""
        from distributed import Client

        async with contextlib.AsyncExitStack() as stack:
            # A scheduler that is gone keeps Dask waiting for half a minute: what is left is killed.
            processes: list[psutil.Process] = []
            stack.push_async_callback(self._end, processes)
            cluster = await open_cluster(self._folder.path)
            processes += find_processes(self._folder.path)
            stack.push_async_callback(_quietly, cluster.close)
            client = Client(cluster, asynchronous=True, set_as_default=False)
            stack.push_async_callback(_quietly, client.close)
            await client
            client.subscribe_topic(self._topic, self._on_message)
            await client.wait_for_workers(1, timeout=_START_SECONDS)  # type: ignore[func-returns-value, misc]
            self._client = client
            self._on_state("ready")
            self._pump()
            try:
                await self._until_broken(client, processes)
            finally:
                self._client = None
            logger.error("The computing processes ended. They wrote:\n%s", self._folder.log_tail())
            self._on_state("starting")
        # Closing the client has ended the attempts: each has told its end, or stands in the queue again.
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=_HEALTH_CHECK_SECONDS)

    async def _end(self, processes: list[psutil.Process]) -> None:
        await end_processes([*processes, *find_processes(self._folder.path)])

    async def _until_broken(self, client: Any, processes: list[psutil.Process]) -> None:
        """Return when the scheduler or the nanny is gone. A worker alone is brought back by its nanny."""
        with contextlib.suppress(psutil.NoSuchProcess):
            own = [process for process in processes if process.ppid() == os.getpid()]
            while client.status == "running" and all(process.is_running() for process in own):
                await asyncio.sleep(_HEALTH_CHECK_SECONDS)

    def _begin_to_close(self, grace: float) -> None:
        self._closing = True
        for task in self._busy.values():
            task.stop.set()
        self._farewell = asyncio.ensure_future(self._say_farewell(grace))

    async def _say_farewell(self, grace: float) -> None:
        """Let running generators close what they have open, then end."""
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=grace)
        for task in self._busy.values():
            if task.pid is not None:
                self._kill(task.pid)
        for attempt in self._attempts:
            attempt.cancel()
        assert self._main_task is not None
        self._main_task.cancel()

    def _on_message(self, stamped: tuple[float, dict[str, Any]]) -> None:
        _, message = stamped
        for task in self._busy.values():
            if (task.id, task.attempt) == (message["job"], message["attempt"]):
                task.take(message["number"], message["body"])
                return
        if message["number"] >= 0:
            discard(message["body"])

    def _enqueue(self, task: Task) -> None:
        self._queues[task.lane].append(task)
        self._pump()

    def _cancel(self, task: Task) -> None:
        task.stop.set()
        if task in self._queues[task.lane]:
            self._queues[task.lane].remove(task)
            task.tell("cancelled", None)

    def _pump(self) -> None:
        """Send the next task of every free lane."""
        for lane, queue in self._queues.items():
            if self._client is not None and not self._closing and queue and lane not in self._busy:
                self._busy[lane] = queue.popleft()
                attempt = asyncio.ensure_future(self._attempt(self._busy[lane], self._client))
                self._attempts.add(attempt)
                attempt.add_done_callback(self._attempts.discard)

    async def _attempt(self, task: Task, client: Any) -> None:
        """Run a task once; tell its end, or put it back first in its queue."""
        verdict: tuple[Verdict, Any] | None = "error", EngineError(_NOT_SENT)
        try:
            task.begin_attempt()
            outcome = await self._outcome(task, client)
            if outcome is None and not task.stop.is_set():
                await asyncio.sleep(_LAST_WORDS_SECONDS)
            verdict = self._judge(task, outcome)
        except asyncio.CancelledError:
            self._queues[task.lane].appendleft(task)
            raise
        except Exception:
            logger.exception("Job %s could not be run", task.id)
        finally:
            del self._busy[task.lane]
        if verdict is None:
            self._queues[task.lane].appendleft(task)
        else:
            task.tell(*verdict)
        self._pump()

    def _judge(self, task: Task, outcome: Outcome | None) -> tuple[Verdict, Any] | None:
        """Turn an outcome (None: the worker was lost) into what the caller is told; None: try again."""
        if task.stop.is_set():
            return "cancelled", None
        if outcome is None:
            # A job that had not begun, or whose process was killed because of another job, is not to blame.
            innocent = task.pid is None or task.pid in self._killed
            if innocent and task.attempt < _MOST_ATTEMPTS:
                return None
            logger.error("Job %s lost its process. It wrote:\n%s", task.id, self._folder.log_tail())
            return "error", EngineError(_LOST)
        if outcome.status == "failed":
            error = unwrap(outcome.parcel)
            assert isinstance(error, NapariUnetError)
            if isinstance(error, EngineError):
                logger.error("Job %s failed:\n%s", task.id, outcome.details)
            return "error", error
        if task.garbled or task.received != outcome.events:
            logger.error("Job %s: %d of %d events were received", task.id, task.received, outcome.events)
            return "error", EngineError(_GARBLED)
        try:
            return "result", unwrap(outcome.parcel)
        except Exception:
            logger.exception("The result of job %s cannot be read", task.id)
            return "error", EngineError(_GARBLED)
        finally:
            discard(outcome.parcel)

    async def _outcome(self, task: Task, client: Any) -> Outcome | None:
        """Send a task, wait for it or for its cancellation; None if its process was lost."""
        # A job opens its arrays itself, and says what is wrong with one that could not be written.
        await asyncio.gather(*map(asyncio.wrap_future, task.shares), return_exceptions=True)
        if task.stop.is_set():
            return None
        call = wrap(task.call, self._folder.messages)
        order = Order(
            task.id,
            task.attempt,
            call,
            task.lane,
            task.threads,
            self._topic,
            str(self._folder.messages),
            tuple(sys.path),
        )
        future = client.submit(
            worker.run, order, key=f"{task.id}-{task.attempt}", resources={task.lane: 1}, retries=0, pure=False
        )
        result = asyncio.ensure_future(future.result())
        stop = asyncio.ensure_future(task.stop.wait())
        try:
            await asyncio.wait({result, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                await self._interrupt(task, client, result)
            if not result.done() or result.cancelled():
                return None
            if result.exception() is not None:
                logger.info("Job %s was not finished: %s", task.id, type(result.exception()).__name__)
                return None
            return result.result()
        finally:
            stop.cancel()
            result.cancel()
            future.release()
            discard(call)

    async def _interrupt(self, task: Task, client: Any, result: asyncio.Future[Outcome]) -> None:
        """Ask a job to stop at its next yield; kill its process if that takes too long."""
        request = asyncio.ensure_future(_quietly(client.run, worker.cancel, task.id))
        await asyncio.wait({result}, timeout=KILL_AFTER_SECONDS)
        request.cancel()
        if not result.done() and task.pid is not None:
            self._kill(task.pid)
            # Until the scheduler has noticed, it would send the next job to the dead process.
            await asyncio.wait({result}, timeout=_NOTICE_SECONDS)

    def _kill(self, pid: int) -> None:
        logger.warning("Process %d is killed: its job did not stop when it was asked to", pid)
        self._killed.add(pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()


def _silence_dask() -> None:
    """Keep Dask's own messages off the terminal: what matters of them is logged here, in this package's words."""
    for name in ["distributed", *(name for name in logging.root.manager.loggerDict if name.startswith("distributed."))]:
        logging.getLogger(name).setLevel(logging.CRITICAL)


async def _quietly(function: Callable[..., Any], *args: Any) -> None:
    """Await a call to something that may be gone already."""
    try:
        await asyncio.wait_for(function(*args), _QUIET_SECONDS)
    except Exception:
        logger.debug("%r failed", function, exc_info=True)
