"""Scores against brute force, MONAI and scipy, shapes whose distances are known, and at the edges of their definitions.

Thousands of random masks are compared by benchmarks/evaluate.py.
"""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from napari_unet.domain.errors import MaskError
from napari_unet.evaluation import metrics
from napari_unet.evaluation.metrics import CaseScores, score_case, summarise, to_json

MASK_PAIRS = st.one_of(st.just((5, 6)), st.just((3, 4, 5))).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)
NOTHING = {"mean": None, "median": None, "q1": None, "q3": None, "std": None, "n": 0}
STEPS = st.sampled_from([0.3, 0.7, 1.0, 2.5])


def brute_surface(mask):
    """Voxels of the mask with a face neighbour outside it, or outside the image."""
    found = []
    for voxel in np.argwhere(mask):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            neighbour = voxel.copy()
            neighbour[axis] += step
            if not 0 <= neighbour[axis] < mask.shape[axis] or not mask[tuple(neighbour)]:
                found.append(voxel)
                break
    return found


def brute_distances(mask, other, spacing):
    others = brute_surface(other)
    return [
        min(math.sqrt(sum(((a - b) * s) ** 2 for a, b, s in zip(v, w, spacing, strict=True))) for w in others)
        for v in brute_surface(mask)
    ]


@settings(max_examples=60, deadline=None)
@given(masks=MASK_PAIRS)
def test_overlap_equals_counting(masks):
    p, t = masks
    both, either = len(set(map(tuple, np.argwhere(p))) & set(map(tuple, np.argwhere(t)))), (p | t).sum()
    assert metrics.iou(p, t) == (both / either if either else 1)
    assert metrics.dice(p, t) == (2 * both / (p.sum() + t.sum()) if either else 1)


@settings(max_examples=30, deadline=None)
@given(masks=MASK_PAIRS, steps=st.tuples(STEPS, STEPS, STEPS))
def test_distances_equal_brute_force(masks, steps):
    p, t = masks
    spacing = steps[: p.ndim]
    if not (p.any() and t.any()):
        return
    forth, back = metrics.surface_distances(p, t, spacing)
    expected_forth, expected_back = brute_distances(p, t, spacing), brute_distances(t, p, spacing)
    np.testing.assert_allclose(forth, expected_forth, rtol=1e-12)
    np.testing.assert_allclose(back, expected_back, rtol=1e-12)
    assert metrics.hd(p, t, spacing) == pytest.approx(max(expected_forth + expected_back))
    assert metrics.hd95_mm(p, t, spacing) == pytest.approx(
        max(np.percentile(expected_forth, 95), np.percentile(expected_back, 95))
    )
    within = sum(d <= 1.0 + 1e-9 for d in expected_forth + expected_back)
    assert metrics.nsd(p, t, spacing, 1.0) == pytest.approx(within / len(expected_forth + expected_back))


@settings(max_examples=40, deadline=None)
@given(masks=MASK_PAIRS)
def test_scores_are_symmetric_and_finite(masks):
    p, t = masks
    for metric in (metrics.dice, metrics.iou, metrics.hd, metrics.hd95_mm, metrics.nsd):
        value = metric(p, t)
        assert value == metric(t, p)
        assert math.isfinite(value)


def test_both_empty_is_perfect():
    empty = np.zeros((4, 5, 6), np.uint8)
    scores = score_case(empty, empty, [1], (1, 1, 1))
    assert (scores.dice[1], scores.iou[1], scores.nsd[1], scores.hd95_mm[1]) == (1, 1, 1, 0)
    assert (scores.hd_mm[1], scores.lesion_f1[1]) == (0, 1)
    assert (scores.volume_error_ml[1], scores.volume_error_relative[1]) == (0, 0)
    assert metrics.hd(empty, empty) == 0


