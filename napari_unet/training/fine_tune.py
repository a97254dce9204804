"""Learning from corrections: what the one training loop is handed, and how the outcome is judged.

Only reviewed voxels teach. Locked slices judge: they never teach, and a new checkpoint is offered only with its scores
on them beside the old one's.
"""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from napari_unet import __version__
from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import TrainingError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.progress import TrainingStep
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ModelSettings
from napari_unet.networks.adapting import started as start_from
from napari_unet.networks.factory import build, load_weights, weights_of
from napari_unet.networks.growing import grow
from napari_unet.networks.unet import UNet
from napari_unet.patches.prepare import intensity_quantiles
from napari_unet.patches.sampling import Example, PatchSampler
from napari_unet.training.examples import prepare_lesson, prepare_unlabelled
from napari_unet.training.first_proposals import first_proposals
from napari_unet.training.judging import judge, validation_loss
from napari_unet.training.lesson import FineTuned, Lesson
from napari_unet.training.loop import train
from napari_unet.training.processes import ALONE, Processes

# Scans are put on the accelerator, to be cut there, where they take less than this share of its free memory.
_SHARE_FOR_SCANS = 0.25
# The newest scans say what a model is for now.
_MEASURED_SCANS = 20
_UNKNOWN_SPREAD = 0.4


