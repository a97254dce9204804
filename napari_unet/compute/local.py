"""This computer as a Dask cluster of one worker: its private folder, its keys, its processes, their end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
from numpy.typing import NDArray

from napari_unet.compute import worker
from napari_unet.compute.quietly import quietly
from napari_unet.compute.task import Task
from napari_unet.compute.transport import SharedArray, SharedArrays, discard, wrap
from napari_unet.compute.worker import Lane, Order, Outcome
from napari_unet.domain.compute import PATIENT_THREADS

logger = logging.getLogger(__name__)

#: Names of files in a session's folder.
LOG_NAME = "engine.log"
OWNER_NAME = "owner"
_PRELOAD = "napari_unet.compute.preload"
_SCHEDULER: dict[str, Any] = {
    # A job that killed its worker once would do so again.
    "allowed_failures": 0,
    # A laptop that slept for an hour has lost nobody.
    "worker_ttl": "365 days",
}
#: By lane; whole folders take turns with trainings, so that the window's own questions need not wait for either.
_RESOURCES: dict[Lane, str] = {"quick": "quick", "train": "train", "folder": "train"}
_WORKER: dict[str, Any] = {
    "resources": {"quick": 1, "train": 1},
    "preload": [_PRELOAD],
    "config": {
        # A scan mapped into memory counts as the worker's: it must neither pause nor spill because of one.
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.target": False,
        "distributed.worker.profile.enabled": False,
        "distributed.admin.system-monitor.gil.enabled": False,
    },
}
_LOG_TAIL_BYTES = 8000
_GONE_SECONDS = 1.0
#: A job that has not stopped so many seconds after it was asked to is killed with its process.
KILL_AFTER_SECONDS = 2.0
_START_SECONDS = 60.0
_HEALTH_CHECK_SECONDS = 0.5
_NOTICE_SECONDS = 5.0
_MOST_ATTEMPTS = 3


class ThisComputer:
    """A worker process on this computer, started for a session and ended with it."""

    most_beginnings = _MOST_ATTEMPTS
    may_go = False
    lost = (
        "The computing process was lost (it may have run out of memory): it has been started again, please try again."
    )
    unreachable = "The computing process could not be started: see the log for the details, then restart the program."

    def __init__(self) -> None:
        self.folder = SessionFolder()
        self._shared = SharedArrays(self.folder.path)
        self._killed: set[int] = set()  # workers that were killed to stop a job

    @property
    def topic(self) -> str:
        """Named after the session's folder."""
        return f"napari-unet-{self.folder.path.name}"

    def share(self, key: str, array: NDArray) -> SharedArray:
        """Write an array into the session's folder, in the background."""
        return self._shared.put(key, array)

    def forget(self, key: str) -> None:
        """Remove an array's file."""
        self._shared.forget(key)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Any]:
        """Start scheduler, nanny and worker; all of them are gone at the end."""
        from distributed import Client

        async with contextlib.AsyncExitStack() as stack:
            # A scheduler that is gone keeps Dask waiting for half a minute: what is left is killed.
            self._processes: list[psutil.Process] = []
            stack.push_async_callback(self._end)
            cluster = await open_cluster(self.folder.path)
            self._processes += find_processes(self.folder.path)
            stack.push_async_callback(quietly, cluster.close)
            client = Client(cluster, asynchronous=True, set_as_default=False)
            stack.push_async_callback(quietly, client.close)
            await client
            await client.wait_for_workers(1, timeout=_START_SECONDS)  # type: ignore[func-returns-value, misc]
            yield client

    async def _end(self) -> None:
        await end_processes([*self._processes, *find_processes(self.folder.path)])

    async def until_gone(self, client: Any) -> None:
        """Return when the scheduler or the nanny is gone. A worker alone is brought back by its nanny."""
        with contextlib.suppress(psutil.NoSuchProcess):
            own = [process for process in self._processes if process.ppid() == os.getpid()]
            while client.status == "running" and all(process.is_running() for process in own):
                await asyncio.sleep(_HEALTH_CHECK_SECONDS)

    def room(self, lane: Lane) -> int:
        """Return 1: more at once would share the same cores."""
        return 1

    @contextlib.asynccontextmanager
    async def sent(self, client: Any, task: Task) -> AsyncIterator[asyncio.Future[Outcome]]:
        """Send a task once what it needs is written."""
        # A job opens its arrays itself, and says what is wrong with one that could not be written.
        await asyncio.gather(*map(asyncio.wrap_future, self._shared.pending(task.call)), return_exceptions=True)
        call = wrap(task.call, self.folder.messages)
        messages = str(self.folder.messages)
        order = Order(task.id, task.attempt, call, task.lane, task.threads, self.topic, messages, tuple(sys.path))
        future = client.submit(
            worker.run, order, key=order.key, resources={_RESOURCES[task.lane]: 1}, retries=0, pure=False
        )
        result = asyncio.ensure_future(future.result())
        try:
            yield result
        finally:
            result.cancel()
            future.release()
            discard(call)

    async def interrupt(self, client: Any, task: Task, result: asyncio.Future[Outcome]) -> None:
        """Ask a job to stop at its next yield; kill its process if that takes too long."""
        request = asyncio.ensure_future(quietly(client.run, worker.cancel, task.id))
        await asyncio.wait({result}, timeout=KILL_AFTER_SECONDS)
        request.cancel()
        if not result.done() and task.pid is not None:
            logger.warning("Process %d is killed: its job did not stop when it was asked to", task.pid)
            self._killed.add(task.pid)
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(task.pid).kill()
            # Until the scheduler has noticed, it would send the next job to the dead process.
            await asyncio.wait({result}, timeout=_NOTICE_SECONDS)

    def may_try_again(self, task: Task) -> bool:
        """Return whether a job is not to blame: it had not begun, or its process was killed because of another job."""
        return (task.pid is None or task.pid in self._killed) and task.attempt < _MOST_ATTEMPTS

    def last_words(self) -> str:
        """Return the end of the processes' log."""
        return self.folder.log_tail()

    def close(self) -> None:
        """End every process and remove every file."""
        self._shared.close()
        kill_processes(find_processes(self.folder.path))
        self.folder.remove()


