"""Checkpoints as one file: safetensors, the card as JSON in its metadata. Reading one executes nothing."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from napari_unet.domain.checkpoint import PIXELS, Checkpoint, ModelCard
from napari_unet.domain.errors import ExportError, ModelError
from napari_unet.storage.atomic import replace_atomically

_CARD = "napari_unet_card"
_FORMAT_VERSION = 1


def _seal(card: str, identifier: str) -> str:
    """Return a hash over card and weights, so that a damaged card shows as damaged weights do."""
    return hashlib.blake2b(f"{identifier}{card}".encode(), digest_size=16).hexdigest()


def to_bytes(checkpoint: Checkpoint) -> bytes:
    """Return a checkpoint as the bytes of its file."""
    from safetensors.numpy import save

    tensors = {name: np.asarray(array, order="C") for name, array in checkpoint.tensors.items()}
    card = checkpoint.card.model_dump_json()
    return save(tensors, metadata={_CARD: card, "seal": _seal(card, checkpoint.id)})


def from_bytes(data: bytes, name: str = "the model") -> Checkpoint:
    """Return the checkpoint in the bytes of a file.

    Parameters
    ----------
    data : bytes
        Whole file.
    name : str
        How messages call it.

    Raises
    ------
    ModelError
        Not safetensors (such as a pickle), no card of ours, a newer format, or a card and weights whose hash is not
        the one written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    # Safetensors begins with eight bytes of length, which may be any bytes, and a brace.
    if data[8:9] != b"{" and (data[:2] == b"PK" or data[:1] == b"\x80"):
        raise ModelError(
            f"{name} is a pickle (.pt, .pth) and could run code when opened, so it was not: ask for it as safetensors."
        )
    try:
        weights = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{name} is not a readable model file (safetensors): it is damaged or of another kind."
        ) from error
    metadata = header.get("__metadata__", {})
    if _CARD not in metadata:
        raise ModelError(f"{name} holds weights but no napari-unet card: it was made by another program.")
    try:
        raw = json.loads(metadata[_CARD])
        if raw.get("format_version", 0) > _FORMAT_VERSION:
            raise ModelError(f"{name} was written by a newer napari-unet: update the program to use it.")
        pixels = {name.removeprefix(PIXELS): weights.pop(name) for name in list(weights) if name.startswith(PIXELS)}
        checkpoint = Checkpoint(weights, ModelCard.model_validate(raw), pixels)
    except (ValidationError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError(f"The card of {name} cannot be understood: the file is damaged.") from error
    if metadata.get("seal") != _seal(metadata[_CARD], checkpoint.id):
        raise ModelError(f"The weights of {name} are not those its card was written for: the file is damaged.")
    return checkpoint


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint; the old file, if any, stays whole until the new one is complete.

    Raises
    ------
    ExportError
        The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(path, to_bytes(checkpoint))
    except OSError as error:
        raise ExportError(f"The model could not be written to {path.name}: {os.strerror(error.errno or 0)}.") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    ModelError
        Missing, foreign or damaged; see :func:`from_bytes`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"The model file {path.name} cannot be read: {os.strerror(error.errno or 0)}.") from error
    return from_bytes(data, path.name)


def read_card(path: Path) -> ModelCard:
    """Read only the card of a checkpoint, without its weights and unsealed: to show figures, not to compute with it.

    Raises
    ------
    ModelError
        Missing, foreign or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return ModelCard.model_validate_json((file.metadata() or {})[_CARD])
    except (SafetensorError, OSError, KeyError, ValidationError) as error:
        raise ModelError(f"The card of {path.name} cannot be read: the file is missing, damaged or foreign.") from error