def _without_paths(settings: ModelSettings) -> ModelSettings:
    """Return settings as a card may hold them: of a file only its name, since folders may be called after people."""
    source = settings.network.backbone_weights
    if source is None or source.startswith("hub:"):
        return settings
    return settings.with_values({"network.backbone_weights": PurePath(source).name})


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
    unlabelled: Sequence[Scan] = (),
    processes: Processes = ALONE,
) -> Generator[TrainingStep, None, FineTuned]:
    """Train on what was reviewed, then judge on what was locked.

    Parameters
    ----------
    lessons : sequence of Lesson
        In order of arrival, the newest last; not changed.
    settings : ModelSettings
        Budget and recipe; the network's description must be the base's, grown where there are more classes
        (:func:`napari_unet.networks.growing.grown_settings`).
    schema : LabelSchema
        Classes; those behind the base's are new to it.
    compute : ResolvedCompute
        Device, precision.
    base : Checkpoint, optional
        Where to start; random weights without.
    name : str
        Name of the new checkpoint.
    unlabelled : sequence of Scan
        Scans about which nothing is known, for the Mean Teacher (``training.consistency_weight`` above 0).
    processes : Processes
        Those that train together; all are given the same, and come to the same.

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
    if unlabelled and not settings.training.consistency_weight > 0:
        raise TrainingError(
            "Scans without labels teach nothing by themselves: set training.consistency_weight above 0."
        )
    examples = [prepare_lesson(lesson, settings, schema) for lesson in lessons]
    return (
        yield from train_examples(
            examples,
            lessons,
            settings,
            schema,
            compute,
            base=base,
            name=name,
            started=started,
            unlabelled=[prepare_unlabelled(scan, settings) for scan in unlabelled],
            also_seen=[scan.fingerprint for scan in unlabelled],
            processes=processes,
        )
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
    unlabelled: Sequence[Example] = (),
    also_seen: Sequence[str] = (),
    processes: Processes = ALONE,
) -> Generator[TrainingStep, None, FineTuned]:
    """Do the work of :func:`fine_tune` on lessons that were prepared before (``examples``, in the same order)."""
    if not any(example.usable for example in examples):
        raise TrainingError(
            "Nothing has been reviewed yet, so there is nothing to learn from: paint on a slice or accept one, then "
            "fine-tune."
        )
    if processes.world > 1 and settings.training.consistency_weight > 0:
        raise TrainingError("A Mean Teacher cannot be shared by several processes yet: use one process.")
    if settings.network.out_channels != len(schema.classes) + 1:
        raise TrainingError(
            f"The network tells {settings.network.out_channels - 1} classes from background and there are "
            f"{len(schema.classes)}: leave network.out_channels to the plan."
        )
    network, start = _beginning(base, settings, schema)
    patch = settings.training.patch_size
    if patch is None:
        raise TrainingError("No patch size is set: plan the settings from the scans first.")
    _check_patch(patch, network)
    validate = None
    if settings.training.schedule == "plateau":
        validate = validation_loss(network, examples, lessons, settings, compute)
    first = first_proposals(network, start, examples, lessons, settings, compute, started)
    with _at_hand([*unlabelled, *examples], compute) as pool:
        seats = processes.seats(settings.training.batch_size)
        sampler = PatchSampler(pool, patch, settings.training, settings.augmentation, settings.training.seed, seats)
        result = yield from train(
            network,
            sampler.draw,
            settings.training,
            compute,
            description=settings.network,
            validate=validate,
            started=started,
            processes=processes,
        )
    verdicts = judge(network, start, examples, lessons, settings, schema, compute, first.say)
    card = ModelCard(
        name=name,
        settings=_without_paths(settings),
        label_schema=schema,
        parent=base.id if base else None,
        **_scans_of(base, examples, lessons, also_seen),
        scores={verdict.case: verdict.after for verdict in verdicts},
        steps=(base.card.steps if base else 0) + result.steps,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions={
            "napari-unet": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        compute=f"{compute.device}, {compute.precision}, {compute.threads} threads",
        modality=next((lesson.scan.modality for lesson in lessons if lesson.scan.modality), None),
        **_intensities(examples),
        notes=base.card.notes if base else "",
        pixel_share=first.share,
        pixel_errors=first.errors,
        left_to_paint=first.left_to_paint,
    )
    pixels = {} if first.head is None else weights_of(first.head)
    return FineTuned(Checkpoint(weights_of(network), card, pixels), verdicts, result.steps, result.seconds)


def _intensities(examples: Sequence[Example]) -> dict[str, Any]:
    """Return for the card what scans look like that the model is meant for."""
    found = np.stack([intensity_quantiles(example.image.numpy()) for example in examples[-_MEASURED_SCANS:]])
    mean = found.mean(axis=0)
    spread = np.abs(found - mean).mean(axis=1).max()
    # Of one or two scans nobody can tell how much they differ.
    return {
        "intensities": tuple(mean.tolist()),
        "intensity_spread": float(spread) if len(found) > 2 else _UNKNOWN_SPREAD,
    }


def _beginning(base: Checkpoint | None, settings: ModelSettings, schema: LabelSchema) -> tuple[UNet, Checkpoint | None]:
    """Return the network before it learns, and the checkpoint whose weights it has: the base, cut or grown to fit."""
    # What an encoder learnt elsewhere is in the base already.
    network = build(settings.network, seed=settings.training.seed, pretrained=base is None)
    if base is None:
        return network, None
    start = grow(base, schema) if base.card.steps > 0 else start_from(base, settings, schema)
    load_weights(network, start.weights)
    return network, start


def _scans_of(
    base: Checkpoint | None, examples: Sequence[Example], lessons: Sequence[Lesson], also_seen: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Return the fingerprints of what taught, now or before, and of what else was looked at, for the card."""
    before = ((), ()) if base is None else (base.card.seen, base.card.looked_at)
    marks = [lesson.scan.fingerprint for lesson in lessons]
    taught = [mark for mark, example in zip(marks, examples, strict=True) if example.usable]
    seen = tuple(dict.fromkeys((*before[0], *taught)))
    others = dict.fromkeys((*before[1], *marks, *also_seen))
    return {"seen": seen, "looked_at": tuple(mark for mark in others if mark not in seen)}


@contextmanager
def _at_hand(examples: list[Example], compute: ResolvedCompute) -> Iterator[list[Example]]:
    """Keep the scans where patches are cut soonest: on the accelerator, if they are small beside its memory."""
    moved = False
    if compute.device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        moved = sum(example.n_bytes() for example in examples) < _SHARE_FOR_SCANS * free
    try:
        for example in examples if moved else ():
            example.move_to(compute.device)
        yield examples
    finally:
        for example in examples if moved else ():
            example.move_to("cpu")
