"""The application without a window, with the real computing process behind it."""

from __future__ import annotations

import time

import nibabel as nib
import numpy as np
import pytest

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.errors import ModelError, SessionError
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.labels import LabelClass, LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.evaluation.effort import pooled_dice
from napari_unet.session.exporting import export_mask
from napari_unet.session.predicting import predict_scan
from napari_unet.session.session import Session
from napari_unet.storage.verify import verify
from tests.session.conftest import Borrowed, assert_same_state, painted, renumbered, snapshot
from tests.training.lessons import SCHEMA, lesson

SECONDS = 120


def poll_until(session, condition, seconds=SECONDS):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        session.poll()
        time.sleep(0.005)


def open_lesson(session, shape=(6, 24, 24), slice_axis=0, seed=5):
    one = lesson(shape, slice_axis, seed)
    return session.add_scan(one.scan), one.labels


def propose(session):
    session.proposals.begin()
    session.wait(SECONDS)


class TestTheJourney:
    def test_paint_accept_fine_tune_use_propose_correct_undo_export(self, open_session, engine, tmp_path):
        session = open_session(engine=Borrowed(engine))
        state, truth = open_lesson(session, (8, 24, 24))
        with pytest.raises(SessionError, match="no model yet"):
            session.proposals.begin()
        session.record_edit(state, np.where(np.arange(8)[:, None, None] < 6, truth, 0).astype(np.uint8), slice(None))
        session.accept_slices(state, range(6))

        session.learning.begin(steps=20)
        assert not session.learning.run.is_over
        session.wait(SECONDS)
        assert session.heard.notices == []
        assert session.learning.run.is_over
        assert len(session.learning.run.losses) == 20
        assert session.learning.run.last.fraction == 1
        assert np.flatnonzero(state.locked).tolist() == [5]
        verdict = session.learning.verdict
        assert [case.case for case in verdict.cases] == [state.scan.fingerprint]
        assert verdict.dice_before is None
        assert verdict.dice_after is not None
        assert "v1" in verdict.sentence
        assert session.models.kept() == ["v1"]
        assert session.models.in_use is None  # nothing is used before the person says so
        events = session.heard.take()
        assert events.index("learning.changed") < len(events) - events[::-1].index("learning.changed")
        assert events[-1] == "learning.verdict_changed"

        session.learning.use_new()
        assert session.models.in_use.card.name == "v1"
        assert session.learning.verdict is None
        assert session.heard.take() == ["models.changed", "learning.verdict_changed"]

        state.annotation.painted[7, 0, 0] = True  # a voxel that the person left as it is
        before = snapshot(state)
        session.show_slice(7)
        propose(session)
        assert state.proposed_by == session.models.in_use.id
        np.testing.assert_array_equal(state.annotation.labels[:6], truth[:6])
        assert state.annotation.labels[7, 0, 0] == 0
        assert session.proposals.run.progress.fraction == 1
        changes = [c for c in session.heard.changes if c.correction.kind == "proposal"]
        assert {c.origin for c in changes} == {"session"}
        if changes:
            assert {c.correction.proposal for c in changes} == {session.models.in_use.id}
            session.undo(state)
            assert_same_state(snapshot(state), before)
            session.redo(state)

        session.learning.begin(steps=2)
        session.wait(SECONDS)
        assert session.learning.verdict.checkpoint.card.name == "v2"
        assert session.learning.verdict.checkpoint.card.parent == session.models.in_use.id
        assert session.learning.verdict.dice_before == pytest.approx(verdict.dice_after)
        session.learning.keep_old()
        assert (session.learning.verdict, session.models.in_use.card.name) == (None, "v1")
        session.models.use_kept("v2")  # it was kept all the same
        assert session.models.in_use.card.name == "v2"

        export_mask(session, state, tmp_path / "mask.nii.gz")
        exported = np.asanyarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
        assert np.count_nonzero(exported) == np.count_nonzero(state.annotation.labels)

    def test_tomorrow_the_model_and_the_judges_are_there_again(self, open_session, engine, trained):
        first = open_session(engine=Borrowed(engine), schema=SCHEMA)
        state, truth = open_lesson(first)
        first.record_edit(state, truth, slice(None))
        first.accept_slices(state)
        first.models.use(trained)
        first.learning.begin(steps=1)
        first.wait(SECONDS)
        first.close()
        second = open_session(engine=Borrowed(engine), schema=SCHEMA)
        assert second.models.kept() == ["v1"]
        second.models.use_kept("v1")
        again, _ = open_lesson(second)
        np.testing.assert_array_equal(again.locked, state.locked)
        assert again.locked.sum() == 1
        np.testing.assert_array_equal(again.taught, ~state.locked)


