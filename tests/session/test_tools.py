"""The correcting hand's tools: they change what was previewed, obey locks and rules, and undo exactly."""

from __future__ import annotations

import numpy as np
import pytest

from napari_unet.domain.errors import SessionError, SettingsError
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.scan import Scan
from napari_unet.editing.tools import (
    TOOLS,
    Combine,
    CopySlice,
    FillBetween,
    GrowFromSeeds,
    KeepLargest,
    Margin,
    RemoveSmall,
    Split,
    Threshold,
)
from tests.session.conftest import assert_same_state, painted, snapshot

SECONDS = 60


def ball_scan(shape=(12, 40, 48), slice_axis=0, spacing=(3.0, 1.0, 1.0)):
    """A bright ball in noise, and where it is."""
    grid = np.indices(shape)
    middle = [(n - 1) / 2 for n in shape]
    inside = sum(((axis - m) / (n / 3)) ** 2 for axis, m, n in zip(grid, middle, shape, strict=True)) < 1
    data = np.random.default_rng(1).normal(0, 8, shape) + 100 * inside
    return Scan(data.astype(np.float32), "zyx", Geometry(spacing), slice_axis), inside


@pytest.fixture
def work(session):
    scan, inside = ball_scan()
    state = session.add_scan(scan)
    session.show_slice(5)
    return session, state, inside


def applied(session, settings, value=1, scope="slice"):
    session.tools.look(settings, value, scope)
    session.tools.apply()


def dice(one, two):
    return 2 * (one & two).sum() / (one.sum() + two.sum())


def test_a_preview_changes_nothing_and_applying_it_is_one_step(work):
    session, state, _ = work
    session.record_edit(state, painted(state, np.s_[5, 15:25, 20:30], 1), slice(None))
    before = snapshot(state)
    session.tools.look(Margin(by_mm=2), 1, "slice")
    shown, change = session.tools.preview
    assert shown is state
    assert_same_state(snapshot(state), before)
    session.tools.apply()
    assert session.tools.preview is None
    assert (state.annotation.labels[5] == 1).sum() == 100 + len(change)
    assert not state.annotation.labels[[4, 6]].any()
    assert state.annotation.painted[5][state.annotation.labels[5] > 0].all()
    assert session.audits.of(state).actions == {"stroke": 1, "margin": 1}
    session.undo(state)
    assert_same_state(snapshot(state), before)


def test_a_stroke_makes_a_preview_useless(work):
    session, state, _ = work
    session.record_edit(state, painted(state, np.s_[5, 15:25, 20:30], 1), slice(None))
    session.tools.look(Margin(by_mm=2), 1, "slice")
    session.record_edit(state, painted(state, np.s_[5, 1], 1), slice(None))
    assert session.tools.preview is None
    with pytest.raises(SessionError, match="press Preview again"):
        session.tools.apply()


def test_what_is_applied_is_what_is_on_the_screen(work):
    """An accepted slice that was scrolled away, or a class locked meanwhile, does not change unseen."""
    session, state, _ = work
    session.record_edit(state, painted(state, np.s_[5, 15:25, 20:30], 1), slice(None))
    session.accept_slices(state, [5])
    before = snapshot(state)
    session.tools.look(Margin(by_mm=2), 1, "slice")
    session.show_slice(7)
    with pytest.raises(SessionError, match="another slice"):
        session.tools.apply()
    session.show_slice(5)
    session.tools.lock(1, True)
    with pytest.raises(SessionError, match="press Preview again"):
        session.tools.apply()
    assert_same_state(snapshot(state), before)


def test_what_a_piece_keeps_is_said(work):
    session, state, _ = work
    session.record_edit(state, painted(state, np.s_[3:8, 15:25, 20:30], 1), slice(None))
    session.accept_slices(state, [3])
    assert session.tools.remove_piece(state, (5, 18, 25)) == 400
    assert "100 voxels of that piece stay" in session.heard.notices[-1]
    assert state.annotation.labels.sum() == 100


