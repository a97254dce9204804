"""A running Dask cluster as the place where jobs run: its address, its workers, and how arrays reach them.

Nothing is started or ended here. TLS keys and certificates are those of Dask's own configuration
(``distributed.comm.tls``), so that who may use a cluster is decided in one place.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import logging
import platform
import ssl
import threading
import time
import uuid
import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from numpy.typing import NDArray

from napari_unet import __version__
from napari_unet.compute import worker
from napari_unet.compute.place import LostOnTheWayError
from napari_unet.compute.quietly import quietly
from napari_unet.compute.task import Task
from napari_unet.compute.transport import SharedArray
from napari_unet.compute.worker import CALL, Lane, Order, Outcome, WorkerFacts
from napari_unet.domain.errors import ClusterError

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_WORKER_SECONDS = 5.0
_FACTS_SECONDS = 30.0
#: Workers that end by their time are often followed by others.
_WITHOUT_WORKERS_SECONDS = 120.0
_HEALTH_CHECK_SECONDS, _CHECKS_PER_COUNT = 0.5, 10
#: A person waits no longer than this for a job that was cancelled; on the cluster it ends at its next yield.
_CANCEL_SECONDS = 2.0
#: A job that lost two workers may be what ends them.
_MOST_BEGINNINGS = 2
_MOST_ATTEMPTS = 5
_LARGEST_CALL = 256 * 1024


@dataclass(frozen=True)
class ClusterInfo:
    """What a cluster has.

    Parameters
    ----------
    address : str
        Of its scheduler.
    workers : int
    gpus : tuple of str
        Names of the GPUs that the workers see.
    memory_bytes : int
        Of all workers together, as much as Dask lets them use.
    """

    address: str
    workers: int
    gpus: tuple[str, ...]
    memory_bytes: int

    def in_words(self) -> str:
        """Return it as a sentence for a person."""
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        found = {name: self.gpus.count(name) for name in dict.fromkeys(self.gpus)}
        gpus = ", ".join(f"{n} x {name}" for name, n in found.items()) or "no GPU"
        return (
            f"Computing on the cluster {self.address}: {workers}, {gpus}, {self.memory_bytes / 2**30:.0f} GiB memory."
        )


def require_safe(address: str, insecure: bool) -> str:
    """Return a scheduler's address, checked.

    Parameters
    ----------
    address : str
        Such as ``tls://host:8786``.
    insecure : bool
        Whether a connection that anyone on the network can read and change is acceptable.

    Raises
    ------
    ClusterError
        Not such an address, or a plain one that leaves this computer.
    """
    wrong = f"{address!r} is no address of a Dask scheduler: it looks like tls://host:8786."
    try:
        parts = urlsplit(address.strip())
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ClusterError(wrong) from error
    if parts.scheme not in ("tls", "tcp") or not host or port is None or parts.path.strip("/"):
        raise ClusterError(wrong)
    if parts.scheme == "tcp" and not insecure and not _is_loopback(host):
        raise ClusterError(
            f"{address} is not encrypted: anyone on the network could read scans and run programs as you. Use "
            "tls:// (docs/clusters.md), or allow it: with --insecure, in the window by the box."
        )
    return f"{parts.scheme}://{parts.netloc}"


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


class Cluster:
    """A Dask cluster that somebody runs.

    A job asks for one ``GPU`` where any worker offers that resource. Of each array one copy is handed to the cluster
    and passed on among its workers as their jobs need it; a copy that was lost with its worker is handed over again.

    Parameters
    ----------
    address : str
        Of the scheduler, such as ``tls://host:8786``.
    insecure : bool
        See :func:`require_safe`.

    Raises
    ------
    ClusterError
        The address cannot be used.
    """

    most_beginnings = _MOST_BEGINNINGS
    may_go = True
    lost = (
        "The cluster lost the worker of this job, twice (it may have run out of memory): try again, or ask whoever "
        "runs the cluster."
    )

    def __init__(self, address: str, insecure: bool = False) -> None:
        self.address = require_safe(address, insecure)
        self.info: ClusterInfo | None = None
        self.topic = f"napari-unet-{uuid.uuid4().hex}"
        self._silent = (
            f"The cluster at {self.address} does not answer: check the address and that its scheduler runs. What was "
            "done so far is kept."
        )
        self.unreachable = self._silent
        self._no_workers = (
            f"The cluster at {self.address} has no workers: start one with dask worker (docs/clusters.md)."
        )
        self._lock = threading.Lock()
        self._arrays: dict[str, _Handed] = {}
        self._gpu = False
        self._gpus: dict[str, tuple[str, ...]] = {}  # of the workers that were there at the start
        self._room = 1

    def share(self, key: str, array: NDArray) -> SharedArray:
        """Keep an array until a job needs it."""
        name = f"napari-unet-{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}"
        with self._lock:
            handed = self._arrays.setdefault(name, _Handed(array))
        return SharedArray(key, Path(name), handed.array.shape, handed.array.dtype.str)

    def forget(self, key: str) -> None:
        """Take an array back; workers drop it once no job needs it."""
        name = f"napari-unet-{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}"
        with self._lock:
            handed = self._arrays.pop(name, None)
        if handed is not None:
            handed.release()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Any]:
        """Connect, and see that the workers are there and of our kind."""
        from distributed import Client
        from distributed.versions import VersionMismatchWarning

        # As a table, of libraries that need not be alike.
        warnings.filterwarnings("ignore", category=VersionMismatchWarning)
        client: Any = None
        self._gpu, self.unreachable = False, self._silent
        try:
            try:
                client = Client(
                    self.address,
                    security=_security(self.address),
                    asynchronous=True,
                    set_as_default=False,
                    timeout=_CONNECT_SECONDS,
                )
                await client
            except Exception as error:
                logger.info("No connection to the cluster", exc_info=True)
                raise ClusterError(_why_not(error, self.unreachable)) from error
            try:
                await self._take_stock(client)
            except (OSError, TimeoutError) as error:
                raise ClusterError(self.unreachable) from error
            yield client
        finally:
            with self._lock:
                for handed in self._arrays.values():
                    handed.release()
            if client is not None:
                await quietly(client.close)

    async def _take_stock(self, client: Any) -> None:
        try:
            await client.wait_for_workers(1, timeout=_WORKER_SECONDS)
        except TimeoutError as error:
            raise ClusterError(self._no_workers) from error
        try:
            # The scheduler looks at jobs, too.
            of_scheduler = await asyncio.wait_for(client.run_on_scheduler(worker.versions), _FACTS_SECONDS)
        except (OSError, TimeoutError):
            raise
        except Exception as error:
            raise ClusterError(
                f"The cluster's scheduler cannot load napari-unet {__version__}: install the same version in its "
                "environment."
            ) from error
        answers = await asyncio.wait_for(client.run(worker.facts, on_error="return"), _FACTS_SECONDS)
        # One that left or hangs meanwhile says nothing about the others.
        answers = {address: facts for address, facts in answers.items() if not isinstance(facts, OSError)}
        known = [facts for facts in answers.values() if isinstance(facts, WorkerFacts)]
        _require_same_versions(known, len(answers), of_scheduler)
        self._gpus = {address: facts.gpus for address, facts in answers.items()}
        await self._count(client)
        if not self._gpu and {bool(gpus) for gpus in self._gpus.values()} == {True, False}:
            raise ClusterError(
                "Some of the cluster's workers have GPUs and others have none: start those that have with --resources "
                "GPU=1, so that jobs go there (docs/clusters.md)."
            )

    async def _count(self, client: Any) -> None:
        found = (await client.scheduler.identity(n_workers=-1))["workers"]
        workers = list(found.values())
        # What was found to need a GPU needs one also while all that have some are away.
        self._gpu = self._gpu or any(each.get("resources", {}).get("GPU") for each in workers)
        self._room = sum(
            max(1, int(each["resources"]["GPU"])) if self._gpu else int(each["nthreads"])
            for each in workers
            if not self._gpu or each.get("resources", {}).get("GPU")
        )
        self.info = ClusterInfo(
            self.address,
            len(workers),
            tuple(name for address in found for name in self._gpus.get(address, ())),
            sum(int(each.get("memory_limit") or 0) for each in workers),
        )

    async def until_gone(self, client: Any) -> None:
        """Return when the scheduler is gone, or all workers are for long. They are counted meanwhile."""
        # Dask's client connects again by itself, but without our topic.
        connection, last_room = client.scheduler_comm, time.monotonic()
        while client.status == "running" and client.scheduler_comm is connection:
            await quietly(self._count, client)
            now = time.monotonic()
            last_room = now if self._room else last_room
            if now - last_room > _WITHOUT_WORKERS_SECONDS:
                self.unreachable = self._no_workers
                return
            for _ in range(_CHECKS_PER_COUNT):
                if client.status == "running":
                    await asyncio.sleep(_HEALTH_CHECK_SECONDS)

    def room(self, lane: Lane) -> int:
        """Return for whole folders one more than the workers can run, so that none waits for its next scan."""
        return self._room + 1 if lane == "folder" else 2 if lane == "quick" else 1

    @contextlib.asynccontextmanager
    async def sent(self, client: Any, task: Task) -> AsyncIterator[asyncio.Future[Outcome]]:
        """Send a task with the arrays it speaks of."""
        is_large = len(task.call) > _LARGEST_CALL
        order = Order(task.id, task.attempt, b"" if is_large else task.call, task.lane, task.threads, self.topic)
        try:
            arrays = {name: await handed.on(client, name) for name, handed in self._mentioned(task.call)}
            if is_large:
                # Beside the scheduler's own tables, which it would fill.
                arrays[CALL] = (await client.scatter({f"{order.key}-call": task.call}))[f"{order.key}-call"]
        except (OSError, KeyError) as error:  # a worker was lost in the midst of it
            raise LostOnTheWayError from error
        future = client.submit(
            worker.run,
            order,
            arrays,
            key=order.key,
            resources={"GPU": 1} if self._gpu else None,
            # What a person waits for goes before folders and trainings, also before those of others.
            priority=10 if task.lane == "quick" else 0,
            retries=0,
            pure=False,
        )
        result = asyncio.ensure_future(future.result())
        try:
            yield result
        finally:
            result.cancel()
            # A job that still runs finds that nobody wants it, and stops.
            future.release()
            if CALL in arrays:
                arrays[CALL].release()

    def _mentioned(self, call: bytes) -> list[tuple[str, _Handed]]:
        # Names are hashes, so that to find one in the bytes is to find the handle.
        with self._lock:
            return [(name, handed) for name, handed in self._arrays.items() if name.encode() in call]

    async def interrupt(self, client: Any, task: Task, result: asyncio.Future[Outcome]) -> None:
        """Ask a job to stop at its next yield. Its process belongs to others too, and is not killed."""
        request = asyncio.ensure_future(quietly(client.run, worker.cancel, task.id))
        await asyncio.wait({result}, timeout=_CANCEL_SECONDS)
        request.cancel()

    def may_try_again(self, task: Task) -> bool:
        """Return whether a job is lost for the first time, or was lost before it began."""
        return task.begun < _MOST_BEGINNINGS and task.attempt < _MOST_ATTEMPTS

    def last_words(self) -> str:
        """Return nothing: the workers' logs are where the cluster keeps them."""
        return "(see the logs of the cluster's workers)"

    def close(self) -> None:
        """Forget the arrays."""
        with self._lock:
            self._arrays.clear()


