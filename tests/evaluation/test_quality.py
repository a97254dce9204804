"""What stands out of a cohort is flagged, in a sentence; what varies as cohorts do is not."""

import math
from dataclasses import replace

import numpy as np
import pytest

from napari_unet.evaluation.quality import CohortMember, MaskMeasures, find_outliers, measure_mask, robust_scores


def ellipsoid(radii, shape=(24, 24, 24)):
    grid = np.indices(shape) - np.array(shape).reshape(3, 1, 1, 1) / 2
    return ((grid / np.array(radii).reshape(3, 1, 1, 1)) ** 2).sum(0) < 1


def cohort(n=20, seed=0):
    rng = np.random.default_rng(seed)
    return [
        CohortMember(
            f"scan {i:02d}",
            {"liver": measure_mask(ellipsoid(rng.normal(8, 0.5, 3)), (2.0, 1.0, 1.0))},
            uncertainty=float(rng.normal(0.3, 0.03)),
            intensities=tuple(rng.normal(0, 0.05, 5) + np.linspace(-2, 2, 5)),
        )
        for i in range(n)
    ]


def with_mask(member, mask):
    return replace(member, classes={"liver": measure_mask(mask, (2.0, 1.0, 1.0))})


def test_measures_of_a_mask():
    mask = np.zeros((10, 10, 10), bool)
    mask[2:6, 2:4, 2:4] = True
    mask[8, 8, 8] = True
    found = measure_mask(mask, (5.0, 1.0, 1.0))
    assert found == MaskMeasures(volume=pytest.approx(17 * 5 / 1000), components=2, compactness=16 / 16, elongation=10)
    assert measure_mask(mask).volume == 17
    empty = measure_mask(np.zeros((3, 3), bool))
    assert (empty.volume, empty.components) == (0, 0)
    assert math.isnan(empty.compactness)


def test_an_ordinary_cohort_has_hardly_any_flags():
    flags = [flag for seed in range(10) for flag in find_outliers(cohort(seed=seed))]
    # 200 scans, five figures each.
    assert len(flags) <= 20


@pytest.mark.parametrize(
    ("mask", "kind", "said"),
    [
        (ellipsoid((3, 3, 3)), "volume", "unusually small"),
        (ellipsoid((11, 11, 11)), "volume", "unusually large"),
        (np.zeros((24, 24, 24), bool), "volume", "was not found"),
        (ellipsoid((8, 8, 8)) & (np.ptp(np.indices((24, 24, 24)), 0) < 4), "shape", "bounding box"),
        (ellipsoid((11, 3, 11)), "shape", "as long as wide"),
    ],
)
def test_what_stands_out_is_flagged_in_a_sentence(mask, kind, said):
    members = cohort()
    members[7] = with_mask(members[7], mask)
    flags = [flag for flag in find_outliers(members) if flag.name == "scan 07"]
    assert kind in {flag.kind for flag in flags}
    sentence = next(flag.sentence for flag in flags if flag.kind == kind and said in flag.sentence)
    assert "scan 07" in sentence
    assert sentence.endswith(".")


def test_many_parts_are_flagged():
    members = cohort()
    specks = ellipsoid((8, 8, 8))
    specks[::5, 0, ::5] = True
    members[3] = with_mask(members[3], specks)
    flag = next(flag for flag in find_outliers(members) if flag.kind == "components")
    assert flag.name == "scan 03"
    assert "in 26 parts" in flag.sentence


def test_doubt_and_drifted_intensities_are_flagged():
    members = cohort()
    members[5] = replace(members[5], uncertainty=0.7)
    members[6] = replace(members[6], intensities=tuple(1.0 + v for v in members[6].intensities))
    members[9] = replace(members[9], uncertainty=None, intensities=())
    flags = find_outliers(members, trained_on=tuple(np.linspace(-2, 2, 5)), trained_spread=0.1)
    assert {(flag.name, flag.kind) for flag in flags} >= {("scan 05", "uncertainty"), ("scan 06", "intensities")}
    assert "scan 09" not in {flag.name for flag in flags}
    assert [abs(flag.score) for flag in flags] == sorted((abs(flag.score) for flag in flags), reverse=True)


def test_few_scans_and_equal_scans_have_no_outliers():
    few = cohort(7)
    few[0] = with_mask(few[0], ellipsoid((2, 2, 2)))
    assert find_outliers(few) == []
    same = [replace(cohort()[0], name=str(i)) for i in range(20)]
    assert find_outliers(same) == []
    assert find_outliers([]) == []


def test_scores_are_deviations_where_values_are_normal():
    values = np.random.default_rng(0).normal(5, 2, 5000)
    assert robust_scores(values, 0.01) == pytest.approx((values - 5) / 2, abs=0.3)
    assert robust_scores([1.0] * 9 + [math.nan], 0.01).tolist() == [0.0] * 10
