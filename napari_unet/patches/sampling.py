"""Training patches: which voxel of which scan next, and its neighbourhood through one random resampling.

A patch is cut, rotated, zoomed, mirrored and brought to the network's spacing by a single interpolation straight from
the prepared scan, so that no voxel is blurred twice and no margin must be guessed.
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
from napari_unet.patches.augment import RandomTransform, change_intensities, draw_transform, grid_of

# Candidate centres kept per class and scan: enough to look random, little enough to prepare at once.
_CENTRES_PER_CLASS = 20_000
# Images with more voxels are cut down to a patch's surroundings first: labels are made floats for the interpolation.
_CROP_FROM = 2**20


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
    zoom : tuple of float
        Spacing of the network's voxels over that of the scan's, per axis (slices, rows, columns).
    free : (S, H, W) bool tensor or None
        Voxels about which nothing is known and that may be looked at; None: none.
    """

    image: Tensor
    labels: Tensor
    reviewed: Tensor | None = None
    zoom: tuple[float, float, float] = (1.0, 1.0, 1.0)
    free: Tensor | None = None
    centres: list[NDArray[np.int64]] = field(init=False)
    free_centres: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        labels = self.labels.numpy()
        known = np.ones(labels.shape, bool) if self.reviewed is None else self.reviewed.numpy()
        rng = np.random.default_rng(0)
        self.centres = [_some_voxels((labels == value) & known, rng) for value in range(int(labels.max(initial=0)) + 1)]
        nothing = np.empty((0, 3), np.int64)
        self.free_centres = nothing if self.free is None else _some_voxels(self.free.numpy(), rng)

    @property
    def usable(self) -> bool:
        """Whether any voxel is reviewed."""
        return any(len(c) for c in self.centres)

    def n_bytes(self) -> int:
        """Return the memory of the tensors."""
        return sum(t.nbytes for t in (self.image, self.labels, self.reviewed, self.free) if t is not None)

    def move_to(self, device: str) -> None:
        """Move the tensors to a device, where patches are then cut."""
        self.image, self.labels = self.image.to(device), self.labels.to(device)
        self.reviewed = None if self.reviewed is None else self.reviewed.to(device)
        self.free = None if self.free is None else self.free.to(device)