class SessionFolder:
    """A folder that only this user can enter: keys, shared scans, large messages, the processes' log."""

    def __init__(self) -> None:
        # mkdtemp makes it 0700.
        self.path = Path(tempfile.mkdtemp(prefix="napari-unet-"))
        (self.path / OWNER_NAME).write_text(str(os.getpid()))
        self.messages = self.path / "messages"
        self.messages.mkdir()
        self._log_position = 0

    def log_tail(self) -> str:
        """Return the end of what the computing processes wrote since this was last asked."""
        try:
            written = (self.path / LOG_NAME).read_bytes()
        except OSError:
            return ""
        news, self._log_position = written[self._log_position :], len(written)
        return news[-_LOG_TAIL_BYTES:].decode(errors="replace")

    def remove(self) -> None:
        """Remove it with everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)


def make_keys(folder: Path) -> dict[str, Any]:
    """Make a key and a certificate for this session alone.

    Loopback without TLS would let any user of this machine run code as this one.

    Returns
    -------
    dict
        Arguments of :class:`distributed.Security`: paths only, fit to stand on a command line.
    """
    from distributed import Security

    security = Security.temporary()
    certificate, key = folder / "session.crt", folder / "session.key"
    certificate.write_text(security.tls_ca_file)
    key.write_text(security.tls_client_key)
    arguments: dict[str, Any] = {"require_encryption": True, "tls_ca_file": str(certificate)}
    for role in ("client", "scheduler", "worker"):
        arguments[f"tls_{role}_cert"] = str(certificate)
        arguments[f"tls_{role}_key"] = str(key)
    return arguments


async def open_cluster(folder: Path) -> Any:
    """Start a scheduler and one worker with its nanny, on loopback.

    Parameters
    ----------
    folder : Path
        The session's.

    Returns
    -------
    distributed.SpecCluster
        Belongs to the running event loop.
    """
    from distributed import Security

    keys = make_keys(folder)
    options: dict[str, Any] = {
        "n_workers": 1,
        "threads_per_worker": 2,
        "host": "127.0.0.1",
        "dashboard_address": None,
        "security": Security(**keys),
        "asynchronous": True,
        "silence_logs": False,  # they go to the session's log
    }
    start = _start_here if sys.platform == "win32" else _start_subprocesses
    cluster = await start(folder, keys, options)
    # Dask's own exit hook would close it under the engine, which would start it again.
    cluster.shutdown_on_close = False
    return cluster


async def _start_subprocesses(folder: Path, keys: dict[str, Any], options: dict[str, Any]) -> Any:
    from distributed import SubprocessCluster

    address = folder / "scheduler.json"
    address.unlink(missing_ok=True)  # a predecessor's would be taken for the new one's
    scheduler = {
        **_SCHEDULER,
        "protocol": "tls",
        "security": keys,
        "scheduler_file": str(address),
        "preload": [_PRELOAD],
    }
    worker = {**_WORKER, "security": keys, "local_directory": str(folder)}
    with _environment_of_children():
        return await SubprocessCluster(
            scheduler_kwargs=scheduler, worker_kwargs=worker, worker_class=f"{_PRELOAD}.QuietNanny", **options
        )


async def _start_here(folder: Path, keys: dict[str, Any], options: dict[str, Any]) -> Any:
    """Start a cluster whose scheduler and nanny live in this process: on Windows Dask has no other.

    There a script that opens a viewer has to guard its ``__main__``, as always with multiprocessing.
    """
    from distributed import LocalCluster

    cluster: Any = LocalCluster(
        protocol="tls", scheduler_kwargs=_SCHEDULER, local_directory=str(folder), **_WORKER, **options
    )
    try:
        await cluster
    except BaseException:
        await cluster.close()
        raise
    # Dask serves its state over plain HTTP even without a dashboard.
    cluster.scheduler.http_server.stop()
    return cluster


@contextlib.contextmanager
def _environment_of_children() -> Iterator[None]:
    """Set what the children must find in their environment from the start; what the person has set stays.

    The current folder is kept off their module path: a ``random.py`` among the scans would be imported.
    """
    wanted = {"PYTHONSAFEPATH": "1", **PATIENT_THREADS}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def find_processes(folder: Path) -> list[psutil.Process]:
    """Return the child processes that were started for a folder, each after its own children."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if str(folder) in " ".join(child.cmdline()):
                found += [*child.children(recursive=True), child]
    return found


def kill_processes(processes: list[psutil.Process]) -> None:
    """Kill processes and wait until they are gone."""
    _kill(processes)
    psutil.wait_procs(processes, timeout=_GONE_SECONDS)


async def end_processes(processes: list[psutil.Process]) -> None:
    """Do :func:`kill_processes` while the event loop, which started them, hears of their end."""
    _kill(processes)
    deadline = time.monotonic() + _GONE_SECONDS
    while any(process.is_running() for process in processes) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.01)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
