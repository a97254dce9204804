"""The effort benchmark's measures, by hand."""

import numpy as np
import pytest

from napari_unet.domain.errors import MaskError
from napari_unet.evaluation.effort import correction_effort, pooled_dice


def row(*values):
    return np.array([values], np.uint8)


def test_dice_is_pooled_over_the_group_before_it_is_averaged_over_classes():
    truths = [row(1, 1, 1, 0), row(1, 2, 2, 0)]
    predictions = [row(1, 1, 1, 0), row(0, 2, 0, 2)]
    # Class 1: 2*3/(3+4); class 2: 2*1/(2+2).
    assert pooled_dice(predictions, truths, 2) == pytest.approx((6 / 7 + 2 / 4) / 2)


def test_classes_absent_from_the_truth_do_not_count():
    truths, predictions = [row(1, 1, 0, 0)], [row(1, 1, 2, 3)]
    assert pooled_dice(predictions, truths, 2) == pooled_dice(predictions, truths, 9) == 1.0
    assert pooled_dice([row(0, 0, 0, 0)], truths, 2) == 0.0


def test_empty_truth_has_no_dice_and_costs_nothing():
    empty, wrong = [row(0, 0, 0)], [row(1, 1, 0)]
    assert pooled_dice(wrong, empty, 1) is None
    assert correction_effort(wrong, empty) == 0


def test_effort_counts_differing_voxels():
    assert correction_effort([row(1, 0, 2, 0)], [row(1, 1, 1, 0)]) == 2
    assert correction_effort([row(1, 1, 1, 0)], [row(1, 1, 1, 0)]) == 0


def test_effort_is_capped_at_the_foreground_of_the_whole_group():
    # Six differing voxels, three of foreground; frame by frame the cap would be 1 + 2, or less.
    truths = [row(1, 0, 0, 0), row(0, 1, 1, 0)]
    predictions = [row(0, 1, 1, 1), row(0, 0, 0, 0)]
    assert correction_effort(predictions, truths) == 3
    # A frame that is all surplus is paid from the group's allowance.
    assert correction_effort([row(0, 0, 1), row(1, 1, 1)], [row(0, 0, 0), row(1, 1, 1)]) == 1


def test_painting_from_scratch_costs_the_foreground():
    truth = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)
    assert correction_effort([np.zeros_like(truth)], [truth]) == np.count_nonzero(truth)


def test_pairs_must_fit():
    for measure in (lambda p, t: pooled_dice(p, t, 1), correction_effort):
        with pytest.raises(MaskError, match="pairs"):
            measure([row(1)], [row(1), row(1)])
        with pytest.raises(MaskError, match="same scan"):
            measure([row(1)], [row(1, 1)])
