"""A new model is offered with evidence: a spoiled one is refused, a better one offered, and nothing is ever lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.errors import SessionError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.evaluation.effort import pooled_dice
from napari_unet.training.fine_tune import fine_tune
from tests.training.lessons import CPU, SCHEMA, lesson, run, small_settings

SECONDS = 120
SHAPE = (10, 24, 24)
JUDGES = [8, 9]


@pytest.fixture(scope="module")
def weak():
    """A checkpoint that has hardly learnt anything."""
    return run(fine_tune([lesson((6, 24, 24))], small_settings(steps=3), SCHEMA, CPU, name="v0"))[1].checkpoint


def reviewed(session, seed=5, spoil=False):
    """A scan whose last fifth, which is going to judge, is right, whatever the rest is."""
    one = lesson(SHAPE, seed=seed)
    labels = one.labels.copy()
    if spoil:
        labels[: JUDGES[0]] = 1 - labels[: JUDGES[0]]
    state = session.add_scan(one.scan)
    session.record_edit(state, labels, slice(None))
    session.accept_slices(state)
    return state


def tuned(session, steps):
    session.learning.begin(steps=steps)
    session.wait(SECONDS)
    assert session.learning.verdict is not None, session.heard.notices
    return session.learning.verdict


def proposal_on(session, scan):
    """What the model in use proposes on a scan on which nothing is accepted or painted."""
    state = session.add_scan(scan)
    session.proposals.begin()
    session.wait(SECONDS)
    labels = state.annotation.labels.copy()
    session.remove_scan(state)
    return labels


def test_a_model_spoiled_by_wrong_labels_is_refused_with_the_reason(computing, trained):
    computing.models.use(trained)
    state = reviewed(computing, spoil=True)
    verdict = tuned(computing, 60)
    assert np.flatnonzero(state.locked).tolist() == JUDGES
    assert verdict.judgement == "worse"
    assert verdict.recommended is False
    assert "worse" in verdict.sentence
    assert "scan 1 (" in verdict.sentence
    (row,) = verdict.rows
    assert (row.name, row.slices, row.is_worse) == ("scan 1", 2, True)
    assert row.before > 0.9 > 0.5 > row.after
    assert computing.models.in_use is trained


def test_a_better_one_is_offered(computing, weak):
    computing.models.use(weak)
    reviewed(computing)
    verdict = tuned(computing, 60)
    assert verdict.judgement == "better"
    assert verdict.recommended is True
    assert "v1 is better: it gained on 1 of 1 held-out case" in verdict.sentence
    assert verdict.dice_after > 0.8


def test_going_back_restores_proposals_to_the_bit(computing, trained):
    computing.project.write_model(trained)
    computing.models.use_kept("v1")
    unseen = lesson(SHAPE, seed=31)
    before = proposal_on(computing, unseen.scan)
    assert pooled_dice([before], [unseen.labels], 1) > 0.9
    reviewed(computing, spoil=True)
    tuned(computing, 60)
    computing.learning.use_new()
    assert computing.models.in_use.card.name == "v2"
    assert (proposal_on(computing, unseen.scan) != before).any()
    computing.models.use_kept("v1")
    assert computing.models.in_use.id == trained.id
    np.testing.assert_array_equal(proposal_on(computing, unseen.scan), before)


def two_structures(seed):
    """The bright square of the lessons, and a dark one of another class."""
    one = lesson(SHAPE, seed=seed)
    labels, data = one.labels.copy(), one.scan.data.copy()
    free = np.s_[:, 15:21, 1:7]
    labels[free] = np.where(labels[free] > 0, labels[free], 2)
    data[labels == 2] -= 100
    return Scan(data, "zyx", one.scan.geometry, 0), labels


def test_a_model_of_another_window_is_not_overwritten(computing, trained):
    kept = computing.project.write_model(trained)
    other = computing.project.write_model(trained)
    assert (kept.card.name, other.card.name) == ("v1", "v2")
    assert computing.models.kept() == ["v1", "v2"]


def test_models_of_other_classes_are_no_measure(computing, trained):
    card = trained.card.model_copy(update={"scores": {"a": 0.9}})
    computing.project.write_model(Checkpoint(trained.weights, card))
    assert computing.project.scores(card.label_schema) == {"v1": {"a": 0.9}}
    assert computing.project.scores(LabelSchema.of("square", "dark")) == {}


class TestAClassMore:
    def test_the_model_goes_on_with_what_it_knows_and_the_next_one_learns_the_rest(self, computing, trained):
        computing.project.write_model(trained)
        computing.models.use_kept("v1")
        known = computing.schema.classes[0]
        more = LabelSchema.of("square", "dark")
        assert more.classes[0] == known
        unseen = lesson(SHAPE, seed=40).scan
        before = proposal_on(computing, unseen)
        computing.set_schema(more)
        np.testing.assert_array_equal(proposal_on(computing, unseen), before)
        scan, labels = two_structures(41)
        state = computing.add_scan(scan)
        computing.record_edit(state, labels, slice(None))
        computing.accept_slices(state)
        verdict = tuned(computing, 80)
        card = verdict.checkpoint.card
        assert card.label_schema == more
        assert card.settings.network.out_channels == 3
        assert card.parent == trained.id
        ((_, old), (nothing, new)) = verdict.cases[0].classes
        assert nothing == 0
        assert min(old, new) > 0.7
        computing.learning.use_new()
        unseen, truth = two_structures(43)
        assert pooled_dice([proposal_on(computing, unseen)], [truth], 2) > 0.7
        computing.models.use_kept("v1")  # and back, without losing the class
        assert computing.schema == more

    def test_what_the_model_knows_can_neither_go_nor_change_places(self, computing, trained):
        computing.models.use(trained)
        two = LabelSchema.of("square", "b")
        computing.set_schema(two)
        for classes in (two.classes[1:], two.classes[::-1]):
            with pytest.raises(SessionError, match="other classes"):
                computing.set_schema(LabelSchema(classes=classes))
        computing.set_schema(trained.card.label_schema)  # what it does not know yet can
        assert computing.schema == trained.card.label_schema

    def test_a_class_with_a_side_ends_mirroring(self, open_session, trained):
        session = open_session(schema=SCHEMA)
        both = trained.card.settings.with_values({"augmentation.mirror": (0, 1)})
        session.models.use(replace(trained, card=trained.card.model_copy(update={"settings": both})))
        state = session.add_scan(lesson(SHAPE, seed=44).scan)
        labels = np.zeros(SHAPE, np.uint8)
        labels[:, 8:16, 8:16] = 1
        session.record_edit(state, labels, slice(None))
        session.accept_slices(state)
        assert session.planning.settings().augmentation.mirror == (0, 1)
        session.set_schema(LabelSchema.of("square", "left one"))
        labels[:, 10:14, :5] = 2
        session.record_edit(state, labels, slice(None))
        settings = session.planning.settings()
        assert settings.network.out_channels == 3
        assert settings.augmentation.mirror == (0,)
