"""What corrections say of the next proposal: corrective Dice, when to stop, and the Dice of what nobody looked at."""

import numpy as np
import pytest

from napari_unet.domain.errors import MaskError
from napari_unet.evaluation.calibration import DiceCalibration, ProposalFeatures, proposal_features
from napari_unet.evaluation.trust import CorrectedScan, corrected_scan, rolling_mean, stop_hint


def test_a_scan_is_what_correcting_it_took():
    proposal, corrected = np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8)
    corrected[:, :2] = 1
    proposal[:, :1] = 1
    found = corrected_scan("a", "v1", [proposal], [corrected])
    assert found == CorrectedScan("a", "v1", dice=pytest.approx(2 / 3), share=0.5)
    nothing = corrected_scan("b", "v1", [proposal], [np.zeros_like(corrected)])
    assert (nothing.dice, nothing.share) == (None, None)
    # Nobody corrects more than they would paint.
    assert corrected_scan("c", "v1", [1 - corrected], [corrected]).share == 1


def test_rolling_mean_leaves_out_what_is_unknown():
    assert rolling_mean([1.0, None, 0.0, 0.5], window=2) == [1.0, 1.0, 0.0, 0.25]
    assert rolling_mean([None]) == [None]
    assert rolling_mean([]) == []


def scans(*shares):
    return [CorrectedScan(str(i), "v1", None if s is None else 1 - s, s) for i, s in enumerate(shares)]


def test_the_hint_to_stop_needs_eight_in_a_row():
    assert stop_hint(scans(*[0.01] * 7)) is None
    assert stop_hint(scans(0.5, *[0.01] * 8)).startswith("The last 8 scans needed under 2 % correction")
    assert stop_hint(scans(*[0.01] * 8, 0.03)) is None
    assert "last 9 scans" in stop_hint(scans(0.5, *[0.01] * 4, None, *[0.015] * 5))
    assert "under 5 %" in stop_hint(scans(0.04, 0.04), most=0.05, in_a_row=2)
    assert stop_hint([]) is None


def test_features_of_a_sure_and_of_an_unsure_proposal():
    labels = np.zeros((3, 20, 20), np.uint8)
    labels[:, 5:15, 5:15] = 1
    sure = proposal_features(labels, np.zeros(labels.shape, np.uint8), 1)
    assert sure == ProposalFeatures(expected_dice=1.0, outline_doubt=0.0)
    # Every voxel at one half: 300 voxels of the mask hold 150, and the other 900 hold 450.
    unsure = proposal_features(labels, np.full(labels.shape, 255, np.uint8), 1)
    assert unsure.expected_dice == pytest.approx(2 * 150 / (300 + 150 + 450), abs=1e-3)
    assert unsure.outline_doubt == 1
    outline = np.zeros(labels.shape, np.uint8)
    outline[:, 4:16, 4:16] = 200
    outline[:, 6:14, 6:14] = 0
    assert 0.5 < proposal_features(labels, outline, 1).expected_dice < 1
    # A plane is a volume of one.
    assert proposal_features(labels[0], outline[0], 1) == proposal_features(labels[:1], outline[:1], 1)


def test_an_empty_proposal_has_features():
    empty = np.zeros((2, 5, 5), np.uint8)
    assert proposal_features(empty, empty, 3) == ProposalFeatures(0.0, 1.0)
    with pytest.raises(MaskError, match="one scan"):
        proposal_features(empty, empty[0], 1)


def project(rng, n, drift=0.0):
    """Proposals whose model is sure of too much, and their Dice."""
    true = np.clip(rng.beta(8, 2, n) - drift * np.linspace(1, 0, n), 0.05, 0.99)
    expected = np.clip(0.3 + 0.7 * true + rng.normal(0, 0.03, n), 0, 1)
    return [ProposalFeatures(float(e), float(1 - e)) for e in expected], true


def test_predictions_come_close_and_intervals_hold_what_they_promise():
    rng = np.random.default_rng(0)
    errors, held, widths = [], [], []
    for _ in range(40):
        known, unseen = project(rng, 15), project(rng, 20)
        calibration = DiceCalibration(*known)
        found = [calibration.predict(f) for f in unseen[0]]
        errors += [abs(p.dice - t) for p, t in zip(found, unseen[1], strict=True)]
        held += [p.low <= t <= p.high for p, t in zip(found, unseen[1], strict=True)]
        widths += [p.high - p.low for p in found]
    assert np.mean(errors) < 0.05
    assert 0.85 <= np.mean(held) <= 0.98
    assert np.mean(widths) < 0.4


def test_a_model_that_got_better_is_judged_by_its_late_proposals():
    rng = np.random.default_rng(1)
    features, dices = project(rng, 30, drift=0.6)
    unseen, true = project(rng, 50)
    predicted = [DiceCalibration(features, dices).predict(f).dice for f in unseen]
    assert np.abs(np.array(predicted) - true).mean() < 0.08


@pytest.mark.parametrize("n", [1, 2, 8])
def test_few_corrections_give_a_guess_without_an_interval(n):
    features, dices = project(np.random.default_rng(2), n)
    found = DiceCalibration(features, dices).predict(ProposalFeatures(0.8, 0.2))
    assert 0.3 < found.dice < 1
    assert (found.low, found.high) == (None, None)


def test_from_nine_corrections_on_there_is_an_interval_around_the_guess():
    features, dices = project(np.random.default_rng(3), 9)
    for sure in (0.0, 0.5, 1.0):
        found = DiceCalibration(features, dices).predict(ProposalFeatures(sure, 0.2))
        assert 0 <= found.low <= found.dice <= found.high <= 1


def test_equal_proposals_are_no_trouble():
    found = DiceCalibration([ProposalFeatures(1.0, 0.0)] * 10, [1.0] * 10).predict(ProposalFeatures(0.0, 1.0))
    assert 0 <= found.low <= found.dice <= found.high <= 1


def test_proposals_and_dice_pair_up():
    with pytest.raises(MaskError, match="pair"):
        DiceCalibration([ProposalFeatures(1.0, 0.0)], [])
    with pytest.raises(MaskError, match="corrected"):
        DiceCalibration([], [])