def test_classes_of_one_mask_do_not_intersect_but_with_those_before_a_proposal_they_do(work):
    session, state, _ = work
    session.record_edit(state, painted(state, np.s_[5, 10:20, 10:20], 2), slice(None))
    for operation in ("intersect", "subtract"):
        with pytest.raises(SettingsError, match="share no voxel"):
            session.tools.look(Combine(operation=operation, other=2), 1, "slice")
    with pytest.raises(SettingsError, match="Nothing was proposed"):
        session.tools.look(Combine(other=2, when="before the proposal"), 1, "slice")
    state.before_proposal = state.annotation.labels.copy()
    session.record_edit(state, painted(state, np.s_[5, 15:25, 15:25], 1), slice(None))
    for scope in ("slice", "scan"):
        session.tools.look(Combine(operation="intersect", other=2, when="before the proposal"), 1, scope)
        session.wait(SECONDS)
        assert len(session.tools.preview[1]) == 75
    session.tools.apply()
    np.testing.assert_array_equal(np.argwhere(state.annotation.labels == 1).min(axis=0), (5, 15, 15))
    assert (state.annotation.labels == 1).sum() == 25


def test_a_size_in_cubic_millimetres_is_one_on_a_slice_too(work):
    session, state, _ = work  # slices are 3 mm thick
    session.record_edit(state, painted(state, np.s_[5, 10:12, 10:15], 1), slice(None))
    session.tools.look(RemoveSmall(smallest=30), 1, "slice")
    assert len(session.tools.preview[1]) == 0
    session.tools.look(RemoveSmall(smallest=30.5), 1, "slice")
    assert len(session.tools.preview[1]) == 10


def test_a_stroke_of_another_class_does_not_end_a_structure_that_is_filled(work):
    session, state, _ = work
    session.record_edit(state, painted(state, np.s_[0, 10:20, 10:20], 1), slice(None))
    session.record_edit(state, painted(state, np.s_[10, 10:20, 10:20], 1), slice(None))
    session.record_edit(state, painted(state, np.s_[5, 12, 12], 2), slice(None))
    session.tools.look(FillBetween(), 1, "scan")
    session.wait(SECONDS)
    session.tools.apply()
    labels = state.annotation.labels
    assert (labels == 1).sum(axis=(1, 2)).tolist() == [100] * 5 + [99] + [100] * 5 + [0]
    assert labels[5, 12, 12] == 2
    session.undo(state)
    session.record_edit(state, painted(state, np.s_[5, 8:22, 8:22], 2), slice(None))  # in the place of the structure
    session.tools.look(FillBetween(), 1, "scan")
    session.wait(SECONDS)
    session.tools.apply()
    assert not (labels[5] == 1).any()
    assert (labels[1] == 1).any()


def test_filling_between_slices_leaves_what_was_erased(work):
    session, state, _ = work
    for index in (0, 10):
        session.record_edit(state, painted(state, np.s_[index, 10:20, 10:20], 1), slice(None))
    session.record_edit(state, painted(state, np.s_[5, 12:14, 12:14], 1), slice(None))
    session.record_edit(state, painted(state, np.s_[5, 12:14, 12:14], 0), slice(None))
    session.tools.look(FillBetween(), 1, "scan")
    session.wait(SECONDS)
    session.tools.apply()
    assert (state.annotation.labels == 1).sum(axis=(1, 2)).tolist() == [100] * 5 + [96] + [100] * 5 + [0]


def test_threshold_on_a_slice_finds_the_structure(work):
    session, state, inside = work
    applied(session, Threshold(low=50, high=1000))
    assert dice(state.annotation.labels[5] == 1, inside[5]) > 0.99
    with pytest.raises(SettingsError, match="empty"):
        session.tools.look(Threshold(low=5, high=1), 1, "slice")


def test_locked_classes_keep_their_voxels(work):
    session, state, _ = work
    session.record_edit(state, painted(state, np.s_[5, 10:30, 10:20], 2), slice(None))
    session.tools.lock(2, True)
    applied(session, Threshold(low=-1000, high=1000))
    assert (state.annotation.labels[5] == 2).sum() == 200
    assert (state.annotation.labels[5] == 1).sum() == 40 * 48 - 200
    view = painted(state, np.s_[5, 10:30, 10:20], 0)
    assert session.record_edit(state, view, slice(None)).is_empty
    np.testing.assert_array_equal(view, state.annotation.labels)  # what the hand erased stands in the view again
    session.tools.lock(2, False)
    assert len(session.record_edit(state, painted(state, np.s_[5, 10:30, 10:20], 0), slice(None)).labels) == 200


def test_only_empty_voxels_are_painted_where_that_is_the_rule(work):
    session, state, _ = work
    session.record_edit(state, painted(state, np.s_[5, :, :10], 2), slice(None))
    session.tools.set_rule("empty")
    session.record_edit(state, painted(state, np.s_[5], 1), slice(None))
    assert (state.annotation.labels[5] == 2).sum() == 400
    assert (state.annotation.labels[5] == 1).sum() == 40 * 48 - 400