class TestProposing:
    @pytest.mark.parametrize(
        ("shape", "slice_axis"),
        [((6, 24, 24), 0), ((6, 24, 24), 1), ((6, 24, 24), 2), ((1, 24, 24), 0), ((24, 24), None)],
    )
    def test_it_finds_what_the_model_knows_whichever_way_the_slices_lie(self, computing, trained, shape, slice_axis):
        computing.models.use(trained)
        state, truth = open_lesson(computing, shape, slice_axis)
        computing.show_slice(3)
        propose(computing)
        assert computing.heard.notices == []
        assert pooled_dice([state.annotation.labels], [truth], 1) > 0.9
        expected = predict_scan(trained, state.scan, computing._worker.compute, True)
        assert np.mean(state.annotation.labels == expected) > 0.999

    def test_strokes_and_acceptance_while_it_runs_are_kept(self, computing, trained):
        computing.models.use(trained)
        state, truth = open_lesson(computing)
        computing.proposals.begin()
        computing.record_edit(state, painted(state, np.s_[2], 1), slice(None))
        computing.accept_slices(state, [4])
        computing.wait(SECONDS)
        assert (state.annotation.labels[2] == 1).all()
        assert not state.annotation.labels[4].any()
        assert pooled_dice([state.annotation.labels[[0, 1, 3, 5]]], [truth[[0, 1, 3, 5]]], 1) > 0.9

    def test_undo_takes_a_proposal_back_whole_and_redo_brings_it_again(self, computing, trained):
        computing.models.use(trained)
        state, _ = open_lesson(computing)
        computing.record_edit(state, painted(state, np.s_[2, :4], 1), slice(None))
        before = snapshot(state)
        propose(computing)
        after = snapshot(state)
        assert computing.undo(state)
        assert_same_state(snapshot(state), before)
        assert computing.redo(state)
        assert_same_state(snapshot(state), after)

    def test_undo_before_anything_has_arrived_does_not_orphan_the_proposal(self, computing, trained):
        computing.models.use(trained)
        state, truth = open_lesson(computing)
        computing.record_edit(state, painted(state, np.s_[2, :4], 1), slice(None))
        computing.proposals.begin()
        assert computing.undo(state)  # the stroke: it is all that can be seen
        assert not state.annotation.labels.any()
        computing.wait(SECONDS)
        assert pooled_dice([state.annotation.labels], [truth], 1) > 0.9
        assert computing.undo(state)
        assert not state.annotation.labels.any()
        assert not computing.undo(state)

    def test_undo_halfway_stops_it(self, computing, trained):
        computing.models.use(trained)
        state, _ = open_lesson(computing, (40, 24, 24))
        computing.proposals.begin()
        poll_until(computing, lambda: state.annotation.labels.any())
        assert not computing.proposals.run.is_over
        assert computing.undo(state)
        assert computing.proposals.run.is_over
        self.assert_nothing_more_arrives(computing, state)
        assert not state.annotation.labels.any()

    def test_cancel_keeps_what_has_arrived_and_nothing_more_comes(self, computing, trained):
        computing.models.use(trained)
        state, _ = open_lesson(computing, (40, 24, 24))
        computing.proposals.begin()
        poll_until(computing, lambda: state.annotation.labels.any())
        computing.proposals.cancel()
        assert computing.proposals.run.is_over
        assert computing.proposals.run.progress.fraction < 1
        assert state.annotation.labels.any()
        self.assert_nothing_more_arrives(computing, state)
        computing.undo(state)
        assert not state.annotation.labels.any()

    def test_cancel_at_once_changes_nothing(self, computing, trained):
        computing.models.use(trained)
        state, _ = open_lesson(computing)
        computing.proposals.begin()
        computing.proposals.cancel()
        self.assert_nothing_more_arrives(computing, state)
        assert not state.annotation.labels.any()
        assert not computing.undo(state)

    @staticmethod
    def assert_nothing_more_arrives(session, state):
        before = snapshot(state)
        session.heard.take()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            session.poll()
            time.sleep(0.01)
        assert_same_state(snapshot(state), before)
        assert session.heard.take() == []

    def test_results_for_a_closed_scan_are_dropped(self, computing, trained):
        computing.models.use(trained)
        state, truth = open_lesson(computing)
        computing.proposals.begin()
        computing.remove_scan(state)
        self.assert_nothing_more_arrives(computing, state)
        with pytest.raises(SessionError, match="No scan is open"):
            computing.proposals.begin()
        again, _ = open_lesson(computing)  # its voxels are handed over anew
        propose(computing)
        assert pooled_dice([again.annotation.labels], [truth], 1) > 0.9
        assert not state.annotation.labels.any()

    def test_a_second_click_takes_the_place_of_the_first(self, computing, trained):
        computing.models.use(trained)
        state, _ = open_lesson(computing, (40, 24, 24), seed=5)
        computing.proposals.begin()
        first = computing.proposals.run
        other, truth = open_lesson(computing, seed=6)
        propose(computing)
        assert first.is_over
        assert first.progress.fraction < 1
        assert pooled_dice([other.annotation.labels], [truth], 1) > 0.9
        assert state is not other

    def test_a_slice_number_of_the_scan_before_does_no_harm(self, computing, trained):
        computing.models.use(trained)
        open_lesson(computing, (40, 24, 24))
        computing.show_slice(35)
        state, truth = open_lesson(computing, (3, 24, 24), seed=6)
        propose(computing)
        assert computing.heard.notices == []
        assert pooled_dice([state.annotation.labels], [truth], 1) > 0.9

    def test_the_slice_on_screen_comes_first_and_scrolling_changes_the_order(self, computing, trained):
        computing.models.use(trained)
        open_lesson(computing)
        propose(computing)  # from now on it is known what to compute with
        computing.heard.changes.clear()
        state, _ = open_lesson(computing, (60, 24, 24), seed=6)
        computing.show_slice(33)
        computing.proposals.begin()
        computing.show_slice(2)
        computing.wait(SECONDS)
        order = []
        for change in computing.heard.changes:
            slices = np.unique(np.unravel_index(change.correction.labels.indices, (60, 24, 24))[0])
            order.append((int(slices.min()), int(slices.max())))
        assert order[0] == (33, 33)
        assert min(range(len(order)), key=lambda i: order[i][0]) <= 2  # two were with the engine already
        assert state.annotation.labels.any((1, 2)).all()

    def test_a_model_that_was_only_tried_leaves_the_classes_as_they_were(self, open_session, trained):
        session = open_session(schema=LabelSchema.of("liver", "kidney"))
        state, truth = open_lesson(session)
        session.record_edit(state, truth, slice(None))
        session.models.begin_anew(None)
        session.models.use(trained)
        assert session.schema == trained.card.label_schema
        assert "The classes are now" in session.heard.notices[-1]
        session.models.begin_anew(None)
        assert [each.name for each in session.schema.classes] == ["liver", "kidney"]
        assert session.heard.notices[-1] == "The classes are now liver, kidney."

    def test_large_ids_are_not_wrapped(self, open_session, engine, trained):
        schema = LabelSchema(classes=(LabelClass(id=300, name="square", colour=(1, 0, 0)),))
        session = open_session(schema=schema, engine=Borrowed(engine))
        session.models.use(renumbered(trained, schema))
        state, truth = open_lesson(session)
        propose(session)
        assert set(np.unique(state.annotation.labels)) == {0, 300}
        assert pooled_dice([state.annotation.labels // 300], [truth], 1) > 0.9

    def test_a_model_whose_labels_do_not_fit_the_array_is_refused(self, computing, trained):
        open_lesson(computing)
        large = LabelSchema(classes=(LabelClass(id=300, name="a", colour=(1, 0, 0)),))
        with pytest.raises(SessionError, match="close the scans first"):
            computing.models.use(renumbered(trained, large))
        assert computing.models.in_use is None

    def test_a_model_for_another_kind_of_scan_is_refused(self, computing, trained):
        computing.models.use(
            renumbered(trained, SCHEMA).__class__(
                trained.weights,
                trained.card.model_copy(
                    update={"settings": trained.card.settings.with_values({"network.in_channels": 3})}
                ),
            )
        )
        open_lesson(computing)
        with pytest.raises(ModelError, match="3 channels"):
            computing.proposals.begin()

    @pytest.mark.parametrize(("left", "shown"), [((1.0,), True), ((1.0, 0.9), True), ((0.4, 1.0, 1.0), False)])
    def test_what_was_worse_than_nothing_is_shown_only_if_asked_for_twice(self, computing, trained, left, shown):
        state, _ = open_lesson(computing)
        card = trained.card.model_copy(update={"left_to_paint": left})
        computing.models.use(Checkpoint(trained.weights, card, trained.pixels))
        if not shown:
            with pytest.raises(SessionError, match="no less work to correct"):
                computing.proposals.begin()
            assert not state.annotation.labels.any()
        propose(computing)
        assert state.annotation.labels.any()

    def test_a_model_that_has_learnt_nothing_does_not_propose(self, computing, trained):
        computing.models.use(trained.__class__(trained.weights, trained.card.model_copy(update={"steps": 0})))
        open_lesson(computing)
        with pytest.raises(SessionError, match="no model yet"):
            computing.proposals.begin()

    def test_constant_and_tiny_scans_can_be_proposed(self, computing, trained):
        computing.models.use(trained)
        for data in (np.zeros((2, 9, 9), np.uint8), np.ones((1, 1, 1), np.float32), np.zeros((3, 40, 2), np.int16)):
            state = computing.add_scan(Scan(data, "zyx", Geometry(None), 0))
            propose(computing)
            assert state.annotation.labels.shape == data.shape
        assert all("unlike" in notice for notice in computing.heard.notices)


def test_undo_takes_the_model_back_too(computing, trained):
    state, truth = open_lesson(computing)
    first, second = trained, renumbered(trained, LabelSchema(classes=(LabelClass(id=2, name="b", colour=(1, 0, 0)),)))
    computing.models.use(first)
    computing.record_edit(state, painted(state, np.s_[0], truth[0]), slice(None))
    computing.models.use(second)
    assert computing.undo(state)
    assert computing.models.in_use is first
    assert computing.schema == first.card.label_schema
    assert (state.annotation.labels[0] == truth[0]).all()
    computing.undo(state)
    assert not state.annotation.labels.any()
    for _ in range(2):
        computing.redo(state)
    assert computing.models.in_use is second
    own = LabelSchema.of("liver", "tumour")
    for _ in range(3):
        computing.undo(state)
    assert computing.models.in_use is None
    computing.set_schema(own)
    computing.models.use(second)
    assert computing.schema == second.card.label_schema
    computing.undo(state)
    assert computing.schema == own, "the classes that the model had put in their place are back"
    computing.models.use(first)
    computing.models.begin_anew(second)
    computing.undo(state)
    assert (computing.models.in_use, computing.schema) == (first, first.card.label_schema)
    computing.redo(state)
    assert (computing.models.in_use, computing.models.body, computing.schema) == (None, second, own)


class TestModelsOnDisk:
    def test_one_that_is_not_in_use_can_be_removed_and_the_project_stays_sound(self, computing, trained):
        state, _ = open_lesson(computing)
        computing.record_edit(state, painted(state, np.s_[0], 1), slice(None))
        for _ in range(3):
            kept = computing.project.write_model(trained)
            computing.ledger.note("model kept", kept.id, name=kept.card.name)
        computing.models.use_kept("v2")
        with pytest.raises(SessionError, match="in use"):
            computing.models.remove(["v1", "v2"])
        assert computing.models.kept() == ["v1", "v2", "v3"]
        computing.models.remove(["v1"])
        assert list(computing.project.model_sizes()) == ["v2", "v3"]
        assert computing.project.size() > sum(computing.project.model_sizes().values())
        computing.close()
        assert list(verify(computing.project.path)) == []
        # A name is never used again: v3 stays what it was.
        computing.project.remove_model("v3")
        assert computing.models.kept() == ["v2"]
        assert computing.project.next_model_name() == "v4"


class TestImproving:
    def test_proposals_go_on_while_it_learns_and_both_can_be_cancelled(self, computing, trained):
        computing.models.use(trained)
        state, truth = open_lesson(computing)
        other, other_truth = open_lesson(computing, seed=6)
        computing.record_edit(other, painted(other, np.s_[0], other_truth[0]), slice(None))
        computing.learning.begin(budget_seconds=300)
        with pytest.raises(SessionError, match="running already"):
            computing.learning.begin(steps=1)
        poll_until(computing, lambda: computing.learning.run.losses)
        computing.activate(state)
        computing.proposals.begin()
        computing.proposals.run.wait(computing.engine, SECONDS)
        assert pooled_dice([state.annotation.labels], [truth], 1) > 0.9
        assert not computing.learning.run.is_over
        n = len(computing.learning.run.losses)
        poll_until(computing, lambda: len(computing.learning.run.losses) > n)  # and it learns on

        computing.proposals.begin()
        computing.proposals.cancel()
        computing.learning.cancel()
        assert computing.proposals.run.is_over
        assert computing.learning.run.is_over
        TestProposing.assert_nothing_more_arrives(computing, state)
        assert computing.learning.verdict is None
        assert computing.models.in_use is trained
        assert computing.models.kept() == []
        computing.learning.begin(steps=1)  # the lane is free again
        computing.wait(SECONDS)
        assert computing.learning.verdict is not None

    def test_later_strokes_belong_to_the_next_one(self, computing, trained):
        state, truth = open_lesson(computing)
        computing.models.use(trained)
        computing.record_edit(state, painted(state, np.s_[0], truth[0]), slice(None))
        results = []
        for _ in range(2):
            computing.learning.begin(steps=2)
            computing.record_edit(state, painted(state, np.s_[1:3], 1), slice(None))  # while it runs
            computing.wait(SECONDS)
            results.append(computing.learning.verdict.checkpoint.id)
            while state.history.next_undo.kind == "stroke":
                computing.undo(state)
            computing.record_edit(state, painted(state, np.s_[0], truth[0]), slice(None))
        assert results[0] == results[1]

    def test_closing_the_scan_it_learns_from_does_no_harm(self, computing, trained):
        computing.models.use(trained)
        state, truth = open_lesson(computing)
        computing.record_edit(state, truth, slice(None))
        computing.learning.begin(steps=3)
        computing.remove_scan(state)
        computing.wait(SECONDS)
        assert computing.heard.notices == []
        assert computing.learning.verdict.checkpoint.card.seen[-1] == state.scan.fingerprint

    def test_without_anything_reviewed_it_says_what_to_do(self, computing):
        with pytest.raises(SessionError, match="Nothing has been reviewed"):
            computing.learning.begin(steps=1)
        open_lesson(computing)
        with pytest.raises(SessionError, match="accept one"):
            computing.learning.begin(steps=1)
        assert computing.learning.run is None

    def test_what_goes_wrong_over_there_is_one_notice_here(self, computing):
        state, truth = open_lesson(computing)
        computing.record_edit(state, truth * 7, slice(None))  # a label without a class
        computing.learning.begin(steps=1)
        computing.wait(SECONDS)
        (notice,) = computing.heard.notices
        assert "7" in notice
        assert computing.learning.run.is_over
        assert computing.learning.verdict is None
        computing.record_edit(state, truth, slice(None))
        computing.learning.begin(steps=1)
        computing.wait(SECONDS)
        assert computing.learning.verdict is not None

    def test_a_training_that_diverges_leaves_the_model_in_use_as_it_was(self, computing, trained):
        """Fault 48."""
        computing.models.use(trained)
        state, truth = open_lesson(computing)
        computing.record_edit(state, truth, slice(None))
        before, names = trained.id, computing.project.model_names()
        wild = {"optimiser": "sgd", "learning_rate": 1, "gradient_clip": 1e30, "ema_decay": 0, "warmup_steps": 0}
        for key, value in {**wild, "schedule": "constant", "dice_weight": 10, "cross_entropy_weight": 10}.items():
            computing.planning.set_value(f"training.{key}", value)
        computing.learning.begin(steps=400)
        computing.wait(SECONDS)
        (notice,) = computing.heard.notices
        assert "no longer a number" in notice
        assert "training.learning_rate" in notice
        assert computing.models.in_use is not None
        assert computing.learning.verdict is None
        assert Checkpoint(computing.models.in_use.weights, computing.models.in_use.card).id == before
        assert computing.project.model_names() == names

    def test_classes_stay_those_of_the_model(self, computing, trained):
        computing.models.use(trained)
        with pytest.raises(SessionError, match="other classes"):
            computing.set_schema(LabelSchema(classes=LabelSchema.of("a", "b").classes[1:]))
        computing.set_schema(LabelSchema.of("renamed"))
        computing.models.use(None)
        computing.set_schema(LabelSchema.of("a", "b"))
        computing.models.use(trained)
        assert computing.schema == trained.card.label_schema


@pytest.mark.slow
def test_a_session_of_its_own_starts_and_ends_with_its_engine(tmp_path, trained):
    """Processes, threads and files are gone afterwards (the leak check sees to that), whatever was under way."""
    from napari_unet.compute.engine import Engine

    session = Session(Engine(threads=1), tmp_path / "project", SCHEMA)
    session.start()
    session.models.use(trained)
    state, truth = open_lesson(session)
    session.record_edit(state, truth, slice(None))
    session.learning.begin(budget_seconds=300)
    session.proposals.begin()
    poll_until(session, lambda: session.learning.run.losses)
    started = time.monotonic()
    session.close()
    assert time.monotonic() - started < 30  # a hang, not a time, is what this would show
    assert session.learning.run.is_over
    assert session.proposals.run.is_over
    assert session.models.kept() == []
