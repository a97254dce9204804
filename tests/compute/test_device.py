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
