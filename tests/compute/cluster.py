"""A real Dask cluster on loopback: a scheduler and workers as a hospital would start them, over TLS."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import psutil
import pytest
from distributed import Security

#: Schedulers and nannies that have not been stopped.
RUNNING: set[int] = set()

_ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def certificates(folder: Path) -> dict[str, str]:
    """Write one certificate for all roles; return Dask's configuration as environment variables."""
    security = Security.temporary()
    certificate, key = folder / "cluster.crt", folder / "cluster.key"
    certificate.write_text(security.tls_ca_file)
    key.write_text(security.tls_client_key)
    names = {"CA_FILE": certificate}
    for role in ("CLIENT", "SCHEDULER", "WORKER"):
        names |= {f"{role}__CERT": certificate, f"{role}__KEY": key}
    return {f"DASK_DISTRIBUTED__COMM__TLS__{name}": str(path) for name, path in names.items()}


class RealCluster:
    """``dask scheduler`` and ``dask worker`` processes.

    Parameters
    ----------
    folder : Path
        For keys, logs and the workers' files.
    protocol : str
        ``tls`` or ``tcp``.
    environment : dict, optional
        Of the workers, beside ours.
    """

    def __init__(self, folder: Path, protocol: str = "tls", environment: dict[str, str] | None = None) -> None:
        self.folder, self.port = folder, free_port()
        self.address = f"{protocol}://127.0.0.1:{self.port}"
        self.tls = certificates(folder) if protocol == "tls" else {}
        self._environment = {**os.environ, **self.tls, "OMP_WAIT_POLICY": "passive"}
        # As installed there, with the jobs of these tests.
        self._environment["PYTHONPATH"] = os.pathsep.join((str(_ROOT), os.environ.get("PYTHONPATH", "")))
        self._environment |= environment or {}
        self._n = 0
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler = self.start_scheduler()

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        host, port = ["--host", self.address.rpartition(":")[0]], ["--port", str(self.port)]
        self.scheduler = self._start("scheduler", *host, *port, "--no-dashboard", "--no-show")
        return self.scheduler

    def start_worker(self, *words: str) -> subprocess.Popen[bytes]:
        local = self.folder / f"worker-{len(self.workers)}"
        local.mkdir(exist_ok=True)
        # A worker that waits for its scheduler ten minutes outlives a test that failed.
        words = ("--nthreads", "1", "--no-dashboard", "--death-timeout", "60", *words)
        self.workers.append(self._start("worker", self.address, "--local-directory", str(local), *words))
        return self.workers[-1]

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        self._n += 1
        with (self.folder / f"{words[0]}-{self._n}.log").open("wb") as log:
            started = subprocess.Popen(
                [sys.executable, "-m", "dask", *words],
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=self.folder,
                start_new_session=True,
            )
        RUNNING.add(started.pid)
        return started

    def until_there(self, n: int) -> None:
        """Wait until so many workers have registered."""
        logs = self.folder.glob
        until(
            lambda: sum(path.read_text(errors="replace").count("Registered to") for path in logs("worker-*.log")) >= n
        )

    def worker_processes(self) -> list[psutil.Process]:
        """Return the processes that compute: the children of the nannies."""
        found = []
        for nanny in self.workers:
            with contextlib.suppress(psutil.Error):
                found += [
                    child
                    for child in psutil.Process(nanny.pid).children(recursive=True)
                    if "spawn_main" in " ".join(child.cmdline())
                ]
        return found

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        RUNNING.discard(process.pid)

    def close(self) -> None:
        children = [p for s in self.workers for p in _children(s.pid)]
        for process in (*self.workers, self.scheduler):
            self.stop(process)
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@contextlib.contextmanager
def running(folder: Path, *workers: tuple[str, ...], **more: object) -> Iterator[RealCluster]:
    """A cluster with one worker per tuple of words, and Dask configured for it in this process."""
    with contextlib.closing(RealCluster(folder, **more)) as cluster, dask_configured(cluster.tls):
        for words in workers:
            cluster.start_worker(*words)
        yield cluster


@contextlib.contextmanager
def dask_configured(variables: dict[str, str]) -> Iterator[None]:
    """Let Dask find in its configuration what the variables say, as if they had been set at the start."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        dask.config.refresh()
        yield
    dask.config.refresh()


def until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.05)
