"""Which device, precision, runtime and number of threads a job computes with: decided once, before it starts.

The decision needs torch, so that a window asks for it with a job (:func:`resolving`). What is decided travels as a
value; nothing below this floor chooses for itself.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import platform
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import EngineError
from napari_unet.domain.settings import ComputeSettings

logger = logging.getLogger(__name__)

#: bfloat16 rounds to 8 bits: it has to be clearly faster to be worth that.
_WORTHWHILE_SPEED_UP = 1.2
_PROBE_REPEATS = 8
_PROBE_FEWEST_REPEATS = 2
_PROBE_SECONDS = 0.3
#: A runtime other than torch has to be clearly faster to be worth the seconds that converting a network takes.
_WORTHWHILE_RUNTIME = 1.2
_PROBE_TILES, _RUNTIME_REPEATS = {2: (256, 256), 3: (32, 64, 64)}, 3


def resolve(settings: ComputeSettings) -> ResolvedCompute:
    """Decide what the settings leave open, for the machine this runs on. Imports torch.

    Parameters
    ----------
    settings : ComputeSettings
        ``auto`` takes CUDA before MPS before the CPU. On CUDA it takes bfloat16 where the hardware has it, else
        float16; on MPS float32; on the CPU whichever of float32 and bfloat16 a short probe finds faster
        (remembered per processor and version of torch). The runtime ``auto`` takes the fastest of those installed, for
        2D and for 3D networks, by a probe that is remembered too, on a CPU; elsewhere torch.

    Returns
    -------
    ResolvedCompute
        With a sentence that says why.

    Raises
    ------
    EngineError
        A device or runtime was asked for by name and is not there.
    """
    threads = settings.threads or available_cores()
    device, why = _device(settings.device)
    precision: str = settings.precision
    if precision == "auto":
        precision = {"cuda": _cuda_precision, "mps": lambda: "float32", "cpu": lambda: _cpu_precision(threads)}[
            device
        ]()
    from napari_unet.inference.runtimes import RUNTIME_NAMES

    plain = ResolvedCompute(device, precision, threads)
    runtimes: tuple[str, str] = (settings.runtime, settings.runtime)
    if settings.runtime == "auto":
        runtimes = _fastest_runtimes(plain) if device == "cpu" else ("torch", "torch")
    elif settings.runtime != "torch":
        _require_runtime(settings.runtime)
    names = " and ".join(dict.fromkeys(RUNTIME_NAMES[name] for name in runtimes if name != "torch"))
    return replace(
        plain,
        runtime=runtimes[0],
        runtime_3d=runtimes[1] if runtimes[1] != runtimes[0] else "",
        runtime_wanted=settings.runtime not in ("auto", "torch"),
        reason=f"{why}, in {precision}{f', proposing with {names}' if names else ''}.",
    )


def resolving(settings: ComputeSettings) -> Generator[object, None, ResolvedCompute]:
    """Do :func:`resolve` as a job, so that the window imports no torch. Yields nothing."""
    yield from ()
    return resolve(settings)


def free_memory(compute: ResolvedCompute) -> int:
    """Return the bytes that are free now where a job computes: the GPU's, or this computer's."""
    import psutil

    if compute.device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def available_cores() -> int:
    """Return the number of physical cores that this process may use (hyperthreads do not speed convolutions up)."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, psutil.cpu_count(logical=False) or usable)


def _device(wanted: str) -> tuple[str, str]:
    import torch

    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "cuda" and not has_cuda:
        raise EngineError(
            "No usable CUDA GPU was found: choose the device 'auto' or 'cpu', or check the driver and the torch build."
        )
    if wanted == "mps" and not has_mps:
        raise EngineError("No Apple GPU (MPS) was found: choose the device 'auto' or 'cpu'.")
    if wanted == "cuda" or (wanted == "auto" and has_cuda):
        return "cuda", f"Computing on the GPU {torch.cuda.get_device_name()}"
    if wanted == "mps" or (wanted == "auto" and has_mps):
        return "mps", "Computing on the Apple GPU"
    return "cpu", "Computing on the CPU" if wanted == "cpu" else "No usable GPU was found: computing on the CPU"


def _cuda_precision() -> str:
    import torch

    # Emulated bfloat16 "works" on older GPUs, slower than float32.
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


@functools.cache
def _cpu_precision(threads: int) -> str:
    import torch

    key = f"torch {torch.__version__}, {_cpu_name()}, {threads} threads"
    path = _cache_path()
    known = _read_cache(path, ("float32", "bfloat16"))
    if key not in known:
        known[key] = {name: _probe(name, threads) for name in ("float32", "bfloat16")}
        _write_cache(path, known)
    seconds = known[key]
    logger.info("%s: %s", key, seconds)
    return "bfloat16" if seconds["float32"] >= _WORTHWHILE_SPEED_UP * seconds["bfloat16"] else "float32"