def test_fill_between_in_the_engine(computing):
    scan, inside = ball_scan()
    state = computing.add_scan(scan)
    view = np.zeros(scan.spatial_shape, np.uint8)
    for index in (2, 5, 9):
        view[index] = inside[index]
    computing.record_edit(state, view, slice(None))
    computing.tools.look(FillBetween(), 1, "scan")
    assert computing.tools.is_looking
    computing.wait(SECONDS)
    computing.tools.apply()
    left_out = [3, 4, 6, 7, 8]
    assert dice(state.annotation.labels[left_out] == 1, inside[left_out]) > 0.9
    np.testing.assert_array_equal(state.annotation.labels[[2, 5, 9]], view[[2, 5, 9]])


def test_accepted_slices_stay_where_the_whole_scan_is_worked_on(computing):
    scan, _ = ball_scan()
    state = computing.add_scan(scan)
    computing.accept_slices(state, [4, 5])
    computing.tools.look(Threshold(low=50, high=1000), 1, "scan")
    computing.wait(SECONDS)
    computing.tools.apply()
    assert not state.annotation.labels[[4, 5]].any()
    assert state.annotation.labels[3].any()
    assert state.annotation.labels[6].any()


def test_growing_from_a_few_strokes(computing):
    scan, inside = ball_scan()
    state = computing.add_scan(scan)
    view = painted(state, np.s_[5:7, 18:22, 22:26], 1)
    computing.record_edit(state, view, slice(None))
    wrong = painted(state, np.s_[5:7, 2:4], 1)
    computing.record_edit(state, wrong, slice(None))
    wrong[5:7, 2:4] = 0
    computing.record_edit(state, wrong, slice(None))
    computing.tools.look(GrowFromSeeds(margin_mm=30), 1, "scan")
    computing.wait(SECONDS)
    computing.tools.apply()
    assert dice(state.annotation.labels == 1, inside) > 0.85


def test_what_cannot_be_done_is_one_sentence(work, computing):
    session, _, _ = work
    for settings in (GrowFromSeeds(), Split(parts=3), Combine(other=1), KeepLargest()):
        if isinstance(settings, KeepLargest):
            applied(session, settings)
            continue
        with pytest.raises(SettingsError):
            session.tools.look(settings, 1, "slice")
    computing.add_scan(ball_scan()[0])
    computing.tools.look(FillBetween(), 1, "scan")
    computing.wait(SECONDS)
    assert "two slices" in computing.heard.notices[-1]
    assert computing.tools.preview is None


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_leaves_other_slices_alone(work, name):
    session, state, _ = work
    random = np.random.default_rng(4)
    session.record_edit(state, random.integers(0, 3, state.scan.spatial_shape).astype(np.uint8), slice(None))
    before = snapshot(state)
    settings = TOOLS[name]()
    try:
        session.tools.look(settings, 1, "slice")
    except SettingsError:
        return
    if session.tools.preview is None:  # between slices: through the engine
        session.tools.dismiss()
        return
    session.tools.apply()
    others = [i for i in range(12) if i != 5]
    np.testing.assert_array_equal(state.annotation.labels[others], before[0][others])


def test_copy_from_the_neighbour_and_small_pieces(work):
    session, state, _ = work
    session.record_edit(state, painted(state, np.s_[4, 10:20, 10:20], 1), slice(None))
    applied(session, CopySlice())
    assert (state.annotation.labels[5] == state.annotation.labels[4]).all()
    session.record_edit(state, painted(state, np.s_[5, 30, 30], 1), slice(None))
    applied(session, RemoveSmall(smallest=5))
    assert (state.annotation.labels[5] == state.annotation.labels[4]).all()


