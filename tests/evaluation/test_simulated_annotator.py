"""People who are not there: what they leave of a proposal, what they painted, and what it cost them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from napari_unet.domain.errors import MaskError
from napari_unet.evaluation.brush_strokes import find_slivers, paint_plane
from napari_unet.evaluation.simulated_annotator import BrushAnnotator, OracleAnnotator


def blank(*shape):
    return np.zeros(shape, np.uint8)


def disc(shape, centre, radius, value=1):
    y, x = np.indices(shape)
    return (np.hypot(y - centre[0], x - centre[1]) <= radius + 0.5).astype(np.uint8) * np.uint8(value)


@st.composite
def shapes(draw, size):
    """Draw discs and rectangles of three classes over one another: some thin, some over the edge."""
    plane = blank(*size)
    for value in draw(st.lists(st.sampled_from([0, 1, 1, 2]), max_size=4)):
        y, x = (draw(st.integers(-3, n + 2)) for n in size)
        if draw(st.booleans()):
            plane[disc(size, (y, x), draw(st.integers(0, 12))) > 0] = value
        else:
            height, width = draw(st.tuples(st.integers(1, 24), st.integers(1, 5)))
            plane[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = value
    return plane


@st.composite
def cases(draw):
    """Draw a proposal and the truth: a little displaced, wholly different, empty, or noise."""
    size = draw(st.integers(1, 32)), draw(st.integers(1, 32))
    truth = draw(shapes(size))
    kind = draw(st.sampled_from(["displaced", "other", "empty", "specks", "noise"]))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    if kind == "displaced":
        proposal = np.roll(truth, random.integers(-4, 5, 2), (0, 1))
    elif kind == "other":
        proposal = draw(shapes(size))
    elif kind == "empty":
        proposal = blank(*size)
    else:
        wrong = random.random(size) < (0.02 if kind == "specks" else 0.4)
        proposal = np.where(wrong, random.integers(0, 3, size), truth).astype(np.uint8)
    return proposal, truth


def is_sliver(labels, truth, y, x):
    """Decide by the definition's words, pixel by pixel; the image goes on as at its edge."""
    labels, truth = (np.pad(a, 8, mode="edge") for a in (labels, truth))
    steps = np.arange(-4, 5)
    for down, over in ((0, 1), (1, 0), (1, 1), (1, -1)):
        said, meant = (a[y + 8 + down * steps, x + 8 + over * steps] for a in (labels, truth))
        for width in (1,) if down and over else (1, 2):
            for begin in range(4 - width + 1, 5):
                run = slice(begin, begin + width)
                sides = [slice(begin - width - 1, begin), slice(begin + width, begin + 2 * width + 1)]
                if (said[run] == meant[run]).any() or any((said[side] != meant[side]).any() for side in sides):
                    continue
                wrong, right = set(said[run]), set(meant[run])
                beside = [set(meant[side]) for side in sides]
                if len(wrong) == len(right) == 1 and beside in ([right, wrong], [wrong, right]):
                    return True
    return False


