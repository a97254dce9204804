"""What was painted is there again tomorrow."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from napari_unet.compute.engine import Engine
from napari_unet.domain.annotation import Annotation
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.labels import LabelClass, LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.session.history import Step
from napari_unet.session.session import Session
from napari_unet.session.state import lock_judges
from tests.session.conftest import assert_same_state, painted, snapshot
from tests.storage.conftest import full_disk  # noqa: F401 - a fixture

GRIDS = [((8, 5, 6), 0), ((5, 8, 6), 1), ((5, 6, 8), 2), ((5, 6), None)]


def scan_of(shape=(8, 5, 6), slice_axis=0, seed=0):
    data = np.random.default_rng(seed).integers(0, 200, shape).astype(np.uint8)
    return Scan(data, "zyx"[-len(shape) :], Geometry((1.0,) * len(shape)), slice_axis)


def work_on(session, state):
    """Some strokes, some slices accepted, some locked, some taught."""
    random = np.random.default_rng(3)
    view = random.integers(0, 2, state.scan.spatial_shape, np.uint8)
    session.record_edit(state, view, slice(None))
    session.record_edit(state, np.where(random.random(view.shape) < 0.2, 0, view).astype(np.uint8), slice(0, 3))
    session.accept_slices(state, range(min(6, state.scan.n_slices)))
    lock_judges([state])
    state.note_taught()
    session._autosave.mark(state)


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def saved_files(session):
    return sorted((session.project.path / "labels").glob("*.npz"))


@pytest.mark.parametrize(("shape", "slice_axis"), GRIDS)
def test_everything_said_about_a_scan_comes_back(open_session, shape, slice_axis):
    first = open_session()
    state = first.add_scan(scan_of(shape, slice_axis))
    work_on(first, state)
    first.close()
    second = open_session()
    again = second.add_scan(scan_of(shape, slice_axis))
    assert_same_state(snapshot(again), snapshot(state))
    np.testing.assert_array_equal(again.locked, state.locked)
    np.testing.assert_array_equal(again.taught, state.taught)
    (notice,) = second.heard.notices
    assert f"{state.n_accepted} slice" in notice
    assert not second.undo(again)  # the history begins anew
    second.record_edit(again, painted(again, np.s_[0], 1), slice(None))  # and goes on


def test_it_is_saved_a_moment_after_each_stroke_without_closing(open_session):
    session = open_session()
    state = session.add_scan(scan_of())
    assert not session.project.path.exists()
    for i in range(2):
        session.record_edit(state, painted(state, np.s_[i], 1), slice(None))
        until(lambda: saved_files(session))
        until(lambda: _saved_labels(session, state).sum() == state.annotation.labels.sum())
    (path,) = saved_files(session)
    assert path.stem == state.scan.fingerprint  # and no other name


def _saved_labels(session, state):
    return session.project.read_annotation(
        state.scan.fingerprint, state.scan.spatial_shape, state.scan.slice_axis
    ).annotation.labels


def test_undo_redo_and_proposals_are_saved_too(open_session):
    from napari_unet.domain.proposal import Proposal
    from napari_unet.session.proposing import proposal_correction

    first = open_session()
    state = first.add_scan(scan_of())
    session_step = Step("proposal")
    proposal = Proposal(0, np.ones((8, 5, 6), np.uint8), None, "c", state.scan.fingerprint)
    correction = proposal_correction(state, proposal)
    state.history.extend(session_step, correction)
    first.proposals._take_slab(state, correction, proposal)
    first.record_edit(state, painted(state, np.s_[2], 0), slice(None))
    first.undo(state)
    first.close()
    again = open_session().add_scan(scan_of())
    assert again.annotation.labels.all()
    assert not again.annotation.painted.any()


def test_scans_are_known_by_their_voxels_not_their_names(open_session, tmp_path):
    first = open_session()
    first.record_edit(first.add_scan(scan_of()), np.ones((8, 5, 6), np.uint8), slice(None))
    first.add_scan(scan_of(seed=1))
    first.close()
    second = open_session()
    renamed = Scan(scan_of().data.copy(), "zyx", Geometry(None), 0, source=tmp_path / "other name.nii.gz")
    assert second.add_scan(renamed).annotation.labels.all()
    assert not second.add_scan(scan_of(seed=1)).annotation.labels.any()


def test_a_closed_scan_is_saved_at_once_and_can_be_opened_again(open_session):
    session = open_session()
    state = session.add_scan(scan_of())
    session.record_edit(state, painted(state, np.s_[1], 1), slice(None))
    session.remove_scan(state)
    assert _saved_labels(session, state)[1].all()
    again = session.add_scan(scan_of())
    assert again is not state
    assert again.annotation.labels[1].all()


def test_starting_labels_give_way_to_what_was_saved(open_session):
    first = open_session()
    first.record_edit(first.add_scan(scan_of()), painted(first.active, np.s_[1], 1), slice(None))
    first.close()
    again = open_session().add_scan(scan_of(), np.full((8, 5, 6), 1, np.uint8))
    assert again.annotation.labels[1].all()
    assert not again.annotation.labels[0].any()


def test_saved_labels_get_room_for_larger_ids(open_session):
    first = open_session()
    first.record_edit(first.add_scan(scan_of()), np.ones((8, 5, 6), np.uint8), slice(None))
    first.close()
    second = open_session(schema=LabelSchema(classes=(LabelClass(id=300, name="a", colour=(1, 0, 0)),)))
    state = second.add_scan(scan_of())
    assert (state.annotation.labels == 1).all()
    second.record_edit(state, np.full((8, 5, 6), 300, np.uint16), slice(None))
    assert (state.annotation.labels == 300).all()


def without_journal(session):
    """Leave of a project what versions without a journal wrote."""
    for path in session.project.path.glob("project.db*"):
        path.unlink()


class TestDamage:
    @pytest.mark.parametrize("how", ["cut", "garbage", "empty", "gone"])
    def test_a_damaged_file_is_made_anew_from_the_journal(self, open_session, how):
        first = open_session()
        state = first.add_scan(scan_of((8, 8, 8)))
        work_on(first, state)
        first.close()
        (path,) = saved_files(first)
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes({"cut": path.read_bytes()[:-20], "garbage": b"garbage", "empty": b""}[how])
        second = open_session()
        again = second.add_scan(scan_of((8, 8, 8)))
        assert_same_state(snapshot(again), snapshot(state))
        np.testing.assert_array_equal(again.locked, state.locked)
        np.testing.assert_array_equal(again.taught, state.taught)
        assert "from the journal" in second.heard.notices[0]

    @pytest.mark.parametrize("how", ["cut", "garbage", "empty", "other plane"])
    def test_a_damaged_file_is_left_alone_and_said(self, open_session, how):
        first = open_session()
        work_on(first, first.add_scan(scan_of((8, 8, 8))))
        first.close()
        (path,) = saved_files(first)
        if how != "other plane":
            without_journal(first)
        data = {"cut": path.read_bytes()[:-20], "garbage": b"garbage", "empty": b""}.get(how, path.read_bytes())
        path.write_bytes(data)
        second = open_session()
        state = second.add_scan(scan_of((8, 8, 8), 1 if how == "other plane" else 0))
        assert "left as they are" in second.heard.notices[0]
        assert "export" in second.heard.notices[0]  # because nothing new is saved
        assert not state.annotation.labels.any()
        second.record_edit(state, painted(state, np.s_[0], 1), slice(None))
        second.close()
        assert path.read_bytes() == data

    def test_a_full_disk_is_said_and_tried_again(self, open_session, full_disk):  # noqa: F811
        session = open_session()
        state = session.add_scan(scan_of())
        with full_disk():
            session.record_edit(state, painted(state, np.s_[1], 1), slice(None))
            until(lambda: session.poll() or session.heard.notices)
        assert "could not be saved" in session.heard.notices[0]
        assert state.annotation.labels[1].all()
        session.close()  # without another stroke
        assert _saved_labels(session, state)[1].all()

    def test_saving_goes_on_once_the_damaged_file_is_moved(self, open_session, tmp_path):
        first = open_session()
        work_on(first, first.add_scan(scan_of()))
        first.close()
        (file,) = saved_files(first)
        file.write_bytes(b"damaged")
        without_journal(first)
        second = open_session()
        state = second.add_scan(scan_of())
        second.record_edit(state, painted(state, np.s_[0], 1), slice(None))
        until(lambda: second.project.has_journal)  # what is on the desk is kept there, and it knows no such scan
        file.rename(tmp_path / "elsewhere.npz")
        second.record_edit(state, painted(state, np.s_[1], 1), slice(None))
        second.close()
        for file_gone in False, True:
            if file_gone:
                (file,) = saved_files(second)
                file.unlink()
            again = open_session()
            assert_same_state(snapshot(again.add_scan(scan_of())), snapshot(state))
            again.close()

    def test_a_scan_closed_on_a_full_disk_goes_on_where_it_was(self, open_session, full_disk):  # noqa: F811
        session = open_session()
        state = session.add_scan(scan_of())
        with full_disk():
            session.record_edit(state, painted(state, np.s_[0], 1), slice(None))
            until(lambda: session._autosave._writer.unsaved(state.scan.fingerprint))
            assert not session.remove_scan(state)
        again = session.add_scan(scan_of())
        assert_same_state(snapshot(again), snapshot(state))
        assert "could not be saved yet" in session.heard.notices[-1]
        session.close()
        assert_same_state(snapshot(open_session().add_scan(scan_of())), snapshot(state))

    def test_an_idle_window_hears_of_it(self, tmp_path, full_disk):  # noqa: F811
        woken = threading.Event()
        session = Session(Engine(wake=woken.set), tmp_path / "project")
        try:
            state = session.add_scan(scan_of())
            with full_disk():
                session.record_edit(state, painted(state, np.s_[0], 1), slice(None))
                assert woken.wait(10)
        finally:
            session.close()

    def test_what_cannot_be_saved_at_the_end_is_said(self, open_session, full_disk):  # noqa: F811
        session = open_session()
        state = session.add_scan(scan_of())
        with full_disk():
            session.record_edit(state, painted(state, np.s_[1], 1), slice(None))
            session.close()
        assert any("could not be saved" in notice for notice in session.heard.notices)


def test_a_file_never_holds_half_a_correction(open_session):
    """Strokes go on while it is being saved: painted voxels and labels always belong together."""
    session = open_session()
    state = session.add_scan(scan_of((8, 40, 40)))
    stop, seen = threading.Event(), []

    def look():
        while not stop.is_set():
            with session._autosave._steady:
                annotation = state.annotation.copy()
            seen.append(bool(((annotation.labels > 0) == annotation.painted).all()))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for i in range(60):
            session.record_edit(state, painted(state, np.s_[i % 8, i % 40], 1), slice(None))
            session.undo(state)
    finally:
        stop.set()
        watcher.join()
    assert seen
    assert all(seen)


def test_closing_twice_does_no_harm(open_session):
    session = open_session()
    state = session.add_scan(scan_of())
    session.record_edit(state, painted(state, np.s_[1], 1), slice(None))
    session.close()
    session.close()
    assert isinstance(state.annotation, Annotation)
