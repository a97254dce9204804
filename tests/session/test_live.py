"""With Live on the slice on screen follows the strokes; the model does not change, and nothing stale is taken over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from napari_unet.domain.checkpoint import Checkpoint
from tests.session.conftest import Borrowed, assert_same_state, snapshot
from tests.training.lessons import SCHEMA, lesson

SECONDS = 120
INDEX = 2
#: Where the truth of the lesson with seed 5 begins and ends.
SHAPE = (6, 48, 48)


@pytest.fixture
def live(open_session, engine, trained):
    """A session that looks at a slice with a model in use, its proposal there, and Live on."""
    session = open_session(schema=SCHEMA, engine=Borrowed(engine))
    session.models.use(trained)
    session.add_scan(lesson(SHAPE, seed=5).scan)
    session.show_slice(INDEX)
    session.proposals.begin()
    session.wait(SECONDS)
    session.live.switch(True)
    session.wait(SECONDS)
    session.heard.changes.clear()
    return session


def paint(session, rows, columns, value, index=INDEX):
    state = session.active
    view = state.annotation.labels.copy()
    view[index, rows, columns] = value
    session.record_edit(state, view, slice(index, index + 1))


def kinds(session):
    return [change.correction.kind for change in session.heard.changes]


CORNER = (slice(38, 42), slice(38, 46), 1)


def test_the_slice_follows_and_one_undo_takes_it_back(live):
    state, model = live.active, live.models.in_use
    before = {name: array.copy() for name, array in model.weights.items()}
    rows, columns = np.nonzero(state.annotation.labels[INDEX])
    # Something the model found is no square: rub out its middle.
    middle = slice(int(rows.min()) + 3, int(rows.max()) - 2), slice(int(columns.min()) + 3, int(columns.max()) - 2)
    live.accept_slices(state, [0])
    elsewhere = np.delete(state.annotation.labels, INDEX, axis=0)
    paint(live, *middle, 0)
    after_stroke = snapshot(state)
    live.wait(SECONDS)
    assert kinds(live) == ["stroke", "live"]
    labels, painted = state.annotation.labels, state.annotation.painted
    assert painted.sum() == after_stroke[1].sum(), "what the refit found is no truth"
    assert not labels[INDEX][middle].any()
    assert np.count_nonzero(labels[INDEX]) < np.count_nonzero(after_stroke[0][INDEX])
    np.testing.assert_array_equal(np.delete(labels, INDEX, axis=0), elsewhere)
    assert live.models.in_use is model
    assert Checkpoint(model.weights, model.card).id == model.id
    for name, array in before.items():
        np.testing.assert_array_equal(array, model.weights[name])
    live.undo(state)
    live.wait(SECONDS)
    assert_same_state(snapshot(state), after_stroke)
    live.redo(state)
    assert state.annotation.labels[INDEX].sum() < after_stroke[0][INDEX].sum()
    assert live.heard.notices == []


@pytest.mark.parametrize("change", ["undo", "slice", "off", "model", "accept"])
def test_a_stale_answer_is_dropped(live, change):
    state = live.active
    rows, columns = np.nonzero(state.annotation.labels[INDEX])
    paint(live, slice(int(rows.min()), int(rows.max())), slice(int(columns.min()) + 2, int(columns.max()) - 1), 0)
    if change == "undo":
        live.undo(state)
    elif change == "slice":
        live.show_slice(INDEX + 1)
    elif change == "off":
        live.live.switch(False)
    elif change == "model":
        live.models.use(replace(live.models.in_use))
    else:
        live.accept_slices(state, [INDEX])
    expected = snapshot(state)
    live.wait(SECONDS)
    assert "live" not in kinds(live)
    assert_same_state(snapshot(state), expected)


def test_strokes_in_quick_succession_have_one_answer(live):
    rows, columns = np.nonzero(live.active.annotation.labels[INDEX])
    top, left = int(rows.min()), int(columns.min())
    for row in range(top + 2, top + 7):
        paint(live, row, slice(left + 2, left + 8), 0)
    live.wait(SECONDS)
    assert kinds(live) == ["stroke"] * 5 + ["live"]
    assert not live.active.annotation.labels[INDEX, top + 2 : top + 7, left + 2 : left + 8].any()


def test_off_and_on_other_slices_nothing_follows(live):
    paint(live, *CORNER, index=INDEX + 1)
    live.wait(SECONDS)
    live.live.switch(False)
    paint(live, *CORNER)
    live.wait(SECONDS)
    assert kinds(live) == ["stroke", "stroke"]


def test_a_stroke_beneath_a_proposal_is_answered_after_it(live):
    rows, columns = np.nonzero(live.active.annotation.labels[INDEX])
    live.proposals.begin()
    paint(
        live, slice(int(rows.min()) + 2, int(rows.max()) - 1), slice(int(columns.min()) + 2, int(columns.max()) - 1), 0
    )
    live.wait(SECONDS)
    assert live.proposals.run.is_over
    assert kinds(live)[-1] == "live"


def test_without_a_model_filters_tell_apart_what_was_painted(computing):
    one = lesson(SHAPE, seed=5)
    state = computing.add_scan(one.scan)
    computing.show_slice(INDEX)
    computing.live.switch(True)
    rows, columns = np.nonzero(one.labels[INDEX])
    paint(computing, slice(rows[0] + 3, rows[0] + 7), slice(columns[0] + 3, columns[0] + 7), 1)
    computing.wait(SECONDS)
    assert kinds(computing) == ["stroke"], "with one class there is nothing to tell apart"
    around = one.labels[INDEX] == 0
    around[::6, :] = around[:, ::6] = False
    # A mark that what was background is meant to be: painted over, then rubbed out.
    for value in (1, 0):
        view = state.annotation.labels.copy()
        view[INDEX][~around & (one.labels[INDEX] == 0)] = value
        computing.record_edit(state, view, slice(INDEX, INDEX + 1))
    computing.wait(SECONDS)
    overlap = (state.annotation.labels[INDEX] == 1) & (one.labels[INDEX] == 1)
    assert 2 * overlap.sum() > 0.8 * (np.count_nonzero(state.annotation.labels[INDEX]) + one.labels[INDEX].sum())


def test_a_model_for_other_scans_is_said_to_be_one(live, trained):
    card = trained.card
    settings = card.settings.with_values({"network.in_channels": 3})
    live.models.use(Checkpoint(trained.weights, card.model_copy(update={"settings": settings})))
    live.wait(SECONDS)
    assert "channels" in live.heard.notices[-1]