class _Handed:
    """An array and where it was handed over."""

    def __init__(self, array: NDArray) -> None:
        self.array = array
        self._future: Any = None
        # A lock belongs to its event loop, and each connection may have another.
        self._handing: tuple[Any, asyncio.Lock] = (None, asyncio.Lock())

    async def on(self, client: Any, name: str) -> Any:
        """Return the array's future on a cluster; hand it over if it is not there, or no longer."""
        if self._handing[0] is not client:
            self._handing = (client, asyncio.Lock())
        async with self._handing[1]:
            while self._future is None or self._future.client is not client or self._future.status != "finished":
                # Workers that pause for want of memory, or are about to come, are waited for.
                with contextlib.suppress(TimeoutError):
                    self._future = (await client.scatter({name: self.array}))[name]
            return self._future

    def release(self) -> None:
        """Let go of the cluster's copy; from any thread."""
        future, self._future = self._future, None
        if future is not None:
            future.release()


def _security(address: str) -> Any:
    """Return TLS as Dask is configured.

    Raises
    ------
    ClusterError
        It is not.
    """
    from distributed import Security

    if not address.startswith("tls:"):
        return None
    security: Any = Security(require_encryption=True)
    missing = [name for name in ("tls_ca_file", "tls_client_cert", "tls_client_key") if not getattr(security, name)]
    if missing:
        raise ClusterError(
            "Dask's configuration names no TLS certificates: set distributed.comm.tls (ca-file, client.cert, "
            "client.key) in ~/.config/dask, see docs/clusters.md."
        )
    return security


