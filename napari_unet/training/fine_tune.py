"""Learning from corrections: what the one training loop is handed, and how the outcome is judged.

Only reviewed voxels teach. Locked slices judge: they never teach, and a new checkpoint is offered only with its scores
on them beside the old one's.
"""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Generator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from napari_unet import __version__
from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import TrainingError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.progress import TrainingStep
from napari_unet.domain.settings import ModelSettings
from napari_unet.evaluation.effort import pooled_dice
from napari_unet.inference.predict import predict
from napari_unet.inference.slabs import plan_slabs
from napari_unet.networks.factory import build, load_weights, weights_of
from napari_unet.networks.unet import UNet
from napari_unet.patches.prepare import n_input_channels, prepare
from napari_unet.patches.sampling import Example, PatchSampler
from napari_unet.training.lesson import CaseVerdict, FineTuned, Lesson
from napari_unet.training.loop import train


def to_network_classes(labels: NDArray, schema: LabelSchema) -> NDArray[np.uint8]:
    """Return label values as network classes: background 0, the schema's classes 1, 2, ... in order."""
    table = np.zeros(max(int(labels.max(initial=0)), *schema.ids) + 1, np.uint8)
    table[list(schema.ids)] = np.arange(1, len(schema.ids) + 1)
    return table[labels]


def to_label_values(classes: NDArray[np.uint8], schema: LabelSchema) -> NDArray:
    """Return network classes as label values (uint8, or uint16 where an id needs it)."""
    return np.array((0, *schema.ids), np.uint8 if max(schema.ids) < 256 else np.uint16)[classes]


def prepare_lesson(lesson: Lesson, settings: ModelSettings, schema: LabelSchema) -> Example:
    """Return a lesson as tensors in acquired planes, locked slices unreviewed.

    Raises
    ------
    TrainingError
        The scan's channels do not fit the network, or a reviewed label has no class.
    """
    scan = lesson.scan
    if n_input_channels(scan, settings.preparation) != settings.network.in_channels:
        raise TrainingError(
            f"The model takes {settings.network.in_channels} channels and a scan has {scan.n_channels}: "
            "train on scans of one kind."
        )
    _refuse_unknown_labels(lesson, schema)
    image = torch.from_numpy(prepare(scan, settings.preparation))
    labels = torch.from_numpy(to_network_classes(np.ascontiguousarray(scan.to_planes(lesson.labels)), schema))
    reviewed = None if lesson.reviewed is None else scan.to_planes(lesson.reviewed).copy()
    if lesson.locked is not None and lesson.locked.any():
        reviewed = np.ones(labels.shape, bool) if reviewed is None else reviewed
        reviewed[lesson.locked] = False
    return Example(image, labels, None if reviewed is None else torch.from_numpy(reviewed))


def _refuse_unknown_labels(lesson: Lesson, schema: LabelSchema) -> None:
    """Refuse labels without a class: taught as background, they would be unlearnt without a word."""
    odd = np.ones(max(int(lesson.labels.max(initial=0)), *schema.ids) + 1, bool)
    odd[[0, *schema.ids]] = False
    found = odd[lesson.labels]
    if lesson.reviewed is not None:
        found &= lesson.reviewed
    if found.any():
        values = ", ".join(str(value) for value in np.unique(lesson.labels[found]))
        raise TrainingError(f"Voxels are labelled {values}, which is no class: add the class, or erase them.")


def _check_patch(patch: tuple[int, ...], network: UNet) -> None:
    """Refuse a patch that the network cannot take; a single deepest feature has no deviation to normalise by."""
    edges = [divmod(size, divisor) for size, divisor in zip(patch, network.divisor, strict=True)]
    if any(rest for _, rest in edges) or all(edge == 1 for edge, _ in edges):
        raise TrainingError(
            f"Patches of {list(patch)} do not fit this network: set training.patch_size to larger multiples of "
            f"{list(network.divisor)}, or fewer network.strides."
        )


def fine_tune(
    lessons: Sequence[Lesson],
    settings: ModelSettings,
    schema: LabelSchema,
    compute: ResolvedCompute,
    *,
    base: Checkpoint | None = None,
    name: str = "v1",
) -> Generator[TrainingStep, None, FineTuned]:
    """Train on what was reviewed, then judge on what was locked.

    Parameters
    ----------
    lessons : sequence of Lesson
        In order of arrival, the newest last; not changed.
    settings : ModelSettings
        Budget and recipe; the network's description must be the base's.
    schema : LabelSchema
        Classes.
    compute : ResolvedCompute
        Device, precision.
    base : Checkpoint, optional
        Where to start; random weights without.
    name : str
        Name of the new checkpoint.

    Yields
    ------
    TrainingStep

    Returns
    -------
    FineTuned

    Raises
    ------
    TrainingError
        Nothing is reviewed, or the loss is no longer finite. The base is never changed.
    """
    started = time.perf_counter()
    examples = [prepare_lesson(lesson, settings, schema) for lesson in lessons]
    return (
        yield from train_examples(examples, lessons, settings, schema, compute, base=base, name=name, started=started)
    )


