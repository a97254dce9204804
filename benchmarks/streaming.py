"""How soon the slice on screen is masked, whether a slice costs the same in a long scan, and what memory a scan takes.

- The shipped hippocampus model proposes a scan of 512 x 512 x 300 through the session and its engine: from the call
  that the Propose button makes to the labels of the slice on screen, and to those of the last. The first click finds a
  cold worker and stands by itself.
- The same model predicts 16 to 512 slices of 256 x 256.
- A small network predicts scans of four times as many slices, each in a process of its own; what counts is the peak
  beyond the voxels and the mask.

::

    python benchmarks/streaming.py --json - --pictures docs/images
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import circumstances, in_own_process, peak_mib, write

from napari_unet.compute.device import resolve
from napari_unet.compute.engine import Engine
from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ComputeSettings, ModelSettings
from napari_unet.session.models import find_task_model
from napari_unet.session.session import Session

_PACKAGES = ("napari-unet", "torch", "numpy", "onnxruntime", "openvino")
_MODEL = "hippocampus-mr"
_TIMEOUT = 3600.0


def scan_of(shape: tuple[int, int, int], seed: int) -> Scan:
    """Return a scan of smooth noise; how long a network takes does not depend on what it sees."""
    rng = np.random.default_rng(seed)
    data = np.empty(shape, np.int16)
    for plane in data:
        plane[...] = rng.normal(100, 30, shape[1:])
    return Scan(data, "zyx", Geometry((1.0, 1.0, 1.0)), slice_axis=0)


def visible(shape: tuple[int, int, int], looks: int, whole: bool, seed: int) -> dict[str, Any]:
    """Propose from several slices; return the seconds to the visible slice, and to the whole scan once."""
    with tempfile.TemporaryDirectory() as folder:
        session = Session(Engine(), Path(folder))
        try:
            session.start()
            session.models.use(find_task_model(_MODEL))
            state = session.add_scan(scan_of(shape, seed))
            seconds = [_look(session, state, index) for index in np.linspace(0, shape[0] - 1, looks).astype(int)]
            found: dict[str, Any] = {"first_click": seconds[0], "seconds": seconds}
            if whole:
                begin = time.perf_counter()
                session.proposals.begin()
                session.wait(_TIMEOUT)
                found["whole_scan"] = round(time.perf_counter() - begin, 3)
        finally:
            session.close()
    warm = seconds[1:]
    return {"shape": shape, **found, "median_warm": statistics.median(warm), "slowest_warm": max(warm)}


def _look(session: Session, state: Any, index: int) -> float:
    """Return the seconds from Propose to the mask of one slice, and stop."""
    session.show_slice(int(index))
    arrived: list[float] = []

    def heard(_: Any) -> None:
        arrived.append(time.perf_counter())

    session.proposals.uncertainty_changed.connect(heard)
    begin = time.perf_counter()
    session.proposals.begin()
    while not arrived:
        session.poll()
        time.sleep(0.002)
    session.proposals.uncertainty_changed.disconnect(heard)
    session.proposals.cancel()
    return round(arrived[0] - begin, 3)


def growth(counts: list[int], side: int, seed: int, device: str) -> dict[str, Any]:
    """Return the seconds per slice of longer and longer scans."""
    import torch

    from napari_unet.compute.predictor import Predictor

    compute = resolve(ComputeSettings.model_validate({"device": device}))
    torch.set_num_threads(compute.threads)
    predictor = Predictor(find_task_model(_MODEL), compute, {})
    predictor.predict(scan_of((4, side, side), seed))
    per_slice = {}
    for n in counts:
        scan = scan_of((n, side, side), seed)
        times = []
        # Short scans several times: a second of a busy machine must not look like a trend.
        for _ in range(max(3, counts[-1] // n)):
            begin = time.perf_counter()
            predictor.predict(scan)
            times.append((time.perf_counter() - begin) / n)
        per_slice[n] = round(statistics.median(times), 4)
    middle = statistics.median(per_slice.values())
    return {
        "side": side,
        "seconds_per_slice": per_slice,
        "largest_departure": round(max(abs(each / middle - 1) for each in per_slice.values()), 3),
    }


def peak(n_slices: int, side: int) -> dict[str, Any]:
    """Predict a scan in this process; return the growth of the peak beyond voxels and mask, in MiB."""
    from napari_unet.compute.predictor import Predictor
    from napari_unet.networks.factory import build, weights_of

    settings = ModelSettings().with_values({"network.base_channels": 4, "network.strides": [[2, 2], [2, 2]]})
    card = ModelCard(name="small", settings=settings, label_schema=LabelSchema.of("structure"), steps=1)
    predictor = Predictor(
        Checkpoint(weights_of(build(settings.network, seed=0)), card), resolve(ComputeSettings(device="cpu")), {}
    )
    predictor.predict(scan_of((2, side, side), 0))
    before = peak_mib()
    scan = scan_of((n_slices, side, side), 1)
    predictor.predict(scan)
    arrays = scan.data.nbytes * 1.5 / 2**20
    return {"slices": n_slices, "arrays_mib": round(arrays), "peak_mib": round(peak_mib()), "before_mib": round(before)}


def memory(few: int, many: int, side: int) -> dict[str, Any]:
    """Return what two scans take, and how many times as much the longer one does beyond its arrays."""
    found = [in_own_process(__file__, ["--peak", str(n), str(side)], patient=True) for n in (few, many)]
    beyond = [max(1, each["peak_mib"] - each["arrays_mib"]) for each in found]
    return {"side": side, "scans": found, "beyond_arrays_mib": beyond, "ratio": round(beyond[1] / beyond[0], 3)}


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draw the seconds per slice against the number of slices."""
    from matplotlib.figure import Figure

    found = figures["growth"]["seconds_per_slice"]
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axis = figure.add_subplot()
    axis.semilogx(list(map(int, found)), [1000 * each for each in found.values()], "o-", base=2)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("slices")
    axis.set_ylabel("ms per slice")
    axis.set_title(f"{figures['growth']['side']} x {figures['growth']['side']}, {_MODEL}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few and small slices")
    parser.add_argument("--json", metavar="FILE", default="-")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", metavar="DIR", type=Path, help="where proposal-growth.png goes")
    parser.add_argument("--growth", nargs="+", type=int, metavar="SIDE SLICES", help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=2, type=int, metavar=("SLICES", "SIDE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        sys.stdout.write("\n" + json.dumps(peak(*given.peak)) + "\n")
        return
    if given.growth:
        side, *counts = given.growth
        sys.stdout.write("\n" + json.dumps(growth(counts, side, given.seed, given.device)) + "\n")
        return
    figures = {**circumstances(_PACKAGES, given.device), "device": given.device, "seed": given.seed}
    figures["quick"] = given.quick
    figures["visible"] = visible((24, 256, 256) if given.quick else (300, 512, 512), 5, True, given.seed)
    counts = [16, 32] if given.quick else [16, 32, 64, 128, 256, 512]
    words = ["--growth", "128" if given.quick else "256", *map(str, counts), f"--device={given.device}"]
    figures["growth"] = in_own_process(__file__, words, patient=True)
    figures["memory"] = memory(16, 64, 256) if given.quick else memory(250, 1000, 512)
    figures["load_after"] = list(os.getloadavg()) if hasattr(os, "getloadavg") else None
    if given.pictures:
        draw(figures, given.pictures / "proposal-growth.png")
    write(figures, given.json)


if __name__ == "__main__":
    main()