class TestAnyPlane:
    @given(cases())
    @settings(max_examples=60)
    @example((blank(9, 9), blank(9, 9)))
    @example((blank(1, 1), blank(1, 1) + 1))
    @example((blank(70, 70), blank(70, 70) + 2))
    def test_only_slivers_stay_wrong_and_the_slice_is_accepted(self, case):
        proposal, truth = case
        left = BrushAnnotator().correct(proposal, truth)
        assert left.reviewed.all()
        for y, x in np.argwhere(left.labels != truth):
            assert is_sliver(left.labels, truth, y, x)
        assert np.count_nonzero(left.labels != truth) <= np.count_nonzero(proposal != truth)
        assert (left.strokes == 0) == np.array_equal(left.labels, proposal)
        assert left.seconds >= 0.2 + left.path / 400 + 0.2 * max(left.strokes - 1, 0) - 1e-9

    @given(cases(), st.floats(0, 3))
    @settings(max_examples=25)
    def test_a_brush_changes_nothing_but_to_the_truth(self, case, limit):
        proposal, truth = case
        for painted in (paint_plane(proposal, truth), paint_plane(proposal, truth, limit)):
            changed = painted.labels != proposal
            np.testing.assert_array_equal(painted.labels[changed], truth[changed])
            assert not (painted.labels[proposal == truth] != truth[proposal == truth]).any()
        assert painted.seconds <= limit or not painted.strokes

    @given(cases())
    @settings(max_examples=20)
    def test_it_is_the_same_every_time_and_for_every_axis(self, case):
        proposal, truth = case
        given_ = proposal.copy(), truth.copy()
        first = BrushAnnotator().correct(proposal, truth)
        for axis in range(3):
            again = BrushAnnotator().correct(np.expand_dims(proposal, axis), np.expand_dims(truth, axis), axis)
            np.testing.assert_array_equal(np.squeeze(again.labels, axis), first.labels)
            assert (again.strokes, again.path, again.seconds) == (first.strokes, first.path, first.seconds)
        np.testing.assert_array_equal(proposal, given_[0])
        np.testing.assert_array_equal(truth, given_[1])

    @given(cases())
    @settings(max_examples=25)
    def test_slivers_are_what_the_definition_says(self, case):
        labels, truth = case
        found = find_slivers(np.pad(labels, 8, mode="edge"), np.pad(truth, 8, mode="edge"))[8:-8, 8:-8]
        expected = [[is_sliver(labels, truth, y, x) for x in range(truth.shape[1])] for y in range(truth.shape[0])]
        np.testing.assert_array_equal(found, np.array(expected))

    @given(st.lists(shapes((20, 20)), min_size=1, max_size=3), st.floats(0, 4))
    @settings(max_examples=15)
    def test_what_counts_as_reviewed_when_the_person_leaves(self, truths, patience):
        truth = np.stack(truths)
        proposal = np.roll(truth, 4, axis=2)
        left = BrushAnnotator(patience).correct(proposal, truth, 0)
        patient = [BrushAnnotator().correct(p, t) for p, t in zip(proposal, truth, strict=True)]
        accepted = np.cumsum([whole.seconds for whole in patient]) <= patience + 1e-9
        assert left.seconds <= patience
        n = int(accepted.sum())
        for i, whole in enumerate(patient[:n]):
            assert left.reviewed[i].all()
            np.testing.assert_array_equal(left.labels[i], whole.labels)
        np.testing.assert_array_equal(left.reviewed[n:], left.labels[n:] != proposal[n:])
        np.testing.assert_array_equal(left.labels[n:][left.reviewed[n:]], truth[n:][left.reviewed[n:]])
        assert not left.reviewed[n + 1 :].any()


class TestTheBill:
    def test_a_right_slice_is_only_looked_at(self):
        truth = disc((40, 40), (20, 20), 9)
        left = BrushAnnotator().correct(np.stack([truth, blank(40, 40)]), np.stack([truth, blank(40, 40)]), 0)
        assert (left.strokes, left.path, left.seconds) == (0, 0.0, pytest.approx(0.4))

    def test_a_disc_is_one_dab(self):
        truth = disc((60, 60), (30, 25), 12)
        left = BrushAnnotator().correct(blank(60, 60), truth)
        np.testing.assert_array_equal(left.labels, truth)
        assert (left.strokes, left.path, left.seconds) == (1, 0.0, pytest.approx(0.2))

    def test_a_bar_is_one_stroke_along_its_middle(self):
        truth = blank(20, 120)
        truth[8:15, 10:110] = 1
        left = BrushAnnotator().correct(blank(20, 120), truth)
        assert left.strokes == 1
        # The brush of 7 pixels leaves but the outermost corners.
        assert left.path == pytest.approx(93, abs=4)
        assert left.seconds == pytest.approx(0.2 + left.path / 400)
        assert np.count_nonzero(left.labels != truth) <= 12

    def test_between_two_strokes_there_is_a_search_and_a_way(self):
        truth = disc((40, 300), (20, 30), 5) + disc((40, 300), (20, 270), 5)
        left = BrushAnnotator().correct(blank(40, 300), truth)
        assert (left.strokes, left.path) == (2, 0.0)
        assert left.seconds == pytest.approx(0.2 + 0.2 + 240 / 800)

    def test_a_large_area_takes_several_sweeps(self):
        truth = blank(140, 140)
        truth[10:130, 10:130] = 1
        left = BrushAnnotator().correct(blank(140, 140), truth)
        # 80 x 80 pixels for the middle of a brush 41 across at least, and the way to the corners at most.
        assert 240 < left.path < 2000
        assert left.strokes < 10

    def test_a_hopeless_proposal_is_cleared_first(self):
        truth = disc((64, 64), (32, 32), 8)
        proposal = (np.random.default_rng(0).random((64, 64)) < 0.3).astype(np.uint8)
        left = BrushAnnotator().correct(proposal, truth)
        np.testing.assert_array_equal(left.labels, truth)
        assert left.strokes == 2
        assert left.seconds == pytest.approx(0.2 + 0.2 + 0.2)

    def test_nothing_is_cleared_where_correcting_is_less_work(self):
        truth = disc((64, 64), (32, 32), 12, 2)
        proposal = truth.copy()
        proposal[5:9, 5:9] = 1
        left = BrushAnnotator().correct(proposal, truth)
        assert (left.strokes, left.path) == (1, 0.0)

    def test_an_empty_truth_is_wiped(self):
        for proposal in (disc((30, 30), (9, 9), 7), np.ones((30, 30), np.uint8)):
            left = BrushAnnotator().correct(proposal, blank(30, 30))
            assert not left.labels.any()
            assert left.strokes == 1
        assert BrushAnnotator().correct(blank(30, 30), blank(30, 30)).strokes == 0


