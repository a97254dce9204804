"""How nnU-Net prepares scans and reads its network's answer: the part of its plans that prediction needs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Scheme = Literal[
    "ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"
]

Reader = Literal["SimpleITKIO", "NibabelIO", "NaturalImage2DIO"]


class NnunetChannel(BaseModel):
    """How the intensities of one channel are normalised, under nnU-Net's own names.

    ``mean``, ``deviation``, ``lowest`` and ``highest`` are those of the foreground of the scans that taught (CT).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheme: Scheme = "ZScoreNormalization"
    inside_mask: bool = False
    mean: float = 0.0
    deviation: float = 1.0
    lowest: float = 0.0
    highest: float = 0.0


class NnunetRecipe(BaseModel):
    """What nnU-Net does around its network (Isensee et al. 2021).

    ``reader`` is nnU-Net's own name of what read the scans: NaturalImage2DIO knows no millimetres. Axes are those of
    SimpleITK's arrays, transposed by ``transpose``. ``patch_size`` and ``spacing`` have two entries
    for a 2D network. ``regions`` are the values that each sigmoid region writes, in the order in which they are
    written; None: a softmax over the background and the classes. The network gives the logits of all ``folds``, one
    after the other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: tuple[NnunetChannel, ...] = Field(min_length=1)
    reader: Reader = "SimpleITKIO"
    spacing: tuple[float, ...]
    patch_size: tuple[int, ...]
    transpose: tuple[int, int, int] = (0, 1, 2)
    mirror: tuple[int, ...] = ()
    regions: tuple[int, ...] | None = None
    data_order: int = Field(3, ge=0, le=5)
    data_order_between: int = Field(0, ge=0, le=5)
    logits_order: int = Field(1, ge=0, le=5)
    logits_order_between: int = Field(0, ge=0, le=5)
    separate: bool | None = None
    folds: int = Field(1, ge=1)
