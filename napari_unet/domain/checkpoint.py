"""A trained model as a value: weights, how it was made, what it knows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.nnunet import NnunetRecipe
from napari_unet.domain.settings import ModelSettings

#: Before the names of the pixel classifier's arrays.
PIXELS = "pixels."
#: Name of the one array of a model that is only a graph: the bytes of an ONNX model, ``image`` in, ``logits`` out.
GRAPH = "graph.onnx"
#: What is said where a model that is only a graph is to learn.
GRAPH_ONLY = (
    "An exported model (ONNX) only predicts, and nothing can be learnt on top of it: start from the checkpoint it was "
    "made of (.safetensors)."
)


class ModelCard(BaseModel):
    """What stands beside the weights, in the same file.

    ``seen`` lists fingerprints of the scans it learnt from (hashes of voxels; no names), ``looked_at`` those of scans
    that only judged it, or that it saw without labels. ``scores`` maps a fingerprint of a locked case to its Dice;
    ``parent`` is the identifier of the checkpoint it grew from. Equal settings, scans, ``versions`` and ``compute``
    (device, precision, threads) give equal weights where steps, not seconds, are counted.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format_version: int = 1
    name: str
    settings: ModelSettings
    label_schema: LabelSchema
    parent: str | None = None
    seen: tuple[str, ...] = ()
    looked_at: tuple[str, ...] = ()
    scores: dict[str, float | None] = Field(default_factory=dict)
    steps: int = 0
    created: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    compute: str = ""
    modality: str | None = None
    #: Quantiles of the prepared intensities of the scans it learnt from last, and by how much these differed.
    intensities: tuple[float, ...] = ()
    intensity_spread: float = 0.0
    notes: str = ""
    #: Of the pixel classifier in the mixed probabilities, and what each share left to paint on the newest scans.
    pixel_share: float = 0.0
    pixel_errors: tuple[float, ...] = ()
    #: How much of the painting was left on scans that were new, before they were learnt from; the latest last.
    left_to_paint: tuple[float, ...] = ()
    #: Of a model that nnU-Net has trained: what it does around the network, instead of what the settings say.
    nnunet: NnunetRecipe | None = None

    @property
    def is_worse_than_nothing(self) -> bool:
        """Whether, on the last two new scans, correcting its proposals took as much work as painting everything."""
        last = self.left_to_paint[-2:]
        return len(last) == 2 and min(last) >= 1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Weights by name (numpy arrays) with their card.

    ``pixels`` are those of the classifier of single pixels that has a say beside the network; empty without one.
    A model that was exported, or that another program made, has its network as a :attr:`graph` instead of weights: it
    predicts as others do, and cannot be trained.
    """

    weights: dict[str, NDArray]
    card: ModelCard
    pixels: dict[str, NDArray] = field(default_factory=dict)

    @classmethod
    def of_graph(cls, graph: bytes, card: ModelCard, pixels: dict[str, NDArray] | None = None) -> Checkpoint:
        """Return a model whose network is an ONNX graph; ``card.settings.network`` says what it takes and gives."""
        return cls({GRAPH: np.frombuffer(graph, np.uint8)}, card, pixels or {})

    @property
    def graph(self) -> bytes | None:
        """The ONNX model that is its network; None for a network of this program's."""
        return self.weights[GRAPH].tobytes() if GRAPH in self.weights else None

    @property
    def tensors(self) -> dict[str, NDArray]:
        """All arrays by the names they have in a file."""
        return {**self.weights, **{f"{PIXELS}{name}": array for name, array in self.pixels.items()}}

    @cached_property
    def id(self) -> str:
        """Hash of the weights; equal weights have an equal identifier."""
        digest = hashlib.blake2b(digest_size=16)
        tensors = self.tensors
        for name in sorted(tensors):
            # Not ascontiguousarray, which makes a scalar (BatchNorm's counter) an array of one.
            array = np.asarray(tensors[name], order="C")
            digest.update(f"{name}{array.shape}{array.dtype.str}".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()
