"""The pieces of a U-Net, in 2D and 3D."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from napari_unet.domain.settings import NetworkSettings


def convolution(dimensions: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    """Return the convolution of that many dimensions."""
    return nn.Conv2d if dimensions == 2 else nn.Conv3d


def _norm(channels: int, settings: NetworkSettings) -> nn.Module:
    if settings.norm == "instance":
        # One group per channel is instance normalisation; torch's InstanceNorm is not used because it copies
        # channels-last tensors into another layout and back, which cost a fifth of a training step on CPUs.
        return nn.GroupNorm(channels, channels)
    return (nn.BatchNorm2d if settings.dimensions == 2 else nn.BatchNorm3d)(channels)


def _activation(settings: NetworkSettings) -> nn.Module:
    return nn.ReLU(inplace=True) if settings.activation == "relu" else nn.LeakyReLU(0.01, inplace=True)


class DoubleConvolution(nn.Sequential):
    """Two 3-wide convolutions, each with normalisation and activation in the order the settings say."""

    def __init__(self, in_channels: int, out_channels: int, settings: NetworkSettings) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            # A norm directly behind a convolution cancels its bias.
            bias = settings.activation_first
            layers.append(convolution(settings.dimensions)(channels, out_channels, 3, padding=1, bias=bias))
            pair = [_norm(out_channels, settings), _activation(settings)]
            layers += reversed(pair) if settings.activation_first else pair
        super().__init__(*layers)


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
            self._mode = "bilinear" if settings.dimensions == 2 else "trilinear"
            self.up = convolution(settings.dimensions)(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge the spatial axes by the stride."""
        x = self.up(x)
        if not self._mode:
            return x
        size = [n * s for n, s in zip(x.shape[2:], self._stride, strict=True)]
        return functional.interpolate(x, size, mode=self._mode, align_corners=False)