class TestStrokes:
    @pytest.mark.parametrize("slice_axis", [0, 1, 2])
    def test_a_ball_is_round_in_millimetres(self, session, slice_axis):
        scan = Scan(np.zeros((20, 30, 40), np.float32), "zyx", Geometry((3.0, 1.0, 0.5)), slice_axis)
        state = session.add_scan(scan)
        session.tools.stroke(state, np.array([[10, 15, 20]]), 6.0, 1, across=None, ball=True, smart=False)
        z, y, x = np.nonzero(state.annotation.labels)
        away = np.sqrt(((z - 10) * 3.0) ** 2 + (y - 15.0) ** 2 + ((x - 20) * 0.5) ** 2)
        assert away.max() <= 6
        assert (np.ptp(z), np.ptp(y), np.ptp(x)) == (4, 12, 24)
        session.tools.stroke(state, np.array([[10, 15, 20]]), 6.0, 0, across=None, ball=True, smart=False)
        assert not state.annotation.labels.any()

    @pytest.mark.parametrize("slice_axis", [0, 1, 2])
    def test_the_smart_brush_stops_at_the_edge(self, session, slice_axis):
        shape = [60, 60, 60]
        shape[slice_axis] = 5
        data = np.zeros(shape, np.float32)
        where = [slice(None)] * 3
        first, second = (axis for axis in range(3) if axis != slice_axis)
        where[first] = slice(0, 30)
        data[tuple(where)] = 100
        state = session.add_scan(Scan(data, "zyx", Geometry((1.0, 1.0, 1.0)), slice_axis))
        path = np.zeros((2, 3))
        path[:, slice_axis], path[:, first], path[:, second] = 2, 26, (20, 40)
        session.tools.stroke(state, path, 8.0, 1, across=slice_axis, ball=False, smart=True)
        found = np.moveaxis(state.annotation.labels, slice_axis, 0)
        assert found[2].sum() > 200
        assert not (found[2].astype(bool) & (np.moveaxis(data, slice_axis, 0)[2] == 0)).any()
        assert not found[[0, 1, 3, 4]].any()

    @pytest.mark.parametrize(
        ("shape", "slice_axis", "across"), [((1, 40, 30), 2, 2), ((1, 40, 30), 2, 0), ((9, 1, 30), 0, 0)]
    )
    def test_thin_volumes_are_painted_too(self, session, shape, slice_axis, across):
        state = session.add_scan(Scan(np.zeros(shape, np.float32), "zyx", Geometry((1.0, 1.0, 1.0)), slice_axis))
        middle = np.array([[n // 2 for n in shape]])
        assert session.tools.stroke(state, middle, 4.0, 1, across=across, ball=False, smart=True) > 0
        assert state.annotation.labels[tuple(middle[0])] == 1
        where = np.nonzero(state.annotation.labels)
        assert set(where[across]) == {middle[0, across]}

    def test_a_stroke_over_several_slices_is_a_stroke_on_each(self, work):
        session, state, _ = work
        path = np.array([[4, 20, 10], [4, 20, 20], [6, 20, 30]])
        session.tools.stroke(state, path, 3.0, 1, across=0, ball=False, smart=False)
        assert state.labelled[[4, 6]].all()
        assert state.labelled.sum() == state.labelled[4] + state.labelled[6]
        assert state.annotation.labels[6, 20, 30] == 1
        assert not state.annotation.labels[6, 20, 15]
        session.undo(state)
        assert not state.annotation.labels.any(), "one stroke of the hand, one step"

    def test_accepted_slices_that_are_not_on_screen_stay(self, work):
        session, state, _ = work
        session.accept_slices(state, [5, 6])
        session.show_slice(5)
        session.tools.stroke(state, np.array([[5, 20, 20]]), 9.0, 1, across=None, ball=True, smart=False)
        assert state.labelled[5] > 0
        assert state.labelled[4] > 0
        assert state.labelled[6] == 0
        session.accept_slices(state, [4])
        session.tools.remove_piece(state, (5, 20, 20))
        assert state.labelled[5] == 0
        assert state.labelled[4] > 0

    def test_a_stroke_beyond_the_scan_changes_nothing(self, work):
        session, state, _ = work
        assert session.tools.stroke(state, np.array([[5, -90, -90]]), 4.0, 1, across=0, ball=False, smart=False) == 0


class TestPieces:
    def test_a_click_removes_recolours_or_accepts_one_piece(self, work):
        session, state, _ = work
        view = np.zeros(state.scan.spatial_shape, np.uint8)
        view[2:5, 2:6, 2:6] = view[8:10, 20:24, 20:24] = 1
        session.record_edit(state, view, slice(None))
        assert session.tools.recolour_piece(state, (3, 3, 3), 2) == 3 * 16
        assert session.tools.remove_piece(state, (8, 21, 21)) == 2 * 16
        assert (state.annotation.labels == 2).sum() == 48
        assert not (state.annotation.labels == 1).any()
        with pytest.raises(SessionError, match="no label"):
            session.tools.remove_piece(state, (0, 0, 0))
        session.tools.lock(2, True)
        with pytest.raises(SessionError, match="locked"):
            session.tools.remove_piece(state, (3, 3, 3))
        session.undo(state)
        assert (state.annotation.labels == 1).sum() == 32
