"""The decision on device, precision and threads."""

from __future__ import annotations

import json

import pytest
import torch

from napari_unet.compute import device
from napari_unet.compute.device import available_cores, resolve
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import EngineError
from napari_unet.domain.settings import ComputeSettings
from napari_unet.inference.runtimes import installed_runtimes

needs_no_gpu = pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="this machine has a GPU"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "_cache_path", lambda: tmp_path / "cache" / "cpu-precision.json")
    device._cpu_precision.cache_clear()
    yield tmp_path / "cache" / "cpu-precision.json"
    device._cpu_precision.cache_clear()


def test_what_is_asked_for_by_name_is_taken():
    resolved = resolve(ComputeSettings(device="cpu", precision="bfloat16", threads=1))
    assert resolved == ResolvedCompute("cpu", "bfloat16", 1)
    assert resolved.reason == "Computing on the CPU, in bfloat16."


@needs_no_gpu
def test_without_a_gpu_the_cpu_is_taken_and_said():
    resolved = resolve(ComputeSettings(precision="float32"))
    assert (resolved.device, resolved.threads) == ("cpu", available_cores())
    assert "No usable GPU" in resolved.reason


@needs_no_gpu
@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_gpu_that_is_not_there_is_one_sentence(name):
    with pytest.raises(EngineError, match="'cpu'") as error:
        resolve(ComputeSettings(device=name))
    assert "\n" not in str(error.value)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")
def test_a_gpu_is_taken_where_there_is_one():
    assert resolve(ComputeSettings()).device == "cuda"
    assert resolve(ComputeSettings()).precision in ("bfloat16", "float16")


def test_the_cpu_is_measured_once_and_remembered(cache):
    settings = ComputeSettings(device="cpu", threads=1)
    before = torch.get_num_threads()
    first = resolve(settings)
    assert torch.get_num_threads() == before
    ((key, seconds),) = json.loads(cache.read_text()).items()
    assert torch.__version__ in key
    faster = seconds["float32"] >= 1.2 * seconds["bfloat16"]
    assert first.precision == ("bfloat16" if faster else "float32")
    # What stands in the file is believed by the next program; this one keeps to what it has decided.
    seconds |= {"float32": 2.0, "bfloat16": 1.0} if first.precision == "float32" else {"float32": 1.0, "bfloat16": 1.0}
    cache.write_text(json.dumps({key: seconds}))
    assert resolve(settings) == first
    device._cpu_precision.cache_clear()
    assert resolve(settings).precision != first.precision


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": {"float32": "x"}}'])
def test_a_damaged_cache_is_measured_anew(cache, content):
    cache.parent.mkdir()
    cache.write_text(content)
    resolve(ComputeSettings(device="cpu", threads=1))
    assert "float32" in next(iter(json.loads(cache.read_text()).values()))


def test_a_cache_that_cannot_be_written_does_no_harm(cache):
    cache.parent.write_text("a file where the folder should be")
    assert resolve(ComputeSettings(device="cpu", threads=1)).precision in ("float32", "bfloat16")


class TestRuntimes:
    @pytest.fixture
    def measured(self, cache, monkeypatch):
        """Say how fast each runtime is, and hear what was measured."""
        device._fastest_runtimes.cache_clear()
        asked = []

        def take(seconds):
            def probe(compute, dimensions):
                asked.append((compute.runtime, dimensions))
                return seconds[dimensions].get(compute.runtime, float("inf"))

            monkeypatch.setattr(device, "_probe_runtime", probe)
            monkeypatch.setattr("napari_unet.inference.runtimes.installed_runtimes", lambda: ["onnx", "openvino"])
            return asked

        yield take
        device._fastest_runtimes.cache_clear()

    def test_the_fastest_is_taken_for_2d_and_3d_apart_and_remembered(self, measured):
        asked = measured(
            {2: {"torch": 1.0, "onnx": 0.5, "openvino": 0.7}, 3: {"torch": 1.0, "onnx": 2.0, "openvino": 0.6}}
        )
        settings = ComputeSettings(device="cpu", precision="float32", threads=1, runtime="auto")
        resolved = resolve(settings)
        assert (resolved.runtime_for(2), resolved.runtime_for(3)) == ("onnx", "openvino")
        assert not resolved.runtime_wanted
        assert "ONNX Runtime and OpenVINO" in resolved.reason
        assert len(asked) == 6
        device._fastest_runtimes.cache_clear()
        assert resolve(settings) == resolved
        assert len(asked) == 6, "the next program need not measure again"

    def test_what_is_hardly_faster_or_fails_is_not_worth_it(self, measured):
        measured({2: {"torch": 1.0, "onnx": 0.9}, 3: {"torch": 1.0}})
        resolved = resolve(ComputeSettings(device="cpu", precision="float32", threads=1, runtime="auto"))
        assert (resolved.runtime_for(2), resolved.runtime_for(3)) == ("torch", "torch")

    def test_what_was_asked_for_by_name_is_meant(self, measured, monkeypatch):
        asked = measured({2: {}, 3: {}})
        resolved = resolve(ComputeSettings(device="cpu", precision="float32", threads=1, runtime="openvino"))
        assert (resolved.runtime_for(2), resolved.runtime_for(3)) == ("openvino", "openvino")
        assert resolved.runtime_wanted
        assert resolved.in_torch().runtime_for(3) == "torch"
        assert asked == []
        monkeypatch.setattr("napari_unet.inference.runtimes.installed_runtimes", lambda: [])
        with pytest.raises(EngineError, match="pip install"):
            resolve(ComputeSettings(device="cpu", runtime="onnx"))

    @pytest.mark.slow
    def test_the_probe_runs_what_is_installed(self):
        for name in ("torch", *installed_runtimes()):
            compute = ResolvedCompute("cpu", "float32", 1, runtime=name)
            for dimensions in (2, 3):
                assert 0 < device._probe_runtime(compute, dimensions) < 60
