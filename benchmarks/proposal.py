"""How long a proposal takes: this product, nnU-Net's predictor and MONAI's sliding window, with the same weights.

A 2D U-Net over 512 x 512 x 32 and a 3D one over 256 x 256 x 96, both taught for a moment on computed scans. Each tool
predicts the whole volume in a process of its own, in turn, over several rounds; a tile before that warms it up, and a
runtime's conversion of the network is timed by itself. ``napari-unet`` is the product as shipped, with the runtime that
it chooses; beside it stand torch alone, and both at the tiles of the peers. Nothing is averaged over flips. The peers
live in an environment of their own, made by ``make bench``::

    .venv-bench/bin/python benchmarks/proposal.py --json -
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import circumstances, in_own_process, peak_mib, write
from steps import N_CLASSES, Case, computed_scans, product_compute, product_sampler, settings_for, wait
from training import nnunet_plans

from napari_unet.domain.settings import ModelSettings

_PACKAGES = ("napari-unet", "torch", "numpy", "nnunetv2", "monai", "onnxruntime", "openvino")
_OVERLAP = 0.5
Mask = Callable[[NDArray[np.float32]], NDArray[np.uint8]]


@dataclass(frozen=True)
class Volume:
    """What is predicted: its shape, the tile that all tools use, and the network's training case."""

    shape: tuple[int, int, int]
    tile: tuple[int, ...]
    case: Case
    learnt_steps: int


_2D = Case((128, 128), 4, (32, 64, 128, 256, 512, 512), (8, 256, 256))
_3D = Case((32, 64, 64), 2, (32, 64, 128, 256, 320), (48, 128, 128))
VOLUMES = {
    "2d": Volume((32, 512, 512), (512, 512), _2D, 60),
    "3d": Volume((96, 256, 256), (96, 128, 128), _3D, 60),
}
#: Narrower networks, so that all tools are through within two minutes on two cores.
QUICK_VOLUMES = {
    "2d": Volume((4, 512, 512), (512, 512), Case((64, 64), 4, (16, 32, 64, 128, 256, 256), (8, 128, 128)), 40),
    "3d": Volume((96, 160, 160), (96, 128, 128), Case((16, 32, 32), 2, (8, 16, 32, 64, 80), (32, 64, 64)), 40),
}


def settings_of(volume: Volume) -> ModelSettings:
    """Return the settings of the network that all tools run: no averaging over flips."""
    settings = settings_for(volume.case, {"steps": volume.learnt_steps, "learning_rate": 3e-3}, deep_supervision=False)
    return settings.with_values({"inference.mirror": False, "inference.overlap": _OVERLAP})


