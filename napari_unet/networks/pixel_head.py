"""A small classifier of single pixels by their features: what proposes while the U-Net has seen too little."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_unet.domain.errors import ModelError

_WIDTH = 48


class PixelHead(nn.Module):
    """Two hidden layers over standardised features.

    Parameters
    ----------
    n_features : int
        Of a pixel.
    n_classes : int
        Background included.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("deviation", torch.ones(n_features))
        self.layers = nn.Sequential(
            nn.Linear(n_features, _WIDTH),
            nn.LeakyReLU(0.01),
            nn.Linear(_WIDTH, _WIDTH),
            nn.LeakyReLU(0.01),
            nn.Linear(_WIDTH, n_classes),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(n, n_classes)`` of pixels with features ``(n, n_features)``."""
        # Far outside of what was seen nothing is known; a linear guess would be a bold one.
        return self.layers(((features - self.mean) / self.deviation).clamp(-5, 5))


def pixel_head_of(arrays: Mapping[str, NDArray]) -> PixelHead:
    """Return the classifier with these arrays, as ``weights_of`` gave them.

    Raises
    ------
    ModelError
        They are not those of such a classifier.
    """
    try:
        head = PixelHead(len(arrays["mean"]), len(arrays["layers.4.bias"]))
        head.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})
    except (KeyError, RuntimeError, TypeError) as error:
        raise ModelError("The pixel classifier of the model does not fit its card: the file is damaged.") from error
    return head.eval()
