"""Losses on logits, over reviewed voxels only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_cross_entropy(logits: Tensor, labels: Tensor, reviewed: Tensor) -> Tensor:
    """Mean cross entropy over reviewed voxels.

    Parameters
    ----------
    logits : (B, K, *spatial) float
    labels : (B, *spatial) int64
    reviewed : (B, *spatial) bool

    Returns
    -------
    scalar Tensor
        Zero, with zero gradient, where nothing is reviewed.
    """
    each = F.cross_entropy(logits.float(), labels, reduction="none")
    # where, not a product: an infinite loss on an unknown voxel must not reach the gradient as NaN.
    return torch.where(reviewed, each, 0.0).sum() / reviewed.sum().clamp_min(1)


def masked_soft_dice(logits: Tensor, labels: Tensor, reviewed: Tensor, smooth: float = 1.0) -> Tensor:
    """One minus the soft Dice of the foreground classes over the batch's reviewed voxels (Milletari et al. 2016).

    Pooled over the batch, as nnU-Net's ``batch_dice``: small patches without a class would otherwise count as much
    as patches that hold it.

    Parameters
    ----------
    logits : (B, K, *spatial) float
    labels : (B, *spatial) int64
    reviewed : (B, *spatial) bool
    smooth : float
        Added to numerator and denominator, in voxels.

    Returns
    -------
    scalar Tensor
        Mean over the K - 1 foreground classes.
    """
    mask = reviewed.unsqueeze(1)
    probability = torch.where(mask, logits.float().softmax(1), 0.0)[:, 1:]
    truth = torch.stack([(labels == k) for k in range(1, logits.shape[1])], dim=1) & mask
    axes = [0, *range(2, logits.ndim)]
    overlap = torch.where(truth, probability, 0.0).sum(axes)
    total = probability.sum(axes) + truth.sum(axes)
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()
