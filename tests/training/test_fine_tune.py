"""Learning from corrections: only what is reviewed teaches, only what is locked judges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.errors import ModelError, SettingsError, TrainingError
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.labels import LabelClass, LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.evaluation.effort import pooled_dice
from napari_unet.inference.predict import predict
from napari_unet.inference.slabs import plan_slabs
from napari_unet.networks.factory import build, load_weights
from napari_unet.patches.prepare import prepare
from napari_unet.patches.sampling import PatchSampler
from napari_unet.patches.spacing import zoom_of
from napari_unet.training.examples import prepare_lesson, to_label_values, to_network_classes
from napari_unet.training.fine_tune import fine_tune
from napari_unet.training.lesson import Lesson
from tests.training.lessons import CPU, SCHEMA, lesson, run, small_settings


def tuned(lessons, settings=None, schema=SCHEMA, **more):
    lessons = lessons if isinstance(lessons, list) else [lessons]
    return run(fine_tune(lessons, settings or small_settings(), schema, CPU, **more))[1]


def same_weights(one, two):
    return all(np.array_equal(one.checkpoint.weights[n], two.checkpoint.weights[n]) for n in one.checkpoint.weights)


def proposed(checkpoint, scan):
    """Label planes that a checkpoint proposes."""
    settings = checkpoint.card.settings
    network = build(settings.network)
    load_weights(network, checkpoint.weights)
    image = prepare(scan, settings.preparation)
    results = predict(network, image, settings, CPU, plan_slabs(image.shape[1:], settings), zoom_of(scan, settings))
    return to_label_values(np.concatenate([r.classes for r in results]), checkpoint.card.label_schema)


@pytest.mark.parametrize(("dimensions", "steps"), [(2, 160), (3, 120)])
def test_a_bright_square_is_learnt_in_a_few_steps(dimensions, steps):
    """And found in a scan that was never seen."""
    shape = (8, 24, 24)
    outcome = tuned([lesson(shape, seed=s) for s in range(2)], small_settings(dimensions, steps))
    unseen = lesson(shape, seed=7)
    assert pooled_dice([proposed(outcome.checkpoint, unseen.scan)], [unseen.labels], 1) > 0.95


def test_a_picture_is_learnt_from_too():
    pictures = [lesson((24, 24), seed=s) for s in range(3)]
    outcome = tuned(pictures, small_settings(steps=60, patch_size=(24, 24)))
    assert (
        pooled_dice([proposed(outcome.checkpoint, p.scan)[0] for p in pictures], [p.labels for p in pictures], 1) > 0.95
    )


ARCHITECTURES = {
    "classic": {"norm": "batch", "activation": "relu", "upsampling": "transposed", "activation_first": True},
    "plain": {},
    "residual": {"encoder": "residual"},
    "attention": {"attention_gates": True},
    "deep supervision": {"deep_supervision": True},
    "transunet": {"bottleneck": "transformer", "transformer_layers": 2},
    "sigmoid": {"head": "sigmoid"},
    "pretrained": {"encoder": "pretrained", "backbone": "resnet10"},
}


# One of each kind at once; all of them take minutes.
AT_ONCE = {("classic", 2), ("plain", 2), ("deep supervision", 2), ("residual", 3)}
BY_HEART = [
    pytest.param(name, dimensions, marks=[] if (name, dimensions) in AT_ONCE else pytest.mark.slow)
    for name in ARCHITECTURES
    for dimensions in (2, 3)
]


@pytest.mark.parametrize(("name", "dimensions"), BY_HEART)
def test_every_architecture_learns_one_scan_by_heart(name, dimensions):
    if name == "pretrained":
        pytest.importorskip("monai")
    one = lesson((4, 24, 24))
    settings = small_settings(dimensions, steps=1000, learning_rate=5e-3, weight_decay=0, ema_decay=0.8)
    strides = ((2,) * dimensions,) * 2 if name == "pretrained" else settings.network.strides
    still = {f"augmentation.{key}": 0 for key in ("probability", "brightness", "contrast", "gamma", "noise")}
    settings = settings.with_values(
        {f"network.{key}": value for key, value in {**ARCHITECTURES[name], "strides": strides}.items()}
    ).with_values({**still, "training.batch_size": 4, "training.patch_size": (4, 24, 24)[-dimensions:]})
    best = 0.0
    for steps in (40, 80, 240):
        outcome = tuned(one, settings.with_values({"training.steps": steps}))
        best = pooled_dice([proposed(outcome.checkpoint, one.scan)], [one.labels], 1)
        if best > 0.98:
            break
    assert best > 0.98


def test_the_card_tells_who_taught_from_who_only_judged():
    teaching, judging = lesson((6, 24, 24), seed=1), lesson((6, 24, 24), seed=2)
    judging = replace(judging, locked=np.ones(6, bool))
    card = run(fine_tune([teaching, judging], small_settings(steps=1), SCHEMA, CPU))[1].checkpoint.card
    assert card.seen == (teaching.scan.fingerprint,)
    assert card.looked_at == (judging.scan.fingerprint,)


class TestSpacing:
    """Scans of different spacing, seen at one: masks must come back to where the voxels are."""

    def ellipse(self, spacing, seed=0, extent=48.0):
        """An object of fixed size in millimetres, on a grid of its own."""
        shape = (4, round(extent / spacing[1]), round(extent / spacing[2]))
        rng = np.random.default_rng(seed)
        centre = extent / 2 + rng.uniform(-8, 8, 2)
        y, x = ((np.arange(n) + 0.5) * s for n, s in zip(shape[1:], spacing[1:], strict=True))
        inside = ((y[:, None] - centre[0]) / 12) ** 2 + ((x[None] - centre[1]) / 7) ** 2 < 1
        truth = np.broadcast_to(inside, shape).astype(np.uint8)
        data = rng.normal(0, 5, shape).astype(np.float32) + 100 * truth
        return Lesson(Scan(data, "zyx", Geometry(spacing), 0), truth.copy())

    def settings(self, spacing, dimensions=2):
        patch = (4, 32, 32)[-dimensions:]
        return small_settings(dimensions, steps=60, patch_size=patch).with_values({"preparation.spacing": spacing})

    @pytest.mark.parametrize("dimensions", [2, 3])
    def test_masks_lie_where_the_object_does_on_every_grid(self, dimensions):
        taught = [self.ellipse((5.0, 1.5, 1.5), seed=s) for s in range(2)] + [self.ellipse((5.0, 3.0, 1.0), seed=2)]
        outcome = tuned(taught, self.settings((5.0, 1.5, 1.5), dimensions))
        for spacing in ((5.0, 1.5, 1.5), (5.0, 0.7, 2.2), (5.0, 3.1, 3.1), (2.4, 1.0, 1.0)):
            unseen = self.ellipse(spacing, seed=5)
            found = proposed(outcome.checkpoint, unseen.scan)
            assert found.shape == unseen.labels.shape
            assert pooled_dice([found], [unseen.labels], 1) > 0.9
            for axis in (1, 2):
                centres = [np.nonzero(mask)[axis].mean() * spacing[axis] for mask in (found, unseen.labels)]
                assert centres[0] == pytest.approx(centres[1], abs=0.6)

    @pytest.mark.parametrize(("dimensions", "spacing"), [(3, (3.0, 1.0, 1.0)), (2, (1.0, 4.0, 4.0))])
    def test_one_reviewed_stroke_is_found_whatever_the_spacing(self, dimensions, spacing):
        """The network's voxels are larger than the scan's: those it reads must be among the reviewed ones."""
        one = lesson((20, 24, 24))
        reviewed = np.zeros(one.labels.shape, bool)
        reviewed[7, 5:8, 6:8] = True
        example = prepare_lesson(replace(one, reviewed=reviewed), self.settings(spacing, dimensions), SCHEMA)
        still = small_settings().with_values({"augmentation.probability": 0})
        patch = (8, 16, 16)[-dimensions:]
        sampler = PatchSampler([example], patch, still.training, still.augmentation, 0)
        assert all(sampler.draw().reviewed.flatten(1).any(1).all() for _ in range(20))

    def test_a_spacing_that_no_memory_can_hold_is_refused(self):
        with pytest.raises(SettingsError, match="factor of 16"):
            tuned(self.ellipse((5.0, 1.5, 1.5)), self.settings((5.0, 0.001, 0.001)))

    def test_a_scan_without_spacing_is_seen_as_it_is(self):
        scan = self.ellipse((5.0, 1.5, 1.5)).scan
        unknown = replace(scan, geometry=Geometry(None))
        assert zoom_of(unknown, self.settings((5.0, 3.0, 3.0))) == (1, 1, 1)
        assert zoom_of(scan, self.settings((9.0, 3.0, 1.5))) == (1, 2, 1)
        assert zoom_of(scan, self.settings((10.0, 3.0, 1.53), 3)) == (2, 2, 1)


def test_unlabelled_scans_teach_through_the_mean_teacher_only():
    scans = [lesson(seed=s).scan for s in (5, 6)]
    with pytest.raises(TrainingError, match="consistency_weight"):
        tuned(lesson(), unlabelled=scans)
    settings = small_settings(steps=4, consistency_weight=1)
    with_them, without = tuned(lesson(), settings, unlabelled=scans), tuned(lesson(), settings)
    assert not same_weights(with_them, without)
    hashes = tuple(scan.fingerprint for scan in scans)
    assert with_them.checkpoint.card.seen == without.checkpoint.card.seen
    assert with_them.checkpoint.card.looked_at == hashes


def test_the_classic_schedule_listens_to_the_locked_slices():
    settings = small_settings(steps=6, schedule="plateau", validation_interval=2)
    events, _ = run(fine_tune([lesson(), lesson(seed=1, locked=np.ones(4, bool))], settings, SCHEMA, CPU))
    assert [e.validation_loss is not None for e in events] == [False, True] * 3
    events, _ = run(fine_tune([lesson()], settings, SCHEMA, CPU))
    assert events[1].validation_loss == events[1].loss


class TestWhatTeaches:
    @pytest.mark.parametrize("slice_axis", [0, 1, 2])
    def test_unreviewed_voxels_and_locked_slices_never_do(self, slice_axis):
        shape = (6, 24, 24)
        plain = lesson(shape, slice_axis)
        planes = (slice(None),) * slice_axis
        reviewed = np.zeros(plain.labels.shape, bool)
        reviewed[(*planes, slice(0, 3))] = True
        reviewed[(*planes, 4)] = np.random.default_rng(0).random((24, 24)) < 0.3
        locked = np.arange(6) == 2
        teaching = reviewed.copy()
        teaching[(*planes, 2)] = False
        poison = plain.labels.copy()
        poison[~teaching] = 1 - poison[~teaching]
        poison[(*planes, 5)] = 9  # not even a class
        good = tuned(replace(plain, reviewed=reviewed, locked=locked))
        bad = tuned(replace(plain, labels=poison, reviewed=reviewed, locked=locked))
        assert same_weights(good, bad)
        taught = poison.copy()
        taught[teaching] = 1 - taught[teaching]
        assert not same_weights(good, tuned(replace(plain, labels=taught, reviewed=reviewed, locked=locked)))

    @pytest.mark.parametrize("slice_axis", [1, 2])
    def test_the_slice_axis_is_only_a_matter_of_looking(self, slice_axis):
        upright, turned = lesson((5, 24, 24), 0), lesson((5, 24, 24), slice_axis)
        accepted = np.arange(5) < 2
        parts = []
        for one, axis in ((upright, 0), (turned, slice_axis)):
            reviewed = np.zeros(one.labels.shape, bool)
            np.moveaxis(reviewed, axis, 0)[accepted] = True
            parts.append(tuned(replace(one, reviewed=reviewed)))
        assert same_weights(*parts)

    def test_a_locked_scan_teaches_nothing_at_all(self):
        scan, judge = lesson(seed=0), lesson(seed=1)
        locked = replace(judge, locked=np.ones(4, bool))
        assert same_weights(tuned([scan, locked]), tuned([scan]))

    def test_the_lessons_are_left_as_they_were(self):
        one = lesson(reviewed=np.ones((4, 24, 24), bool), locked=np.arange(4) == 1)
        before = one.labels.copy(), one.reviewed.copy(), one.locked.copy(), one.scan.data.copy()
        tuned(one)
        for array, copy in zip((one.labels, one.reviewed, one.locked, one.scan.data), before, strict=True):
            np.testing.assert_array_equal(array, copy)

    def test_background_alone_can_be_learnt(self):
        empty = lesson()
        empty.labels[...] = 0
        outcome = tuned(empty, small_settings(steps=5))
        assert all(np.isfinite(w).all() for w in outcome.checkpoint.weights.values())

    def test_without_anything_reviewed_it_says_what_to_do(self):
        nothing = np.zeros((4, 24, 24), bool)
        for one in (lesson(reviewed=nothing), lesson(locked=np.ones(4, bool))):
            with pytest.raises(TrainingError, match="accept one"):
                tuned(one)

    def test_a_label_without_a_class_is_not_taken_for_background(self):
        odd = lesson()
        odd.labels[0, 0, :2] = 3, 7
        with pytest.raises(TrainingError, match="3, 7"):
            tuned(odd)

    @pytest.mark.parametrize("n", [3, 9])
    def test_a_network_for_another_number_of_classes_is_refused(self, n):
        with pytest.raises(TrainingError, match=r"out_channels"):
            tuned(lesson(), small_settings().with_values({"network.out_channels": n}))

    def test_scans_of_another_kind_are_refused(self):
        colour = Scan(np.zeros((24, 24, 2), np.uint8), "yxc", lesson().scan.geometry)
        with pytest.raises(TrainingError, match="channels"):
            tuned([lesson(), Lesson(colour, np.zeros((24, 24), np.uint8))])

    @pytest.mark.parametrize("patch", [(4, 4), (18, 16)])
    def test_a_patch_that_does_not_fit_the_network_is_refused(self, patch):
        with pytest.raises(TrainingError, match="multiples of"):
            tuned(lesson(), small_settings(patch_size=patch))


class TestWhatJudges:
    def test_the_verdict_is_the_dice_on_locked_slices_before_and_after(self):
        first = tuned(lesson(), small_settings(steps=15))
        assert first.verdicts == ()
        locked = np.arange(4) >= 2
        one = lesson(seed=3, locked=locked)
        second = tuned(one, small_settings(steps=15), base=first.checkpoint)
        (verdict,) = second.verdicts
        truth = one.labels[locked]
        assert verdict.case == one.scan.fingerprint
        assert verdict.before == pytest.approx(pooled_dice([proposed(first.checkpoint, one.scan)[locked]], [truth], 1))
        assert verdict.after == pytest.approx(pooled_dice([proposed(second.checkpoint, one.scan)[locked]], [truth], 1))
        assert second.checkpoint.card.scores == {verdict.case: verdict.after}

    def test_a_first_model_has_nothing_before_it(self):
        (verdict,) = tuned(lesson(locked=np.arange(4) == 3)).verdicts
        assert verdict.before is None
        assert 0 <= verdict.after <= 1

    def test_an_empty_truth_scores_nothing(self):
        empty = lesson(seed=1, locked=np.ones(4, bool))
        empty.labels[...] = 0
        (verdict,) = tuned([lesson(), empty]).verdicts
        assert verdict.after is None

    def test_a_locked_slice_that_was_reopened_judges_no_more(self):
        """Its labels may be the old model's own proposal."""
        reviewed = np.ones((4, 24, 24), bool)
        reviewed[2] = False
        reviewed[2, :5] = True  # a stroke is not the slice
        assert tuned(lesson(reviewed=reviewed, locked=np.arange(4) == 2)).verdicts == ()


