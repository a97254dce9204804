"""The transformer between encoder and decoder that makes a U-Net a TransUNet (Chen et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_HEAD_WIDTH = 32
_LONGEST_WAVE = 10_000


class Transformer(nn.Module):
    """Lets every place of a feature map look at every other (Vaswani et al. 2017), whatever the map's size.

    Each place is a token as wide as the map has channels. The positions are sines and cosines, computed for the map
    that arrives, where Chen et al. learn them for one size: tiles of any size can be predicted.

    Parameters
    ----------
    width : int
        Channels.
    layers : int
        How many layers.

    Notes
    -----
    ``(batch, width, *spatial)`` in and out, with two or three spatial axes.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        spatial = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2) + positions(spatial, x.shape[1], x.device).to(x.dtype)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens).transpose(1, 2).reshape(x.shape)


class _Layer(nn.Module):
    """Attention and a small network on each token, each normalised before and added after (Xiong et al. 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._heads = n_heads(width)
        self.norm1 = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mix = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        each = self.query_key_value(self.norm1(x)).unflatten(2, (3, self._heads, -1))
        query, key, value = each.permute(2, 0, 3, 1, 4).unbind()
        found = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.mix(self.norm2(x))


def n_heads(width: int) -> int:
    """Return into how many heads a width is divided: equal ones of 32 channels, or as little more as possible."""
    return next(n for n in range(max(1, width // _HEAD_WIDTH), 0, -1) if width % n == 0)


def positions(spatial: torch.Size, width: int, device: torch.device) -> Tensor:
    """Return sines and cosines of each place's coordinates.

    Parameters
    ----------
    spatial : sizes
        Of the map.
    width : int
        Channels, shared equally among the axes; what cannot be shared stays 0.
    device : device
        Where.

    Returns
    -------
    (places, width) float32 Tensor
    """
    n = width // (2 * len(spatial))
    rates = _LONGEST_WAVE ** -(torch.arange(n, device=device) / max(n, 1))
    coordinates = [torch.arange(size, device=device, dtype=torch.float32) for size in spatial]
    angles = [axis.flatten()[:, None] * rates for axis in torch.meshgrid(*coordinates, indexing="ij")]
    found = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return functional.pad(found, (0, width - found.shape[1]))
