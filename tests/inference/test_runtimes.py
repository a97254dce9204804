"""ONNX Runtime and OpenVINO say what torch says."""

from __future__ import annotations

import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ModelError
from napari_unet.domain.settings import ModelSettings, NetworkSettings
from napari_unet.inference import runner as runner_module
from napari_unet.inference.runner import Runner
from napari_unet.inference.runtimes import installed_runtimes
from napari_unet.networks.factory import build

RUNTIMES = ("onnx", "openvino")
NETWORKS = {
    "2d": {},
    "classic": {"norm": "batch", "upsampling": "transposed"},
    "regions": {"head": "sigmoid", "out_channels": 3},
    "residual, gates": {"attention_gates": True, "deep_supervision": True, "encoder": "residual"},
    "transformer": {"bottleneck": "transformer"},
    "2.5d": {"in_channels": 3},
    "3d": {"dimensions": 3, "strides": ((1, 2, 2), (2, 2, 2), (2, 2, 2))},
}


def resolved(runtime, wanted=True):
    return ResolvedCompute("cpu", "float32", 1, runtime=runtime, runtime_wanted=wanted)


def need(runtime):
    if runtime not in installed_runtimes():
        pytest.skip(f"{runtime} is not installed")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_results_are_equal_within_rounding_for_any_size_and_batch(kind, runtime):
    need(runtime)
    given = {"base_channels": 8, "max_channels": 64, **NETWORKS[kind]}
    known = NetworkSettings.model_fields
    settings = ModelSettings(network=NetworkSettings(**{k: v for k, v in given.items() if k in known}))
    network = build(settings.network, seed=0)
    torch_runner, other = Runner(network, settings, resolved("torch")), Runner(network, settings, resolved(runtime))
    chance = torch.Generator().manual_seed(0)
    sizes = [(16, 32, 48), (8, 16, 16)] if settings.network.dimensions == 3 else [(64, 96), (48, 32)]
    for batch, size in zip((1, 3), sizes, strict=True):
        x = torch.randn(batch, settings.network.in_channels, *size, generator=chance)
        with torch.inference_mode():
            expected, found = torch_runner.probability(x), other.probability(x)
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=2e-3)
        assert float((found - expected).abs().mean()) < 1e-4
        assert float((found.argmax(1) == expected.argmax(1)).float().mean()) > 0.999


class TestFailures:
    def test_what_was_chosen_by_itself_gives_way_to_torch(self, monkeypatch):
        def impossible(*_):
            raise ModelError("OpenVINO cannot run this network (RuntimeError): choose the runtime 'torch'.")

        monkeypatch.setattr(runner_module, "converted", impossible)
        settings = ModelSettings()
        network = build(settings.network, seed=0)
        runner = Runner(network, settings, resolved("openvino", wanted=False))
        assert runner.probability(torch.zeros(1, 1, 32, 32)).shape == (1, 2, 32, 32)
        with pytest.raises(ModelError, match="choose the runtime 'torch'"):
            Runner(network, settings, resolved("openvino"))

    @pytest.mark.parametrize("runtime", RUNTIMES)
    def test_whatever_the_runtime_raises_is_one_sentence(self, runtime, monkeypatch):
        need(runtime)
        from napari_unet.inference import runtimes

        monkeypatch.setattr(runtimes, "onnx_bytes", lambda *_: b"not a model")
        settings = ModelSettings()
        with pytest.raises(ModelError, match="cannot run this network"):
            Runner(build(settings.network, seed=0), settings, resolved(runtime))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_nothing_is_sent_anywhere(runtime):
    need(runtime)
    code = """
import socket, sys, threading
def refuse(*args, **kwargs):
    sys.stdout.write("tried to connect " + repr(args[1:]))
    raise OSError("blocked")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
import torch
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.settings import ModelSettings
from napari_unet.inference.runner import Runner
from napari_unet.networks.factory import build
settings = ModelSettings()
compute = ResolvedCompute("cpu", "float32", 1, runtime=sys.argv[1], runtime_wanted=True)
Runner(build(settings.network, seed=0), settings, compute).probability(torch.zeros(1, 1, 32, 32))
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join(5)
"""
    answer = subprocess.run([sys.executable, "-c", code, runtime], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert "tried to connect" not in answer.stdout
    assert socket.socket.connect  # this process is as it was