class TestTheCard:
    def test_it_says_where_the_model_comes_from_and_what_it_has_seen(self):
        one, two = lesson(seed=0), lesson(seed=1)
        one = replace(one, scan=replace(one.scan, modality="MR"))
        first = tuned(one, small_settings(steps=3), name="v1").checkpoint
        second = tuned(two, small_settings(steps=2), name="v2", base=first).checkpoint
        assert (first.card.parent, second.card.parent) == (None, first.id)
        assert (first.card.steps, second.card.steps) == (3, 5)
        assert (first.card.name, second.card.name) == ("v1", "v2")
        assert first.card.seen == (one.scan.fingerprint,)
        assert second.card.seen == (one.scan.fingerprint, two.scan.fingerprint)
        assert first.card.modality == "MR"
        assert first.card.label_schema == SCHEMA
        assert first.id != second.id

    def test_an_encoder_from_elsewhere_is_remembered_by_name_and_not_needed_again(self, tmp_path):
        pytest.importorskip("monai")
        file = tmp_path / "Jane Doe" / "resnet.pth"
        settings = small_settings(steps=1).with_values(
            {
                "network.encoder": "pretrained",
                "network.backbone": "resnet10",
                "network.backbone_weights": str(file),
            }
        )
        with pytest.raises(ModelError, match=r"resnet\.pth"):
            tuned(lesson(), settings)
        file.parent.mkdir()
        encoder = build(settings.network, seed=3).encoder[1:].state_dict()
        torch.save({name.split(".", 1)[1]: tensor for name, tensor in encoder.items()}, file)
        first = tuned(lesson(), settings).checkpoint
        assert first.card.settings.network.backbone_weights == "resnet.pth"
        assert "Jane" not in first.card.model_dump_json()
        file.unlink()
        tuned(lesson(), first.card.settings, base=first)

    def test_the_base_is_never_changed(self):
        base = tuned(lesson()).checkpoint
        before = Checkpoint({name: array.copy() for name, array in base.weights.items()}, base.card).id
        after = tuned(lesson(seed=1), base=base).checkpoint
        assert Checkpoint(base.weights, base.card).id == before != after.id

    def test_a_base_of_another_network_is_refused(self):
        base = tuned(lesson()).checkpoint
        with pytest.raises(ModelError, match="do not fit"):
            tuned(lesson(), small_settings(dimensions=3), base=base)

    def test_equal_seeds_and_steps_make_equal_checkpoints(self):
        assert tuned(lesson()).checkpoint.id == tuned(lesson()).checkpoint.id
        assert tuned(lesson()).checkpoint.id != tuned(lesson(), small_settings(seed=1)).checkpoint.id


@pytest.mark.parametrize("ids", [(1,), (3, 1), (255, 2, 7), (300, 1), (65535,)])
def test_labels_become_network_classes_in_the_schemas_order_and_come_back(ids):
    schema = LabelSchema(classes=tuple(LabelClass(id=i, name=str(i), colour=(1, 0, 0)) for i in ids))
    labels = np.array([[0, *ids], [ids[-1], *ids]], np.uint16)
    classes = to_network_classes(labels, schema)
    assert classes.tolist()[0] == list(range(len(ids) + 1))
    values = to_label_values(classes, schema)
    np.testing.assert_array_equal(values, labels)
    assert values.dtype == (np.uint8 if max(ids) < 256 else np.uint16)
