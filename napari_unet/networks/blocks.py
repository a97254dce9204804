"""The pieces of a U-Net, in 2D and 3D. How they are joined is for ``unet.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_unet.domain.settings import NetworkSettings

Kernel = tuple[int, ...] | None


class Convolution3d(nn.Conv3d):
    """A convolution that learns two planes at a time in float32 where all else is in half precision on a CPU.

    There oneDNN's AVX-512 kernel for the gradient of the weights reads memory that nobody has written (torch 2.13, AMD
    Zen 5, bfloat16): what it returns is wrong or no number.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolved planes, ``(batch, channels, z, y, x)``."""
        if torch.is_grad_enabled() and torch.is_autocast_enabled("cpu") and input.shape[2] == 2:
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)


def convolution(dimensions: int) -> Callable[..., nn.Module]:
    """Return the convolution of that many dimensions."""
    return nn.Conv2d if dimensions == 2 else Convolution3d


def _norm(channels: int, settings: NetworkSettings) -> nn.Module:
    if settings.norm == "instance":
        # One group per channel is instance normalisation; torch's InstanceNorm is not used because it copies
        # channels-last tensors into another layout and back, which cost a fifth of a training step on CPUs.
        return nn.GroupNorm(channels, channels)
    return (nn.BatchNorm2d if settings.dimensions == 2 else nn.BatchNorm3d)(channels)


def _activation(settings: NetworkSettings) -> nn.Module:
    return nn.ReLU(inplace=True) if settings.activation == "relu" else nn.LeakyReLU(0.01, inplace=True)


def _norm_and_activation(channels: int, settings: NetworkSettings) -> list[nn.Module]:
    pair = [_norm(channels, settings), _activation(settings)]
    return pair[::-1] if settings.activation_first else pair


def _wide_convolution(in_channels: int, out_channels: int, settings: NetworkSettings, kernel: Kernel) -> nn.Module:
    kernel = kernel or (3,) * settings.dimensions
    return convolution(settings.dimensions)(
        in_channels,
        out_channels,
        kernel,
        padding=tuple(width // 2 for width in kernel),
        # A norm directly behind a convolution cancels its bias.
        bias=settings.activation_first,
    )


class DoubleConvolution(nn.Sequential):
    """Two convolutions, each with normalisation and activation in the order the settings say.

    ``kernel`` is their width per axis, odd; None: 3. Spatial sizes stay.
    """

    def __init__(self, in_channels: int, out_channels: int, settings: NetworkSettings, kernel: Kernel = None) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers.append(_wide_convolution(channels, out_channels, settings, kernel))
            layers += _norm_and_activation(out_channels, settings)
        super().__init__(*layers)


class ResidualBlock(nn.Module):
    """Two convolutions whose result is added to their input (He et al. 2016), before the last activation.

    Where the channels differ the input passes a 1-wide convolution. The last norm starts at 1 like every other, not
    at 0: with one block per level and a normalised shortcut the sum has no room to grow, and training that lasts some
    hundred steps cannot wait until the branch wakes up.

    With ``activation_first`` the sum is what is activated and then normalised, so that convolution, activation and
    norm follow one another here as in :class:`DoubleConvolution`.
    """

    def __init__(self, in_channels: int, out_channels: int, settings: NetworkSettings, kernel: Kernel = None) -> None:
        super().__init__()
        late = settings.activation_first
        self.branch = nn.Sequential(
            _wide_convolution(in_channels, out_channels, settings, kernel),
            *_norm_and_activation(out_channels, settings),
            _wide_convolution(out_channels, out_channels, settings, kernel),
            *([] if late else [_norm(out_channels, settings)]),
        )
        self.shortcut = nn.Sequential()
        if in_channels != out_channels:
            self.shortcut.append(convolution(settings.dimensions)(in_channels, out_channels, 1, bias=late))
            if not late:
                self.shortcut.append(_norm(out_channels, settings))
        self.after = nn.Sequential(_activation(settings), *([_norm(out_channels, settings)] if late else []))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the spatial sizes."""
        return self.after(self.branch(x) + self.shortcut(x))


class Downsample(nn.Sequential):
    """Max pooling by the stride of a level."""

    def __init__(self, dimensions: int, stride: tuple[int, ...]) -> None:
        super().__init__((nn.MaxPool2d if dimensions == 2 else nn.MaxPool3d)(stride))


class Upsample(nn.Module):
    """Enlargement by the stride of a level: interpolation or a transposed convolution.

    A transposed convolution that has had few steps of training leaves a checkerboard in the masks (Odena et al. 2016,
    "Deconvolution and Checkerboard Artifacts"). The channels are mixed before the interpolation, which is the same as
    afterwards, at a fraction of the work.
    """

    def __init__(self, in_channels: int, out_channels: int, settings: NetworkSettings, stride: tuple[int, ...]) -> None:
        super().__init__()
        self._stride = stride
        self._mode = ""
        if settings.upsampling == "transposed":
            kind: Callable[..., nn.Module] = nn.ConvTranspose2d if settings.dimensions == 2 else nn.ConvTranspose3d
            self.up = kind(in_channels, out_channels, stride, stride=stride)
        else:
            self._mode = _linear(settings.dimensions)
            self.up = convolution(settings.dimensions)(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge the spatial axes by the stride."""
        x = self.up(x)
        if not self._mode:
            return x
        size = [n * s for n, s in zip(x.shape[2:], self._stride, strict=True)]
        return functional.interpolate(x, size, mode=self._mode, align_corners=False)


def _linear(dimensions: int) -> str:
    return "bilinear" if dimensions == 2 else "trilinear"


class AttentionGate(nn.Module):
    """Lets a skip pass where the next coarser level of the decoder finds it worth a look (Oktay et al. 2018).

    As in the paper the two are compared on the coarse grid, and one coefficient between 0 and 1 per voxel, the same
    for all channels, is enlarged and multiplied with the skip.

    Parameters
    ----------
    skip_channels, coarse_channels : int
        Of the encoder's features and of the decoder's next coarser ones.
    settings : NetworkSettings
        Dimensions.
    stride : tuple of int
        Between the two levels, per axis.
    """

    def __init__(
        self, skip_channels: int, coarse_channels: int, settings: NetworkSettings, stride: tuple[int, ...]
    ) -> None:
        super().__init__()
        kind = convolution(settings.dimensions)
        between = skip_channels // 2
        self.of_skip = kind(skip_channels, between, stride, stride=stride, bias=False)
        self.of_coarse = kind(coarse_channels, between, 1)
        self.score = kind(between, 1, 1)
        self._mode = _linear(settings.dimensions)

    def forward(self, skip: Tensor, coarse: Tensor) -> Tensor:
        """Return the skip, weighted."""
        weight = self.score(functional.relu(self.of_skip(skip) + self.of_coarse(coarse))).sigmoid()
        return skip * functional.interpolate(weight, skip.shape[2:], mode=self._mode, align_corners=False)


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch normalisation as they are, for passes that are computed twice.

    The batch is normalised as without it, by its own statistics when training.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [dict(norm._buffers) for norm in norms]
    try:
        # They are given others to spoil: without any, batch normalisation would remember less for its way back than
        # it did at first, which checkpoint takes for an error.
        for norm, own in zip(norms, before, strict=True):
            norm._buffers.update({name: value if value is None else value.clone() for name, value in own.items()})
        yield
    finally:
        for norm, own in zip(norms, before, strict=True):
            norm._buffers.update(own)
