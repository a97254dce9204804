"""The U-Net, in 2D and 3D from one description (Ronneberger et al. 2015; Cicek et al. 2016).

Logits out: activations belong to losses and to display, never in here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from napari_unet.domain.settings import NetworkSettings
from napari_unet.networks.blocks import DoubleConvolution, Downsample, Upsample, convolution


class UNet(nn.Module):
    """Encoder and decoder joined by skips, one level per entry of ``settings.strides`` plus the bottom.

    Parameters
    ----------
    settings : NetworkSettings
        Dimensions, channels, depth, normalisation.

    Notes
    -----
    Input ``(batch, in_channels, *spatial)``, float; every spatial size divisible by :attr:`divisor` on its axis.
    Output ``(batch, out_channels, *spatial)``: logits.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.settings = settings
        n = settings.dimensions
        widths = [
            min(settings.base_channels * 2**level, settings.max_channels) for level in range(len(settings.strides) + 1)
        ]
        self.encoder = nn.ModuleList(
            DoubleConvolution(a, b, settings) for a, b in zip([settings.in_channels, *widths], widths, strict=False)
        )
        self.down = nn.ModuleList(Downsample(n, stride) for stride in settings.strides)
        self.up = nn.ModuleList(
            Upsample(b, a, settings, stride)
            for a, b, stride in zip(widths[:-1], widths[1:], settings.strides, strict=True)
        )
        self.decoder = nn.ModuleList(DoubleConvolution(2 * a, a, settings) for a in widths[:-1])
        self.head = convolution(n)(widths[0], settings.out_channels, kernel_size=1)
        # Channels-last prediction is faster on CPUs and on tensor cores alike; activations take on the weights' layout.
        layout = torch.channels_last if n == 2 else torch.channels_last_3d
        self.to(memory_format=layout)  # type: ignore[call-overload]  # torch's annotations lack it

    @property
    def divisor(self) -> tuple[int, ...]:
        """Spatial sizes must be multiples of this, per axis."""
        product = [1] * self.settings.dimensions
        for stride in self.settings.strides:
            product = [p * s for p, s in zip(product, stride, strict=True)]
        return tuple(product)

    def forward(self, x: Tensor) -> Tensor:
        """Map an image batch to logits."""
        skips = []
        for encode, down in zip(self.encoder, self.down, strict=False):
            x = encode(x)
            skips.append(x)
            x = down(x)
        x = self.encoder[-1](x)
        for up, decode, skip in zip(reversed(self.up), reversed(self.decoder), reversed(skips), strict=True):
            x = decode(torch.cat((skip, up(x)), dim=1))
        return self.head(x)
