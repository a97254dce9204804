"""What the channels of a head mean: classes that exclude one another, or regions that may overlap."""

from __future__ import annotations

import torch
from torch import Tensor

from napari_unet.domain.settings import NetworkSettings


def class_logits(logits: Tensor, settings: NetworkSettings) -> Tensor:
    """Return logits over the values of a mask, background included, whose softmax or argmax is the mask.

    Parameters
    ----------
    logits : (B, n_logits, *spatial) float
        Of the network.
    settings : NetworkSettings
        Which head, which regions.

    Returns
    -------
    (B, out_channels, *spatial) float Tensor
        A softmax head's own. Of a sigmoid head: 0 for the background, and for each class the sum of the logits of the
        regions that hold it. Regions being independent, that is the logarithm of how much likelier the class is than
        the background, so that the argmax is the likeliest combination of regions that a class stands for.
    """
    if settings.head == "softmax":
        return logits
    nothing = torch.zeros_like(logits[:, 0])
    each = logits.unbind(1)
    return torch.stack(
        [
            sum((z for z, region in zip(each, settings.members, strict=True) if k in region), start=nothing)
            for k in range(settings.out_channels)
        ],
        dim=1,
    )


def region_targets(labels: Tensor, settings: NetworkSettings) -> Tensor:
    """Return which regions each voxel is in.

    Parameters
    ----------
    labels : (B, *spatial) int64
        Class of each voxel, 0 is background.
    settings : NetworkSettings
        The regions.

    Returns
    -------
    (B, n_regions, *spatial) bool Tensor
    """
    inside = torch.zeros(settings.n_logits, settings.out_channels, dtype=torch.bool)
    for region, classes in zip(inside, settings.members, strict=True):
        region[list(classes)] = True
    return inside.to(labels.device)[:, labels].movedim(0, 1)
