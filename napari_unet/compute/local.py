"""This computer as a Dask cluster of one worker: its private folder, its keys, its processes, their end.

Nothing here knows about jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from napari_unet.domain.compute import PATIENT_THREADS

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
