"""Cleaning a scan's labels up: seen first, one step, never over the person's word. Proposals that are taken back."""

from __future__ import annotations

import numpy as np
import pytest

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.errors import SessionError
from napari_unet.domain.settings import AfterCareSettings
from tests.session.conftest import Borrowed, assert_same_state, snapshot
from tests.session.test_session import SECONDS, open_lesson, poll_until

ISLANDS = AfterCareSettings(smallest_mm3=10)


@pytest.fixture
def session(open_session, engine):
    return open_session(engine=Borrowed(engine))


def with_islands(session, slice_axis=0):
    """A scan whose labels, not painted by hand, are a structure and some islands of few voxels."""
    state, truth = open_lesson(session, (8, 24, 24), slice_axis)
    labels = truth.copy()
    planes = state.scan.to_planes(labels)
    for index in (1, 3, 6):
        planes[index, :2, :2] = 1
    state.annotation.labels[...] = labels
    return state


def look(session, settings=ISLANDS):
    session.clean_up.look(settings)
    session.clean_up.wait(session.engine, SECONDS)
    return session.clean_up.preview


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_it_is_seen_applied_and_taken_back(session, slice_axis):
    state = with_islands(session, slice_axis)
    before = snapshot(state)
    seen, change = look(session)
    assert seen is state
    assert (len(change), set(change.after)) == (12, {0})
    assert_same_state(snapshot(state), before)
    session.clean_up.apply()
    assert not state.scan.to_planes(state.annotation.labels)[:, :2, :2].any()
    assert session.clean_up.preview is None
    assert not state.annotation.painted.any()
    session.undo(state)
    assert_same_state(snapshot(state), before)
    session.redo(state)
    assert not state.scan.to_planes(state.annotation.labels)[:, :2, :2].any()


def test_what_the_person_has_said_stays(session):
    state = with_islands(session)
    session.accept_slices(state, [1])
    view = state.annotation.labels.copy()
    view[3, 0, 0] = 0
    session.record_edit(state, view, slice(None))
    view[3, 0, 0] = 1
    session.record_edit(state, view, slice(None))
    look(session)
    session.clean_up.apply()
    assert (state.annotation.labels[1, :2, :2] == 1).all()
    assert state.annotation.labels[3, :2, :2].sum() == 1
    assert not state.annotation.labels[6, :2, :2].any()


def test_a_locked_class_is_left_alone_whenever_it_was_locked(session):
    state = with_islands(session)
    before = snapshot(state)
    look(session)
    session.tools.lock(1, True)
    session.clean_up.apply()
    assert_same_state(snapshot(state), before)
    _, change = look(session)
    assert len(change) == 0


def test_a_preview_of_what_has_changed_since_is_not_applied(session):
    state = with_islands(session)
    look(session)
    view = state.annotation.labels.copy()
    view[0, 0, 0] = 1
    session.record_edit(state, view, slice(None))
    assert session.clean_up.preview is None
    with pytest.raises(SessionError, match="Preview again"):
        session.clean_up.apply()


def test_an_answer_about_labels_that_have_changed_since_is_of_no_use(session):
    state = with_islands(session)
    session.clean_up.look(ISLANDS)
    view = state.annotation.labels.copy()
    view[1, :10, 1] = 1  # a bridge from the island
    session.record_edit(state, view, slice(None))
    session.clean_up.wait(session.engine, SECONDS)
    assert session.clean_up.preview is None
    assert not session.clean_up.is_looking
    assert any("Preview again" in notice for notice in session.heard.notices)


def test_a_preview_goes_with_its_scan_from_the_screen(session):
    state = with_islands(session)
    look(session)
    other, _ = open_lesson(session, seed=8)
    assert session.clean_up.preview is None
    session.activate(state)
    session.clean_up.look(ISLANDS)
    session.activate(other)
    session.clean_up.wait(session.engine, SECONDS)
    assert session.clean_up.preview is None
    assert not session.clean_up.is_looking


def test_what_was_taken_back_is_not_cleaned_up(session, trained):
    settings = trained.card.settings.with_values({"after_care.fill_holes": True, "after_care.smooth_mm": 3})
    session.models.use(Checkpoint(trained.weights, trained.card.model_copy(update={"settings": settings})))
    state, _ = open_lesson(session, (8, 24, 24))
    before = snapshot(state)
    session.proposals.begin()
    poll_until(session, lambda: session.proposals.run.is_over)
    session.undo(state)
    session.clean_up.wait(session.engine, SECONDS)
    assert_same_state(snapshot(state), before)
    assert not session.undo(state)


