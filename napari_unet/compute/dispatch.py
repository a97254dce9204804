"""The engine's own thread: it keeps the connection to where jobs run, sends them, watches them, and starts over.

What it does runs on one event loop, so that little needs a lock; the way in is :meth:`Dispatcher.submit` and its
siblings, the way out each task's ``tell``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from napari_unet import __version__
from napari_unet.compute.place import LostOnTheWayError, Place
from napari_unet.compute.task import Task, Verdict
from napari_unet.compute.transport import discard, unwrap
from napari_unet.compute.worker import Lane, Outcome
from napari_unet.domain.errors import ClusterError, EngineError, NapariUnetError

logger = logging.getLogger(__name__)

DispatcherState = Literal["starting", "ready", "away", "failed"]

_AGAIN_SECONDS = 2.0
_HEALTH_CHECK_SECONDS = 0.5
#: The nanny logs which signal ended a worker a little after the scheduler has missed it.
_LAST_WORDS_SECONDS = 0.2

_NOT_SENT = "This job could not be handed to the computing process: see the log for the details, then try again."
_GARBLED = "The answer of the computing process could not be understood: see the log for the details, then try again."


class Dispatcher:
    """Runs tasks at a place, from a thread of its own.

    Parameters
    ----------
    place : Place
    on_state : callable
        Told ``ready``, ``starting`` (again, after a loss), ``away`` (a cluster does not answer; it is tried again) or
        ``failed``, and a sentence about it or None, on the dispatcher's thread.
    """

    def __init__(self, place: Place, on_state: Callable[[DispatcherState, str | None], None]) -> None:
        self._place = place
        self._on_state = on_state
        self._thread = threading.Thread(target=self._run_thread, name="napari-unet-engine", daemon=True)
        self._lock = threading.Lock()  # guards the inbox, the loop's existence and the end
        self._inbox: deque[Callable[[], None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = False
        self._closing = False
        self._queues: dict[Lane, deque[Task]] = {"quick": deque(), "train": deque(), "folder": deque()}
        self._busy: list[Task] = []
        self._attempts: set[asyncio.Task[None]] = set()
        self._client: Any = None  # while there is a connection
        self._away = False  # a connection was lost, and not yet made again

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
                # One that has just ended takes nothing; its thread works off what is left here.
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._drain)
        return True

    def _drain(self) -> None:
        while self._inbox:
            self._inbox.popleft()()

    # Below, everything runs on the dispatcher's thread.

    def _run_thread(self) -> None:
        sentence = self._place.unreachable
        try:
            # A second of imports, here rather than on the caller's thread.
            from distributed.config import get_loop_factory

            _silence_dask()
            with asyncio.Runner(loop_factory=get_loop_factory()) as runner, contextlib.suppress(asyncio.CancelledError):
                runner.run(self._main())
        except Exception as error:
            logger.exception("There is nowhere to compute. Written there:\n%s", self._place.last_words())
            if isinstance(error, ClusterError):
                sentence = str(error)
        finally:
            with self._lock:
                self._loop = None
                self._over = True
            self._client = None
            self._drain()
            if not self._closing:
                self._on_state("failed", sentence)
                self._refuse_all(sentence)

    def _refuse_all(self, sentence: str) -> None:
        """Tell every waiting task that it will not be run."""
        kind = ClusterError if self._place.may_go else EngineError
        for queue in self._queues.values():
            while queue:
                queue.popleft().tell("error", kind(sentence))

    async def _main(self) -> None:
        self._main_task = asyncio.current_task()
        with self._lock:
            self._loop = asyncio.get_running_loop()
        self._drain()
        while not self._closing:
            try:
                await self._serve()
            except ClusterError as error:
                if not self._away:
                    raise
                logger.info("Still away: %s", error)
            if self._away:
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _serve(self) -> None:
        """Connect, and keep the place busy until it is gone; closing the engine cancels this."""
        async with self._place.open() as client:
            client.subscribe_topic(self._place.topic, self._on_message)
            self._client, self._away = client, False
            self._on_state("ready", None)
            self._pump()
            try:
                await self._place.until_gone(client)
            finally:
                self._client = None
            logger.error("The connection to the computing processes was lost: %s", self._place.last_words())
            self._away = self._place.may_go
            if self._away:
                self._on_state("away", self._place.unreachable)
                for attempt in self._attempts:
                    attempt.cancel()
            else:
                self._on_state("starting", None)
        # Closing the client has ended the attempts: each has told its end, or stands in the queue again.
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=_HEALTH_CHECK_SECONDS)
        if self._away:
            self._refuse_all(self._place.unreachable)

    def _begin_to_close(self, grace: float) -> None:
        self._closing = True
        if self._loop is None:  # it has ended by itself
            return
        for task in self._busy:
            task.stop.set()
        self._farewell = asyncio.ensure_future(self._say_farewell(grace))

    async def _say_farewell(self, grace: float) -> None:
        """Let running generators close what they have open, then end."""
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=grace)
        for attempt in self._attempts:
            attempt.cancel()
        assert self._main_task is not None
        self._main_task.cancel()

    def _on_message(self, stamped: tuple[float, dict[str, Any]]) -> None:
        _, message = stamped
        for task in self._busy:
            if (task.id, task.attempt) == (message["job"], message["attempt"]):
                task.take(message["number"], message["body"], self._place.most_beginnings)
                return
        if message["number"] >= 0:
            discard(message["body"])

    def _enqueue(self, task: Task) -> None:
        if self._away:
            task.tell("error", ClusterError(self._place.unreachable))
            return
        self._queues[task.lane].append(task)
        self._pump()

    def _cancel(self, task: Task) -> None:
        task.stop.set()
        if task in self._queues[task.lane]:
            self._queues[task.lane].remove(task)
            task.tell("cancelled", None)

    def _pump(self) -> None:
        """Send the next tasks of every lane that has room."""
        for lane, queue in self._queues.items():
            while queue and self._has_room(lane):
                self._busy.append(queue.popleft())
                attempt = asyncio.ensure_future(self._attempt(self._busy[-1], self._client))
                self._attempts.add(attempt)
                attempt.add_done_callback(self._attempts.discard)

    def _has_room(self, lane: Lane) -> bool:
        if self._client is None or self._closing:
            return False
        return sum(task.lane == lane for task in self._busy) < self._place.room(lane)

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
        except EngineError as error:
            verdict = "error", error
        except Exception:
            logger.exception("Job %s could not be run", task.id)
        finally:
            self._busy.remove(task)
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
            if self._place.may_try_again(task):
                return None
            logger.error("Job %s lost its process. It wrote:\n%s", task.id, self._place.last_words())
            return "error", EngineError(self._place.lost)
        if outcome.status == "failed":
            error = unwrap(outcome.parcel)
            assert isinstance(error, NapariUnetError)
            if isinstance(error, EngineError):
                logger.error("Job %s failed:\n%s", task.id, outcome.details)
            return "error", error
        if not task.is_complete(outcome):
            logger.error("Job %s: its %d events were not all received", task.id, outcome.events)
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
        if task.stop.is_set():
            return None
        stop, lost = (asyncio.ensure_future(event.wait()) for event in (task.stop, task.lost_too_often))
        try:
            async with contextlib.AsyncExitStack() as stack:
                sending = asyncio.ensure_future(stack.enter_async_context(self._place.sent(client, task)))
                await _either(sending, stop)
                if not sending.done():
                    # Large scans on slow lines: the person need not wait for them to arrive.
                    sending.cancel()
                    await asyncio.wait({sending})
                    return None
                try:
                    result = sending.result()
                except LostOnTheWayError:
                    return None
                await _either(result, stop, lost)
                if not result.done() and task.stop.is_set():
                    await self._place.interrupt(client, task, result)
                return _outcome_of(result, task.id)
        finally:
            stop.cancel()
            lost.cancel()


async def _either(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _outcome_of(result: asyncio.Future[Outcome], job: str) -> Outcome | None:
    """Return what became of a job; None if its process was lost.

    Raises
    ------
    ClusterError
        Dask could not run it at all.
    """
    from distributed.client import FutureCancelledError
    from distributed.scheduler import KilledWorker

    if not result.done() or result.cancelled():
        return None
    error = result.exception()
    if error is None:
        return result.result()
    logger.info("Job %s was not finished: %s", job, type(error).__name__)
    if isinstance(error, KilledWorker | FutureCancelledError | OSError):
        return None
    raise ClusterError(
        f"The job could not be run ({type(error).__name__}): install napari-unet {__version__} where the cluster's "
        "scheduler and workers run."
    ) from error


def _silence_dask() -> None:
    """Keep Dask's own messages off the terminal: what matters of them is logged here, in this package's words."""
    for name in ["distributed", *(name for name in logging.root.manager.loggerDict if name.startswith("distributed."))]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