def train_examples(
    examples: Sequence[Example],
    lessons: Sequence[Lesson],
    settings: ModelSettings,
    schema: LabelSchema,
    compute: ResolvedCompute,
    *,
    base: Checkpoint | None,
    name: str,
    started: float,
) -> Generator[TrainingStep, None, FineTuned]:
    """Do the work of :func:`fine_tune` on lessons that were prepared before (``examples``, in the same order)."""
    if not any(example.usable for example in examples):
        raise TrainingError(
            "Nothing has been reviewed yet, so there is nothing to learn from: paint on a slice or accept one, then "
            "fine-tune."
        )
    network = build(settings.network, seed=settings.training.seed)
    if base is not None:
        load_weights(network, base.weights)
    patch = settings.training.patch_size
    if patch is None:
        raise TrainingError("No patch size is set: plan the settings from the scans first.")
    _check_patch(patch, network)
    sampler = PatchSampler(examples, patch, settings.training, settings.augmentation, settings.training.seed)
    result = yield from train(network, sampler.draw, settings.training, compute, started=started)
    verdicts = _judge(network, base, examples, lessons, settings, schema, compute)
    seen = dict.fromkeys(base.card.seen if base else ())
    seen.update(dict.fromkeys(lesson.scan.fingerprint for lesson in lessons))
    card = ModelCard(
        name=name,
        settings=settings,
        label_schema=schema,
        parent=base.id if base else None,
        seen=tuple(seen),
        scores={verdict.case: verdict.after for verdict in verdicts},
        steps=(base.card.steps if base else 0) + result.steps,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions={"napari-unet": __version__, "torch": torch.__version__, "python": platform.python_version()},
        modality=next((lesson.scan.modality for lesson in lessons if lesson.scan.modality), None),
    )
    return FineTuned(Checkpoint(weights_of(network), card), verdicts, result.steps, result.seconds)


def _judge(
    network: UNet,
    base: Checkpoint | None,
    examples: Sequence[Example],
    lessons: Sequence[Lesson],
    settings: ModelSettings,
    schema: LabelSchema,
    compute: ResolvedCompute,
) -> tuple[CaseVerdict, ...]:
    judges = {i: slices for i, slices in enumerate(map(_judging_slices, lessons)) if len(slices)}
    if not judges:
        return ()

    def dice(model: UNet, i: int) -> float | None:
        return _dice_on_slices(model, examples[i], judges[i], settings, schema, compute)

    before: dict[int, float | None] = {}
    if base is not None and base.card.steps > 0:
        old = build(settings.network, seed=0)
        load_weights(old, base.weights)
        before = {i: dice(old, i) for i in judges}
    return tuple(CaseVerdict(lessons[i].scan.fingerprint, before.get(i), dice(network, i)) for i in judges)


def _judging_slices(lesson: Lesson) -> NDArray[np.int64]:
    """Return the locked slices that are truth: one that was reopened may hold a mere proposal."""
    if lesson.locked is None:
        return np.zeros(0, np.int64)
    if lesson.reviewed is None:
        return np.flatnonzero(lesson.locked)
    return np.flatnonzero(lesson.locked & lesson.scan.to_planes(lesson.reviewed).all(axis=(1, 2)))


def _dice_on_slices(
    network: UNet,
    example: Example,
    slices: NDArray[np.int64],
    settings: ModelSettings,
    schema: LabelSchema,
    compute: ResolvedCompute,
) -> float | None:
    image = example.image.numpy()
    judging = np.isin(np.arange(image.shape[1]), slices)
    slabs = [s for s in plan_slabs(image.shape[1:], settings) if judging[s.start : s.stop].any()]
    predictions, truths = [], []
    for result in predict(network, image, settings, compute, slabs):
        for offset, index in enumerate(range(result.slab.start, result.slab.stop)):
            if judging[index]:
                predictions.append(result.classes[offset])
                truths.append(example.labels[index].numpy())
    return pooled_dice(predictions, truths, len(schema.classes))
