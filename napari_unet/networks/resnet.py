"""ResNets (He et al. 2016) as encoders, built by MONAI, with the names of torchvision's weights.

Where weights come from is for ``pretrained.py``.
"""

from __future__ import annotations

from collections import OrderedDict
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_unet.domain.errors import ModelError, SettingsError
from napari_unet.domain.settings import NetworkSettings

_MOST_STAGES = 5
#: MedicalNet trained these with shortcuts that have no weights; torchvision has none such.
_PADDED_IN_3D = ("resnet18", "resnet34")


class FixedNorm(nn.Module):
    """Batch normalisation by the statistics of the data a ResNet was trained on, for ever; scale and shift learn.

    Batches here are small and few patches show much alike: statistics of such batches are noise, and the few hundred
    steps of a fine-tuning are too few for their running means to follow. Detectors built on pretrained ResNets keep
    them fixed for the same reason (torchvision's FrozenBatchNorm2d). Besides, no patch then depends on which others
    are in its batch, so that a batch can be divided.

    Without pretrained weights it only scales and shifts; see :func:`resnet_stages` for why that trains all the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel."""
        return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False)


class _PaddedShortcut(nn.Module):
    """Every other voxel, and zeros for the channels there were none of. MONAI's own lets no gradient through."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self._channels, self._stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        every: tuple[EllipsisType | slice, ...] = (..., *[slice(None, None, self._stride)] * (x.ndim - 2))
        x = x[every]
        return functional.pad(x, (0, 0) * (x.ndim - 2) + (0, self._channels - x.shape[1]))


def resnet_stages(settings: NetworkSettings) -> tuple[list[nn.Sequential], list[int]]:
    """Return the first stages of a ResNet, one per stride, each of half the size of what it is given.

    The last scale of each block is 0, so that without pretrained weights, whose norms would hold them down, features
    do not double in variance at every block (Zhang et al. 2019, "Fixup initialization").

    Parameters
    ----------
    settings : NetworkSettings
        ``backbone``, ``in_channels``, ``dimensions``; ``strides`` say how many stages.

    Returns
    -------
    (stages, widths)
        Modules with random weights, and the channels that each gives.

    Raises
    ------
    SettingsError
        Strides that a ResNet does not have.
    ModelError
        MONAI is not installed.
    """
    n, strides = settings.dimensions, settings.strides
    if not 1 <= len(strides) <= _MOST_STAGES or any(step != 2 for stride in strides for step in stride):
        raise SettingsError(
            f"A pretrained encoder halves every axis at each of 1 to {_MOST_STAGES} levels: set network.strides to "
            f"{[[2] * n]} times the number of levels, or network.encoder to residual."
        )
    try:
        from monai.networks.nets.resnet import ResNet, get_inplanes, resnet_params
    except ModuleNotFoundError as error:
        raise ModelError(
            "Pretrained encoders need MONAI, which is not installed: pip install napari-unet[encoders]."
        ) from error
    block, depths, *_ = resnet_params[settings.backbone]
    # Without memory at first: most weights are in stages that shallow networks leave out.
    with torch.device("meta"):
        body = ResNet(
            block,
            depths,
            get_inplanes(),
            spatial_dims=n,
            n_input_channels=settings.in_channels,
            conv1_t_stride=2,
            shortcut_type="A" if n == 3 and settings.backbone in _PADDED_IN_3D else "B",
            bias_downsample=False,
            feed_forward=False,
        )
    stem = nn.Sequential(OrderedDict(conv1=body.conv1, bn1=body.bn1, act=body.act))
    first = nn.Sequential(OrderedDict(maxpool=body.maxpool, layer1=body.layer1))
    deeper = [nn.Sequential(OrderedDict({name: getattr(body, name)})) for name in ("layer2", "layer3", "layer4")]
    stages = [stem, first, *deeper][: len(strides)]
    for stage in stages:
        _adapt(stage.to_empty(device="cpu"))
    width, growth = get_inplanes()[0], body.layer1[0].expansion
    return stages, [width, *(width * growth * 2**i for i in range(4))][: len(strides)]


def _adapt(stage: nn.Module) -> None:
    """Put this module's norms and shortcuts into a stage of a ResNet, and weights where there are none yet."""
    for module in list(stage.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(module, name, FixedNorm(child.num_features))
            elif isinstance(child, nn.Conv2d | nn.Conv3d):
                child.reset_parameters()
    block: Any
    for block in stage.modules():
        if hasattr(block, "downsample"):
            last = block.bn3 if hasattr(block, "bn3") else block.bn2
            nn.init.zeros_(last.weight)
            if block.downsample is not None and not isinstance(block.downsample, nn.Module):
                block.downsample = _PaddedShortcut(len(last.weight), block.stride)
