"""Small tasks that can be learnt within a second."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import (
    AugmentationSettings,
    ModelSettings,
    NetworkSettings,
    TrainingSettings,
)
from napari_unet.training.lesson import Lesson

CPU = ResolvedCompute("cpu", "float32", 1)
SCHEMA = LabelSchema.of("square")


def square_scan(shape=(4, 24, 24), slice_axis=0, seed=0, bright=100.0):
    """A bright square in noise, at a place of its own in each scan; returns the scan and its truth."""
    random = np.random.default_rng(seed)
    truth = np.zeros(shape, np.uint8)
    corner = random.integers(3, 9, 2)
    plane = tuple(slice(int(c), int(c) + 10) for c in corner)
    truth[(..., *plane)] = 1
    data = random.normal(0, 5, shape).astype(np.float32) + bright * truth
    if slice_axis is not None and slice_axis != 0:
        truth, data = np.moveaxis(truth, 0, slice_axis), np.moveaxis(data, 0, slice_axis)
    return (
        Scan(
            np.ascontiguousarray(data),
            "zyx"[-len(shape) :],
            Geometry((1.0,) * len(shape)),
            slice_axis if len(shape) == 3 else None,
        ),
        np.ascontiguousarray(truth),
    )


def small_settings(dimensions=2, steps=3, **training):
    """Settings of a tiny network that learns fast and without chance in its patches."""
    three = dimensions == 3
    training = {
        "learning_rate": 1e-2,
        "batch_size": 2,
        "patch_size": (4, 16, 16) if three else (16, 16),
        "steps": steps,
        "budget_seconds": None,
        "warmup_steps": 2,
        "ema_decay": 0.5,
        "first_proposals": False,
        **training,
    }
    return ModelSettings(
        network=NetworkSettings(
            dimensions=dimensions,
            base_channels=4,
            strides=((1, 2, 2), (2, 2, 2)) if three else ((2, 2), (2, 2)),
        ),
        augmentation=AugmentationSettings(probability=0.2, rotation_degrees=15),
        training=TrainingSettings(**training),
    )


def run(generator):
    """Return what a generator yields, and its result."""
    events = []
    while True:
        try:
            events.append(next(generator))
        except StopIteration as stop:
            return events, stop.value


def lesson(shape=(4, 24, 24), slice_axis=0, seed=0, **parts):
    scan, truth = square_scan(shape, slice_axis if len(shape) == 3 else None, seed)
    return replace(Lesson(scan, truth), **parts)
