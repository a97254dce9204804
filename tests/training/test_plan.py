"""Settings from the scans: whatever they look like, the plan can be trained, and says in words what it is."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from napari_unet.domain.annotation import Annotation
from napari_unet.domain.errors import SettingsError, TrainingError
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ModelSettings
from napari_unet.networks.adapting import fits, shape_of
from napari_unet.networks.factory import build
from napari_unet.training.fine_tune import fine_tune
from napari_unet.training.fingerprint import fingerprint, known_labels
from napari_unet.training.lesson import Lesson
from napari_unet.training.memory import step_memory
from napari_unet.training.plan import PRESETS, SECONDS_FOR_3D_ON_A_CPU, plan, plan_for, plan_upon, suited_dimensions
from napari_unet.training.words import in_words
from tests.real_data import REAL_DATA, needs_real_data
from tests.training.lessons import CPU, LabelSchema, run

DEVICES = st.sampled_from(["cpu", "cuda", "mps"])
SMALL = {"network.base_channels": 4, "network.max_channels": 16, "training.batch_size": 2}


def scan_of(shape, axes=None, slice_axis=0, dtype=np.uint8, spacing=None, **more):
    """Return an empty scan of any size that takes no memory."""
    axes = axes or "zyx"[-len(shape) :]
    data = np.broadcast_to(np.zeros((), dtype), shape)
    return Scan(data, axes, Geometry(spacing), slice_axis if axes.startswith("z") else None, **more)


@st.composite
def scans(draw, longest=600):
    """Return one to three scans of any size and spacing, all 2D or all 3D."""
    n, known = draw(st.integers(2, 3)), draw(st.booleans())
    slice_axis = draw(st.integers(0, 2))
    edges = st.lists(st.integers(1, longest), min_size=n, max_size=n)
    millimetres = st.lists(st.floats(0.05, 10), min_size=n, max_size=n)
    return [
        scan_of(draw(edges), slice_axis=slice_axis, spacing=tuple(draw(millimetres)) if known else None)
        for _ in range(draw(st.integers(1, 3)))
    ]


def check_sizes(planned: ModelSettings) -> None:
    """The network can halve the patch at each of its levels, and more than one feature is left in the end."""
    network, patch = planned.network, planned.training.patch_size
    deepest = list(patch)
    for stride in network.strides:
        assert all(size % step == 0 for size, step in zip(deepest, stride, strict=True))
        deepest = [size // step for size, step in zip(deepest, stride, strict=True)]
    assert network.strides
    assert math.prod(deepest[-2:]) > 1


@given(scans(), st.sampled_from(PRESETS), st.integers(1, 3), st.sampled_from([None, 2, 3]), DEVICES)
def test_patch_and_network_fit_each_other_whatever_the_scans(drawn, preset, n_classes, dimensions, device):
    wishes = {} if dimensions is None else {"network.dimensions": dimensions}
    planned = plan(drawn, n_classes, preset, overrides=wishes, device=device)
    check_sizes(planned)
    assert planned.network.dimensions == (dimensions or planned.network.dimensions)
    if planned.preparation.spacing is None:
        # No part of the patch is wasted on what no scan has, but for what halving wants.
        most = np.max([scan.to_planes(scan.data).shape for scan in drawn], axis=0)[-planned.network.dimensions :]
        assert all(p < max(8, s) + 64 for p, s in zip(planned.training.patch_size, most, strict=True))


@settings(max_examples=25)
@given(scans(longest=40), st.sampled_from(PRESETS), DEVICES)
def test_what_is_planned_can_be_computed(drawn, preset, device):
    planned = plan(drawn, 2, preset, device=device).with_values(SMALL)
    network, patch = build(planned.network).eval(), planned.training.patch_size
    with torch.inference_mode():
        assert network(torch.zeros(1, planned.network.in_channels, *patch)).shape == (1, 3, *patch)


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (1, 20, 20), (2, 7, 5)])
def test_the_oddest_scans_can_be_trained_on(shape):
    scan = scan_of(shape)
    planned = plan([scan], 1).with_values({**SMALL, "training.steps": 1, "training.budget_seconds": None})
    _, outcome = run(fine_tune([Lesson(scan, np.zeros(shape, np.uint8))], planned, LabelSchema.of("a"), CPU))
    assert outcome.steps == 1


@pytest.mark.parametrize("n_classes", [1, 3])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_every_preset_trains_in_both_dimensions_with_one_class_and_several(dimensions, preset, n_classes):
    scan = scan_of((16, 24, 24), spacing=(1.0, 1.0, 1.0))
    wishes = {"network.dimensions": dimensions, "network.base_channels": 4, "training.patch_size": (16,) * dimensions}
    wishes |= {"training.batch_size": 2, "training.steps": 1}
    planned = plan([scan], n_classes, preset, overrides=wishes)
    labels = np.zeros((16, 24, 24), np.uint8)
    labels[4:12, 8:16, 8:16] = 1
    schema = LabelSchema.of(*"abc"[:n_classes])
    _, outcome = run(fine_tune([Lesson(scan, labels)], planned, schema, CPU))
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


# -- poses and intensities --------------------------------------------------------------------------------------------


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


def test_in_3d_the_slices_may_have_sides_too():
    labels = np.zeros((20, 40, 40), np.uint8)
    labels[:6, 15:25, 2:10] = 1  # at the bottom, halfway up, on the left
    assert plan([scan_of((20, 40, 40))], 1, "thorough", [labels], device="cuda").augmentation.mirror == (1,)
    labels[14:, 15:25, 2:10] = 1
    assert plan([scan_of((20, 40, 40))], 1, "thorough", [labels], device="cuda").augmentation.mirror == (0, 1)


@pytest.mark.parametrize("slice_axis", [1, 2])
def test_sides_are_looked_for_within_the_acquired_plane(slice_axis):
    labels = np.zeros((4, 40, 40), np.uint8)
    labels[:, 15:25, 2:10] = 1
    turned = np.moveaxis(labels, 0, slice_axis)
    assert plan([scan_of(turned.shape, slice_axis=slice_axis)], 1, labels=[turned]).augmentation.mirror == (0,)


def ct_like():
    data = np.full((4, 30, 30), -1000, np.int16)
    data[:, 5:25, 5:25] = 40
    data[:, 5:15, 5:25] = 100
    return data


def test_ct_is_seen_through_a_window_around_what_is_labelled():
    data = ct_like()
    labels = (data >= 40).astype(np.uint8)
    for modality in ("CT", None):
        scan = Scan(data, "zyx", Geometry(None), 0, modality=modality)
        low, high = plan([scan], 1, labels=[labels]).preparation.window
        assert -500 < low < 40 < 100 < high < 1000
    assert plan([Scan(data, "zyx", Geometry(None), 0)], 1).preparation.window is None
    for other in (data, (data + 1000).astype(np.int16)):
        magnet = Scan(other, "zyx", Geometry(None), 0, modality="MR")
        assert plan([magnet], 1, labels=[labels]).preparation.window is None


def test_what_nobody_reviewed_moves_neither_the_window_nor_the_sides():
    data = ct_like()
    scan = Scan(data, "zyx", Geometry(None), 0, modality="CT")
    reviewed = Annotation((data >= 40).astype(np.uint8), 0)
    reviewed.labels[2:] = 0
    reviewed.accepted[:2] = True
    painted = reviewed.copy()
    painted.labels[2, 0, :5] = 1
    painted.painted[2, 0, :5] = True  # a stroke in the air, on a slice that is not accepted
    proposed = reviewed.copy()
    proposed.labels[2:, :3] = 1  # a proposal in the air, along one side

    def of(annotation, locked=None):
        before = annotation.labels.copy()
        found = fingerprint([scan], [known_labels(annotation, locked)])
        assert np.array_equal(annotation.labels, before)
        return found

    assert of(proposed) == of(reviewed)
    assert of(painted) != of(reviewed)
    # Nor does what only judges.
    assert of(reviewed, np.array([True, True, False, False])).classes == ()


def test_classes_are_counted_and_rare_ones_named():
    labels = np.zeros((4, 40, 40), np.uint8)
    labels[1, 5:35, 5:35] = 1
    labels[2, 10:15, 10:12] = 4
    found = fingerprint([scan_of((4, 40, 40)), scan_of((4, 40, 40))], [labels, np.zeros_like(labels)])
    assert [(c.value, c.voxels, c.n_scans) for c in found.classes] == [(1, 900, 1), (4, 10, 1)]
    planned = plan_for(found, 2)
    assert planned.training.class_weights is None
    assert any("label 4" in line and "training.rare_class_fraction" in line for line in in_words(planned, found))


# -- dimension, spacing, kernels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "spacing", "dimensions"),
    [
        ((35, 50, 35), (1.0, 1.0, 1.0), 3),
        ((40, 512, 512), (2.0, 0.98, 0.98), 3),
        ((40, 512, 512), (3.0, 0.98, 0.98), 2),  # slices farther than three pixels apart
        ((11, 200, 200), (1.0, 1.0, 1.0), 2),  # too few slices
        ((40, 60, 60), None, 3),
        ((256, 256), None, 2),
        ((256, 256), (0.3, 0.3), 2),
    ],
)
def test_thorough_works_in_3d_where_the_scans_are_volumes_that_suit_it(shape, spacing, dimensions):
    scan = scan_of(shape, spacing=spacing)
    for device in ("cuda", "mps"):
        planned = plan([scan], 2, "thorough", device=device)
        assert planned.network.dimensions == suited_dimensions(fingerprint([scan])) == dimensions
        assert planned.network.deep_supervision == (dimensions == 3)
        assert planned.preparation.context_slices == (2 if dimensions == 2 and len(shape) == 3 else 0)
        for other in ("default", "classic"):
            assert plan([scan], 2, other, device=device) == plan([scan], 2, other)
            assert plan([scan], 2, other).network.dimensions == 2


def test_a_cpu_works_in_2d_unless_hours_are_given():
    suited = fingerprint([scan_of((40, 64, 64), spacing=(1.0, 1.0, 1.0))])

    def dimensions(found=suited, **more):
        return plan_for(found, 1, "thorough", **more).network.dimensions

    assert dimensions() == dimensions(budget_seconds=SECONDS_FOR_3D_ON_A_CPU - 1) == 2
    assert dimensions(budget_seconds=SECONDS_FOR_3D_ON_A_CPU) == 3
    assert dimensions(overrides={"training.budget_seconds": SECONDS_FOR_3D_ON_A_CPU}) == 3
    assert dimensions(overrides={"network.dimensions": 3}) == 3
    # No number of hours turns slices far apart into blocks.
    thick = fingerprint([scan_of((40, 64, 64), spacing=(8.0, 1.0, 1.0))])
    assert dimensions(thick, budget_seconds=10 * SECONDS_FOR_3D_ON_A_CPU) == 2


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_gpu_gets_larger_steps_and_a_wider_network(dimensions):
    scan = scan_of((200, 400, 400), spacing=(1.0, 1.0, 1.0))
    wishes = {"network.dimensions": dimensions}
    cpu, gpu, mps = (plan([scan], 1, "thorough", overrides=wishes, device=each) for each in ("cpu", "cuda", "mps"))
    assert gpu == mps
    small, large = (one.training.batch_size * math.prod(one.training.patch_size) for one in (cpu, gpu))
    assert large >= 2 * small
    assert gpu.network.base_channels > cpu.network.base_channels
    assert gpu.training.learning_rate < cpu.training.learning_rate


def test_equal_spacing_halves_all_axes_and_reaches_across_all():
    planned = plan([scan_of((64, 64, 64), spacing=(1.0, 1.0, 1.0))], 1, "thorough", device="cuda")
    assert set(planned.network.strides) == {(2, 2, 2)}
    assert planned.network.kernels is None


def test_thick_slices_are_halved_later_and_reached_across_later():
    planned = plan([scan_of((60, 300, 300), spacing=(2.5, 1.0, 1.0))], 1, "thorough", device="cuda")
    network, patch = planned.network, planned.training.patch_size
    assert network.strides[0] == (1, 2, 2)
    assert network.kernels[0] == (1, 3, 3)
    assert network.strides[1] == (2, 2, 2)
    assert network.kernels[1] == (3, 3, 3)
    # The patch is about as long in millimetres along each axis.
    assert 2.5 * patch[0] == pytest.approx(patch[1], rel=0.4)
    assert patch[1] == pytest.approx(patch[2], rel=0.25)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_scans_are_resampled_only_where_their_spacing_differs_on_an_axis_that_counts(dimensions):
    def spacing_for(*spacings):
        scans = [scan_of((40, 60, 60), spacing=s) for s in spacings]
        return plan(scans, 1, "thorough", overrides={"network.dimensions": dimensions}).preparation.spacing

    assert spacing_for((1.0, 0.5, 0.5)) is None
    assert spacing_for((1.0, 0.5, 0.5), (1.0, 0.54, 0.5)) is None
    assert spacing_for((1.0, 0.5, 0.5), (1.0, 0.5, 0.7), (1.2, 0.5, 0.6)) == (1.0, 0.5, 0.6)
    assert (spacing_for((1.0, 0.5, 0.5), (2.0, 0.5, 0.5)) is None) == (dimensions == 2)
    assert spacing_for((1.0, 0.5, 0.5), None) is None


def test_a_patch_of_resampled_scans_covers_no_more_than_they_show():
    fine, coarse = scan_of((64, 64), spacing=(0.5, 0.5)), scan_of((32, 32), spacing=(1.0, 1.0))
    planned = plan([fine, coarse, coarse], 1, "thorough")
    assert planned.preparation.spacing[1:] == (1.0, 1.0)
    assert planned.training.patch_size == (32, 32)


# -- presets ----------------------------------------------------------------------------------------------------------


def test_the_default_plan_stays_what_was_measured():
    """Effort was measured with these values (docs/architecture.md, "Learning in seconds")."""
    planned = plan([scan_of((36, 50, 35), spacing=(1.0, 1.0, 1.0))], 2)
    network, training, pose = planned.network, planned.training, planned.augmentation
    assert (network.dimensions, network.base_channels, network.max_channels) == (2, 16, 256)
    assert (network.strides, network.kernels, network.in_channels) == (((2, 2),) * 3, None, 3)
    assert (network.encoder, network.norm, network.upsampling) == ("plain", "instance", "interpolated")
    assert (training.patch_size, training.batch_size) == ((32, 32), 16)
    assert (training.optimiser, training.learning_rate, training.schedule) == ("adamw", 6e-3, "poly")
    assert (training.newest_fraction, training.foreground_fraction, training.ema_decay) == (0.25, 0.5, 0.97)
    assert (pose.rotation_degrees, pose.scale, pose.elastic, pose.mirror) == (15, 0.15, 0, ())
    large = plan([scan_of((512, 512))], 1)
    assert (large.network.strides, large.training.patch_size, large.training.batch_size) == (
        ((2, 2),) * 4,
        (128,) * 2,
        2,
    )
    assert (large.augmentation.rotation_degrees, large.augmentation.mirror) == (180, (0, 1))


def test_classic_is_the_guides_recipe():
    planned = plan([scan_of((256, 256))], 1, "classic")
    network, training, pose = planned.network, planned.training, planned.augmentation
    assert [network.base_channels * 2**level for level in range(5)] == [64, 128, 256, 512, 1024]
    assert len(network.strides) == 4
    assert network.max_channels == 1024
    assert (training.optimiser, training.learning_rate) == ("adam", 1e-4)
    assert (training.schedule, training.patience) == ("plateau", 3)
    assert pose.rotation_degrees == 15
    assert min(pose.elastic, pose.gamma) > 0
    assert max(pose.scale, pose.shift, pose.noise, pose.contrast, pose.brightness, pose.blur) == 0
    # Sigmoid for one class, softmax for several.
    assert (network.head, network.n_logits) == ("sigmoid", 1)
    several = plan([scan_of((256, 256))], 3, "classic").network
    assert (several.head, several.n_logits) == ("softmax", 4)


# -- wishes -----------------------------------------------------------------------------------------------------------


def test_the_plan_follows_what_is_wished():
    scan = scan_of((40, 64, 64), spacing=(1.0, 1.0, 1.0))
    deep = plan([scan], 1, overrides={"network.dimensions": 3})
    assert deep.network.in_channels == 1
    check_sizes(deep)
    patch = plan([scan], 1, "thorough", overrides={"training.patch_size": [24, 40, 40]}, device="cuda")
    assert patch.training.patch_size == (24, 40, 40)
    check_sizes(patch)
    strides = plan([scan], 1, "thorough", overrides={"network.strides": [[2, 2, 2]] * 4}, device="cuda")
    assert strides.network.strides == ((2, 2, 2),) * 4
    check_sizes(strides)
    assert plan([scan], 1, overrides={"preparation.context_slices": "2"}).network.in_channels == 5
    assert plan([scan], 1, overrides={"training.batch_size": "3"}).training.batch_size == 3
    assert plan([scan], 1, budget_seconds=7.5).training.budget_seconds == 7.5


def test_a_pretrained_encoder_halves_every_axis_at_once():
    scan = scan_of((40, 200, 200), spacing=(2.5, 1.0, 1.0))
    network = plan([scan], 1, "thorough", overrides={"network.encoder": "pretrained"}, device="cuda").network
    assert set(network.strides) == {(2, 2, 2)}
    assert network.kernels is None


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"network.dimension": 3}, "no setting 'network.dimension'"),
        ({"training.batch_size": 0}, "training.batch_size"),
        ({"network.dimensions": 3, "training.patch_size": [32, 32]}, "training.patch_size wants 3"),
        ({"network.dimensions": 3, "network.strides": [[2, 2]]}, "network.strides wants 3"),
        ({"training.positive_weight": 3}, "sigmoid"),
    ],
)
def test_wishes_that_cannot_be_are_refused_in_words(wishes, words):
    with pytest.raises(SettingsError, match=re.escape(words)):
        plan([scan_of((40, 64, 64))], 2, overrides=wishes)


# -- memory -----------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    scans(), st.sampled_from(PRESETS), st.integers(1, 3), DEVICES, st.lists(st.floats(7, 11), min_size=2, max_size=2)
)
def test_less_memory_never_asks_for_more_and_is_obeyed_where_it_can_be(drawn, preset, n_classes, device, exponents):
    found = fingerprint(drawn)
    free = sorted(int(10**e) for e in exponents)
    smallest = step_memory(plan_for(found, n_classes, preset, memory_bytes=1, device=device)).total
    little, much = (plan_for(found, n_classes, preset, memory_bytes=limit, device=device) for limit in free)
    assert step_memory(little).total <= step_memory(much).total
    assert step_memory(much).total <= step_memory(plan_for(found, n_classes, preset, device=device)).total
    for limit, planned in zip(free, (little, much), strict=True):
        check_sizes(planned)
        assert step_memory(planned).total <= max(limit, smallest)


def test_memory_is_saved_where_it_costs_least_first():
    found = fingerprint([scan_of((512, 512))])

    def fitted(share, **wishes):
        need = step_memory(plan_for(found, 1, "thorough", overrides=wishes, device="cuda")).total
        return plan_for(found, 1, "thorough", memory_bytes=int(need * share), overrides=wishes, device="cuda")

    whole, fewer, smaller, slow = fitted(2), fitted(1.2), fitted(0.4), fitted(0.05)
    assert fewer.training.batch_size < whole.training.batch_size
    assert fewer.training.patch_size == whole.training.patch_size
    assert smaller.training.patch_size < whole.training.patch_size
    assert not smaller.training.activation_checkpointing
    assert slow.training.activation_checkpointing
    assert slow.training.accumulate == slow.training.batch_size
    # What was wished stays.
    wished = fitted(0.3, **{"training.batch_size": 8, "training.patch_size": (256, 256)})
    assert (wished.training.batch_size, wished.training.patch_size) == (8, (256, 256))
    assert wished.training.activation_checkpointing


# -- in words ---------------------------------------------------------------------------------------------------------

_OTHER_VALUES = {
    "network.head": "sigmoid",
    "network.attention_gates": True,
    "network.bottleneck": "transformer",
    "network.transformer_layers": 2,
    "network.upsampling": "transposed",
    "preparation.normalisation": "unit",
    "preparation.equalise": "clahe",
    "preparation.spacing": (2.0, 0.5, 0.5),
    "augmentation.noise": 0.5,
    "augmentation.shift": 0.25,
    "training.optimiser": "sgd",
    "training.rare_class_fraction": 0.5,
    "training.consistency_weight": 3.0,
    "training.accumulate": 2,
    "training.steps": 50,
    "training.seed": 5,
    "inference.overlap": 0.25,
}


@pytest.mark.parametrize("preset", PRESETS)
def test_words_name_every_setting_that_was_changed_and_the_main_ones_always(preset):
    scan = scan_of((10, 200, 200), spacing=(8.0, 1.4, 1.4))
    found = fingerprint([scan])
    for wishes in ({}, *({key: value} for key, value in _OTHER_VALUES.items()), _OTHER_VALUES):
        # A teacher is an average.
        planned = plan_for(found, 2, preset, overrides={"training.ema_decay": 0.9, **wishes})
        text = " ".join(in_words(planned, found))
        main = {"network.dimensions", "preparation.spacing", "network.strides", "training.patch_size"}
        main |= {"training.batch_size", "preparation.normalisation", "augmentation.mirror", "training.budget_seconds"}
        assert {key for key in main | wishes.keys() if key not in text} == set()
        # What stands in brackets is a setting.
        named = re.findall(r"\b(?:network|preparation|augmentation|training|inference)\.\w+", text)
        assert set(named) <= set(ModelSettings.keys())


def test_words_give_the_reason_and_the_figures():
    thick = fingerprint([scan_of((40, 200, 200), spacing=(8.0, 1.4, 1.4))])
    text = "\n".join(in_words(plan_for(thick, 2, "thorough"), thick))
    assert "slice by slice (2D), since the slices lie 8 mm apart and the pixels 1.4 mm (network.dimensions)" in text
    few = fingerprint([scan_of((5, 200, 200))])
    assert "5 slices are too few" in "\n".join(in_words(plan_for(few, 2, "thorough"), few))
    even = fingerprint([scan_of((40, 64, 64), spacing=(1.0, 1.0, 1.0))])
    blocks = plan_for(even, 2, "thorough", device="cuda")
    assert "(3D), since the slices lie 1 mm apart" in "\n".join(in_words(blocks, even))
    quick = in_words(plan_for(even, 2), even)
    assert any("32 x 32 pixels" in line or "64 x 64 pixels (64 x 64 mm)" in line for line in quick)
    assert quick[-1].startswith("Training stops after 60 seconds")
    assert all(re.fullmatch(r"[A-Z0-9].*\.", line) for line in quick)


def test_words_say_why_scans_that_suit_3d_are_learnt_in_2d():
    even = fingerprint([scan_of((40, 64, 64), spacing=(1.0, 1.0, 1.0))])

    def said(preset, **more):
        return next(line for line in in_words(plan_for(even, 2, preset, **more), even) if "network.dimensions" in line)

    sooner = "slice by slice (2D), which learns sooner; the scans would do for whole blocks (3D) as well"
    assert f"{sooner}, but without a GPU those pay only with hours of training, 4 or more (" in said("thorough")
    assert f"{sooner} (network.dimensions)." in said("default")
    # With hours at hand it was wished.
    long = said("thorough", overrides={"network.dimensions": 2}, budget_seconds=SECONDS_FOR_3D_ON_A_CPU)
    assert f"{sooner} (network.dimensions)." in long


@needs_real_data
def test_real_hippocampi_are_learnt_as_whole_volumes():
    from napari_unet.io.registry import read_scan

    files = sorted((REAL_DATA / "hippocampus_mr" / "images").iterdir())[:3]
    planned = plan([read_scan(file) for file in files], 2, "thorough", device="cuda")
    check_sizes(planned)
    assert planned.network.dimensions == 3
    assert planned.preparation.spacing is None
    assert all(24 <= size <= 64 for size in planned.training.patch_size)


BODY = ModelSettings().with_values({"network.base_channels": 6, "network.strides": ((2, 2),) * 3})


@given(drawn=scans(), n_classes=st.integers(1, 3), labelled=st.booleans())
@settings(max_examples=15, deadline=None)
@example(drawn=[scan_of((200, 512))], n_classes=1, labelled=True)
@example(drawn=[scan_of((20, 400, 60), spacing=(1.0, 1.0, 0.4))], n_classes=1, labelled=True)
def test_a_plan_upon_a_body_keeps_its_shape_and_is_no_deeper(drawn, n_classes, labelled):
    # As wide as can be, so that pixels are seen coarser and elongated planes ask for strides of their own.
    wide = [np.full(scan.spatial_shape, int(labelled), np.uint8) for scan in drawn]
    planned = plan_upon(BODY, fingerprint(drawn, wide if labelled else None), n_classes)
    check_sizes(planned)
    assert shape_of(planned) == shape_of(BODY)
    assert planned.network.out_channels == n_classes + 1
    assert len(planned.network.strides) <= 3
    assert fits(BODY, planned)


@pytest.mark.parametrize(
    "wish", [{"network.base_channels": 12}, {"network.strides": ((2, 2),) * 4}, {"network.dimensions": 3}]
)
def test_a_wish_goes_before_the_body(wish):
    found = fingerprint([scan_of((20, 64, 64))])
    planned = plan_upon(BODY, found, 1, overrides=wish)
    ((key, value),) = wish.items()
    assert getattr(planned.network, key.removeprefix("network.")) == value
    assert not fits(BODY, planned)