@pytest.mark.parametrize("swap", [False, True])
def test_one_empty_is_worst(swap):
    empty, full = np.zeros((3, 4), np.uint8), np.ones((3, 4), np.uint8)
    pair = (full, empty) if swap else (empty, full)
    scores = score_case(*pair, [1], (2.0, 2.0))
    assert (scores.dice[1], scores.iou[1], scores.nsd[1]) == (0, 0, 0)
    assert scores.hd95_mm[1] == scores.hd_mm[1] == metrics.hd(*pair, (2.0, 2.0)) == pytest.approx(math.hypot(6, 8))
    assert scores.lesion_f1[1] == 0
    assert scores.volume_error_ml[1] == (48 if swap else -48)
    # Nothing can be a share of no volume.
    assert scores.volume_error_relative[1] == -1 or (swap and math.isnan(scores.volume_error_relative[1]))


@pytest.mark.parametrize(("axis", "step"), [(0, 5.0), (1, 2.0), (2, 0.5)])
def test_shifted_cube_is_as_far_as_it_was_shifted(axis, step):
    cube = np.zeros((20, 20, 20), bool)
    cube[5:12, 5:12, 5:12] = True
    moved = np.roll(cube, 2, axis)
    assert metrics.hd(cube, moved, (5.0, 2.0, 0.5)) == pytest.approx(2 * step)
    assert metrics.hd95_mm(cube, moved, (5.0, 2.0, 0.5)) == pytest.approx(2 * step)


def test_concentric_spheres_on_an_anisotropic_grid():
    spacing = (2.0, 1.0, 1.0)
    z, y, x = np.indices((31, 61, 61)) - np.array([15, 30, 30]).reshape(3, 1, 1, 1)
    radius = np.sqrt((z * 2.0) ** 2 + y**2 + x**2)
    inner, outer = radius <= 15, radius <= 23
    # Border voxels lie up to one diagonal step inside the true surface.
    assert metrics.hd95_mm(inner, outer, spacing) == pytest.approx(8, abs=1.5)
    assert metrics.nsd(inner, outer, spacing, tolerance_mm=5) == 0
    assert metrics.nsd(inner, outer, spacing, tolerance_mm=11) == 1
    volume = 15**3 * 2 / (15**3 + 23**3)
    assert metrics.dice(inner, outer) == pytest.approx(volume, abs=0.01)


def test_one_far_voxel_moves_the_maximum_and_not_the_percentile():
    truth = np.zeros((60, 60), bool)
    truth[10:40, 10:40] = True
    prediction = truth.copy()
    prediction[55, 55] = True
    assert metrics.hd(prediction, truth) == pytest.approx(math.hypot(16, 16))
    assert metrics.hd95_mm(prediction, truth) == 0


def test_the_larger_directed_percentile_counts():
    # All of the small square lies on the border of the big one; not the other way round.
    big, small = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    big[5:35, 5:35] = True
    small[5:8, 5:8] = True
    forth, back = metrics.surface_distances(small, big)
    assert metrics.hd95_mm(small, big) == np.percentile(back, 95) > np.percentile(forth, 95)


@pytest.mark.parametrize("step", [0.1, 0.3, 0.7])
def test_a_distance_equal_to_the_tolerance_is_within_it(step):
    a, b = np.zeros((1, 9), bool), np.zeros((1, 9), bool)
    a[0, 0], b[0, 3] = True, True
    assert metrics.nsd(a, b, (1.0, step), tolerance_mm=round(3 * step, 6)) == 1


def test_surface_of_a_mask_at_the_image_border_includes_the_border():
    full = np.ones((5, 5), bool)
    forth, _ = metrics.surface_distances(full, full)
    assert len(forth) == 16


def test_unknown_spacing_means_pixels():
    a, b = np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)
    a[4, 2], b[4, 5] = 1, 1
    scores = score_case(a, b, [1], None)
    assert (scores.hd95_mm[1], scores.unit) == (3, "px")
    assert summarise([scores])["unit"] == "px"
    assert summarise([score_case(a, b, [1], (1, 1))])["unit"] == "mm"


def test_classes_are_scored_apart():
    truth = np.array([[1, 1, 2, 2]], np.uint8)
    prediction = np.array([[1, 1, 1, 2]], np.uint8)
    scores = score_case(prediction, truth, (1, 2, 3), (1, 1), case="a")
    assert scores.dice == {1: pytest.approx(0.8), 2: pytest.approx(2 / 3), 3: 1}
    assert scores.iou == {1: pytest.approx(2 / 3), 2: 0.5, 3: 1}


