"""What a second worker brings, what the engine costs beside a plain loop, and what limits a cluster first.

- Sixty hippocampus scans as a folder on a Dask cluster of one and of two workers with one thread each, over TLS on
  this computer; reading and writing included, the first scans, which find cold workers, not.
- The same scans, and volumes that take over a second each, in a plain loop and through the engine of this computer.
- Jobs that do nothing, as many as the engine takes per second, and the bytes that a scan costs on the wire.
- Ten thousand tiny scans in one run: the client's memory on the way, the longest that it does not listen, and how soon
  it has stopped when it is asked to.

::

    python benchmarks/clusters.py --json -
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
from record import circumstances, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from napari_unet.compute.device import resolve
from napari_unet.compute.engine import Engine
from napari_unet.compute.predictor import Prediction, Predictor
from napari_unet.domain.compute import PATIENT_THREADS
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.progress import Progress
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ComputeSettings
from napari_unet.io.registry import read_scan
from napari_unet.session.folder_run import FolderRun
from napari_unet.session.models import find_task_model
from napari_unet.session.predicting import MaskFolder, Outcome, Target, predict_targets
from napari_unet.session.worker import Worker
from tests.compute.cluster import RealCluster, dask_configured

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
_PACKAGES = ("napari-unet", "torch", "numpy", "distributed")
_MODEL = "hippocampus-mr"
_ONE_THREAD = ComputeSettings(device="cpu", precision="float32", threads=1)
_WARM = 4

Read = Callable[[Path], Scan]


def nothing() -> Iterator[Progress]:
    """Be a job that does nothing."""
    yield Progress(1.0)


@functools.lru_cache(maxsize=64)
def noise(path: Path) -> Scan:
    """Return a volume that takes over a second; what it shows does not matter."""
    rng = np.random.default_rng(int(path.stem))
    return Scan(rng.normal(100, 30, (48, 192, 192)).astype(np.float32), "zyx", Geometry((1.0, 1.0, 1.0)), slice_axis=0)


def folder_of(out: Path, read: Read) -> MaskFolder:
    """Return a folder for masks without averaging over flips."""
    return MaskFolder(out, find_task_model(_MODEL), {"inference.mirror": False}, format_name="nifti", read=read)


def through(engine: Engine, targets: list[Target], read: Read) -> float:
    """Mask scans through an engine; return the seconds of those that find it warm."""
    with tempfile.TemporaryDirectory() as out:
        worker = Worker(engine, _ONE_THREAD)
        for part in (targets[:_WARM], targets):
            started = time.perf_counter()
            run = FolderRun(worker, lambda part=part: part, folder_of(Path(out) / str(len(part)), read), lambda _: None)
            run.wait(3600)
            seconds = time.perf_counter() - started
            if run.error is not None or any(outcome.error for outcome in run.outcomes):
                raise RuntimeError(str(run.error or next(o.error for o in run.outcomes if o.error)))
        return seconds


def plainly(targets: list[Target], read: Read) -> float:
    """Mask scans one after the other in this process; return the seconds, the first ones left out."""
    import torch

    compute = resolve(_ONE_THREAD)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as out:
        folder = folder_of(Path(out), read)
        predictor = Predictor(folder.checkpoint, compute, folder.values)
        list(predict_targets(targets[:_WARM], predictor, folder_of(Path(out) / "warm", read)))
        started = time.perf_counter()
        for outcome in predict_targets(targets, predictor, folder):
            if outcome.error is not None:
                raise outcome.error
        return time.perf_counter() - started


def on_cluster(n_workers: int, targets: list[Target]) -> dict[str, float]:
    """Mask scans on a cluster of so many workers; return seconds, and how many empty jobs it takes per second."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(RealCluster(Path(folder))) as cluster,
        dask_configured(cluster.tls),
    ):
        for _ in range(n_workers):
            cluster.start_worker()
        cluster.until_there(n_workers)
        with contextlib.closing(Engine(address=cluster.address)) as engine:
            seconds = through(engine, targets, read_scan)
            return {"seconds": round(seconds, 2), "empty_jobs_per_second": round(empty_jobs(engine), 1)}


def empty_jobs(engine: Engine, n: int = 300) -> float:
    """Return how many jobs that do nothing an engine finishes per second."""
    started = time.perf_counter()
    jobs = [engine.submit(nothing, lane="folder") for _ in range(n)]
    for job in jobs:
        engine.wait(job, 120)
    return n / (time.perf_counter() - started)


def tiny(path: Path) -> Scan:
    """Return a picture of its own in which there is next to nothing to compute."""
    rng = np.random.default_rng(int(path.stem))
    return Scan(rng.normal(100, 30, (48, 48)).astype(np.float32), "yx", Geometry((1.0, 1.0)))