def _probe(precision: str, threads: int) -> float:
    """Return the seconds of one small convolution, forward and backward, channels last; the best of a few."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        convolution = torch.nn.Conv2d(32, 32, 3, padding=1)
        convolution.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        patch = torch.zeros(2, 32, 96, 96).contiguous(memory_format=torch.channels_last).requires_grad_()
        best, begin = float("inf"), time.perf_counter()
        # The first round is the library's own preparation, and is never the best.
        for n in range(1 + _PROBE_REPEATS):
            start = time.perf_counter()
            if n >= _PROBE_FEWEST_REPEATS and start - begin > _PROBE_SECONDS:
                break
            with torch.autocast("cpu", getattr(torch, precision), enabled=precision != "float32"):
                total = convolution(patch).float().sum()
            total.backward()
            best = min(best, time.perf_counter() - start)
        return best
    finally:
        torch.set_num_threads(before)


def _require_runtime(name: str) -> None:
    from napari_unet.inference.runtimes import RUNTIME_NAMES, installed_runtimes

    if name not in installed_runtimes():
        raise EngineError(
            f"{RUNTIME_NAMES[name]} is not installed: run pip install 'napari-unet[{name}]', or choose the runtime "
            "'torch'."
        )


@functools.cache
def _fastest_runtimes(compute: ResolvedCompute) -> tuple[str, str]:
    """Return what is fastest for 2D and for 3D networks."""
    from napari_unet.inference.runtimes import installed_runtimes, versions

    names = installed_runtimes()
    if not names:
        return "torch", "torch"
    key = f"{versions(names)}, {_cpu_name()}, {compute.threads} threads, {compute.precision}"
    path = _cache_path().with_name("cpu-runtime.json")
    known = _read_cache(path, ())

    def fastest(dimensions: int) -> str:
        own = f"{key}, {dimensions}D"
        if not known.get(own, {}).keys() >= {"torch", *names}:
            known[own] = {
                name: _probe_runtime(replace(compute, runtime=name), dimensions) for name in ("torch", *names)
            }
            _write_cache(path, known)
        seconds = known[own]
        logger.info("%s: %s", own, seconds)
        best = min(seconds, key=lambda name: seconds[name])
        return best if seconds["torch"] >= _WORTHWHILE_RUNTIME * seconds[best] else "torch"

    return fastest(2), fastest(3)


def _probe_runtime(compute: ResolvedCompute, dimensions: int) -> float:
    """Return the seconds in which a small network of the default kind predicts one tile; the best of a few."""
    import torch

    from napari_unet.domain.settings import ModelSettings
    from napari_unet.inference.runner import Runner
    from napari_unet.inference.runtimes import RUNTIME_NAMES
    from napari_unet.networks.factory import build

    before = torch.get_num_threads()
    torch.set_num_threads(compute.threads)
    try:
        network = {"network.dimensions": dimensions, "network.strides": [[2] * dimensions] * 4}
        settings = ModelSettings().with_values({"inference.skip_constant": False, **network})
        runner = Runner(build(settings.network, seed=0), settings, replace(compute, runtime_wanted=True))
        plane, best = torch.zeros(1, 1, *_PROBE_TILES[dimensions]), float("inf")
        with torch.inference_mode():
            runner.probability(plane)
            for _ in range(_RUNTIME_REPEATS):
                start = time.perf_counter()
                runner.probability(plane)
                best = min(best, time.perf_counter() - start)
        return best
    except Exception as error:  # whatever a library says: torch is there
        logger.info("%s cannot be used here: %s", RUNTIME_NAMES[compute.runtime], type(error).__name__)
        return float("inf")
    finally:
        torch.set_num_threads(before)


def _cpu_name() -> str:
    if platform.system() == "Linux":
        try:
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()


def _cache_path() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("napari-unet") / "cpu-precision.json"


def _read_cache(path: Path, needed: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Return the measurements made before; none where the file is absent or not ours."""
    try:
        found = json.loads(path.read_text())
        known = {key: {name: float(seconds) for name, seconds in value.items()} for key, value in found.items()}
        return {key: value for key, value in known.items() if set(needed) <= value.keys()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write_cache(path: Path, known: dict[str, dict[str, float]]) -> None:
    """Keep the measurements, if the disk lets us: without them the next program measures again."""
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(known, indent=1))
        temporary.replace(path)
    except OSError as error:
        logger.info("The measured precision could not be kept: %s", type(error).__name__)