def test_shapes_and_spacings_must_fit():
    a, b = np.zeros((3, 4)), np.zeros((4, 3))
    with pytest.raises(MaskError, match="same scan"):
        metrics.dice(a, b)
    with pytest.raises(MaskError, match="same scan"):
        score_case(a, b, [1])
    for spacing in ((1.0,), (1.0, 0.0), (1.0, math.nan)):
        with pytest.raises(MaskError, match="spacing"):
            metrics.hd95_mm(a, a, spacing)


def test_summary_by_hand():
    cases = [
        CaseScores("a", {1: 0.5, 2: 0.9}, {1: 0.3, 2: 0.8}, {1: 4.0, 2: 2.0}, {1: 0.1, 2: 0.3}),
        CaseScores("b", {1: 0.7}, {1: 0.5}, {1: 8.0}, {1: 0.5}),
    ]
    summary = summarise(cases)
    assert summary["cases"] == 2
    assert summary["dice"]["per_label"]["1"] == {
        "mean": pytest.approx(0.6),
        "median": pytest.approx(0.6),
        "q1": pytest.approx(0.55),
        "q3": pytest.approx(0.65),
        "std": pytest.approx(math.sqrt(0.02)),
        "n": 2,
    }
    assert summary["dice"]["per_label"]["2"] == {"mean": 0.9, "median": 0.9, "q1": 0.9, "q3": 0.9, "std": None, "n": 1}
    # Case by case first: (0.7 + 0.7) / 2, not the mean of the three figures.
    assert summary["dice"]["overall"]["mean"] == pytest.approx(0.7)
    assert summary["hd95_mm"]["overall"]["median"] == pytest.approx(5.5)
    assert summary["nsd_tolerance"] == 1.0


def test_millimetres_and_pixels_are_not_averaged():
    cases = [CaseScores(u, {1: 1.0}, {1: 1.0}, {1: 3.0}, {1: 1.0}, unit=u) for u in ("mm", "px")]
    summary = summarise(cases)
    assert summary["unit"] is None
    assert summary["hd95_mm"]["overall"] == NOTHING
    assert summary["dice"]["overall"]["n"] == 2


def test_json_is_the_contract_and_has_no_nan():
    label = np.zeros((4, 4), np.uint8)
    label[1, 1] = 1
    odd = CaseScores("odd", {1: math.nan}, {1: 0.0}, {1: math.inf}, {1: 0.0})
    for cases in ([], [score_case(label, label, [1], (1, 1), case="a")], [odd]):
        written = to_json(cases, summarise(cases))
        text = json.dumps(written, allow_nan=False)
        assert json.loads(text) == written
        assert all({"case", "dice", "iou", "hd95_mm", "nsd"} <= set(entry) for entry in written["cases"])
    assert to_json([odd], summarise([odd]))["cases"][0]["dice"] == {"1": None}
    assert summarise([])["dice"]["overall"] == NOTHING


def random_blobs(rng, shape):
    """Smooth random shapes, holes and specks; a quarter of the time empty."""
    if rng.random() < 0.25:
        return np.zeros(shape, bool)
    noise = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0, 2))
    return noise > np.quantile(noise, rng.uniform(0.5, 0.98))


