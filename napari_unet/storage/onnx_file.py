"""Models as one ONNX file: the graph for whoever runs it, the card and what else this program needs in its metadata.

The metadata follows the graph's bytes, as Protocol Buffers allow: what was written can be told from what was added, to
the byte, and is sealed as a checkpoint is. Reading one executes nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.errors import ExportError, ModelError
from napari_unet.storage.atomic import replace_atomically

ONNX_SUFFIX = ".onnx"
#: Names in the metadata.
CARD, PIXELS, LENGTH, SEAL = (f"napari_unet_{name}" for name in ("card", "pixels", "graph_bytes", "seal"))
_MISSING = "Models in ONNX need the package onnx, which is not installed: run pip install 'napari-unet[onnx]'."


def to_onnx_bytes(checkpoint: Checkpoint, more: dict[str, str] | None = None) -> bytes:
    """Return the bytes of an ONNX file for a model whose network is a graph.

    Parameters
    ----------
    checkpoint : Checkpoint
        With a graph.
    more : dict, optional
        Further metadata, for people and for other programs.

    Raises
    ------
    ModelError
        The package onnx is not installed, or the checkpoint has no graph.
    """
    onnx = _library()
    graph = checkpoint.graph
    if graph is None:
        raise ModelError("Only a model whose network is a graph is written as ONNX: export the checkpoint.")
    from safetensors.numpy import save

    card = checkpoint.card.model_dump_json()
    pixels = base64.b64encode(save(checkpoint.pixels)).decode("ascii") if checkpoint.pixels else ""
    values = {**(more or {}), CARD: card, LENGTH: str(len(graph)), SEAL: _seal(card, graph, pixels)}
    if pixels:
        values[PIXELS] = pixels
    added = onnx.ModelProto()
    for key, value in values.items():
        added.metadata_props.add(key=key, value=value)
    return graph + added.SerializeToString()


def from_onnx_bytes(data: bytes, name: str = "the model") -> Checkpoint:
    """Return the model in the bytes of an ONNX file that this program wrote.

    Raises
    ------
    ModelError
        No ONNX, no card of ours, changed since, or the package onnx is not installed.
    """
    metadata = _metadata(data, name)
    if CARD not in metadata:
        raise ModelError(
            f"{name} has no napari-unet card, so that nobody knows what it takes and gives: it was made by another "
            "program; a bioimage.io package with it says so (napari-unet models import)."
        )
    try:
        from safetensors.numpy import load

        graph, pixels = data[: int(metadata[LENGTH])], metadata.get(PIXELS, "")
        sealed = metadata.get(SEAL) == _seal(metadata[CARD], graph, pixels)
        card = ModelCard.model_validate(json.loads(metadata[CARD]))
        arrays: dict[str, Any] = load(base64.b64decode(pixels)) if pixels else {}
    except Exception as error:  # each library has errors of its own
        raise ModelError(f"The card of {name} cannot be understood: the file is damaged.") from error
    if not sealed:
        raise ModelError(f"{name} was changed after it was exported: export it again.")
    return Checkpoint.of_graph(graph, card, arrays)


def read_onnx_model(path: Path) -> Checkpoint:
    """Read an exported model.

    Raises
    ------
    ModelError
        Missing, foreign, changed or damaged; see :func:`from_onnx_bytes`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"The model file {path.name} cannot be read: {os.strerror(error.errno or 0)}.") from error
    return from_onnx_bytes(data, path.name)


def write_onnx_model(checkpoint: Checkpoint, path: Path, more: dict[str, str] | None = None) -> None:
    """Write a model whose network is a graph; the old file, if any, stays whole until the new one is complete.

    Raises
    ------
    ExportError
        The file cannot be written.
    ModelError
        See :func:`to_onnx_bytes`.
    """
    data = to_onnx_bytes(checkpoint, more)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(path, data)
    except OSError as error:
        raise ExportError(f"The model could not be written to {path.name}: {os.strerror(error.errno or 0)}.") from error


def _seal(card: str, graph: bytes, pixels: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in (card.encode(), graph, pixels.encode()):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _metadata(data: bytes, name: str) -> dict[str, str]:
    onnx = _library()
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError, of whichever of its implementations
        raise ModelError(f"{name} is not a readable ONNX file: it is damaged or of another kind.") from error
    return {entry.key: entry.value for entry in model.metadata_props}


def _library() -> Any:
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ModelError(_MISSING) from error
    return onnx
