"""nnU-Net's trained folders, imported: are the masks nnU-Net's own?

Networks of nnU-Net's classes are made from plans and taught for some seconds in nnU-Net's own environment, saved as its
trainer saves them, and predict there. The same folders are imported here and predict the same scans::

    python benchmarks/nnunet_exchange.py --peer .venv-bench/bin/python

The plans ask for 3 spacings: as the scans are, finer, and one whose slices lie far apart, so that all ways to resample
are met. The figures go to benchmarks/results/export/nnunet.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "hippocampus_mr"
_RESULT = Path(__file__).resolve().parent / "results" / "export" / "nnunet.json"
_PACKAGES = ("napari-unet", "torch", "numpy", "onnx", "onnxruntime", "scipy", "scikit-image")
#: Dimensions, spacing, patch, strides, residual, mirrored axes, regions, transposition, folds.
_MODELS: dict[str, dict[str, Any]] = {
    "3d_fullres": {"spacing": [1, 1, 1], "patch": [40, 56, 40], "mirror": [0, 1, 2]},
    "3d_fullres_finer": {"spacing": [0.8, 0.9, 0.7], "patch": [40, 48, 48], "mirror": [0], "folds": 2},
    "3d_fullres_slices": {"spacing": [4, 1, 1], "patch": [12, 48, 40], "mirror": [1, 2], "transpose": [1, 0, 2]},
    "3d_fullres_residual": {"spacing": [1, 1, 1], "patch": [32, 48, 32], "residual": True, "regions": True},
    "2d": {"spacing": [1, 1], "patch": [56, 48], "mirror": [0, 1]},
    "2d_residual": {"spacing": [0.8, 0.8], "patch": [64, 48], "residual": True, "ct": True},
}


def _plans(name: str, about: dict[str, Any], intensities: dict[str, float]) -> dict[str, Any]:
    n = len(about["patch"])
    first = [1] * n
    pool = [[1, 2, 2], [2, 2, 2]] if n == 3 else [[2, 2], [2, 2]]
    options = {
        "n_stages": 3,
        "features_per_stage": [8, 16, 16],
        "conv_op": f"torch.nn.modules.conv.Conv{n}d",
        "kernel_sizes": [[3] * n] * 3,
        "strides": [first, *pool],
        "n_blocks_per_stage" if about.get("residual") else "n_conv_per_stage": [1, 2, 2]
        if about.get("residual")
        else [2, 2, 2],
        "n_conv_per_stage_decoder": [1, 1] if about.get("residual") else [2, 2],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{n}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    network = "ResidualEncoderUNet" if about.get("residual") else "PlainConvUNet"
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": about["patch"],
        "median_image_size_in_voxels": [40.0] * n,
        "spacing": [float(s) for s in about["spacing"]],
        "normalization_schemes": ["CTNormalization" if about.get("ct") else "ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{network}",
            "arch_kwargs": options,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    transpose = about.get("transpose", [0, 1, 2])
    return {
        "dataset_name": "Dataset004_Hippocampus",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0] * 3,
        "original_median_shape_after_transp": [36, 50, 35],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": transpose,
        "transpose_backward": [int(i) for i in np.argsort(transpose)],
        "configurations": {name: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities},
    }


def _dataset(about: dict[str, Any]) -> dict[str, Any]:
    labels = {"background": 0, "anterior": 1, "posterior": 2}
    more: dict[str, Any] = {}
    if about.get("regions"):
        labels, more = {"background": 0, "whole": [1, 2], "posterior": 2}, {"regions_class_order": [1, 2]}
    return {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 8, "file_ending": ".nii.gz", **more}


def _teach(network: Any, cases: list[tuple[Any, Any]], about: dict[str, Any], seconds: float, seed: int) -> None:
    """Teach a network a little, on patches that nnU-Net has prepared."""
    import time

    import torch

    chance, patch = np.random.default_rng(seed), about["patch"]
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    started = time.perf_counter()
    network.train()
    while time.perf_counter() - started < seconds:
        images, labels = [], []
        for _ in range(2):
            image, truth = cases[chance.integers(len(cases))]
            if len(patch) == 2:
                plane = chance.integers(image.shape[1])
                image, truth = image[:, plane], truth[:, plane]
            short = [(0, 0), *((0, max(0, p - n)) for p, n in zip(patch, image.shape[1:], strict=True))]
            image, truth = np.pad(image, short), np.pad(np.maximum(truth, 0), short)
            first = [int(chance.integers(n - p + 1)) for p, n in zip(patch, image.shape[1:], strict=True)]
            place = (slice(None), *(slice(f, f + p) for f, p in zip(first, patch, strict=True)))
            images.append(image[place])
            labels.append(truth[place][0])
        logits, truth = network(torch.tensor(np.stack(images))), torch.tensor(np.stack(labels)).long()
        if about.get("regions"):
            targets = torch.stack([truth > 0, truth == 2], 1).float()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
        else:
            loss = torch.nn.functional.cross_entropy(logits, truth, weight=torch.tensor([0.2, 1.0, 1.0]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _peer(folder: Path, data: Path, seconds: float, names: Sequence[str]) -> None:
    """In nnU-Net's environment: make, teach and save the models, and predict."""
    import torch
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.set_num_threads(2)
    files = sorted((data / "images").glob("*.nii.gz"))
    teaching, testing = files[:4], files[20:23]
    reader = SimpleITKIO()
    for name in names:
        about = _MODELS[name]
        values = np.concatenate([reader.read_images([str(f)])[0].ravel()[::50] for f in teaching])
        low, high = np.percentile(values, (0.5, 99.5))
        intensities = {"mean": values.mean(), "std": values.std(), "percentile_00_5": low, "percentile_99_5": high}
        intensities |= {"median": np.median(values), "min": values.min(), "max": values.max()}
        configuration_name = "2d" if len(about["patch"]) == 2 else "3d_fullres"
        plans = _plans(configuration_name, about, {key: float(value) for key, value in intensities.items()})
        dataset = _dataset(about)
        target = folder / name
        target.mkdir(parents=True)
        (target / "plans.json").write_text(json.dumps(plans))
        (target / "dataset.json").write_text(json.dumps(dataset))
        manager = PlansManager(plans)
        configuration = manager.get_configuration(configuration_name)
        architecture = plans["configurations"][configuration_name]["architecture"]
        prepare = configuration.preprocessor_class(verbose=False).run_case
        cases = [prepare([str(f)], str(data / "masks" / f.name), manager, configuration, dataset)[:2] for f in teaching]
        for fold in range(about.get("folds", 1)):
            torch.manual_seed(fold)
            network = get_network_from_plans(
                architecture["network_class_name"],
                architecture["arch_kwargs"],
                architecture["_kw_requires_import"],
                1,
                2 if about.get("regions") else 3,
                deep_supervision=False,
            )
            _teach(network, cases, about, seconds, fold)
            (target / f"fold_{fold}").mkdir()
            saved = {
                "network_weights": network.state_dict(),
                "optimizer_state": {},
                "grad_scaler_state": None,
                "logging": {"ema_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(0.1)]},
                "_best_ema": np.float64(0.5),
                "current_epoch": 5,
                "init_args": {
                    "plans": plans,
                    "configuration": configuration_name,
                    "fold": fold,
                    "dataset_json": dataset,
                },
                "trainer_name": "nnUNetTrainer",
                "inference_allowed_mirroring_axes": tuple(about["mirror"]) if about.get("mirror") else None,
            }
            torch.save(saved, target / f"fold_{fold}" / "checkpoint_final.pth")
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(target), None)
        for file in testing:
            image, properties = reader.read_images([str(file)])
            mask = predictor.predict_single_npy_array(image, properties)
            np.savez_compressed(target / f"{file.name}.npz", mask=mask)


