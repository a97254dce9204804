"""Painting, accepting, undo and redo, with slabs of a proposal streaming in between."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from napari_unet.compute.engine import Engine
from napari_unet.domain.annotation import Annotation
from napari_unet.domain.errors import MaskError, ScanError, SessionError
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.labels import LabelClass, LabelSchema
from napari_unet.domain.proposal import Proposal
from napari_unet.domain.scan import Scan
from napari_unet.session.history import Step
from napari_unet.session.proposing import proposal_correction
from napari_unet.session.session import Session
from napari_unet.session.state import ScanState, lock_judges
from tests.session.conftest import assert_same_state, painted, snapshot

GRIDS = [((4, 6, 7), 0), ((4, 6, 7), 1), ((4, 6, 7), 2), ((6, 7), None), ((1, 6, 7), 0)]
each_grid = pytest.mark.parametrize(("shape", "slice_axis"), GRIDS)


def scan_of(shape=(4, 6, 7), slice_axis=0, seed=0, dtype=np.uint8, **more):
    data = np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)
    return Scan(data, "zyx"[-len(shape) :], Geometry((1.0,) * len(shape)), slice_axis, **more)


def state_of(shape, slice_axis, seed=0):
    scan = scan_of(shape, slice_axis, seed)
    return ScanState("scan 1", scan, Annotation.empty(shape, slice_axis), np.zeros(scan.n_slices, bool))


class TestStrokes:
    @each_grid
    def test_a_stroke_is_taken_over_and_marked_as_painted(self, session, shape, slice_axis):
        state = session.add_scan(scan_of(shape, slice_axis))
        last = state.scan.n_slices - 1
        where = np.zeros(shape, bool)
        where[state.annotation.slice_index(slice(last, None))] = (
            np.random.default_rng(0).random(shape)[state.annotation.slice_index(slice(last, None))] < 0.3
        )
        view = painted(state, where, 2)
        session.heard.take()
        correction = session.record_edit(state, view, slice(last, last + 1))
        np.testing.assert_array_equal(state.annotation.labels, view)
        np.testing.assert_array_equal(state.annotation.painted, where)
        np.testing.assert_array_equal(state.annotation.reviewed(), where)
        assert session.heard.take() == ["labels_changed"]
        (change,) = session.heard.changes
        assert (change.state, change.correction, change.origin) == (state, correction, "view")
        assert not np.shares_memory(state.annotation.labels, view)

    @each_grid
    def test_only_the_slices_named_are_looked_at(self, session, shape, slice_axis):
        state = session.add_scan(scan_of(shape, slice_axis))
        view = np.ones(shape, np.uint8)
        session.record_edit(state, view, slice(0, 1))
        expected = np.zeros(shape, np.uint8)
        expected[state.annotation.slice_index(slice(0, 1))] = 1
        np.testing.assert_array_equal(state.annotation.labels, expected)
        session.record_edit(state, view, slice(None))
        assert state.annotation.labels.all()

    def test_a_stroke_that_changes_nothing_is_no_step(self, session):
        state = session.add_scan(scan_of())
        session.heard.take()
        assert session.record_edit(state, state.annotation.labels.copy(), slice(None)).is_empty
        assert session.record_edit(state, np.ones((4, 6, 7), np.uint8), slice(2, 2)).is_empty
        assert session.heard.take() == []
        assert not session.undo(state)

    def test_erasing_is_something_the_person_said_too(self, session):
        state = session.add_scan(scan_of())
        session.record_edit(state, painted(state, np.s_[0, :3], 1), slice(0, 1))
        session.record_edit(state, painted(state, np.s_[0, 1], 0), slice(0, 1))
        assert state.annotation.painted[0, :3].all()
        assert not state.annotation.labels[0, 1].any()

    def test_a_label_that_the_array_cannot_hold_is_refused_not_wrapped(self, session):
        state = session.add_scan(scan_of())
        before = snapshot(state)
        for value in (256, -1):
            with pytest.raises(SessionError, match="from 0 to 255"):
                session.record_edit(state, np.full((4, 6, 7), value), slice(None))
        assert_same_state(snapshot(state), before)

    def test_large_ids_get_room(self, open_session):
        schema = LabelSchema(classes=(LabelClass(id=300, name="a", colour=(1, 0, 0)),))
        session = open_session(schema=schema)
        state = session.add_scan(scan_of())
        session.record_edit(state, np.full((4, 6, 7), 300, np.uint16), slice(None))
        assert (state.annotation.labels == 300).all()
        session.undo(state)
        session.redo(state)
        assert (state.annotation.labels == 300).all()


class TestAcceptance:
    @each_grid
    def test_accepting_says_so_and_can_be_undone(self, session, shape, slice_axis):
        state = session.add_scan(scan_of(shape, slice_axis))
        session.heard.take()
        session.accept_slices(state)
        assert session.heard.take() == ["acceptance_changed"]
        assert state.annotation.reviewed().all()
        assert state.n_accepted == state.scan.n_slices
        session.accept_slices(state)  # again: no step
        session.accept_slices(state, [0], accepted=False)
        assert state.n_accepted == state.scan.n_slices - 1
        session.undo(state)
        assert state.n_accepted == state.scan.n_slices
        session.undo(state)
        assert state.n_accepted == 0
        assert not session.undo(state)


class TestUndo:
    def test_there_and_back(self, session):
        state = session.add_scan(scan_of())
        states = [snapshot(state)]
        for i in range(3):
            session.record_edit(state, painted(state, np.s_[i, i : i + 3], i % 2 + 1), slice(i, i + 1))
            states.append(snapshot(state))
        session.accept_slices(state, [1])
        states.append(snapshot(state))
        for expected in states[-2::-1]:
            assert session.undo(state)
            assert_same_state(snapshot(state), expected)
        assert not session.undo(state)
        for expected in states[1:]:
            assert session.redo(state)
            assert_same_state(snapshot(state), expected)
        assert not session.redo(state)

    def test_views_are_told_what_undo_changed(self, session):
        state = session.add_scan(scan_of())
        view = painted(state, np.s_[2, 1:3], 2)
        session.record_edit(state, view, slice(None))
        session.undo(state)
        change = session.heard.changes[-1]
        assert change.origin == "session"
        change.correction.labels.apply(view)
        np.testing.assert_array_equal(view, state.annotation.labels)

    def test_a_new_stroke_forgets_what_was_undone(self, session):
        state = session.add_scan(scan_of())
        session.record_edit(state, painted(state, np.s_[0], 1), slice(None))
        session.undo(state)
        session.record_edit(state, painted(state, np.s_[1], 1), slice(None))
        assert not session.redo(state)

    def test_each_scan_has_its_own_history(self, session):
        one, two = session.add_scan(scan_of(seed=1)), session.add_scan(scan_of(seed=2))
        session.record_edit(one, painted(one, np.s_[0], 1), slice(None))
        assert not session.undo(two)
        assert session.undo(one)


def slab(state, first, n, seed, density=0.5):
    """A proposal of labels 0 to 2 for some slices."""
    planes = state.scan.to_planes(state.annotation.labels)[first : first + n]
    random = np.random.default_rng(seed)
    labels = random.integers(1, 3, planes.shape, np.uint8) * (random.random(planes.shape) < density)
    return Proposal(first, labels.astype(np.uint8), None, "c", state.scan.fingerprint)


def test_what_was_accepted_comes_back_with_its_acceptance_while_a_proposal_goes_on(session):
    state = session.add_scan(scan_of())
    step = Step("proposal")
    for first, seed in ((2, 1), (0, 2)):
        if first == 0:
            session.accept_slices(state, [2])
            step, truth = Step("proposal"), state.annotation.labels[2].copy()
        proposal = slab(state, first, 1, seed)
        correction = proposal_correction(state, proposal)
        step = state.history.extend(step, correction)
        session.proposals._take_slab(state, correction, proposal)
    session.accept_slices(state, [2], accepted=False)
    proposal = slab(state, 2, 1, 3)
    correction = proposal_correction(state, proposal)
    again = state.history.extend(step, correction)
    assert again is not step
    session.proposals._take_slab(state, correction, proposal)
    assert (state.annotation.labels[2] != truth).any()
    session.undo(state)
    session.undo(state)
    assert state.annotation.accepted[2]
    np.testing.assert_array_equal(state.annotation.labels[2], truth)


class TestSlabs:
    @each_grid
    def test_what_the_person_said_is_never_overwritten(self, shape, slice_axis):
        state = state_of(shape, slice_axis)
        annotation = state.annotation
        annotation.painted[:] = np.random.default_rng(1).random(shape) < 0.3
        annotation.labels[annotation.painted] = 2
        annotation.accepted[0] = len(annotation.accepted) > 1
        before = annotation.copy()
        first = min(1, state.scan.n_slices - 1)
        for start, n in ((0, state.scan.n_slices), (first, state.scan.n_slices - first)):
            proposal = slab(state, start, n, start)
            annotation.apply(proposal_correction(state, proposal))
            reviewed = before.reviewed()
            np.testing.assert_array_equal(annotation.labels[reviewed], before.labels[reviewed])
            planes = state.scan.to_planes(annotation.labels)[start : start + n]
            free = ~state.scan.to_planes(reviewed)[start : start + n]
            np.testing.assert_array_equal(planes[free], proposal.labels[free])
        np.testing.assert_array_equal(annotation.painted, before.painted)
        np.testing.assert_array_equal(annotation.accepted, before.accepted)

    @each_grid
    def test_a_slab_undoes_itself(self, shape, slice_axis):
        state = state_of(shape, slice_axis)
        state.annotation.labels[...] = 1
        correction = proposal_correction(state, slab(state, 0, state.scan.n_slices, 0))
        state.annotation.apply(correction)
        state.annotation.apply(correction.inverse())
        assert (state.annotation.labels == 1).all()
        assert correction.proposal == "c"

    def test_a_slab_that_changes_nothing_is_empty(self):
        state = state_of((4, 6, 7), 0)
        assert proposal_correction(state, slab(state, 0, 4, 0, density=0)).is_empty


operations = st.lists(
    st.one_of(
        st.tuples(st.just("stroke"), st.integers(0, 3), st.integers(0, 5), st.integers(0, 2)),
        st.tuples(st.just("accept"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("slab"), st.integers(0, 1), st.integers(1, 4), st.integers(0, 99)),
        st.tuples(st.just("propose")),
        st.tuples(st.just("undo")),
        st.tuples(st.just("redo")),
    ),
    max_size=30,
)


class Replay:
    """The same steps told anew: the truth is what the steps that stand add up to, in the order they came."""

    def __init__(self, session, state):
        self.session, self.state = session, state
        self.log, self.done, self.undone = [], [], []  # log: (step, correction); steps are numbers
        self.proposal, self.count = Step("proposal"), 0

    def number(self):
        self.count += 1
        return self.count

    def user(self, correction):
        if not correction.is_empty:
            self.undone.clear()
            step = self.number()
            self.done.append(step)
            self.log.append((step, correction))

    def machine(self, correction):
        if correction.is_empty:
            return
        if not self.proposal.corrections[:-1]:
            self.open_step = self.number()
            self.done.append(self.open_step)
        self.log.append((self.open_step, correction))
        if self.undone and self.session_forgot():
            touched = set(correction.labels.indices)
            later = [c for step, c in self.log if step in self.undone]
            assert any(c.accepted is not None or touched & set(c.labels.indices) for c in later)
            self.undone.clear()

    def session_forgot(self):
        return self.state.history.next_redo is None

    def expected(self):
        annotation = Annotation.empty(self.state.scan.spatial_shape, self.state.scan.slice_axis)
        for step, correction in self.log:
            if step in self.done:
                annotation.apply(correction)
        return annotation.labels, annotation.painted, annotation.accepted

    def do(self, operation):
        session, state = self.session, self.state
        kind, *values = operation
        if kind == "stroke":
            s, row, value = values
            view = state.annotation.labels.copy()
            plane = view[state.annotation.slice_index(s)]
            plane[row % len(plane), 1:5] = value
            self.user(session.record_edit(state, view, slice(s, s + 1)))
        elif kind == "accept":
            before = state.annotation.acceptance([values[0]], values[1])
            session.accept_slices(state, [values[0]], values[1])
            self.user(before)
        elif kind == "propose":
            self.proposal = Step("proposal")
        elif kind == "slab":
            first, n, seed = values
            reviewed, before = state.annotation.reviewed(), state.annotation.labels.copy()
            proposal = slab(state, first, min(n, 4 - first), seed)
            correction = proposal_correction(state, proposal)
            self.proposal = state.history.extend(self.proposal, correction)
            session.proposals._take_slab(state, correction, proposal)
            np.testing.assert_array_equal(state.annotation.labels[reviewed], before[reviewed])
            self.machine(correction)
        elif kind == "undo":
            if self.proposal.corrections and state.history.next_undo is self.proposal:
                self.proposal = Step("proposal")  # the session cancels a proposal that is taken back
            assert session.undo(state) == bool(self.done)
            if self.done:
                self.undone.append(self.done.pop())
        elif kind == "redo":
            assert session.redo(state) == bool(self.undone)
            if self.undone:
                self.done.append(self.undone.pop())


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@given(operations=operations)
@example(operations=[("slab", 0, 1, 1), ("undo",), ("slab", 1, 1, 0), ("redo",), ("slab", 0, 1, 0)])
def test_undo_is_exact_however_strokes_and_slabs_are_mixed(tmp_path_factory, slice_axis, operations):
    session = Session(Engine(), tmp_path_factory.getbasetemp() / "not saved", LabelSchema.of("a", "b"))
    try:
        session.ledger._only_reads = True  # thousands of small files would only cost time
        shape = [6, 7]
        shape.insert(slice_axis, 4)
        state = session.add_scan(scan_of(tuple(shape), slice_axis))
        replay = Replay(session, state)
        for operation in operations:
            replay.do(operation)
            assert_same_state(snapshot(state), replay.expected())
            if replay.done and operation[0] != "redo":
                here = snapshot(state)
                steps = state.history.next_undo
                session.undo(state)
                session.redo(state)
                assert state.history.next_undo is steps
                assert_same_state(snapshot(state), here)
        end = snapshot(state)
        n = 0
        while session.undo(state):
            n += 1
        assert n == len(replay.done)
        assert not any(part.any() for part in snapshot(state))
        for _ in range(n):
            assert session.redo(state)
        assert_same_state(snapshot(state), end)
    finally:
        session.close()


class TestScans:
    def test_they_are_called_by_number_never_by_file(self, session, tmp_path):
        source = tmp_path / "Doe^Jane.nii.gz"
        state = session.add_scan(scan_of(source=source, warnings=("something odd",)))
        assert state.name == "scan 1"
        assert state.stem == "Doe^Jane"  # for naming exports only
        assert session.heard.notices == ["scan 1: something odd"]
        assert session.heard.take() == ["scan_added", "active_changed"]
        assert session.active is state

    def test_one_scan_is_open_once(self, session):
        state = session.add_scan(scan_of())
        other = session.add_scan(scan_of(seed=1))
        assert session.add_scan(scan_of()) is state
        assert session.scans == [state, other]
        assert session.active is state
        assert "scan 1" in session.heard.notices[-1]

    def test_the_same_voxels_in_another_place_are_said(self, session):
        session.add_scan(scan_of())
        moved = scan_of()
        object.__setattr__(moved, "geometry", Geometry((9.0, 1.0, 1.0)))
        session.add_scan(moved)
        assert "in another place: close it first" in session.heard.notices[-1]

    def test_closing_one(self, session):
        state, other = session.add_scan(scan_of()), session.add_scan(scan_of(seed=1))
        session.heard.take()
        session.remove_scan(other)
        assert session.heard.take() == ["active_changed", "scan_removed"]
        assert (session.active, session.scans) == (None, [state])
        session.remove_scan(other)
        assert session.heard.take() == []

    def test_starting_labels_are_shown_but_are_not_truth(self, session):
        labels = np.ones((4, 6, 7), bool)
        state = session.add_scan(scan_of(), labels)
        assert state.annotation.labels.all()
        assert not state.annotation.reviewed().any()
        large = session.add_scan(scan_of(seed=1), np.full((4, 6, 7), 300))
        assert (large.annotation.labels == 300).all()

    @pytest.mark.parametrize(
        "labels",
        [np.zeros((4, 6, 8), np.uint8), np.zeros((6, 7), np.uint8), np.full((4, 6, 7), 0.5), -np.ones((4, 6, 7), int)],
    )
    def test_labels_that_do_not_fit_are_refused(self, session, labels):
        with pytest.raises(MaskError):
            session.add_scan(scan_of(), labels)
        assert session.scans == []

    def test_channels_that_are_no_colours_are_refused(self, session):
        with pytest.raises(ScanError, match="2 channels"):
            session.add_scan(Scan(np.zeros((6, 7, 2), np.uint8), "yxc", Geometry(None)))
        assert session.add_scan(Scan(np.zeros((6, 7, 3), np.uint8), "yxc", Geometry(None))).scan.is_rgb

    def test_the_visible_slice_is_always_one_of_the_active_scan(self, session):
        assert session.visible_slice == 0
        session.add_scan(scan_of((4, 6, 7)))
        session.show_slice(3)
        assert session.visible_slice == 3
        session.add_scan(scan_of((2, 6, 7)))
        assert session.visible_slice == 1

    def test_classes_may_be_renamed_at_any_time(self, session):
        session.heard.take()
        session.set_schema(LabelSchema.of("liver", "spleen"))
        assert session.heard.take() == ["schema_changed"]


class TestJudges:
    def accepted(self, n, shape=(12, 6, 7), seed=0):
        state = state_of(shape, 0 if len(shape) == 3 else None, seed)
        state.annotation.accepted[:n] = True
        return state

    @pytest.mark.parametrize(("n", "judges"), [(0, []), (4, []), (5, [4]), (9, [8]), (10, [8, 9]), (12, [10, 11])])
    def test_a_fifth_of_the_accepted_slices_judges_once_there_are_five(self, n, judges):
        state = self.accepted(n)
        lock_judges([state])
        assert np.flatnonzero(state.locked).tolist() == judges

    def test_a_slice_never_changes_sides(self):
        state = self.accepted(4)
        lock_judges([state])
        state.note_taught()
        state.annotation.accepted[:5] = True
        lock_judges([state])
        state.note_taught()
        assert np.flatnonzero(state.locked).tolist() == [4]
        assert np.flatnonzero(state.taught).tolist() == [0, 1, 2, 3]
        state.annotation.accepted[:] = True
        lock_judges([state])
        assert np.flatnonzero(state.locked).tolist() == [4]

    def test_slices_that_have_all_taught_do_not_judge(self):
        state = self.accepted(4)
        state.annotation.painted[4, 0, 0] = True
        state.note_taught()
        state.annotation.accepted[4] = True
        lock_judges([state])
        assert not state.locked.any()

    def test_whole_pictures_judge_where_scans_have_one_slice(self):
        states = [self.accepted(1, (6, 7), seed) for seed in range(4)]
        lock_judges(states)
        assert not any(s.locked.any() for s in states)
        states += [self.accepted(1, (1, 6, 7)), self.accepted(0, (6, 7), 4)]
        lock_judges(states)
        assert [bool(s.locked[0]) for s in states] == [False] * 4 + [True, False]
