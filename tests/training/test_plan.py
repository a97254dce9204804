"""Settings from the scans: whatever they look like, the plan can be trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_unet.domain.errors import SettingsError, TrainingError
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.scan import Scan
from napari_unet.networks.factory import build
from napari_unet.training.fine_tune import fine_tune
from napari_unet.training.lesson import Lesson
from napari_unet.training.plan import PRESETS, plan
from tests.training.lessons import CPU, LabelSchema, run

SMALL = {"network.base_channels": 4, "network.max_channels": 16, "training.batch_size": 2}


def scan_of(shape, axes=None, slice_axis=0, dtype=np.uint8, **more):
    axes = axes or "zyx"[-len(shape) :]
    return Scan(np.zeros(shape, dtype), axes, Geometry(None), slice_axis if axes.startswith("z") else None, **more)


@settings(max_examples=25)
@given(st.data())
def test_patch_and_network_fit_each_other_whatever_the_scan(data):
    shape = data.draw(st.lists(st.integers(1, 60), min_size=2, max_size=3))
    slice_axis = data.draw(st.integers(0, 2))
    preset = data.draw(st.sampled_from(PRESETS))
    planned = plan([scan_of(shape, slice_axis=slice_axis)], 2, preset).with_values(SMALL)
    network, patch = build(planned.network), planned.training.patch_size
    assert all(size % divisor == 0 for size, divisor in zip(patch, network.divisor, strict=True))
    assert any(size > divisor for size, divisor in zip(patch, network.divisor, strict=True))
    with torch.inference_mode():
        assert network(torch.zeros(2, planned.network.in_channels, *patch)).shape == (2, 3, *patch)


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (1, 20, 20), (2, 7, 5)])
def test_the_oddest_scans_can_be_trained_on(shape):
    scan = scan_of(shape)
    planned = plan([scan], 1).with_values({**SMALL, "training.steps": 1, "training.budget_seconds": None})
    _, outcome = run(fine_tune([Lesson(scan, np.zeros(shape, np.uint8))], planned, LabelSchema.of("a"), CPU))
    assert outcome.steps == 1


def test_channels_follow_the_scans():
    colour, grey = scan_of((20, 20, 3), "yxc"), scan_of((20, 20))
    assert plan([colour], 1).network.in_channels == 3
    assert plan([grey], 4).network.in_channels == 1
    assert plan([grey], 4).network.out_channels == 5
    assert plan([scan_of((20, 20, 2), "yxc")], 1).network.in_channels == 2
    mostly_grey = plan([grey, grey, colour], 1)
    assert (mostly_grey.network.in_channels, mostly_grey.preparation.colour) == (1, "grey")
    with pytest.raises(TrainingError, match="1, 2"):
        plan([grey, scan_of((20, 20, 2), "yxc")], 1)


def test_an_unknown_preset_is_answered_with_those_there_are():
    with pytest.raises(SettingsError, match="default, classic"):
        plan([scan_of((20, 20))], 1, "fancy")


def test_labels_with_a_side_are_never_mirrored_across_it():
    scan = scan_of((4, 40, 40))
    labels = np.zeros((4, 40, 40), np.uint8)
    labels[:, 15:25, 2:10] = 1  # on the left, halfway up
    assert plan([scan], 1, labels=[labels]).augmentation.mirror == (0,)
    labels[:, 15:25, 30:38] = 1  # on both sides
    assert plan([scan], 1, labels=[labels]).augmentation.mirror == (0, 1)
    labels[labels == 1] = np.where(np.nonzero(labels)[2] < 20, 1, 2)  # two classes that differ by their side
    assert plan([scan], 2, labels=[labels]).augmentation.mirror == (0,)
    assert plan([scan], 1).augmentation.mirror == ()


@pytest.mark.parametrize("slice_axis", [1, 2])
def test_sides_are_looked_for_within_the_acquired_plane(slice_axis):
    labels = np.zeros((4, 40, 40), np.uint8)
    labels[:, 15:25, 2:10] = 1
    turned = np.moveaxis(labels, 0, slice_axis)
    assert plan([scan_of(turned.shape, slice_axis=slice_axis)], 1, labels=[turned]).augmentation.mirror == (0,)


def test_ct_is_seen_through_a_window_around_what_is_labelled():
    data = np.full((4, 30, 30), -1000, np.int16)
    data[:, 5:25, 5:25] = 40
    data[:, 5:15, 5:25] = 100
    labels = (data >= 40).astype(np.uint8)
    for modality in ("CT", None):
        scan = Scan(data, "zyx", Geometry(None), 0, modality=modality)
        low, high = plan([scan], 1, labels=[labels]).preparation.window
        assert -500 < low < 40 < 100 < high < 1000
    assert plan([Scan(data, "zyx", Geometry(None), 0)], 1).preparation.window is None
    magnet = Scan((data + 1000).astype(np.int16), "zyx", Geometry(None), 0, modality="MR")
    assert plan([magnet], 1, labels=[labels]).preparation.window is None
