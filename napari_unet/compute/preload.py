"""What runs first inside each process that Dask starts for a session: scheduler, nanny and worker.

It makes the processes good neighbours: no web server, no terminal, no life after the program that started them.
Imported by those processes only.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from distributed import Nanny, Scheduler, Worker

from napari_unet.compute import worker
from napari_unet.compute.local import LOG_NAME, OWNER_NAME

_OWNER_CHECK_SECONDS = 1.0


def dask_setup(server: Scheduler | Worker) -> None:
    """Prepare the scheduler or the worker; Dask calls it before they serve.

    Parameters
    ----------
    server : distributed.Scheduler or distributed.Worker
        Its keys lie in the session's folder.
    """
    folder = Path(server.security.tls_ca_file).parent  # type: ignore[attr-defined]
    _write_to(folder / LOG_NAME)
    # Dask serves its state over plain HTTP even without a dashboard.
    server.http_server.stop()
    if isinstance(server, Worker):
        _be_killed_first()
        worker.warm_up()
    else:
        _belong_to_owner(folder)


class QuietNanny(Nanny):
    """A nanny that has nothing to say on the person's terminal, from its first line on."""

    def __init__(self, scheduler: str, *, security: dict[str, Any], **kwargs: Any) -> None:
        folder = Path(security["tls_ca_file"]).parent
        _write_to(folder / LOG_NAME)
        _belong_to_owner(folder)
        super().__init__(scheduler, security=security, **kwargs)
        # It alone says which signal ended a worker.
        logging.getLogger("distributed.nanny").setLevel(logging.INFO)


def _belong_to_owner(folder: Path) -> None:
    """Not be interrupted by a Ctrl-C that is meant for the program that started this one; end when it ends."""
    if hasattr(os, "setsid"):
        with contextlib.suppress(PermissionError):
            os.setsid()
    threading.Thread(target=_die_with_owner, args=(folder,), name="owner-watch", daemon=True).start()


def _write_to(log: Path) -> None:
    """Send what this process and its children print to a file instead of the person's terminal."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    logging.getLogger("distributed").setLevel(logging.WARNING)
    # The stack of a job that crashes the interpreter is the only trace it leaves.
    faulthandler.enable(sys.__stderr__ or 2)


def _be_killed_first() -> None:
    """Offer this process when Linux runs out of memory, so that the window with the unsaved work is spared."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _die_with_owner(folder: Path) -> None:
    """Wait until the owner is gone (also by kill -9), then leave nothing: no process, no keys, no scans."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
        owner = psutil.Process(int((folder / OWNER_NAME).read_text()))
        while owner.is_running() and owner.status() != psutil.STATUS_ZOMBIE:
            time.sleep(_OWNER_CHECK_SECONDS)
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)