def _compare(folder: Path, data: Path, names: Sequence[str]) -> dict[str, Any]:
    """Import the models, predict the same scans, and compare the masks."""
    from napari_unet.compute.predictor import Predictor
    from napari_unet.domain.compute import ResolvedCompute
    from napari_unet.evaluation.metrics import dice
    from napari_unet.exchange.nnunet import read_nnunet
    from napari_unet.io.registry import read_scan

    compute = ResolvedCompute("cpu", "float32", 2, runtime="onnx", runtime_wanted=True)
    found: dict[str, Any] = {}
    for name in names:
        predictor = Predictor(read_nnunet(folder / name, name, compute), compute, {"inference.mirror": True})
        scores, other, of = [], 0, 0
        for stored in sorted((folder / name).glob("*.npz")):
            scan = read_scan(data / "images" / stored.name.removesuffix(".npz"))
            # SimpleITK's arrays are the file's axes, the last first.
            mask = np.transpose(scan.geometry.axis_map.to_source(predictor.predict(scan).labels))
            truth = np.load(stored)["mask"]
            values = [value for value in (1, 2) if (truth == value).any()]
            scores += [dice(mask == value, truth == value) for value in values]
            other, of = other + int((mask != truth).sum()), of + int((truth > 0).sum())
        found[name] = {
            "lowest_dice": min(scores),
            "mean_dice": float(np.mean(scores)),
            "voxels_that_differ": other,
            "foreground_voxels": of,
        }
        print(name, found[name], file=sys.stderr)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the models there, compare here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="the Python of nnU-Net's environment")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=_MODELS, action="append")
    parser.add_argument("--seconds", type=float, default=40.0, help="of teaching each network")
    parser.add_argument("--data", type=Path, default=_DATA)
    parser.add_argument("--json", default=str(_RESULT))
    given = parser.parse_args(arguments)
    names = given.only or list(_MODELS)
    if given.make is not None:
        _peer(given.make, given.data, given.seconds, names)
        return
    from record import circumstances, write

    before = circumstances(_PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        words = [given.peer, __file__, "--make", folder, "--data", given.data, "--seconds", given.seconds]
        words += [word for name in names for word in ("--only", name)]
        environment = {**os.environ, **{f"nnUNet_{each}": folder for each in ("raw", "preprocessed", "results")}}
        environment.pop("PYTHONPATH", None)
        subprocess.run([str(word) for word in words], check=True, env=environment, stdout=subprocess.DEVNULL)
        figures = _compare(Path(folder), given.data, names)
    write({**before, "teaching_seconds": given.seconds, "scans": 3, "models": figures}, given.json)


if __name__ == "__main__":
    main()