def learn(volume: Volume, file: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Teach the network, so that its masks mean something, and save its weights."""
    from napari_unet.networks.factory import build, weights_of
    from napari_unet.training.loop import train

    settings = settings_of(volume)
    network = build(settings.network, seed=given.seed)
    draw = product_sampler(volume.case, settings, given.seed, given.device)
    for step in train(network, draw, settings.training, product_compute(given.device), description=settings.network):
        loss = step.loss
    np.savez(file, **weights_of(network))
    return {"loss": round(loss, 4)}


def _network(volume: Volume, file: Path, given: argparse.Namespace) -> Any:
    from napari_unet.networks.factory import build, load_weights

    network = build(settings_of(volume).network, seed=0)
    with np.load(file) as weights:
        load_weights(network, dict(weights))
    return network.to(given.device).eval()


def _image(volume: Volume, seed: int) -> NDArray[np.float32]:
    """Return a volume that has taught nothing, ``(1, S, H, W)``."""
    return computed_scans(volume.shape, seed + 1, 1)[0][0][None]


def _product(
    volume: Volume, network: Any, given: argparse.Namespace, runtime: str, tile: tuple[int, ...] | None = None
) -> Mask:
    import torch

    from napari_unet.compute.device import resolve
    from napari_unet.domain.settings import ComputeSettings
    from napari_unet.inference.predict import predict
    from napari_unet.inference.runner import Runner
    from napari_unet.inference.slabs import plan_slabs

    settings = settings_of(volume).with_values({"inference.tile": tile})
    compute = resolve(ComputeSettings(device=given.device, runtime=runtime))
    torch.set_num_threads(compute.threads)
    given.runtime, given.precision = compute.runtime_for(len(volume.tile)), compute.precision
    before = time.perf_counter()
    runner = Runner(network, settings, compute)
    given.conversion = time.perf_counter() - before

    def mask(image: NDArray[np.float32]) -> NDArray[np.uint8]:
        found = np.zeros(image.shape[1:], np.uint8)
        for result in predict(runner, image, settings, compute, plan_slabs(image.shape[1:], settings)):
            found[result.slab.start : result.slab.stop] = result.classes
        return found

    return mask


def _nnunet(volume: Volume, network: Any, given: argparse.Namespace) -> Mask:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    cuda = given.device == "cuda"
    configuration = "2d" if len(volume.tile) == 2 else "3d_fullres"
    plans = nnunet_plans(volume.case, configuration)
    plans["configurations"][configuration]["patch_size"] = volume.tile
    manager = PlansManager(plans)
    classes = {"background": 0, **{f"class {value}": value for value in range(1, N_CLASSES + 1)}}
    predictor = nnUNetPredictor(
        tile_step_size=1 - _OVERLAP,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=cuda,
        device=torch.device(given.device),
        allow_tqdm=False,
    )
    predictor.manual_initialization(
        network,
        manager,
        manager.get_configuration(configuration),
        [network.state_dict()],
        {"channel_names": {"0": "MR"}, "labels": classes, "file_ending": ".nii.gz"},
        "nnUNetTrainer",
        None,
    )

    def mask(image: NDArray[np.float32]) -> NDArray[np.uint8]:
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(image))
        return logits.argmax(0).to(torch.uint8).cpu().numpy()

    return mask


def _monai(volume: Volume, network: Any, given: argparse.Namespace) -> Mask:
    import torch
    from monai.inferers import sliding_window_inference

    def predicted(x: torch.Tensor) -> torch.Tensor:
        return sliding_window_inference(
            x.to(given.device), volume.tile, sw_batch_size=1, predictor=network, overlap=_OVERLAP, mode="gaussian"
        )

    def mask(image: NDArray[np.float32]) -> NDArray[np.uint8]:
        seen = torch.from_numpy(image)
        mixed = given.device == "cuda"
        with torch.inference_mode(), torch.autocast(given.device, torch.float16, enabled=mixed):
            if len(volume.tile) == 3:
                return predicted(seen[None]).argmax(1)[0].to(torch.uint8).cpu().numpy()
            planes = [predicted(seen[None, :, index]).argmax(1)[0] for index in range(seen.shape[1])]
            return torch.stack(planes).to(torch.uint8).cpu().numpy()

    return mask


#: Who is measured, in the order of a round. The peers run in float32 on a CPU, as they do by themselves.
_TOOLS: dict[str, Callable[[Volume, Any, argparse.Namespace], Mask]] = {
    "napari-unet": lambda volume, network, given: _product(volume, network, given, "auto"),
    "napari-unet, torch": lambda volume, network, given: _product(volume, network, given, "torch"),
    "napari-unet, equal tiles": lambda volume, network, given: _product(volume, network, given, "auto", volume.tile),
    "napari-unet, torch, equal tiles": lambda volume, network, given: _product(
        volume, network, given, "torch", volume.tile
    ),
    "nnunet": _nnunet,
    "monai": _monai,
}
_PEERS = ("nnunet", "monai")
_QUICK = ("napari-unet", "napari-unet, torch", *_PEERS)


def measure(volume: Volume, tool: str, weights: Path, out: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Predict the volume with one tool in this process, after a plane or tile to warm up, and save the mask."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    given.runtime, given.conversion = "torch", 0.0
    given.precision = "float16" if given.device == "cuda" else "float32"
    image = _image(volume, given.seed)
    mask = _TOOLS[tool](volume, _network(volume, weights, given), given)
    small = volume.tile if len(volume.tile) == 3 else (1, *volume.tile)
    mask(np.ascontiguousarray(image[:, : small[0], : small[1], : small[2]]))
    wait(given.device)
    before = time.perf_counter()
    found = mask(image)
    wait(given.device)
    seconds = time.perf_counter() - before
    np.save(out, found)
    cuda = given.device == "cuda"
    return {
        "seconds": round(seconds, 3),
        "conversion_seconds": round(given.conversion, 3),
        "peak_mib": round(peak_mib()),
        "device_mib": round(torch.cuda.max_memory_allocated() / 2**20) if cuda else None,
        "runtime": given.runtime,
        "precision": given.precision,
    }


def _agreement(one: Path, other: Path) -> list[float | None]:
    """Return the Dice of two masks, class by class; None for a class that neither has."""
    a, b = np.load(one), np.load(other)

    def dice(value: int) -> float | None:
        total = np.count_nonzero(a == value) + np.count_nonzero(b == value)
        return round(2 * np.count_nonzero((a == value) & (b == value)) / total, 5) if total else None

    return [dice(value) for value in range(1, N_CLASSES + 1)]


def _measure_all(
    volumes: dict[str, Volume], tools: Sequence[str], rounds: int, given: argparse.Namespace
) -> dict[str, Any]:
    options = [f"--device={given.device}", f"--seed={given.seed}", *(["--quick"] if given.quick else [])]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in volumes:
            weights = Path(folder) / f"{name}.npz"
            learnt = in_own_process(__file__, ["--learn", name, str(weights), *options], patient=True)
            runs: dict[str, list[dict[str, Any]]] = {tool: [] for tool in tools}
            for number in range(rounds):
                for tool, found in runs.items():
                    out = Path(folder) / f"{name}-{tool}.npy"
                    words = ["--one", name, tool, str(weights), str(out), *options]
                    found.append(in_own_process(__file__, words, patient=tool not in _PEERS))
                    sys.stderr.write(f"round {number + 1}, {name}, {tool}: {found[-1]['seconds']:.1f} s\n")
            results[name] = {
                "learnt": learnt,
                **{
                    tool: {
                        **found[0],
                        "seconds": statistics.median(run["seconds"] for run in found),
                        "seconds_of_rounds": [run["seconds"] for run in found],
                        "peak_mib": max(run["peak_mib"] for run in found),
                        **{
                            f"agreement_with_{peer}": _agreement(
                                Path(folder) / f"{name}-{tool}.npy", Path(folder) / f"{name}-{peer}.npy"
                            )
                            for peer in _PEERS
                        },
                    }
                    for tool, found in runs.items()
                },
            }
    return results


def main() -> None:
    """Measure, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="512 x 512 x 4 and 160 x 160 x 96, one round")
    parser.add_argument("--json", metavar="FILE", default="-")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=None, help="each tool so many times, in turn (3)")
    parser.add_argument("--learn", nargs=2, metavar=("VOLUME", "FILE"), help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=4, metavar=("VOLUME", "TOOL", "WEIGHTS", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    volumes = QUICK_VOLUMES if given.quick else VOLUMES
    if given.learn:
        name, file = given.learn
        sys.stdout.write("\n" + json.dumps(learn(volumes[name], Path(file), given)) + "\n")
        return
    if given.one:
        name, tool, weights, out = given.one
        sys.stdout.write("\n" + json.dumps(measure(volumes[name], tool, Path(weights), Path(out), given)) + "\n")
        return
    rounds = given.rounds or (1 if given.quick else 3)
    figures = {**circumstances(_PACKAGES, given.device), "device": given.device, "seed": given.seed}
    tools = _QUICK if given.quick else tuple(_TOOLS)
    results = _measure_all(volumes, tools, rounds, given)

    def ratios(own: str) -> dict[str, float]:
        return {
            f"{name}_vs_{peer}": round(found[peer]["seconds"] / found[own]["seconds"], 3)
            for name, found in results.items()
            for peer in _PEERS
        }

    figures |= {
        "quick": given.quick,
        "rounds": rounds,
        "overlap": _OVERLAP,
        "volumes": {
            name: {"shape": v.shape, "tile": v.tile, "features": v.case.features} for name, v in volumes.items()
        },
        "load_after": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "results": results,
        "ratios": ratios("napari-unet"),
        "ratios_of_others": {own: ratios(own) for own in tools if own not in ("napari-unet", *_PEERS)},
        "memory": {name: {tool: found[tool]["peak_mib"] for tool in tools} for name, found in results.items()},
        "agreement": {
            name: {tool: {peer: found[tool][f"agreement_with_{peer}"] for peer in _PEERS} for tool in tools}
            for name, found in results.items()
        },
    }
    write(figures, given.json)


if __name__ == "__main__":
    main()
