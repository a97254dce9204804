"""Smaller graphs: weights in half precision, or convolutions in eight bits. What that costs is measured elsewhere."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import ModelError

#: Arrays below so many values are left as they are: norms and biases, which weigh nothing.
_SMALL = 256


def halved(graph: bytes) -> bytes:
    """Return an ONNX model with its weights in float16; they are widened where it runs, so that it computes as before.

    Parameters
    ----------
    graph : bytes
        An ONNX model in float32.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_from_string(graph)
    casts = []
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or array.size < _SMALL:
            continue
        name = tensor.name
        narrow = array.clip(-65504, 65504).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(narrow, f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], f"widen {name}", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def quantised(graph: bytes, inputs: Sequence[NDArray[np.float32]]) -> bytes:
    """Return an ONNX model whose convolutions compute in eight bits.

    Static quantisation (Jacob et al. 2018): the range of each activation is measured on real inputs, and written down
    as pairs of QuantizeLinear and DequantizeLinear, which ONNX Runtime and OpenVINO both understand. Weights have a
    scale per channel and seven bits, since processors without VNNI add two products in 16 bits. Normalisation stays as
    it is.

    Parameters
    ----------
    graph : bytes
        An ONNX model in float32, ``image`` in.
    inputs : sequence of (batch, channels, *spatial) arrays
        That the network is shown of real scans.

    Raises
    ------
    ModelError
        There are no inputs, or ONNX Runtime is not installed or cannot quantise the model.
    """
    if not inputs:
        raise ModelError("INT8 needs scans to find out how large the network's features are: add --images DIR.")
    try:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    except ModuleNotFoundError as error:
        raise ModelError("INT8 needs ONNX Runtime: run pip install 'napari-unet[onnx]'.") from error

    class Inputs(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(inputs)

        def get_next(self) -> dict[str, Any] | None:
            given = next(self._left, None)
            return None if given is None else {"image": given}

    with tempfile.TemporaryDirectory() as folder, _without_advice():
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(graph)
        try:
            quantize_static(
                source,
                target,
                Inputs(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
            )
        except Exception as error:  # the library has many of its own
            raise ModelError(f"ONNX Runtime cannot quantise this network ({type(error).__name__}).") from error
        return target.read_bytes()


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep the library from telling on the root logger how else it could be done."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
