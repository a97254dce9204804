"""How a checkpoint is judged: by predicting slices that never teach, and while it learns by the loss on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.settings import AugmentationSettings, ModelSettings
from napari_unet.evaluation.effort import pooled_dice
from napari_unet.inference.predict import PixelShare, predict
from napari_unet.inference.slabs import plan_slabs
from napari_unet.networks.factory import build, load_weights
from napari_unet.patches.sampling import Example, PatchSampler
from napari_unet.training.lesson import CaseVerdict, Lesson
from napari_unet.training.losses import SupervisedLoss
from napari_unet.training.parts import autocast

if TYPE_CHECKING:
    from napari_unet.networks.unet import UNet

_AS_THEY_ARE = AugmentationSettings(probability=0, mirror=(), brightness=0, contrast=0, gamma=0, noise=0)
_VALIDATION_BATCHES = 8


def judge(
    network: UNet,
    base: Checkpoint | None,
    examples: Sequence[Example],
    lessons: Sequence[Lesson],
    settings: ModelSettings,
    schema: LabelSchema,
    compute: ResolvedCompute,
    pixels: PixelShare | None = None,
) -> tuple[CaseVerdict, ...]:
    """Return the Dice of each scan with locked slices, with the base and with the network.

    Parameters
    ----------
    network : UNet
        What was trained.
    base : Checkpoint or None
        Where it started, as large as the network (:func:`napari_unet.networks.growing.grow`).
    examples, lessons : sequences
        In the same order.
    settings, schema, compute
        As in training.
    pixels : PixelShare, optional
        What has a say beside the network; the base brings its own.
    """
    judges = {i: slices for i, slices in enumerate(map(judging_slices, lessons)) if len(slices)}
    if not judges:
        return ()

    def dice(model: UNet, beside: PixelShare | None) -> dict[int, list[float | None]]:
        return {i: _dice_on_slices(model, beside, examples[i], judges[i], settings, schema, compute) for i in judges}

    after = dice(network, pixels)
    before: dict[int, list[float | None]] = {i: [None] * len(schema.classes) for i in judges}
    if base is not None and base.card.steps > 0:
        old = build(settings.network, seed=0)
        load_weights(old, base.weights)
        before = dice(old, PixelShare.of(base))
    return tuple(
        CaseVerdict(
            lessons[i].scan.fingerprint,
            _mean(before[i]),
            _mean(after[i]),
            len(judges[i]),
            tuple(zip(before[i], after[i], strict=True)),
        )
        for i in judges
    )


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def judging_slices(lesson: Lesson) -> NDArray[np.int64]:
    """Return the locked slices that are truth: one that was reopened may hold a mere proposal."""
    if lesson.locked is None:
        return np.zeros(0, np.int64)
    if lesson.reviewed is None:
        return np.flatnonzero(lesson.locked)
    return np.flatnonzero(lesson.locked & lesson.scan.to_planes(lesson.reviewed).all(axis=(1, 2)))


def _dice_on_slices(
    network: UNet,
    pixels: PixelShare | None,
    example: Example,
    slices: NDArray[np.int64],
    settings: ModelSettings,
    schema: LabelSchema,
    compute: ResolvedCompute,
) -> list[float | None]:
    """Return the Dice of each class, None where the truth has none of it."""
    image = example.image.numpy()
    judging = np.isin(np.arange(image.shape[1]), slices)
    slabs = [s for s in plan_slabs(image.shape[1:], settings) if judging[s.start : s.stop].any()]
    predictions, truths = [], []
    for result in predict(network, image, settings, compute, slabs, example.zoom, pixels):
        for offset, index in enumerate(range(result.slab.start, result.slab.stop)):
            if judging[index]:
                predictions.append(result.classes[offset])
                truths.append(example.labels[index].numpy())
    return [
        pooled_dice([p == k for p in predictions], [t == k for t in truths], 1)
        for k in range(1, len(schema.classes) + 1)
    ]


def validation_loss(
    network: UNet,
    examples: Sequence[Example],
    lessons: Sequence[Lesson],
    settings: ModelSettings,
    compute: ResolvedCompute,
) -> Callable[[], float] | None:
    """Return a function that computes the loss on locked slices: always the same patches, as they are.

    None where nothing is locked.
    """
    locked = []
    for example, lesson in zip(examples, lessons, strict=True):
        slices = judging_slices(lesson)
        if len(slices):
            mask = torch.zeros(example.labels.shape, dtype=torch.bool)
            mask[slices] = True
            locked.append(Example(example.image, example.labels, mask, example.zoom))
    if not locked:
        return None
    assert settings.training.patch_size is not None
    # Every locked scan alike: among judges the newest is nothing special.
    training = settings.training.model_copy(update={"newest_fraction": 0.0, "consistency_weight": 0.0})
    sampler = PatchSampler(locked, settings.training.patch_size, training, _AS_THEY_ARE, settings.training.seed)
    batches = [sampler.draw() for _ in range(_VALIDATION_BATCHES)]
    loss = SupervisedLoss(settings.network, settings.training)

    @torch.no_grad()
    def validate() -> float:
        network.eval()
        total = 0.0
        for batch in batches:
            there = batch.to(compute.device)
            with autocast(compute):
                logits = network(there.image)
            total += float(loss((logits,), there.labels, there.reviewed))
        network.train()
        return total / len(batches)

    return validate
