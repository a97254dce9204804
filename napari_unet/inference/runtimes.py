"""Other programs that can run a network: ONNX Runtime and OpenVINO, each an extra.

A network is written as ONNX in memory and handed over; what comes back is a function from tiles to logits. Results are
equal to torch's within rounding (tests/inference/test_runtimes.py).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import logging
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ModelError
from napari_unet.domain.settings import NetworkSettings
from napari_unet.networks.factory import build, load_weights
from napari_unet.networks.unet import UNet

logger = logging.getLogger(__name__)

#: What people call the runtimes.
RUNTIME_NAMES = {"torch": "PyTorch", "onnx": "ONNX Runtime", "openvino": "OpenVINO"}
#: What the runtimes need, besides torch.
_NEEDS = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}
_OPSET = 17
#: Compiled for so many shapes at once.
_SHAPES = 4

Forward = Callable[[Tensor], Tensor]


def installed_runtimes() -> list[str]:
    """Return what can run networks here besides torch: ``onnx``, ``openvino``."""
    return [name for name, needs in _NEEDS.items() if all(importlib.util.find_spec(need) for need in needs)]


class GraphNetwork(nn.Module):
    """A network that is only an ONNX graph: a runtime runs it, torch cannot.

    Parameters
    ----------
    written : bytes
        The ONNX model.
    settings : NetworkSettings
        What it takes and gives.
    """

    def __init__(self, written: bytes, settings: NetworkSettings) -> None:
        super().__init__()
        self.written = written
        self.settings = settings
        self.divisor = settings.divisor

    def place(self, compute: ResolvedCompute) -> ResolvedCompute:
        """Return where it runs: as asked for, but never in torch.

        Raises
        ------
        ModelError
            No runtime is installed.
        """
        runtimes = installed_runtimes()
        if not runtimes:
            raise ModelError(
                "This model is an ONNX graph, and neither ONNX Runtime nor OpenVINO is installed: run pip install "
                "'napari-unet[onnx]'."
            )
        wanted = compute.runtime_for(self.settings.dimensions)
        chosen = wanted if wanted in runtimes else runtimes[0]
        return replace(compute, runtime=chosen, runtime_3d="", runtime_wanted=True)


def network_of(checkpoint: Checkpoint) -> UNet | GraphNetwork:
    """Return the network of a checkpoint, to predict with.

    Raises
    ------
    ModelError
        The weights do not fit the card.
    """
    settings = checkpoint.card.settings.network
    if checkpoint.graph is not None:
        return GraphNetwork(checkpoint.graph, settings)
    network = build(settings, seed=0)
    load_weights(network, checkpoint.weights)
    return network


def versions(names: Sequence[str]) -> str:
    """Return torch's version and those of some runtimes, in words."""

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "of another build"  # such as onnxruntime-gpu

    packages = [package for name in names for package in _NEEDS[name]]
    return ", ".join(f"{each} {version(each)}" for each in ("torch", *packages))


def converted(network: nn.Module, settings: NetworkSettings, compute: ResolvedCompute) -> Forward:
    """Return a function that runs a network in another runtime.

    Parameters
    ----------
    network : UNet or GraphNetwork
        In evaluation mode.
    settings : NetworkSettings
        Its own.
    compute : ResolvedCompute
        Which runtime; device, precision and threads are its too.

    Returns
    -------
    callable
        From ``(B, C, *spatial)`` float32 tiles to logits, on the device of the tiles.

    Raises
    ------
    ModelError
        The runtime cannot run this network.
    """
    runtime = compute.runtime_for(settings.dimensions)
    try:
        written = network.written if isinstance(network, GraphNetwork) else onnx_bytes(network, settings)
        return {"onnx": _onnx_runtime, "openvino": _openvino}[runtime](written, compute)
    except Exception as error:  # each library has errors of its own, and torch's exporter several
        raise ModelError(
            f"{RUNTIME_NAMES[runtime]} cannot run this network ({type(error).__name__}): "
            + ("choose another runtime." if isinstance(network, GraphNetwork) else "choose the runtime 'torch'.")
        ) from error


def onnx_bytes(network: nn.Module, settings: NetworkSettings) -> bytes:
    """Return a network as an ONNX model: ``image`` in, ``logits`` out, any batch, any size that its strides allow."""
    n = settings.dimensions
    device = next(network.parameters()).device
    example = torch.zeros(1, settings.in_channels, *(4 * f for f in settings.divisor), device=device)
    axes = {0: "batch", **{axis + 2: f"size_{axis}" for axis in range(n)}}
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            out,  # type: ignore[arg-type]  # torch's annotations lack buffers
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": axes, "logits": axes},
            opset_version=_OPSET,
            # torch's new exporter needs a further library and takes several seconds for each network.
            dynamo=False,
        )
    return out.getvalue()


@contextmanager
def _as_runtime_errors() -> Iterator[None]:
    """Have what a library raises look like torch's errors: the runner knows what to do about those."""
    try:
        yield
    except (RuntimeError, MemoryError):
        raise
    except Exception as error:
        raise RuntimeError(str(error)) from error


def _onnx_runtime(written: bytes, compute: ResolvedCompute) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = compute.threads
    options.log_severity_level = 3
    # What its arena has taken it keeps: in 3D that was half as much memory again as torch takes.
    options.enable_cpu_mem_arena = False
    # Threads that spin while they wait take the processor from the window.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = ["CPUExecutionProvider"]
    if compute.device == "cuda":
        wanted = ["TensorrtExecutionProvider", "CUDAExecutionProvider", *wanted]
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(written, options, providers=providers)

    def forward(x: Tensor) -> Tensor:
        with _as_runtime_errors():
            (logits,) = session.run(None, {"image": x.contiguous().cpu().numpy()})
        return torch.from_numpy(logits).to(x.device)

    return forward


def import_openvino() -> Any:
    """Return the package openvino, imported so that it reports nothing.

    To be imported is an event that OpenVINO tells over the network, unless what does so is not there.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _openvino(written: bytes, compute: ResolvedCompute) -> Forward:
    core = import_openvino().Core()
    model = core.read_model(written)
    precision = {"bfloat16": "bf16", "float16": "f16"}.get(compute.precision, "f32")
    options = {"INFERENCE_NUM_THREADS": compute.threads, "INFERENCE_PRECISION_HINT": precision}
    compiled: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def forward(x: Tensor) -> Tensor:
        shape = tuple(x.shape)
        with _as_runtime_errors():
            if shape not in compiled:
                # A fixed shape lets it plan its memory; a scan has one or two.
                model.reshape(list(shape))
                compiled[shape] = core.compile_model(model, "CPU", options)
                while len(compiled) > _SHAPES:
                    compiled.popitem(last=False)
            logits = compiled[shape]([x.contiguous().cpu().numpy()])[0]
        return torch.from_numpy(logits.copy()).to(x.device)

    return forward