class TestWhatIsLeftAndWhatIsNot:
    """A border a pixel or two beside the true one is left; nothing else is."""

    def paint(self, proposal, truth):
        return BrushAnnotator().correct(proposal, truth)

    def test_a_displaced_border_is_left(self):
        truth = blank(40, 40)
        truth[10:30, 10:30] = 1
        for shift in (1, 2, -1, -2):
            proposal = np.roll(truth, shift, axis=0)
            left = self.paint(proposal, truth)
            assert left.strokes == 0
            assert left.reviewed.all()
        repainted = self.paint(np.roll(truth, 4, axis=0), truth)
        assert 2 <= repainted.strokes <= 4
        assert np.count_nonzero(repainted.labels != truth) <= 12

    def test_a_displaced_border_far_from_a_hole_is_left_too(self):
        truth = blank(320, 320)
        truth[10:310, 10:310] = 1
        proposal = np.roll(truth, 1, axis=1)
        proposal[150:170, 150:170] = 0
        left = self.paint(proposal, truth)
        np.testing.assert_array_equal(left.labels, np.roll(truth, 1, axis=1))
        assert left.strokes == 1

    @pytest.mark.parametrize("width", [1, 2, 3])
    def test_thin_structures_are_painted_whole(self, width):
        truth = blank(30, 60)
        truth[14 : 14 + width, 5:55] = 1
        assert np.count_nonzero(self.paint(blank(30, 60), truth).labels != truth) <= 2
        half = truth.copy()
        half[:, 20:40] = 0
        np.testing.assert_array_equal(self.paint(half, truth).labels, truth)
        halved = truth.copy()
        halved[14] = 0
        assert self.paint(halved, truth).strokes == (0 if width == 3 else 1)

    def test_holes_specks_and_false_lines_are_not_left(self):
        truth = disc((60, 60), (30, 30), 14)
        for where in ((30, 30), (slice(29, 31), slice(29, 31)), (3, 3), (slice(0, 2), slice(0, 50)), (slice(4), 58)):
            proposal = truth.copy()
            proposal[where] = 1 - proposal[where]
            left = self.paint(proposal, truth)
            np.testing.assert_array_equal(left.labels, truth)
            assert left.strokes > 0

    def test_a_wrong_class_is_painted_over(self):
        truth = disc((50, 50), (25, 25), 12, 2)
        left = self.paint(truth // 2, truth)
        np.testing.assert_array_equal(left.labels, truth)
        assert left.strokes == 1

    def test_a_brush_hangs_over_the_edge(self):
        truth = np.ones((30, 30), np.uint8)
        np.testing.assert_array_equal(self.paint(blank(30, 30), truth).labels, truth)


def test_labels_above_255_are_kept():
    truth = disc((30, 30), (15, 15), 8).astype(np.uint16) * 300
    left = BrushAnnotator().correct(blank(30, 30), truth)
    assert left.labels.dtype == np.uint16
    np.testing.assert_array_equal(left.labels, truth)


def test_the_oracle_leaves_the_truth_in_a_new_array_and_counts_nothing():
    proposal, truth = np.ones((1, 3), np.uint8), np.array([[0, 1, 2]], np.uint8)
    left = OracleAnnotator().correct(proposal, truth)
    np.testing.assert_array_equal(left.labels, truth)
    assert not np.shares_memory(left.labels, truth)
    assert left.reviewed.all()
    assert (left.strokes, left.path, left.seconds) == (None, None, None)


@pytest.mark.parametrize("annotator", [OracleAnnotator(), BrushAnnotator()])
def test_masks_of_two_scans_are_refused(annotator):
    with pytest.raises(MaskError, match="same scan"):
        annotator.correct(blank(1, 1), blank(1, 2))


def test_nobody_works_without_patience():
    truth = disc((30, 30), (15, 15), 8)
    left = BrushAnnotator(0.1).correct(blank(30, 30), truth)
    assert not left.labels.any()
    assert not left.reviewed.any()
    assert left.seconds == 0
    assert math.isfinite(left.path)
