"""One optimiser step of equal networks: this product against nnU-Net's trainer and a MONAI loop.

Each tool takes its own training step (precision, memory layout, loss, optimiser, random changes, loading) on a network
of equal levels, widths and weights, in a process of its own, in turn, over several rounds. The peers live in an
environment of their own, made by ``make bench``::

    .venv-bench/bin/python benchmarks/training.py --json -

``seconds`` is a step as it runs, batches drawn beside it; ``alone`` the same step on one batch that is there already;
``draw`` the making of a batch in the foreground, which loaders hide behind the step where cores are free.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from record import circumstances, in_own_process, peak_mib, write
from steps import (
    CASES,
    N_CLASSES,
    QUICK_CASES,
    Case,
    computed_scans,
    n_parameters,
    product_compute,
    product_sampler,
    seconds_each,
    settings_for,
)

_PACKAGES = ("napari-unet", "torch", "nnunetv2", "batchgeneratorsv2", "dynamic-network-architectures", "monai", "numpy")
_DATASET = "Dataset001_Computed"
# Probabilities and ranges of nnU-Net's random changes (nnUNetTrainer.get_training_transforms), for MONAI's transforms.
_ROTATED_OR_SCALED = 0.36
_LONGEST_FILLING = 60
_RESTING = 0.1


def _figures(fed: list[float], alone: list[float], draw: list[float], network: Any, device: str) -> dict[str, Any]:
    import torch

    found = {"fed": fed, "alone": alone, "draw": draw, "parameters": n_parameters(network)}
    return {**found, "threads": torch.get_num_threads(), "device_mib": _device_mib(device)}


def _queues_filled() -> None:
    """Wait until a loader's workers have filled their queues and rest, as they do but for the start of a training."""
    workers = psutil.Process().children(recursive=True)

    def spent() -> float:
        times = [worker.cpu_times() for worker in workers]
        return sum(each.user + each.system for each in times)

    for _ in range(_LONGEST_FILLING):
        before = spent()
        time.sleep(1)
        # They look every few milliseconds whether there is room.
        if spent() - before < _RESTING * len(workers):
            return


def _device_mib(device: str) -> float | None:
    if device != "cuda":
        return None
    import torch

    return torch.cuda.max_memory_reserved() / 2**20


def measure_product(case: Case, given: argparse.Namespace, deep_supervision: bool) -> dict[str, Any]:
    """Take this product's steps: ``train`` on a ``PatchSampler``."""
    from napari_unet.networks.factory import build
    from napari_unet.training.loop import train

    compute = product_compute(given.device)
    settings = settings_for(
        case, {"steps": given.warmup + given.steps, "seed": given.seed}, deep_supervision=deep_supervision
    )
    draw = product_sampler(case, settings, given.seed, given.device)

    def steps(network: Any, draw: Callable[[], Any]) -> list[float]:
        training = train(network, draw, settings.training, compute, description=settings.network)
        return seconds_each(training, given.warmup, given.steps, given.device)

    network = build(settings.network, seed=given.seed)
    fed = steps(network, draw)
    peak = peak_mib()
    drawn = seconds_each(draw, 1, given.steps, given.device)
    batch = draw()
    alone = steps(network, lambda: batch)
    return {**_figures(fed, alone, drawn, network, given.device), "peak_mib": peak, "precision": compute.precision}