def test_painting_beside_the_clean_up_of_a_proposal_is_kept(session, trained):
    settings = trained.card.settings.with_values({"after_care.smallest_mm3": 1e6})
    session.models.use(Checkpoint(trained.weights, trained.card.model_copy(update={"settings": settings})))
    state, _ = open_lesson(session, (8, 24, 24))
    before = snapshot(state)
    session.proposals.begin()
    poll_until(session, lambda: session.proposals.run.is_over)
    view = state.annotation.labels.copy()
    view[2, 20:23, 20:23] = 1
    session.record_edit(state, view, slice(None))
    session.clean_up.wait(session.engine, SECONDS)
    assert np.array_equal(state.annotation.labels > 0, state.annotation.painted)
    for _ in range(3):
        session.undo(state)
    assert_same_state(snapshot(state), before)


def test_it_wants_a_scan_and_something_to_do(session):
    with pytest.raises(SessionError, match="No scan"):
        session.clean_up.look(ISLANDS)
    with_islands(session)
    with pytest.raises(SessionError, match="Nothing is to be done"):
        session.clean_up.look(AfterCareSettings())


def test_a_scan_closed_meanwhile_is_left_alone(session):
    state = with_islands(session)
    session.clean_up.look(ISLANDS)
    session.remove_scan(state)
    session.clean_up.wait(session.engine, SECONDS)
    assert session.clean_up.preview is None


def test_a_model_that_asks_for_it_has_its_proposals_cleaned_up_in_their_step(session, trained):
    settings = trained.card.settings.with_values({"after_care.smallest_mm3": 1e6})
    session.models.use(Checkpoint(trained.weights, trained.card.model_copy(update={"settings": settings})))
    state, _ = open_lesson(session, (8, 24, 24))
    before = snapshot(state)
    session.proposals.begin()
    session.wait(SECONDS)
    poll_until(session, lambda: session.clean_up.is_over)
    # Everything is an island of less than a litre.
    assert not state.annotation.labels.any()
    session.undo(state)
    assert_same_state(snapshot(state), before)


class TestStoppingAProposal:
    def arrived(self, session, trained):
        """A proposal of which something has arrived, and the labels before it."""
        session.models.use(trained)
        state, _ = open_lesson(session, (40, 24, 24))
        before = snapshot(state)
        session.proposals.begin()
        poll_until(session, lambda: state.annotation.labels.any())
        return state, before

    def test_it_is_kept(self, session, trained):
        state, _ = self.arrived(session, trained)
        session.proposals.cancel()
        assert session.proposals.run.is_over
        assert state.annotation.labels.any()

    def test_or_taken_back(self, session, trained):
        state, before = self.arrived(session, trained)
        session.proposals.cancel(take_back=True)
        assert session.proposals.run.is_over
        assert_same_state(snapshot(state), before)
        session.wait(SECONDS)
        assert_same_state(snapshot(state), before)

    def test_whole_or_not_at_all_where_a_slice_was_reopened_in_between(self, session, trained):
        session.models.use(trained)
        state, _ = open_lesson(session, (200, 24, 24))
        session.accept_slices(state, [199])
        session.proposals.begin()
        poll_until(session, lambda: state.annotation.labels.any())
        session.accept_slices(state, [199], accepted=False)
        poll_until(session, lambda: len(session.proposals.run.steps) > 1)
        labels = state.annotation.labels.copy()
        with pytest.raises(SessionError, match="worked on the scan since"):
            session.proposals.cancel(take_back=True)
        assert np.array_equal(state.annotation.labels, labels)

    def test_but_not_under_what_was_done_since(self, session, trained):
        state, _ = self.arrived(session, trained)
        session.accept_slices(state, [0])
        with pytest.raises(SessionError, match="worked on the scan since"):
            session.proposals.cancel(take_back=True)
        assert session.proposals.run.is_over
        assert state.annotation.labels.any()
        assert state.annotation.accepted[0]


def test_how_unsure_a_proposal_is_comes_with_it(session, trained):
    session.models.use(trained)
    state, truth = open_lesson(session, (8, 24, 24), 1)
    heard = []
    session.proposals.uncertainty_changed.connect(heard.append)
    assert state.uncertainty is None
    session.proposals.begin()
    session.wait(SECONDS)
    assert set(heard) == {state}
    assert (state.uncertainty.shape, state.uncertainty.dtype) == (truth.shape, np.uint8)
    wrong = state.annotation.labels != truth
    assert state.uncertainty[wrong].mean() > 2 * state.uncertainty[~wrong].mean()
    session.undo(state)
    assert not state.uncertainty.any(), "it goes with its proposal"


def test_a_scan_of_another_kind_is_proposed_with_one_word_of_warning(session, trained):
    card = trained.card.model_copy(update={"intensities": tuple(5.0 + i for i in trained.card.intensities)})
    session.models.use(Checkpoint(trained.weights, card))
    open_lesson(session, (8, 24, 24))
    for _ in range(2):
        session.proposals.begin()
        session.wait(SECONDS)
    assert sum("unlike" in notice for notice in session.heard.notices) == 1
