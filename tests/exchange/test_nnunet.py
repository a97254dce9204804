"""nnU-Net's trained folders come in; that the masks are nnU-Net's own is measured by benchmarks/nnunet_exchange.py."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_unet.compute.predictor import Predictor
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ModelError
from napari_unet.domain.geometry import AxisMap, Geometry
from napari_unet.domain.scan import Scan
from napari_unet.exchange.importing import read_foreign
from napari_unet.exchange.nnunet_network import NnunetNetwork
from napari_unet.storage.checkpoint_file import from_bytes, to_bytes

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

BY_ONNX = ResolvedCompute("cpu", "float32", 1, runtime="onnx", runtime_wanted=True)
PATCH = (8, 32, 24)


def trained_folder(folder: Path, residual: bool = False, flat: bool = False, **changed: Any) -> NnunetNetwork:
    """Write a folder as nnU-Net's trainer leaves it, in 3D or for pictures; return its network."""
    counts = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    options = {
        "n_stages": 2,
        "features_per_stage": [4, 6],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[1, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2]],
        counts: [2, 2],
        "n_conv_per_stage_decoder": [2],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    kind = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    how = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "patch_size": list(PATCH),
        "spacing": [3.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": how,
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": how | {"order": 1},
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
            "arch_kwargs": options,
        },
    }
    if flat:
        options |= {
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        }
        options |= {"kernel_sizes": [[3, 3], [3, 3]], "strides": [[1, 1], [2, 2]]}
        configuration |= {"patch_size": list(PATCH[1:]), "spacing": [1.0, 1.0]}
    intensities = {"mean": 0.0, "std": 1.0, "percentile_00_5": 0.0, "percentile_99_5": 1.0}
    plans = {
        "image_reader_writer": "NaturalImage2DIO" if flat else "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration | changed, "3d_heir": {"inherits_from": "3d_fullres"}},
        "foreground_intensity_properties_per_channel": {"0": intensities},
    }
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 1, "b": 2}}))
    torch.manual_seed(0)
    network = NnunetNetwork(kind, options, 1, 3).eval()
    weights = {**network.state_dict()}
    weights |= {f"decoder.{name}": value for name, value in weights.items() if name.startswith("encoder.")}
    (folder / "fold_0").mkdir(exist_ok=True)
    saved = {
        "network_weights": weights,
        "logging": {"dice": [np.float64(0.5)]},
        "_best_ema": np.float64(0.5),
        "init_args": {"configuration": "3d_heir"},
        "trainer_name": "nnUNetTrainer",
        "current_epoch": 3,
        "inference_allowed_mirroring_axes": () if flat else (2,),
    }
    torch.save(saved, folder / "fold_0" / "checkpoint_final.pth")
    return network


@pytest.mark.parametrize("residual", [False, True])
def test_one_window_is_the_networks_own_answer(tmp_path: Path, residual: bool) -> None:
    network = trained_folder(tmp_path, residual)
    model = from_bytes(to_bytes(read_foreign(tmp_path, "theirs", BY_ONNX)))
    assert model.card.label_schema.ids == (1, 2)
    data = np.random.default_rng(0).normal(100, 20, PATCH).astype(np.float32)
    scan = Scan(data, "zyx", Geometry((3.0, 1.0, 1.0), np.eye(4), AxisMap.identity(3)), slice_axis=0)
    x = torch.from_numpy((data - data.mean()) / data.std())[None, None]
    with torch.inference_mode():
        plain, turned = network(x), network(x.flip(4)).flip(4)
    for mirror, logits in ((False, plain), (True, (plain + turned) / 2)):
        labels = Predictor(model, BY_ONNX, {"inference.mirror": mirror}).predict(scan).labels
        expected = logits[0].argmax(0).numpy()
        assert (labels != expected).mean() < 0.01  # logits are summed in half precision


def test_pictures_have_no_spacing_where_nnunet_has_read_none(tmp_path: Path) -> None:
    network = trained_folder(tmp_path, flat=True)
    model = from_bytes(to_bytes(read_foreign(tmp_path, "theirs", BY_ONNX)))
    data = np.random.default_rng(0).normal(100, 20, PATCH[1:]).astype(np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy((data - data.mean()) / data.std())[None, None])[0].argmax(0).numpy()
    labels = Predictor(model, BY_ONNX, {}).predict(Scan(data, "yx", Geometry((0.2, 0.3)))).labels
    assert (labels != expected).mean() < 0.01  # logits are summed in half precision


def test_what_is_cropped_turned_or_resampled_comes_back_in_place(tmp_path: Path) -> None:
    trained_folder(tmp_path)
    model = read_foreign(tmp_path, "theirs", BY_ONNX)
    data = np.zeros((30, 44, 9), np.float32)
    data[4:27, 8:40, 1:8] = np.random.default_rng(0).normal(100, 20, (23, 32, 7))
    affine = np.diag([1.2, 0.8, 2.0, 1.0])
    turned = AxisMap((2, 1, 0), (False, True, True))
    loaded = turned.to_loaded(data)
    scan = Scan(loaded, "zyx", Geometry((2.0, 0.8, 1.2), affine, turned, affine, "RAS"), slice_axis=0)
    labels = Predictor(model, BY_ONNX, {}).predict(scan).labels
    assert labels.shape == loaded.shape
    assert set(np.unique(labels)) <= {0, 1, 2}
    outside = np.ones_like(loaded, bool)
    outside[1:8, 4:36, 3:26] = False
    assert not labels[outside].any()


def test_what_could_run_code_or_is_not_known_is_refused(tmp_path: Path) -> None:
    trained_folder(tmp_path)
    path = tmp_path / "fold_0" / "checkpoint_final.pth"
    sound = path.read_bytes()
    path.write_bytes(pickle.dumps({"network_weights": print}))
    with pytest.raises(ModelError, match="could run code"):
        read_foreign(tmp_path, "x", BY_ONNX)
    path.write_bytes(sound[: len(sound) // 2])
    with pytest.raises(ModelError, match="damaged"):
        read_foreign(tmp_path, "x", BY_ONNX)
    with pytest.raises(ModelError, match="lacks fold_4"):
        read_foreign(tmp_path, "x", BY_ONNX, ["4"])
    for changed, words in (
        ({"previous_stage": "3d_lowres"}, "cascade"),
        ({"preprocessor_name": "Mine"}, "DefaultPreprocessor"),
        ({"resampling_fn_data": "resample_torch"}, "ways to resample"),
        ({"normalization_schemes": ["Mine"]}, "cannot be understood"),
    ):
        trained_folder(tmp_path, **changed)
        with pytest.raises(ModelError, match=words):
            read_foreign(tmp_path, "x", BY_ONNX)
