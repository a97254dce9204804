"""The estimate of a training step's memory against what autograd keeps, and against a process's peak."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from napari_unet.domain.settings import ModelSettings
from napari_unet.networks.factory import build
from napari_unet.training.memory import n_parameters, step_memory

PLANES = {"training.patch_size": (64, 64), "training.batch_size": 2}
VOLUMES = {
    "network.dimensions": 3,
    "network.strides": ((1, 2, 2), (2, 2, 2), (2, 2, 2)),
    "network.kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "training.patch_size": (16, 32, 32),
    "training.batch_size": 2,
}
CLASSIC = {
    **PLANES,
    "network.base_channels": 32,
    "network.norm": "batch",
    "network.activation": "relu",
    "network.activation_first": True,
    "network.upsampling": "transposed",
}
CASES = {
    "plain": PLANES,
    "residual": {**PLANES, "network.encoder": "residual"},
    "gates": {**PLANES, "network.attention_gates": True},
    "transformer": {**PLANES, "network.bottleneck": "transformer"},
    "classic": CLASSIC,
    "3d": VOLUMES,
    "3d residual": {**VOLUMES, "network.encoder": "residual", "network.deep_supervision": True},
}


def settings_of(values) -> ModelSettings:
    return ModelSettings().with_values(values)


def kept_bytes(settings: ModelSettings) -> int:
    """Return the bytes that autograd keeps of one forward pass, weights left out."""
    network = build(settings.network, seed=0)
    network.checkpoint_activations = settings.training.activation_checkpointing
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    image = torch.zeros(settings.training.batch_size, settings.network.in_channels, *settings.training.patch_size)
    kept = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = network(image)
    assert outputs is not None
    return sum(kept.values())


@pytest.mark.parametrize("case", CASES)
def test_what_autograd_keeps_is_what_is_counted(case):
    settings = settings_of(CASES[case])
    # The loss is counted too, and has not been computed here.
    loss = settings_of({**CASES[case], "network.out_channels": 3})
    per_logit = step_memory(loss).activations - step_memory(settings).activations
    counted = step_memory(settings).activations - per_logit * settings.network.n_logits
    assert counted == pytest.approx(kept_bytes(settings), rel=0.15)


@pytest.mark.parametrize("case", CASES)
def test_weights_are_counted_without_building_the_network(case):
    settings = settings_of(CASES[case])
    true = sum(p.numel() for p in build(settings.network, seed=0).parameters())
    assert n_parameters(settings.network) == pytest.approx(true, rel=0.02)


@pytest.mark.parametrize(("backbone", "dimensions"), [("resnet50", 2), ("resnet18", 3)])
def test_weights_of_pretrained_encoders_are_counted_too(backbone, dimensions):
    pytest.importorskip("monai")
    settings = settings_of(
        {
            "network.dimensions": dimensions,
            "network.strides": ((2,) * dimensions,) * 4,
            "network.encoder": "pretrained",
            "network.backbone": backbone,
        }
    )
    true = sum(p.numel() for p in build(settings.network, seed=0).parameters())
    # MedicalNet's shortcuts have no weights.
    assert n_parameters(settings.network) == pytest.approx(true, rel=0.05)


def test_recomputing_keeps_less_and_is_counted_as_less():
    plain, again = (settings_of({**PLANES, "training.activation_checkpointing": on}) for on in (False, True))
    assert kept_bytes(again) < 0.6 * kept_bytes(plain)
    assert step_memory(again).activations < 0.8 * step_memory(plain).activations


def test_pieces_optimisers_and_averages_are_counted():
    whole = step_memory(settings_of(PLANES))
    assert step_memory(settings_of({**PLANES, "training.accumulate": 2})).activations < whole.activations
    assert step_memory(settings_of({**PLANES, "training.optimiser": "sgd"})).weights == whole.weights * 4 / 5
    assert step_memory(settings_of({**PLANES, "training.ema_decay": 0})).weights == whole.weights * 4 / 5
    assert step_memory(settings_of({**PLANES, "training.consistency_weight": 1})).total > whole.total


_STEPS = r"""
import json, re, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.settings import ModelSettings
from napari_unet.networks.factory import build
from napari_unet.patches.sampling import Batch
from napari_unet.training.loop import train

def steps(values):
    limits = {"training.steps": 2, "training.budget_seconds": None}
    settings = ModelSettings().with_values({**values, **limits})
    shape = (settings.training.batch_size, *settings.training.patch_size)
    image = torch.randn(shape[0], settings.network.in_channels, *shape[1:])
    batch = Batch(image, torch.zeros(shape, dtype=torch.long), torch.ones(shape, dtype=torch.bool))
    network = build(settings.network, seed=0)
    compute = ResolvedCompute("cpu", "float32", 1)
    list(train(network, lambda: batch, settings.training, compute, description=settings.network))

def peak():
    # The maximum of getrusage would begin with that of the process which started this one.
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

values = json.loads(sys.argv[1])
n = values.get("network.dimensions", 2)
steps({"network.dimensions": n, "network.base_channels": 4, "network.strides": [(2,) * n],
       "training.patch_size": (8,) * n, "training.batch_size": 1})
before = peak()
steps(values)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux counts it")
@pytest.mark.parametrize(
    "values",
    [
        {"training.patch_size": (128, 128), "training.batch_size": 4},
        {"training.patch_size": (128, 128), "training.batch_size": 4, "training.activation_checkpointing": True},
        {"training.patch_size": (128, 128), "training.batch_size": 4, "training.accumulate": 4},
        {**CLASSIC, "network.base_channels": 64, "network.max_channels": 1024, "training.ema_decay": 0},
        {
            **VOLUMES,
            "training.patch_size": (24, 48, 48),
            "network.encoder": "residual",
            "network.deep_supervision": True,
        },
    ],
    ids=["2d", "recomputed", "in pieces", "classic", "3d"],
)
def test_the_peak_of_a_process_is_the_estimate_give_or_take_a_half(values):
    answer = subprocess.run(
        [sys.executable, "-c", _STEPS, json.dumps(values)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    measured, estimated = int(answer.stdout), step_memory(settings_of(values)).total
    assert measured / 1.5 < estimated < measured * 1.5