def pairs(n, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        shape = tuple(rng.integers(5, 14, rng.integers(2, 4)))
        p = random_blobs(rng, shape)
        t = random_blobs(rng, shape) if rng.random() < 0.7 else np.roll(p, 1, 0)
        yield p, t, tuple(rng.uniform(0.3, 4, len(shape)))


def reference_by_transform(p, t, spacing, tolerance):
    """HD, HD95 and NSD by scipy's erosion and Euclidean distance transform."""
    edges = [m & ~ndimage.binary_erosion(m) for m in (p, t)]
    forth = ndimage.distance_transform_edt(~edges[1], sampling=spacing)[edges[0]]
    back = ndimage.distance_transform_edt(~edges[0], sampling=spacing)[edges[1]]
    near = (forth <= tolerance).sum() + (back <= tolerance).sum()
    return (
        max(forth.max(), back.max()),
        max(np.percentile(forth, 95), np.percentile(back, 95)),
        near / (len(forth) + len(back)),
    )


def test_random_masks_equal_distance_transforms():
    compared = 0
    for p, t, spacing in pairs(500):
        scores = score_case(p.astype(np.uint8), t.astype(np.uint8), [1], spacing, 1.2345)
        if p.any() and t.any():
            compared += 1
            assert (scores.hd_mm[1], scores.hd95_mm[1], scores.nsd[1]) == pytest.approx(
                reference_by_transform(p, t, spacing, 1.2345), abs=1e-6
            )
        # The single functions say the same as the case.
        assert scores.dice[1] == metrics.dice(p, t)
        assert scores.iou[1] == metrics.iou(p, t)
        assert scores.hd95_mm[1] == pytest.approx(metrics.hd95_mm(p, t, spacing), abs=1e-12)
        assert scores.lesion_f1[1] == metrics.lesion_f1(p, t)
    assert compared > 250


def test_random_masks_equal_monai():
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics")
    for p, t, spacing in pairs(50, seed=1):
        if not (p.any() and t.any()):
            continue
        scores = score_case(p.astype(np.uint8), t.astype(np.uint8), [1], spacing, 1.2345)
        a, b = (torch.as_tensor(m)[None, None].float() for m in (p, t))
        expected = [
            monai.compute_dice(a, b),
            monai.compute_iou(a, b),
            monai.compute_hausdorff_distance(a, b, include_background=True, spacing=spacing),
            monai.compute_hausdorff_distance(a, b, include_background=True, spacing=spacing, percentile=95),
            monai.compute_surface_dice(a, b, [1.2345], include_background=True, spacing=spacing),
        ]
        found = [table[1] for table in (scores.dice, scores.iou, scores.hd_mm, scores.hd95_mm, scores.nsd)]
        # MONAI interpolates its percentiles in float32.
        assert found == pytest.approx([float(value) for value in expected], rel=4e-6, abs=1e-6)


def test_volumes_are_millilitres_square_millimetres_or_voxels():
    truth = np.zeros((10, 10, 10), np.uint8)
    truth[:5] = 1
    prediction = np.zeros_like(truth)
    prediction[:6] = 1
    scores = score_case(prediction, truth, [1], (2.0, 1.0, 5.0))
    assert (scores.volume_unit, scores.truth_ml[1], scores.predicted_ml[1]) == ("mL", 5, 6)
    assert (scores.volume_error_ml[1], scores.volume_error_relative[1]) == (1, 0.2)
    plane = score_case(truth[0], truth[0], [1], (2.0, 3.0))
    assert (plane.volume_unit, plane.truth_ml[1]) == ("mm2", 600)
    unknown = score_case(truth, prediction, [1])
    assert (unknown.volume_unit, unknown.volume_error_ml[1]) == ("px", -100)
    assert unknown.volume_error_relative[1] == pytest.approx(-1 / 6)
    assert summarise([scores, plane])["volume_error_ml"]["overall"] == NOTHING


def test_an_undefined_share_is_left_out_of_the_summary_and_counted():
    empty, full = np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8)
    cases = [score_case(full, empty, [1], case="a"), score_case(empty, full, [1], case="b")]
    assert summarise(cases)["volume_error_relative"]["overall"]["n"] == 1
    assert to_json(cases, summarise(cases))["cases"][0]["volume_error_relative"] == {"1": None}


def test_lesions_are_counted_by_hand():
    truth, prediction = np.zeros((3, 12), bool), np.zeros((3, 12), bool)
    truth[0, 0:2] = truth[0, 4:6] = truth[2, 8] = True
    # One lesion touched, two missed, two invented.
    prediction[0, 1] = prediction[0, 8:10] = prediction[2, 3] = True
    assert metrics.lesion_f1(prediction, truth) == pytest.approx(2 * 1 / (2 * 1 + 2 + 2))
    corners = np.eye(5, dtype=bool)
    assert metrics.lesion_f1(np.eye(5, dtype=bool)[::-1], corners) == 1
    # Splitting a lesion costs nothing in this measure.
    split = corners.copy()
    split[2, 2] = False
    assert metrics.lesion_f1(split, corners) == 1