def queued(n: int, n_done: int) -> dict[str, float]:
    """Queue so many scans, mask some of them, and stop."""
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as out, contextlib.closing(Engine(threads=1)) as engine:
        folder = MaskFolder(Path(out), find_task_model("nuclei-fluorescence"), {}, format_name="png", read=tiny)
        scans = [Target(Path(f"{i}.png"), Path()) for i in range(n)]
        run = FolderRun(Worker(engine, _ONE_THREAD), lambda: scans, folder, print_nothing)
        memory, longest, started = {}, 0.0, time.perf_counter()
        while len(run.outcomes) < n_done:
            before = time.perf_counter()
            engine.poll()
            longest = max(longest, time.perf_counter() - before)
            for mark in (n_done // 5, n_done):
                if len(run.outcomes) >= mark and mark not in memory:
                    memory[mark] = process.memory_info().rss / 2**20
            time.sleep(0.005)
        seconds = time.perf_counter() - started
        before = time.perf_counter()
        run.cancel()
        while run.n_under_way:
            engine.poll()
            time.sleep(0.005)
        stopped = time.perf_counter() - before
    early, late = memory.values()
    return {
        "queued": n,
        "done": n_done,
        "seconds": round(seconds, 1),
        "mib_after_a_fifth": round(early, 1),
        "mib_at_the_end": round(late, 1),
        "longest_poll_seconds": round(longest, 3),
        "stopped_after_seconds": round(stopped, 3),
    }


def client_work(targets: list[Target]) -> dict[str, float]:
    """Return the seconds per scan that the submitting side needs: reading, hashing, writing and reading back."""
    with tempfile.TemporaryDirectory() as out:
        folder, seconds, n_bytes = folder_of(Path(out), read_scan), [], []
        for target in targets:
            started = time.perf_counter()
            opened = folder.open(target)
            if isinstance(opened, Outcome):
                raise RuntimeError(str(opened.error))
            labels = np.zeros(opened.scan.spatial_shape, np.uint8)
            labels[labels.shape[0] // 4 : labels.shape[0] // 2] = 1
            folder.write(opened, Prediction(labels, None, ()))
            seconds.append(time.perf_counter() - started)
            n_bytes.append(opened.scan.data.nbytes)
    return {"seconds": round(float(np.mean(seconds)), 4), "bytes": round(float(np.mean(n_bytes)))}


def large_scan(folder: Path, depth: int) -> Target:
    """Write a CT-like scan, compressed as such files are."""
    rng = np.random.default_rng(0)
    data = rng.normal(0, 30, (512, 512, depth)).astype(np.int16)
    nib.save(nib.Nifti1Image(data, np.diag([0.8, 0.8, 2.0, 1.0])), folder / "large.nii.gz")
    return Target(folder / "large.nii.gz", Path())


def print_nothing(outcome: object) -> None:
    """Listen to a run."""


def main() -> None:
    """Measure, and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=_DATA)
    parser.add_argument("--json", metavar="FILE", default="-")
    parser.add_argument("--device", choices=["cpu"], default="cpu", help="workers of a cluster of one's own have GPUs")
    parser.add_argument("--quick", action="store_true", help="eight scans, two volumes")
    given = parser.parse_args()
    images = sorted((given.data / "hippocampus_mr" / "images").iterdir())[: 8 if given.quick else 60]
    targets = [Target(path, Path()) for path in images]
    volumes = [Target(Path(f"{n}.nii"), Path()) for n in range(2 if given.quick else 12)]
    record: dict[str, Any] = {**circumstances(_PACKAGES, given.device), "scans": len(targets), "volumes": len(volumes)}
    record["one_worker"] = on_cluster(1, targets)
    record["two_workers"] = on_cluster(2, targets)
    record["scaling"] = round(record["one_worker"]["seconds"] / record["two_workers"]["seconds"], 3)
    for name, those, read in (("scans", targets, read_scan), ("volumes", volumes, noise)):
        plain = plainly(those, read)
        with contextlib.closing(Engine(threads=1)) as engine:
            by_engine = through(engine, those, read)
            if name == "scans":
                record["empty_jobs_per_second_here"] = round(empty_jobs(engine), 1)
        record[f"{name}_plain_seconds"], record[f"{name}_engine_seconds"] = round(plain, 2), round(by_engine, 2)
        record[f"{name}_overhead"] = round(by_engine / plain - 1, 4)
    record["client"] = client_work(targets)
    with tempfile.TemporaryDirectory() as folder:
        record["client_large"] = client_work([large_scan(Path(folder), 10 if given.quick else 300)])
    record["queue"] = queued(*((200, 20) if given.quick else (10_000, 2_000)))
    write(record, given.json)


if __name__ == "__main__":
    for name, value in PATIENT_THREADS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