def _why_not(error: Exception, unreachable: str) -> str:
    """Return one sentence about a connection that did not come about."""
    if isinstance(error, ClusterError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return (
            "A TLS file that Dask's configuration names is not there: check distributed.comm.tls in ~/.config/dask, "
            "see docs/clusters.md."
        )
    link: BaseException | None = error
    while link is not None:
        # A peer that refuses the certificate hangs up in the midst of the handshake.
        if isinstance(link, ssl.SSLError) or type(link).__name__ == "FatalCommClosedError":
            return (
                "The cluster's certificate and ours do not go together: use the certificate files that whoever runs "
                "the cluster gave you, see docs/clusters.md."
            )
        link = link.__cause__ or link.__context__
    return unreachable


def _require_same_versions(known: list[WorkerFacts], n_workers: int, of_scheduler: tuple[str, str]) -> None:
    """Refuse workers, and a scheduler, that would misunderstand what they are sent.

    Raises
    ------
    ClusterError
        Names what runs there and what runs here.
    """
    if len(known) < n_workers:
        raise ClusterError(
            f"{n_workers - len(known)} of the cluster's {n_workers} workers cannot load napari-unet {__version__}: "
            "install the same version in their environment."
        )
    own_python = platform.python_version_tuple()[:2]
    theirs = {(facts.version, facts.python) for facts in known} | {of_scheduler}
    for number, (name, own) in enumerate((("napari-unet", __version__), ("Python", ".".join(own_python)))):
        others = sorted({each[number] for each in theirs} - {own})
        if others:
            raise ClusterError(
                f"The cluster's processes run {name} {', '.join(others)}, this computer runs {own}: install the same "
                "version on both."
            )
