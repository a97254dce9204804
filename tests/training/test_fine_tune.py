"""Learning from corrections: only what is reviewed teaches, only what is locked judges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.errors import ModelError, TrainingError
from napari_unet.domain.labels import LabelClass, LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.evaluation.effort import pooled_dice
from napari_unet.inference.predict import predict
from napari_unet.inference.slabs import plan_slabs
from napari_unet.networks.factory import build, load_weights
from napari_unet.patches.prepare import prepare
from napari_unet.training.fine_tune import fine_tune, to_label_values, to_network_classes
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
    results = predict(network, image, settings, CPU, plan_slabs(image.shape[1:], settings))
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
