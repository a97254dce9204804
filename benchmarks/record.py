"""What stands beside every figure: machine, load, versions, memory; and a process of its own for each measurement.

Nothing here knows what is measured.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from napari_unet.domain.compute import PATIENT_THREADS


def circumstances(packages: Sequence[str], device: str = "cpu") -> dict[str, Any]:
    """Return date, machine, load and versions; packages that are not installed are left out."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": _machine(device),
        "versions": {"python": platform.python_version(), **_versions(packages)},
    }


def _machine(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "system": platform.system(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }
    if device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def peak_mib() -> float:
    """Return the peak resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: its figure begins with the memory of the process that started this one.
        lines = status.read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def begin_with_patient_threads() -> None:
    """Start this script again where its threads would spin while they wait: OpenMP reads that when it is loaded."""
    if any(os.environ.get(key) != value for key, value in PATIENT_THREADS.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **PATIENT_THREADS})


def in_own_process(script: str, arguments: Sequence[str], *, patient: bool) -> dict[str, Any]:
    """Run a script in a process of its own and return the JSON of its last line.

    Parameters
    ----------
    script : str
        Path of the Python file.
    arguments : sequence of str
        Its command line.
    patient : bool
        Whether OpenMP's threads wait as in this product's own processes, or as the libraries have it.
    """
    environment = {name: value for name, value in os.environ.items() if name not in PATIENT_THREADS}
    environment |= PATIENT_THREADS if patient else {}
    answer = subprocess.run(
        [sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True, env=environment, check=False
    )
    if answer.returncode:
        sys.stderr.write(answer.stdout)
        raise SystemExit(f"{Path(script).name} {' '.join(arguments)} failed")
    return json.loads(answer.stdout.strip().splitlines()[-1])


def write(figures: dict[str, Any], where: str) -> None:
    """Write figures as JSON to a file, or to standard output for ``-``."""
    text = json.dumps(figures, indent=2) + "\n"
    if where == "-":
        sys.stdout.write(text)
        return
    path = Path(where)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
