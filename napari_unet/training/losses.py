"""Losses on logits, over reviewed voxels only.

Logits come as a tuple, fine to coarse: the network's output, and with deep supervision those of coarser levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_unet.domain.settings import NetworkSettings, TrainingSettings
from napari_unet.networks.heads import region_targets


def masked_cross_entropy(
    logits: Tensor, labels: Tensor, reviewed: Tensor, class_weights: Tensor | None = None
) -> Tensor:
    """Mean cross entropy over reviewed voxels.

    Parameters
    ----------
    logits : (B, K, *spatial) float
    labels : (B, *spatial) int64
    reviewed : (B, *spatial) bool
    class_weights : (K,) float, optional
        The mean is weighted by those of the voxels' true classes, as torch's is.

    Returns
    -------
    scalar Tensor
        Zero, with zero gradient, where nothing is reviewed.
    """
    each = F.cross_entropy(logits.float(), labels, class_weights, reduction="none")
    total = reviewed if class_weights is None else torch.where(reviewed, class_weights[labels], 0.0)
    # where, not a product: an infinite loss on an unknown voxel times zero is no number.
    return torch.where(reviewed, each, 0.0).sum() / total.sum().clamp_min(1e-6 if class_weights is not None else 1)


def masked_binary_cross_entropy(logits: Tensor, truth: Tensor, reviewed: Tensor, positive_weight: float = 1) -> Tensor:
    """Mean binary cross entropy over reviewed voxels and regions.

    Parameters
    ----------
    logits : (B, R, *spatial) float
        One channel per region; regions may overlap.
    truth : (B, R, *spatial) bool
    reviewed : (B, *spatial) bool
    positive_weight : float
        Of voxels inside a region, against 1 outside.

    Returns
    -------
    scalar Tensor
        Zero, with zero gradient, where nothing is reviewed.
    """
    weight = None if positive_weight == 1 else torch.tensor(positive_weight, device=logits.device)
    each = F.binary_cross_entropy_with_logits(logits.float(), truth.float(), reduction="none", pos_weight=weight)
    each = torch.where(reviewed.unsqueeze(1), each, 0.0)
    return each.sum() / (reviewed.sum() * logits.shape[1]).clamp_min(1)


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
    truth = torch.stack([(labels == k) for k in range(1, logits.shape[1])], dim=1)
    return _soft_dice(logits.float().softmax(1)[:, 1:], truth, reviewed, smooth)


def masked_region_dice(logits: Tensor, truth: Tensor, reviewed: Tensor, smooth: float = 1.0) -> Tensor:
    """One minus the soft Dice of regions that may overlap, pooled as :func:`masked_soft_dice` does.

    Parameters
    ----------
    logits : (B, R, *spatial) float
    truth : (B, R, *spatial) bool
    reviewed : (B, *spatial) bool
    smooth : float
        Added to numerator and denominator, in voxels.

    Returns
    -------
    scalar Tensor
        Mean over the regions.
    """
    return _soft_dice(logits.float().sigmoid(), truth, reviewed, smooth)


def _soft_dice(probability: Tensor, truth: Tensor, reviewed: Tensor, smooth: float) -> Tensor:
    mask = reviewed.unsqueeze(1)
    probability, truth = torch.where(mask, probability, 0.0), truth & mask
    axes = [0, *range(2, probability.ndim)]
    overlap = torch.where(truth, probability, 0.0).sum(axes)
    total = probability.sum(axes) + truth.sum(axes)
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()


class SupervisedLoss:
    """The loss that the settings describe: cross entropy and Dice, each with its weight, at every taught level.

    Coarser levels count half as much as the next finer one, together 1 (Isensee et al. 2021); their truth is the
    voxel nearest to each of theirs.

    Parameters
    ----------
    network : NetworkSettings
        Head and regions.
    training : TrainingSettings
        Weights.
    """

    def __init__(self, network: NetworkSettings, training: TrainingSettings) -> None:
        self._network, self._training = network, training
        weights = training.class_weights
        self._class_weights = None if weights is None else torch.tensor(weights, dtype=torch.float32)

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor, reviewed: Tensor) -> Tensor:
        """Return the loss.

        Parameters
        ----------
        outputs : sequence of (B, n_logits, *spatial) float
            Fine to coarse.
        labels : (B, *spatial) int64
        reviewed : (B, *spatial) bool
        """
        weights = [0.5**level for level in range(len(outputs))]
        losses = [self._at_level(logits, *_coarsened(labels, reviewed, logits.shape[2:])) for logits in outputs]
        total = torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()
        return total / sum(weights)

    def _at_level(self, logits: Tensor, labels: Tensor, reviewed: Tensor) -> Tensor:
        settings = self._training
        # Before anything else: an infinite logit on an unknown voxel must not reach the gradient as NaN.
        logits = torch.where(reviewed.unsqueeze(1), logits, 0.0)
        if self._network.head == "softmax":
            weights = None if self._class_weights is None else self._class_weights.to(logits.device)
            entropy = masked_cross_entropy(logits, labels, reviewed, weights)
            dice = masked_soft_dice(logits, labels, reviewed)
        else:
            truth = region_targets(labels, self._network)
            entropy = masked_binary_cross_entropy(logits, truth, reviewed, settings.positive_weight)
            dice = masked_region_dice(logits, truth, reviewed)
        return settings.cross_entropy_weight * entropy + settings.dice_weight * dice


def _coarsened(labels: Tensor, reviewed: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    if labels.shape[1:] == shape:
        return labels, reviewed
    both = torch.stack((labels, reviewed), dim=1).float()
    labels, reviewed = F.interpolate(both, tuple(shape), mode="nearest-exact").unbind(1)
    return labels.long(), reviewed > 0.5


def consistency(student: Tensor, teacher: Tensor, free: Tensor, network: NetworkSettings) -> Tensor:
    """Mean squared difference of two predictions where nothing is known (Mean Teacher, Tarvainen & Valpola 2017).

    Parameters
    ----------
    student, teacher : (B, n_logits, *spatial) float
        Logits of the same patches; the teacher's carry no gradient.
    free : (B, *spatial) bool
        Voxels that count.
    network : NetworkSettings
        Head.

    Returns
    -------
    scalar Tensor
        Mean over classes or regions; zero where nothing counts.
    """
    if network.head == "softmax":
        each = (student.float().softmax(1) - teacher.float().softmax(1)).square().mean(1)
    else:
        each = (student.float().sigmoid() - teacher.float().sigmoid()).square().mean(1)
    return torch.where(free, each, 0.0).sum() / free.sum().clamp_min(1)
