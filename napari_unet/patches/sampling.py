"""Training patches: which voxel of which scan next, and its neighbourhood through one random resampling.

A patch is cut, rotated, zoomed and mirrored by a single interpolation straight from the prepared scan, so that no
voxel is blurred twice and no margin must be guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_unet.domain.settings import AugmentationSettings, TrainingSettings
from napari_unet.patches.augment import change_intensities, random_transform

# Candidate centres kept per class and scan: enough to look random, little enough to prepare at once.
_CENTRES_PER_CLASS = 20_000


@dataclass(eq=False)
class Example:
    """One prepared scan with what is known about it.

    Parameters
    ----------
    image : (C, S, H, W) float32 tensor
        Network input in acquired planes.
    labels : (S, H, W) uint8 tensor
        Network classes: 0 background, 1.. the schema's classes in order.
    reviewed : (S, H, W) bool tensor or None
        Voxels that count as truth; None: all.
    """

    image: Tensor
    labels: Tensor
    reviewed: Tensor | None = None
    centres: list[NDArray[np.int64]] = field(init=False)

    def __post_init__(self) -> None:
        labels = self.labels.numpy()
        known = np.ones(labels.shape, bool) if self.reviewed is None else self.reviewed.numpy()
        rng = np.random.default_rng(0)
        self.centres = []
        for value in range(int(labels.max(initial=0)) + 1):
            flat = np.flatnonzero((labels == value) & known)
            if len(flat) > _CENTRES_PER_CLASS:
                flat = rng.choice(flat, _CENTRES_PER_CLASS, replace=False)
            self.centres.append(np.stack(np.unravel_index(flat, labels.shape), axis=1))

    @property
    def usable(self) -> bool:
        """Whether any voxel is reviewed."""
        return any(len(c) for c in self.centres)


@dataclass(frozen=True, eq=False)
class Batch:
    """Patches ready for the network.

    ``image`` (B, C, *patch) float32; ``labels`` (B, *patch) int64; ``reviewed`` (B, *patch) bool.
    """

    image: Tensor
    labels: Tensor
    reviewed: Tensor


class PatchSampler:
    """Draws batches from a growing pool of examples, the newest favoured, foreground over-sampled.

    Parameters
    ----------
    examples : sequence of Example
        In order of arrival; the last is the newest.
    patch_size : tuple of int
        ``(height, width)`` for 2D networks (one plane at a time) or ``(slices, height, width)``.
    training, augmentation : settings
        Batch size, fractions; random changes.
    seed : int
        Of everything random here.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        patch_size: tuple[int, ...],
        training: TrainingSettings,
        augmentation: AugmentationSettings,
        seed: int,
    ) -> None:
        self._examples = [e for e in examples if e.usable]
        if not self._examples:
            raise ValueError("no example has a reviewed voxel")
        self._patch = patch_size
        self._training = training
        self._augmentation = augmentation
        self._rng = np.random.default_rng(seed)
        self._torch_rng = torch.Generator().manual_seed(int(self._rng.integers(2**62)))

    def draw(self) -> Batch:
        """Return one augmented batch on the CPU."""
        patches = [self._patch_of(self._choose(i)) for i in range(self._training.batch_size)]
        image = torch.cat([p[0] for p in patches])
        known = torch.cat([p[1] for p in patches])
        image = change_intensities(image, self._augmentation, self._torch_rng)
        return Batch(image, known[:, 0].round().long(), known[:, 1] > 0.5)

    def _choose(self, position: int) -> Example:
        # The newest scan has fixed seats in the batch (rounded at random), so that each step replays earlier ones.
        share = self._training.newest_fraction * self._training.batch_size
        seats = int(share) + (self._rng.random() < share % 1)
        if position < seats or len(self._examples) == 1:
            return self._examples[-1]
        return self._examples[int(self._rng.integers(len(self._examples) - 1))]

    def _centre(self, example: Example) -> NDArray[np.int64]:
        filled = [i for i, c in enumerate(example.centres) if len(c)]
        foreground = [i for i in filled if i > 0]
        if foreground and self._rng.random() < self._training.foreground_fraction:
            group = example.centres[int(self._rng.choice(foreground))]
        else:
            weights = np.array([len(example.centres[i]) for i in filled], float)
            group = example.centres[int(self._rng.choice(filled, p=weights / weights.sum()))]
        return group[int(self._rng.integers(len(group)))]

    def _patch_of(self, example: Example) -> tuple[Tensor, Tensor]:
        centre = self._centre(example)
        image, labels, reviewed = example.image, example.labels, example.reviewed
        if len(self._patch) == 2:
            plane = int(centre[0])
            centre = centre[1:]
            image, labels = image[:, plane], labels[plane]
            reviewed = None if reviewed is None else reviewed[plane]
        known = torch.stack(
            (labels.float(), torch.ones(()).expand(labels.shape) if reviewed is None else reviewed.float())
        )
        grid = random_transform(tuple(labels.shape), self._patch, centre, self._augmentation, self._rng)
        cut = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="border", align_corners=True)
        # Outside the scan nothing is known: zero padding makes "reviewed" false there.
        truth = F.grid_sample(known[None], grid, mode="nearest", padding_mode="zeros", align_corners=True)
        return cut, truth