def _some_voxels(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    flat = np.flatnonzero(mask)
    if len(flat) > _CENTRES_PER_CLASS:
        flat = rng.choice(flat, _CENTRES_PER_CLASS, replace=False)
    return np.stack(np.unravel_index(flat, mask.shape), axis=1)


@dataclass(frozen=True, eq=False)
class Batch:
    """Patches ready for the network.

    ``image`` (B, C, *patch) float32; ``labels`` (B, *patch) int64; ``reviewed`` (B, *patch) bool. Patches about which
    nothing is known come twice, with different random intensities: ``student`` and ``teacher`` (U, C, *patch) float32,
    and ``free`` (U, *patch) bool, the voxels that count.
    """

    image: Tensor
    labels: Tensor
    reviewed: Tensor
    student: Tensor | None = None
    teacher: Tensor | None = None
    free: Tensor | None = None

    @property
    def image_and_student(self) -> Tensor:
        """What the network that learns is shown, in one."""
        return self.image if self.student is None else torch.cat((self.image, self.student))

    def to(self, device: str) -> Batch:
        """Return the batch on a device."""
        tensors = (self.image, self.labels, self.reviewed, self.student, self.teacher, self.free)
        return Batch(*(None if t is None else t.to(device, non_blocking=True) for t in tensors))  # type: ignore[arg-type]


class PatchSampler:
    """Draws batches from a growing pool of examples, the newest favoured, foreground over-sampled.

    Parameters
    ----------
    examples : sequence of Example
        In order of arrival; the last is the newest. Those with free voxels are drawn for the Mean Teacher too, where
        the settings ask for one.
    patch_size : tuple of int
        ``(height, width)`` for 2D networks (one plane at a time) or ``(slices, height, width)``.
    training, augmentation : settings
        Batch size, fractions; random changes.
    seed : int
        Of everything random here.
    seats : range, optional
        Which patches of each batch are drawn here; all, if not given. Others, with the same seed, draw the rest.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        patch_size: tuple[int, ...],
        training: TrainingSettings,
        augmentation: AugmentationSettings,
        seed: int,
        seats: range | None = None,
    ) -> None:
        self._seats = range(training.batch_size) if seats is None else seats
        self._examples = [e for e in examples if e.usable]
        if not self._examples:
            raise ValueError("no example has a reviewed voxel")
        self._free = [e for e in examples if len(e.free_centres)] if training.consistency_weight > 0 else []
        self._patch = patch_size
        self._training = training
        self._augmentation = augmentation
        self._rng = np.random.default_rng(seed)
        self._torch_rng = torch.Generator().manual_seed(int(self._rng.integers(2**62)))
        n_classes = max(len(e.centres) for e in self._examples)
        holders = [[e for e in self._examples if len(e.centres) > k and len(e.centres[k])] for k in range(n_classes)]
        self._holders = {k: found for k, found in enumerate(holders) if found and k > 0}

    def draw(self) -> Batch:
        """Return one augmented batch, on the device of the examples."""
        n = self._training.batch_size
        chosen = [self._choose(i) for i in range(n)]
        image, known = self._cut(chosen, self._seats)
        image = change_intensities(image, self._augmentation, self._torch_rng, (n, self._seats))
        labels, reviewed = known[:, 0].round().long(), known[:, 1] > 0.5
        if not self._free:
            return Batch(image, labels, reviewed)
        anywhere = [self._choose_free() for _ in range(max(1, self._training.batch_size // 2))]
        seen, about = self._cut(anywhere, range(len(anywhere)))
        student, teacher = (change_intensities(seen, self._augmentation, self._torch_rng) for _ in range(2))
        return Batch(image, labels, reviewed, student, teacher, about[:, 2] > 0.5)

    def _cut(self, chosen: Sequence[tuple[Example, NDArray[np.int64]]], seats: range) -> tuple[Tensor, Tensor]:
        # Every seat takes its share of chance, so that it is the same patch whoever cuts it.
        drawn = [draw_transform(len(self._patch), self._augmentation, self._rng) for _ in chosen]
        patches = [self._patch_of(*chosen[seat], drawn[seat]) for seat in seats]
        return torch.cat([p[0] for p in patches]), torch.cat([p[1] for p in patches])

    def _choose(self, position: int) -> tuple[Example, NDArray[np.int64]]:
        share = self._training.rare_class_fraction
        if share > 0 and self._holders and self._rng.random() < share:
            value = int(self._rng.choice(list(self._holders)))
            holders = self._holders[value]
            example = holders[int(self._rng.integers(len(holders)))]
            return example, self._one_of(example.centres[value])
        # The newest scan has fixed seats in the batch (rounded at random), so that each step replays earlier ones.
        share = self._training.newest_fraction * self._training.batch_size
        seats = int(share) + (self._rng.random() < share % 1)
        if position < seats:
            example = self._examples[-1]
        else:
            # Without a share for the newest it is one like the others.
            others = len(self._examples) - (share > 0 and len(self._examples) > 1)
            example = self._examples[int(self._rng.integers(others))]
        return example, self._centre(example)

    def _choose_free(self) -> tuple[Example, NDArray[np.int64]]:
        example = self._free[int(self._rng.integers(len(self._free)))]
        return example, self._one_of(example.free_centres)

    def _centre(self, example: Example) -> NDArray[np.int64]:
        filled = [i for i, c in enumerate(example.centres) if len(c)]
        foreground = [i for i in filled if i > 0]
        if foreground and self._rng.random() < self._training.foreground_fraction:
            return self._one_of(example.centres[int(self._rng.choice(foreground))])
        weights = np.array([len(example.centres[i]) for i in filled], float)
        return self._one_of(example.centres[int(self._rng.choice(filled, p=weights / weights.sum()))])

    def _one_of(self, voxels: NDArray[np.int64]) -> NDArray[np.int64]:
        return voxels[int(self._rng.integers(len(voxels)))]

    def _patch_of(self, example: Example, centre: NDArray[np.int64], drawn: RandomTransform) -> tuple[Tensor, Tensor]:
        """Return image ``(1, C, *patch)`` and what is known ``(1, 2 or 3, *patch)``: labels, reviewed, free."""
        zoom: tuple[float, ...] = example.zoom
        image = example.image
        about = [example.labels, example.reviewed, *([example.free] if self._free else [])]
        if len(self._patch) == 2:
            plane = int(centre[0])
            centre, zoom = centre[1:], zoom[1:]
            image, about = image[:, plane], [None if known is None else known[plane] for known in about]
        shape = tuple(image.shape[1:])
        grid = grid_of(drawn, shape, self._patch, centre, zoom)
        # An axis of one voxel has no outside for the interpolation; here is where it ends.
        there = [(grid[..., axis] + 1).abs() < 1 for axis, size in enumerate(reversed(shape)) if size == 1]
        if np.prod(shape) > _CROP_FROM:
            box, grid = _box_of(grid, shape)
            image, about = image[(slice(None), *box)], [None if known is None else known[box] for known in about]
        everywhere = image.new_ones(()).expand(image.shape[1:])
        missing = (everywhere, everywhere, torch.zeros_like(everywhere))
        known = torch.stack([m if a is None else a.float() for a, m in zip(about, missing, strict=False)])
        grid = grid.to(image.device)
        cut = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="border", align_corners=True)
        # Outside the scan nothing is known: zero padding makes "reviewed" false there.
        truth = F.grid_sample(known[None], grid, mode="nearest", padding_mode="zeros", align_corners=True)
        for inside in there:
            truth = truth * inside.to(truth.device).unsqueeze(1)
        return cut, truth


def _box_of(grid: Tensor, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], Tensor]:
    """Return the part of a large image that a grid reaches, and the grid over that part."""
    unit = torch.tensor(shape[::-1], dtype=torch.float64) - 1
    voxels = (grid.double() + 1) / 2 * unit
    flat = voxels.flatten(0, -2)
    # One voxel more on each side, for the interpolation.
    low = (flat.amin(0).floor() - 1).clamp_min(0).minimum(unit - 1).clamp_min(0)
    high = (flat.amax(0).ceil() + 1).minimum(unit).maximum((low + 1).minimum(unit))
    box = tuple(slice(int(a), int(b) + 1) for a, b in zip(low.tolist()[::-1], high.tolist()[::-1], strict=True))
    return box, (2 * (voxels - low) / (high - low).clamp_min(1) - 1).float()
