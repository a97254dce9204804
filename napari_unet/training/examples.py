"""From lessons to what patches are drawn from: label values to network classes, unknown voxels marked as such."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from napari_unet.domain.errors import TrainingError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ModelSettings
from napari_unet.patches.prepare import n_input_channels, prepare
from napari_unet.patches.sampling import Example
from napari_unet.patches.spacing import zoom_of
from napari_unet.training.lesson import Lesson


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
    _refuse_other_channels(scan, settings)
    _refuse_unknown_labels(lesson, schema)
    image = torch.from_numpy(prepare(scan, settings.preparation))
    labels = torch.from_numpy(to_network_classes(np.ascontiguousarray(scan.to_planes(lesson.labels)), schema))
    reviewed = None if lesson.reviewed is None else scan.to_planes(lesson.reviewed).copy()
    free = None
    if reviewed is not None and settings.training.consistency_weight > 0:
        free = ~reviewed
    if lesson.locked is not None and lesson.locked.any():
        reviewed = np.ones(labels.shape, bool) if reviewed is None else reviewed
        reviewed[lesson.locked] = False
        if free is not None:
            free[lesson.locked] = False
    return Example(
        image,
        labels,
        None if reviewed is None else torch.from_numpy(reviewed),
        zoom_of(scan, settings),
        None if free is None else torch.from_numpy(free),
    )


def prepare_unlabelled(scan: Scan, settings: ModelSettings) -> Example:
    """Return a scan about which nothing is known, for the Mean Teacher.

    Raises
    ------
    TrainingError
        Its channels do not fit the network.
    """
    _refuse_other_channels(scan, settings)
    image = torch.from_numpy(prepare(scan, settings.preparation))
    nothing = torch.zeros(image.shape[1:], dtype=torch.uint8)
    return Example(image, nothing, nothing.bool(), zoom_of(scan, settings), ~nothing.bool())


def _refuse_other_channels(scan: Scan, settings: ModelSettings) -> None:
    if n_input_channels(scan, settings.preparation) != settings.network.in_channels:
        raise TrainingError(
            f"The model takes {settings.network.in_channels} channels and a scan has {scan.n_channels}: "
            "train on scans of one kind."
        )


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
