"""Where to look next, and marks on scans."""

from __future__ import annotations

import numpy as np
import pytest

from napari_unet.domain.errors import SessionError
from napari_unet.session.state import Flag
from napari_unet.session.suggesting import SUGGESTIONS, next_slice
from tests.session.conftest import painted
from tests.session.test_autosave import scan_of


@pytest.fixture
def work(session):
    state = session.add_scan(scan_of((16, 8, 9)))
    session.record_edit(state, painted(state, np.s_[4:13, 2:5, 2:5], 1), slice(None))
    return session, state


def test_evenly_spaced_through_what_is_labelled(work):
    session, state = work
    shown = []
    session.slice_wanted.connect(shown.append)
    for _ in range(9):
        session.next_to_check()
        session.show_slice(shown[-1])
        session.accept_slices(state, [shown[-1]])
    assert shown[0] == 8
    assert set(shown[1:3]) == {4, 12}
    assert sorted(shown) == list(range(4, 13))
    session.next_to_check()  # then what lies beyond
    assert shown[-1] in (0, 15)


@pytest.mark.parametrize("how", SUGGESTIONS)
def test_never_one_that_is_accepted_nor_the_one_on_screen(work, how):
    session, state = work
    state.uncertainty = np.random.default_rng(0).integers(0, 255, state.scan.spatial_shape).astype(np.uint8)
    random = np.random.default_rng(1)
    for _ in range(15):
        here = int(random.integers(16))
        index = next_slice(state, here, how)
        assert not state.annotation.accepted[index]
        assert index != here or (~state.annotation.accepted).sum() == 1
        session.accept_slices(state, [index])


def test_least_sure_first(work):
    _, state = work
    state.uncertainty = np.zeros(state.scan.spatial_shape, np.uint8)
    state.uncertainty[4:13, 0, 0] = 20
    state.uncertainty[6, 0, 0] = 200
    assert next_slice(state, None, "unsure") == 6


def test_it_goes_on_in_the_next_scan_and_says_when_all_is_done(work):
    session, first = work
    second = session.add_scan(scan_of((4, 8, 9), seed=3))
    session.activate(first)
    session.accept_slices(first)
    session.next_to_check()
    assert session.active is second
    session.accept_slices(second)
    with pytest.raises(SessionError, match="All slices"):
        session.next_to_check()


def test_counts_by_slice_stay_right(work):
    session, state = work
    assert state.labelled.tolist() == [0] * 4 + [9] * 9 + [0] * 3  # counted now, then kept
    random = np.random.default_rng(2)
    for _ in range(6):
        view = np.where(random.random(state.scan.spatial_shape) < 0.1, 2, state.annotation.labels).astype(np.uint8)
        session.record_edit(state, view, slice(None))
        session.record_edit(state, painted(state, np.s_[int(random.integers(16))], 0), slice(None))
        if random.random() < 0.5:
            session.undo(state)
    np.testing.assert_array_equal(state.labelled, (state.annotation.labels > 0).sum(axis=(1, 2)))
    np.testing.assert_array_equal(state.painted, state.annotation.painted.sum(axis=(1, 2)))


def test_marks_come_back_and_stand_in_the_list(open_session):
    first = open_session()
    state = first.add_scan(scan_of())
    first.set_flag(state, Flag(3, "artefact at the base"))
    first.close()
    second = open_session()
    state = second.add_scan(scan_of())
    assert state.flag == Flag(3, "artefact at the base")
    assert second.audits.of(state).flag == {"difficulty": 3, "comment": "artefact at the base"}
    second.set_flag(state, None)
    second.close()
    third = open_session()
    assert third.add_scan(scan_of()).flag is None
    assert third.audits.of(third.scans[0]).flag is None
