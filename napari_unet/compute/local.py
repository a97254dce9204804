"""This computer as a Dask cluster of one worker: its private folder, its keys, its processes, their end.

Nothing here knows about jobs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

#: Names of files in a session's folder.
LOG_NAME = "engine.log"
OWNER_NAME = "owner"
_PRELOAD = "napari_unet.compute.preload"
_LOG_TAIL_BYTES = 8000


class SessionFolder:
    """A folder that only this user can enter: keys, shared scans, large messages, the processes' log."""

    def __init__(self) -> None:
        # mkdtemp makes it 0700.
        self.path = Path(tempfile.mkdtemp(prefix="napari-unet-"))
        (self.path / OWNER_NAME).write_text(str(os.getpid()))
        self.messages = self.path / "messages"
        self.messages.mkdir()

    def log_tail(self) -> str:
        """Return the end of what the computing processes wrote."""
        try:
            return (self.path / LOG_NAME).read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
        except OSError:
            return ""

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
    from distributed import LocalCluster, Security, SubprocessCluster

    keys = make_keys(folder)
    worker: dict[str, Any] = {
        "resources": {"quick": 1, "train": 1},
        "local_directory": str(folder),
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
    common: dict[str, Any] = {
        "n_workers": 1,
        "threads_per_worker": 2,
        "host": "127.0.0.1",
        "dashboard_address": None,
        "security": Security(**keys),
        "asynchronous": True,
        # Dask's own exit hook would find the processes gone; the engine closes before.
        "shutdown_on_close": False,
    }
    if sys.platform == "win32":
        # Dask has no SubprocessCluster there. A script that opens a viewer must then guard its __main__.
        return await LocalCluster(protocol="tls", scheduler_kwargs={"allowed_failures": 0}, **worker, **common)
    scheduler = {
        "protocol": "tls",
        "security": keys,
        # A job that killed its worker once would do so again.
        "allowed_failures": 0,
        "scheduler_file": str(folder / "scheduler.json"),
        "preload": [_PRELOAD],
    }
    return await SubprocessCluster(
        scheduler_kwargs=scheduler,
        worker_kwargs={**worker, "security": keys},
        worker_class=f"{_PRELOAD}.QuietNanny",
        **common,
    )


def kill_processes(folder: Path) -> None:
    """Kill every child process that was started for a folder, with its own children, and wait until they are gone."""
    import psutil

    doomed = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if str(folder) in " ".join(child.cmdline()):
                doomed += [*child.children(recursive=True), child]
    for process in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(doomed, timeout=1.0)
