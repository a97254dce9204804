"""What starter weights learn from: real sets that may train shipped weights, and drawn pictures. No training here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import synthetic
import torch

from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.settings import AugmentationSettings, ModelSettings, NetworkSettings, PreparationSettings
from napari_unet.io.masks import TruthRule
from napari_unet.io.pairs import LabelledScan, find_pairs, group_of, load_pairs
from napari_unet.patches.sampling import Example
from napari_unet.training.examples import prepare_lesson
from napari_unet.training.lesson import Lesson

#: Share of a set's patients or pictures that never teach, so that its shipped model has honest scores.
_HELD_OUT, _SPLIT_SEED = 0.1, 77
_DEEPEST = 4
_AUGMENTATION = AugmentationSettings(
    rotation_degrees=180,
    scale=0.4,
    elastic=0.5,
    mirror=(0, 1),
    brightness=0.3,
    contrast=0.4,
    gamma=0.5,
    noise=0.2,
    blur=1.5,
    low_resolution=0.5,
)
#: Volumes stand upright, and sides tell their classes apart.
_UPRIGHT = {"rotation_degrees": 30.0, "mirror": ()}


@dataclass(frozen=True)
class View:
    """How pictures of a task are shown: pixels so many times larger, in patches of so many, to so deep a network."""

    patch: int
    batch: int
    coarsen: float = 1.0
    levels: int = _DEEPEST


@dataclass(frozen=True)
class RealSet:
    """A folder of pairs that may train shipped weights.

    Parameters
    ----------
    model : str
        Name of the shipped model.
    licence, source : str
        For the card.
    rule : TruthRule
        What its masks mean.
    group_by : str or None
        Names the patient.
    volumes : bool
        Neighbouring slices are shown with each.
    modality : str or None
        As DICOM calls it.
    """

    model: str
    licence: str
    source: str
    rule: TruthRule = field(default_factory=TruthRule)
    group_by: str | None = None
    volumes: bool = False
    modality: str | None = None


@dataclass(frozen=True)
class Task:
    """One head on the body: what it tells apart, how often it learns, how its pictures are shown.

    The shipped model of a real set sees them as the first view does.
    """

    name: str
    classes: tuple[str, ...]
    share: float
    views: tuple[View, ...]
    real: RealSet | None = None

    @property
    def schema(self) -> LabelSchema:
        """Its classes."""
        return LabelSchema.of(*self.classes)


_REAL = (
    Task(
        "hippocampus_mr",
        ("anterior", "posterior"),
        0.18,
        (View(48, 12, levels=3),),
        RealSet(
            "hippocampus-mr",
            "CC BY-SA 4.0",
            "Medical Segmentation Decathlon, Task04 Hippocampus, Vanderbilt University Medical Center (Antonelli et "
            "al. 2022, Nature Communications 13:4128)",
            volumes=True,
            modality="MR",
        ),
    ),
    Task(
        "cardiac_cine_mr",
        ("left ventricle",),
        0.16,
        (View(192, 2), View(128, 3, coarsen=2)),
        RealSet(
            "lv-cine-mr",
            "CC0 1.0",
            "Sunnybrook Cardiac Data (Radau et al. 2009, The MIDAS Journal)",
            group_by="^(.+)-IM-",
            modality="MR",
        ),
    ),
    Task(
        "nuclei_fluorescence",
        ("nucleus",),
        0.12,
        (View(128, 3), View(128, 3, coarsen=2)),
        RealSet(
            "nuclei-fluorescence",
            "CC0 1.0",
            "BBBC038v1, Data Science Bowl 2018, Broad Bioimage Benchmark Collection (Caicedo et al. 2019, Nature "
            "Methods 16:1247)",
            rule=TruthRule(binary=True),
        ),
    ),
    Task(
        "breast_ultrasound",
        ("lesion",),
        0.14,
        (View(160, 2, coarsen=2), View(128, 3, coarsen=4), View(192, 2)),
        RealSet(
            "breast-lesion-us",
            "CC BY 4.0",
            "BUSI, Dataset of breast ultrasound images (Al-Dhabyani et al. 2020, Data in Brief 28:104863)",
            modality="US",
        ),
    ),
)
# Shallow networks, for pictures of few pixels, are the same body cut off: it must have been used to that.
_DRAWN_VIEWS = (View(128, 3), View(64, 12, levels=3))
_DRAWN = tuple(Task(kind, classes, 0.08, _DRAWN_VIEWS) for kind, classes in synthetic.CLASSES.items())


def all_tasks(left_out: tuple[str, ...] = ()) -> tuple[Task, ...]:
    """Return the tasks, without the sets that are left out.

    Raises
    ------
    ValueError
        A name that is no set's.
    """
    unknown = set(left_out) - {task.name for task in _REAL}
    if unknown:
        raise ValueError(f"{sorted(unknown)} cannot be left out: only {[task.name for task in _REAL]}")
    return (*(task for task in _REAL if task.name not in left_out), *_DRAWN)


def settings_of(task: Task, view: View, seed: int = 0) -> ModelSettings:
    """Return how a view of a task is learnt: three channels (below, at, above), of which pictures show one thrice."""
    upright = task.real is not None and task.real.volumes
    settings = ModelSettings(
        network=NetworkSettings(
            in_channels=3, out_channels=len(task.classes) + 1, strides=((2, 2),) * min(view.levels, _DEEPEST)
        ),
        preparation=PreparationSettings(context_slices=1, coarsen=view.coarsen),
        augmentation=_AUGMENTATION.model_copy(update=_UPRIGHT if upright else {}),
    )
    return settings.with_values(
        {
            "training.patch_size": (view.patch, view.patch),
            "training.batch_size": view.batch,
            "training.newest_fraction": 0.0,
            "training.seed": seed,
        }
    )


@dataclass(frozen=True, eq=False)
class Taught:
    """A real set, read: scans that teach, and those that only judge."""

    teaching: tuple[LabelledScan, ...]
    judging: tuple[LabelledScan, ...]


def read_set(task: Task, data: Path, most: int | None = None) -> Taught:
    """Read a real set, its groups divided.

    Parameters
    ----------
    task : Task
        With a real set.
    data : Path
        Folder of the sets.
    most : int, optional
        Read no more pairs than these, the first ones.
    """
    assert task.real is not None
    pairs = list(find_pairs(data / task.name / "images", data / task.name / "masks"))[:most]
    items, _ = load_pairs(pairs, task.real.rule)
    names = sorted({group_of(item.stem, task.real.group_by) for item in items})
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(names))
    judging = {names[i] for i in order[: round(len(names) * _HELD_OUT)]}
    judges = [group_of(item.stem, task.real.group_by) in judging for item in items]
    return Taught(
        tuple(item for item, held in zip(items, judges, strict=True) if not held),
        tuple(item for item, held in zip(items, judges, strict=True) if held),
    )


def examples_of(task: Task, view: View, scans: tuple[LabelledScan, ...]) -> list[Example]:
    """Return scans as patches are drawn from them; pictures share the memory of their three channels."""
    settings = settings_of(task, view)
    assert task.real is not None
    if task.real.volumes:
        return [prepare_lesson(Lesson(item.scan, item.labels), settings, task.schema) for item in scans]
    single = settings.with_values({"preparation.context_slices": 0, "network.in_channels": 1})
    found = [prepare_lesson(Lesson(item.scan, item.labels), single, task.schema) for item in scans]
    for example in found:
        example.image = example.image.expand(3, -1, -1, -1)
    return found


def drawn_examples(task: Task, n: int, edge: int, seed: tuple[int, ...]) -> Iterator[Example]:
    """Yield drawn pictures; a seed means the same ones."""
    for number in range(n):
        rng = np.random.default_rng((*seed, number))
        drawn = synthetic.picture(task.name, edge, rng)
        yield Example(torch.from_numpy(drawn.image[:, None]), torch.from_numpy(drawn.labels[None]))
