"""The card of a mask says what was done to it, and by whom."""

from __future__ import annotations

import json

import numpy as np
import pytest

from napari_unet.domain.annotation import Correction, SparseChange
from napari_unet.session.exporting import export_mask
from napari_unet.session.history import Step
from napari_unet.storage.audit import active_seconds
from tests.session.conftest import open_session, painted  # noqa: F401 - a fixture
from tests.session.test_autosave import scan_of


def propose(session, state, where, value=1):
    """A slab of a proposal, as it would arrive."""
    after = painted(state, where, value)
    change = SparseChange.between(state.annotation.labels, after)
    correction = Correction("proposal", labels=change, proposal="a" * 32)
    state.history.extend(Step("proposal", by_machine=True), correction)
    session._take(state, correction)
    state.proposed_by = "a" * 32


@pytest.fixture
def work(open_session):  # noqa: F811
    session = open_session()
    return session, session.add_scan(scan_of((8, 10, 10)))


def test_a_mask_painted_by_hand_is_wholly_by_hand(work):
    session, state = work
    session.record_edit(state, painted(state, np.s_[1], 1), slice(None))
    card = session.audits.of(state)
    assert (card.percent_by_hand, card.labelled_voxels, card.edited_voxels) == (100, 100, 100)
    assert card.models == ()
    assert card.readers == ("reader",)
    assert card.actions == {"stroke": 1}


def test_an_untouched_proposal_is_not_by_hand(work):
    session, state = work
    propose(session, state, np.s_[0:4])
    session.accept_slices(state)
    card = session.audits.of(state)
    assert card.percent_by_hand == 0
    assert card.models == ("a" * 32,)
    assert (card.accepted_slices, card.slices) == (8, 8)


def test_what_differs_from_the_proposal_counts_and_undo_takes_it_back(work):
    session, state = work
    propose(session, state, np.s_[0:4])
    session.record_edit(state, painted(state, np.s_[0], 0), slice(None), "erase")
    session.record_edit(state, painted(state, np.s_[5], 1), slice(None))
    assert session.audits.of(state).percent_by_hand == pytest.approx(100 * 200 / 500)
    session.undo(state)
    assert session.audits.of(state).percent_by_hand == pytest.approx(100 * 100 / 400)
    session.undo(state)
    assert session.audits.of(state).percent_by_hand == 0
    session.undo(state)  # the proposal
    card = session.audits.of(state)
    assert card.percent_by_hand is None
    session.redo(state)
    assert session.audits.of(state).percent_by_hand == 0


def test_undo_and_redo_of_a_tool_stay_the_hands(work):
    from napari_unet.editing.tools import Margin

    session, state = work
    propose(session, state, np.s_[2, 2:6, 2:6])
    session.show_slice(2)
    session.tools.look(Margin(by_mm=1), 1, "slice")
    session.tools.apply()
    edited = session.audits.of(state).edited_voxels
    assert edited > 0
    session.undo(state)
    assert session.audits.of(state).edited_voxels == 0
    session.redo(state)
    assert session.audits.of(state).edited_voxels == edited


def test_labels_that_were_loaded_are_nobodys_work(open_session):  # noqa: F811
    session = open_session()
    begun = np.zeros((8, 10, 10), np.uint8)
    begun[2:6] = 1
    state = session.add_scan(scan_of((8, 10, 10)), begun)
    session.record_edit(state, painted(state, np.s_[2, 0], 0), slice(None))
    card = session.audits.of(state)
    assert card.edited_voxels == 10
    assert card.percent_by_hand == pytest.approx(100 * 10 / 400)


def test_the_proposal_counts_as_it_was_before_the_scan_was_learnt_from(work):
    session, state = work
    propose(session, state, np.s_[0:4])
    session.record_edit(state, painted(state, np.s_[0], 0), slice(None), "erase")
    session.accept_slices(state, [0, 1])
    assert session.audits.of(state).dice_of_proposal == pytest.approx(2 * 100 / 300, abs=1e-4)
    state.note_taught()
    session._autosave.mark(state)
    propose(session, state, np.s_[5])  # the model knows the scan now
    session.record_edit(state, painted(state, np.s_[5], 0), slice(None), "erase")
    card = session.audits.of(state)
    assert card.dice_of_proposal == pytest.approx(2 * 100 / 300, abs=1e-4)
    assert card.proposed_by == "a" * 32


def test_only_slices_that_were_accepted_tell_how_good_a_proposal_was(work):
    session, state = work
    session.record_edit(state, painted(state, np.s_[7, :5], 1), slice(None))
    session.accept_slices(state, [7])  # painted before anything was proposed
    propose(session, state, np.s_[0:7, :5])
    card = session.audits.of(state)
    assert (card.dice_of_proposal, card.left_to_correct) == (None, None)
    session.record_edit(state, painted(state, np.s_[0], np.repeat([0, 1], 5)[:, None]), slice(None))
    session.accept_slices(state, [0])
    card = session.audits.of(state)
    assert (card.dice_of_proposal, card.left_to_correct) == (0, 1)


def test_a_scan_that_nobody_touched_has_none(work):
    session, state = work
    assert session.audits.of(state) is None


def test_it_lies_beside_an_exported_mask(work, tmp_path):
    session, state = work
    session.record_edit(state, painted(state, np.s_[1], 1), slice(None))
    export_mask(session, state, tmp_path / "mask.nii.gz")
    record = json.loads((tmp_path / "mask.json").read_text())
    assert record["audit"] == json.loads(json.dumps(session.audits.of(state).to_json()))
    assert record["audit"]["head"] == session.ledger.journal().head()[1]


def test_pauses_are_no_work():
    times = [f"2026-01-01T10:{m:02d}:{s:02d}.000+00:00" for m, s in ((0, 0), (0, 10), (0, 40), (5, 0), (5, 20))]
    assert active_seconds(times) == 60
    assert active_seconds([]) == active_seconds(times[:1]) == 0
