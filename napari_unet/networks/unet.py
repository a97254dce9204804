"""The U-Net, in 2D and 3D from one description (Ronneberger et al. 2015; Cicek et al. 2016), and its relatives.

Logits out: activations belong to losses and to display, never in here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from napari_unet.domain.settings import NetworkSettings
from napari_unet.networks.blocks import (
    AttentionGate,
    DoubleConvolution,
    Downsample,
    ResidualBlock,
    Upsample,
    convolution,
    frozen_statistics,
)
from napari_unet.networks.resnet import resnet_stages
from napari_unet.networks.transformer import Transformer


class UNet(nn.Module):
    """Encoder and decoder joined by skips, one level per entry of ``settings.strides`` plus the bottom.

    Parameters
    ----------
    settings : NetworkSettings
        Dimensions, channels, depth, normalisation; which encoder, bottleneck and head; gates and deep supervision.

    Attributes
    ----------
    checkpoint_activations : bool
        Compute each level's activations again on the way back instead of keeping them (Chen et al. 2016): less
        memory, more time, the same gradients. Off at first.

    Notes
    -----
    Input ``(batch, in_channels, *spatial)``, float; every spatial size divisible by :attr:`divisor` on its axis.
    Output ``(batch, n_logits, *spatial)``: logits. While training with deep supervision a tuple of them, fine to
    coarse, one for each level of the decoder: the first as large as the input, the next smaller by its stride.

    A pretrained encoder starts at half the image's size, so one level of two convolutions at full size is put beside
    it, for sharp edges; both see the image itself.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.settings = settings
        self.checkpoint_activations = False
        n, strides = settings.dimensions, settings.strides
        widths = [min(settings.base_channels * 2**level, settings.max_channels) for level in range(len(strides) + 1)]
        kernels = settings.kernels or (None,) * len(widths)
        skips = self._make_encoder(widths, kernels)
        coarse = [*widths[:-1], skips[-1]]
        self.up = nn.ModuleList(
            Upsample(b, a, settings, stride) for a, b, stride in zip(widths[:-1], coarse[1:], strides, strict=True)
        )
        self.decoder = nn.ModuleList(
            DoubleConvolution(skip + a, a, settings, kernel)
            for skip, a, kernel in zip(skips[:-1], widths[:-1], kernels[:-1], strict=True)
        )
        self.head = convolution(n)(widths[0], settings.n_logits, kernel_size=1)
        if settings.bottleneck == "transformer":
            self.bottleneck = Transformer(skips[-1], settings.transformer_layers)
        if settings.attention_gates:
            self.gates = nn.ModuleList(
                AttentionGate(skip, b, settings, stride)
                for skip, b, stride in zip(skips[:-1], coarse[1:], strides, strict=True)
            )
        if settings.deep_supervision:
            self.coarse_heads = nn.ModuleList(
                convolution(n)(width, settings.n_logits, kernel_size=1) for width in widths[1:-1]
            )
        # Channels-last prediction is faster on CPUs and on tensor cores alike; activations take on the weights' layout.
        layout = torch.channels_last if n == 2 else torch.channels_last_3d
        self.to(memory_format=layout)  # type: ignore[call-overload]  # torch's annotations lack it

    def _make_encoder(self, widths: list[int], kernels: tuple[tuple[int, ...] | None, ...]) -> list[int]:
        """Set the encoder's levels and the ways down to them; return how many channels each level gives."""
        settings = self.settings
        if settings.encoder == "pretrained":
            stages, skips = resnet_stages(settings)
            self.encoder = nn.ModuleList([DoubleConvolution(settings.in_channels, widths[0], settings), *stages])
            # Its stages have strides of their own.
            self.down = nn.ModuleList(nn.Identity() for _ in stages)
            return [widths[0], *skips]
        block = ResidualBlock if settings.encoder == "residual" else DoubleConvolution
        self.encoder = nn.ModuleList(
            block(a, b, settings, kernel)
            for a, b, kernel in zip([settings.in_channels, *widths[:-1]], widths, kernels, strict=True)
        )
        self.down = nn.ModuleList(Downsample(settings.dimensions, stride) for stride in settings.strides)
        return widths

    @property
    def divisor(self) -> tuple[int, ...]:
        """Spatial sizes must be multiples of this, per axis."""
        return self.settings.divisor

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map an image batch to logits."""
        x = image
        skips = []
        for level in range(len(self.encoder)):
            above = image if level == 1 and self.settings.encoder == "pretrained" else x
            x = self._level(self._encode, level, above)
            skips.append(x)
        taught = self.training and self.settings.deep_supervision
        outputs = []
        for level in reversed(range(len(self.decoder))):
            x = self._level(self._decode, level, x, skips[level])
            if taught and level > 0:
                outputs.append(self.coarse_heads[level - 1](x))
        outputs.append(self.head(x))
        return tuple(reversed(outputs)) if taught else outputs[0]

    def _encode(self, level: int, x: Tensor) -> Tensor:
        x = self.encoder[level](self.down[level - 1](x) if level else x)
        if level == len(self.down) and self.settings.bottleneck == "transformer":
            x = self.bottleneck(x)
        return x

    def _decode(self, level: int, x: Tensor, skip: Tensor) -> Tensor:
        if self.settings.attention_gates:
            skip = self.gates[level](skip, x)
        return self.decoder[level](torch.cat((skip, self.up[level](x)), dim=1))

    def _level(self, run: Callable[..., Tensor], level: int, *tensors: Tensor) -> Tensor:
        if not (self.checkpoint_activations and torch.is_grad_enabled()):
            return run(level, *tensors)
        return checkpoint(
            run,
            level,
            *tensors,
            use_reentrant=False,
            # Nothing in here is drawn at random, and torch's generator is shared by the threads that go back.
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), frozen_statistics(self)),
        )