def _write_nnunet_task(folder: Path, case: Case, seed: int) -> str:
    """Write what nnU-Net's preprocessing would have left, with a plan of the case's network; return its name."""
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    n = len(case.patch)
    configuration = "2d" if n == 2 else "3d_fullres"
    base = folder / _DATASET
    data = base / f"nnUNetPlans_{configuration}"
    data.mkdir(parents=True)
    for number, (image, labels) in enumerate(computed_scans(case.scan, seed)):
        where = {value: np.argwhere(labels[None] == value)[:10_000] for value in range(1, N_CLASSES + 1)}
        blocks, chunks = comp_blosc2_params((1, *case.scan), case.patch)
        nnUNetDatasetBlosc2.save_case(
            image[None],
            labels[None].astype(np.int16),
            {"class_locations": where},
            str(data / f"scan_{number}"),
            chunks=chunks,
            blocks=blocks,
        )
    (base / "dataset_fingerprint.json").write_text("{}", encoding="utf-8")
    classes = {"background": 0, **{f"class {value}": value for value in range(1, N_CLASSES + 1)}}
    dataset = {"channel_names": {"0": "MR"}, "labels": classes, "numTraining": 4, "file_ending": ".nii.gz"}
    (base / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    (base / "nnUNetPlans.json").write_text(json.dumps(nnunet_plans(case, configuration)), encoding="utf-8")
    return configuration


def nnunet_plans(case: Case, configuration: str) -> dict[str, Any]:
    """Return nnU-Net's plans file for a network of the case's depth and widths."""
    n, levels = len(case.patch), len(case.features)
    architecture = {
        "n_stages": levels,
        "features_per_stage": case.features,
        "conv_op": f"torch.nn.modules.conv.Conv{n}d",
        "kernel_sizes": [[3] * n] * levels,
        "strides": [[1] * n, *case.strides],
        "n_conv_per_stage": [2] * levels,
        "n_conv_per_stage_decoder": [2] * (levels - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{n}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "dataset_name": _DATASET,
        "plans_name": "nnUNetPlans",
        "label_manager": "LabelManager",
        "configurations": {
            configuration: {
                "data_identifier": f"nnUNetPlans_{configuration}",
                "batch_size": case.batch,
                "patch_size": case.patch,
                "spacing": [1.0] * n,
                "normalization_schemes": ["ZScoreNormalization"],
                "use_mask_for_norm": [False],
                "batch_dice": n == 2,
                "architecture": {
                    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                    "arch_kwargs": architecture,
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
            }
        },
    }


@contextlib.contextmanager
def _nnunet_trainer(case: Case, given: argparse.Namespace) -> Iterator[Any]:
    """Give a trainer as ``nnUNetv2_train`` has it when its first epoch begins."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[name] = folder
        import torch
        from nnunetv2.run.run_training import get_trainer_from_args

        configuration = _write_nnunet_task(Path(folder), case, given.seed)
        if given.device == "cuda":
            torch.set_num_threads(1)
            torch.set_num_interop_threads(1)
            torch.backends.cudnn.benchmark = True
        else:
            torch.set_num_threads(os.cpu_count() or 1)
        torch.manual_seed(given.seed)
        np.random.seed(given.seed)  # noqa: NPY002  # its loaders draw from here
        trainer = get_trainer_from_args(_DATASET, configuration, "all", device=torch.device(given.device))
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        yield trainer


def measure_nnunet(case: Case, given: argparse.Namespace) -> dict[str, Any]:
    """Take nnU-Net's steps: its trainer, network, loss and loaders, deep supervision on, as it runs by default."""
    with _nnunet_trainer(case, given) as trainer:
        loaders = trainer.dataloader_train, trainer.dataloader_val
        fed = seconds_each(
            lambda: trainer.train_step(next(loaders[0])), given.warmup, given.steps, given.device, _queues_filled
        )
        peak = peak_mib()
        for loader in loaders:
            loader._finish()
        os.environ.update(nnUNet_n_proc_DA="0")
        foreground, _ = trainer.get_dataloaders()
        drawn = seconds_each(lambda: next(foreground), 1, given.steps, "cpu")
        batch = next(foreground)
        alone = seconds_each(lambda: trainer.train_step(batch), given.warmup, given.steps, given.device)
        precision = "float16" if given.device == "cuda" else "float32"
        figures = _figures(fed, alone, drawn, trainer.network, given.device)
    return {**figures, "peak_mib": peak, "precision": precision}


def _monai_batches(case: Case, given: argparse.Namespace, workers: int, batches: int) -> Any:
    """Return a loader of so many batches: crops about foreground and background, changed as nnU-Net changes them."""
    import torch
    from monai import transforms as t
    from monai.data import DataLoader, Dataset

    both, n = ["image", "label"], len(case.patch)
    blur = (0.5, 1.0)
    angle = np.pi if n == 2 else np.pi / 6
    steps = [
        t.RandCropByPosNegLabeld(both, "label", spatial_size=case.patch, pos=1, neg=1, num_samples=1),
        t.RandAffined(
            both,
            prob=_ROTATED_OR_SCALED,
            rotate_range=[angle] if n == 2 else [angle] * 3,
            scale_range=[0.3] * n,
            mode=("bilinear", "nearest"),
            padding_mode="border",
        ),
        *(t.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(n)),
        t.RandGaussianNoised("image", prob=0.1, std=0.3),
        t.RandGaussianSmoothd("image", sigma_x=blur, sigma_y=blur, sigma_z=blur, prob=0.2),
        t.RandScaleIntensityd("image", factors=0.25, prob=0.15),
        t.RandSimulateLowResolutiond(
            "image", prob=0.25, zoom_range=(0.5, 1.0), upsample_mode="bilinear" if n == 2 else "trilinear"
        ),
        t.RandAdjustContrastd("image", prob=0.4, gamma=(0.7, 1.5)),
    ]
    items = []
    for image, labels in computed_scans(case.scan, given.seed):
        pieces = [(image[None], labels[None])] if n == 3 else zip(image[:, None], labels[:, None], strict=True)
        items += [{"image": torch.from_numpy(i), "label": torch.from_numpy(k)} for i, k in pieces]
    # One long epoch: between epochs a loader would start its workers anew.
    wanted = case.batch * batches
    items = (items * -(-wanted // len(items)))[:wanted]
    dataset = Dataset(items, t.Compose(steps).set_random_state(given.seed))
    pin = given.device == "cuda"
    return DataLoader(dataset, batch_size=case.batch, shuffle=True, num_workers=workers, pin_memory=pin)


def _monai_step(case: Case, given: argparse.Namespace) -> tuple[Any, Callable[[Any], None]]:
    """Return a DynUNet of the case's shape and the training step of MONAI's tutorials."""
    import torch
    from monai.losses import DiceCELoss
    from monai.networks.nets import DynUNet

    n, levels = len(case.patch), len(case.features)
    torch.manual_seed(given.seed)
    if given.device == "cuda":
        torch.backends.cudnn.benchmark = True
    network = DynUNet(
        spatial_dims=n,
        in_channels=1,
        out_channels=N_CLASSES + 1,
        kernel_size=[[3] * n] * levels,
        strides=[[1] * n, *case.strides],
        upsample_kernel_size=list(case.strides),
        filters=list(case.features),
    )
    network.to(given.device).train()
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    optimiser = torch.optim.Adam(network.parameters(), 1e-4)
    mixed = given.device == "cuda"
    scaler = torch.amp.GradScaler(given.device, enabled=mixed)

    def step(batch: Any) -> None:
        image, labels = batch["image"].to(given.device), batch["label"].to(given.device)
        optimiser.zero_grad()
        with torch.autocast(given.device, torch.float16 if mixed else torch.bfloat16, enabled=mixed):
            loss = loss_of(network(image), labels)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        loss.item()

    return network, step


def measure_monai(case: Case, given: argparse.Namespace) -> dict[str, Any]:
    """Take the steps of MONAI's tutorials: DynUNet, DiceCELoss, Adam, its transforms in its loader's workers."""
    network, step = _monai_step(case, given)

    def beside() -> list[float]:
        loader = iter(_monai_batches(case, given, min(4, os.cpu_count() or 1), given.warmup + given.steps))
        return seconds_each(lambda: step(next(loader)), given.warmup, given.steps, given.device, _queues_filled)

    fed = beside()
    peak = peak_mib()
    # Its workers end with the loader.
    gc.collect()
    foreground = iter(_monai_batches(case, given, 0, given.steps + 2))
    drawn = seconds_each(lambda: next(foreground), 1, given.steps, "cpu")
    batch = next(foreground)
    alone = seconds_each(lambda: step(batch), given.warmup, given.steps, given.device)
    precision = "float16" if given.device == "cuda" else "float32"
    return {**_figures(fed, alone, drawn, network, given.device), "peak_mib": peak, "precision": precision}


#: Who is measured, in the order of a round. Each peer has its equal: nnU-Net trains with deep supervision, DynUNet not.
_TOOLS: dict[str, Callable[[Case, argparse.Namespace], dict[str, Any]]] = {
    "napari-unet, deep supervision": lambda case, given: measure_product(case, given, True),
    "nnunet": measure_nnunet,
    "napari-unet": lambda case, given: measure_product(case, given, False),
    "monai": measure_monai,
}
_EQUALS = {"nnunet": "napari-unet, deep supervision", "monai": "napari-unet"}


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    def median(key: str) -> float:
        return round(statistics.median(value for run in runs for value in run[key]), 5)

    return {
        "seconds": median("fed"),
        "seconds_of_rounds": [round(statistics.median(run["fed"]), 5) for run in runs],
        "alone": median("alone"),
        "draw": median("draw"),
        "peak_mib": round(max(run["peak_mib"] for run in runs)),
        **{key: runs[0][key] for key in ("parameters", "precision", "threads", "device_mib")},
    }


def _ratios(results: dict[str, dict[str, Any]], key: str) -> dict[str, float]:
    return {
        f"{case}_vs_{peer}": round(found[peer][key] / found[equal][key], 3)
        for case, found in results.items()
        for peer, equal in _EQUALS.items()
    }


def main() -> None:
    """Measure, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small networks and patches, one round")
    parser.add_argument("--json", metavar="FILE", default="-")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=None, help="each tool so many times, in turn (3)")
    parser.add_argument("--steps", type=int, default=None, help="measured steps of each process (7)")
    parser.add_argument("--warmup", type=int, default=None, help="unmeasured steps before them (3)")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "TOOL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.steps = given.steps or (5 if given.quick else 7)
    given.warmup = given.warmup or (1 if given.quick else 3)
    cases = QUICK_CASES if given.quick else CASES
    if given.one:
        case, tool = given.one
        sys.stdout.write("\n" + json.dumps(_TOOLS[tool](cases[case], given)) + "\n")
        return
    rounds = given.rounds or (1 if given.quick else 3)
    options = [f"--device={given.device}", f"--seed={given.seed}", f"--steps={given.steps}", f"--warmup={given.warmup}"]
    options += ["--quick"] if given.quick else []
    figures = {**circumstances(_PACKAGES, given.device), "device": given.device, "seed": given.seed}
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {(case, tool): [] for case in cases for tool in _TOOLS}
    for number in range(rounds):
        for (case, tool), found in runs.items():
            mine = tool not in _EQUALS
            found.append(in_own_process(__file__, ["--one", case, tool, *options], patient=mine))
            median = statistics.median(found[-1]["fed"])
            sys.stderr.write(f"round {number + 1}, {case}, {tool}: {median:.3f} s a step\n")
    results = {case: {tool: _summary(runs[case, tool]) for tool in _TOOLS} for case in cases}
    figures |= {
        "quick": given.quick,
        "rounds": rounds,
        "steps": given.steps,
        "tasks": {name: {"patch": c.patch, "batch": c.batch, "features": c.features} for name, c in cases.items()},
        "load_after": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "results": results,
        "ratios": _ratios(results, "seconds"),
        "ratios_alone": _ratios(results, "alone"),
        "memory": {case: {tool: each["peak_mib"] for tool, each in found.items()} for case, found in results.items()},
    }
    write(figures, given.json)


if __name__ == "__main__":
    main()
