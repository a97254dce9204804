"""How good a proposal is that nobody has looked at: its Dice, predicted from how sure the model was, with an interval.

A model's own confidence is no probability of being right, least of all after seconds of training. So it is calibrated
on what the project knows: proposals that were corrected, each as it was before it was learnt from. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import MaskError

#: Chosen on other streams than those of benchmarks/results/trust. Where nothing is known, a proposal that is expected
#: to be better by so much is taken to be better by half of it; that belief weighs as much as six corrections.
_PRIOR_SLOPE, _PRIOR_WEIGHT = 0.5, 6.0
#: A correction counts half as much as the sixth after it, since the model was another.
_HALF_LIFE = 6.0
#: So many of the latest corrections make the interval.
_LATEST = 20
#: Errors are in proportion to what is missing to a Dice of 1, and this.
_LEAST_SCALE = 0.05
_LEAST_SPREAD = 0.02
#: Standardised features beyond this would extrapolate.
_FURTHEST = 2.0
_COVERAGE = 0.9
#: Of fewer corrections not even the furthest is far enough to hold nine in ten.
FEWEST_FOR_INTERVAL = 9
_OUTLINE = np.ones((1, 3, 3), bool)


@dataclass(frozen=True)
class ProposalFeatures:
    """What a proposal says about itself.

    Parameters
    ----------
    expected_dice : float
        Dice of the foreground, were the probabilities true: twice the probability inside the mask over the mask's size
        and all probability of foreground.
    outline_doubt : float
        Mean doubt within a pixel of the outlines, 0 to 1; 1 without an outline.
    """

    expected_dice: float
    outline_doubt: float


@dataclass(frozen=True)
class PredictedDice:
    """The Dice that a proposal probably has.

    Parameters
    ----------
    dice : float
        In [0, 1].
    low, high : float or None
        Ends of an interval made to hold the true Dice nine times in ten, as long as the scans are like those that were
        corrected; None while there are too few of these (fewer than :data:`FEWEST_FOR_INTERVAL`). Where early
        corrections were of models that knew little it is wider than that: it held 93 to 100 % on four public sets.
    """

    dice: float
    low: float | None
    high: float | None


def proposal_features(labels: NDArray, uncertainty: NDArray[np.uint8], n_classes: int) -> ProposalFeatures:
    """Measure a proposal.

    Parameters
    ----------
    labels : (n, h, w) or (h, w) integer array
        Acquired planes, as of a :class:`~napari_unet.domain.proposal.Proposal`; all frames of a patient together.
    uncertainty : uint8 array of the same shape
        Entropy of the class probabilities, 255 = all classes alike.
    n_classes : int
        Foreground classes of the model.

    Raises
    ------
    MaskError
        The shapes differ.
    """
    from scipy.ndimage import binary_dilation, binary_erosion

    if labels.shape != uncertainty.shape:
        raise MaskError(
            f"The labels have shape {labels.shape} and their uncertainty {uncertainty.shape}: give those of one scan."
        )
    planes = labels.reshape(-1, *labels.shape[-2:]) > 0
    doubt = uncertainty.reshape(planes.shape)
    size = int(np.count_nonzero(planes))
    outline = binary_dilation(planes, _OUTLINE) & ~binary_erosion(planes, _OUTLINE)
    # Sums by the 256 values that there are, instead of arrays of floats.
    inside, outside, near = (np.bincount(doubt[where], minlength=256) for where in (planes, ~planes, outline))
    certainty = _certainty(n_classes)
    outline_doubt = float(near @ np.arange(256)) / 255 / near.sum() if near.any() else 1.0
    right, missed = float(inside @ certainty), float(outside @ (1 - certainty))
    return ProposalFeatures(2 * right / (size + right + missed) if size else 0.0, outline_doubt)


class DiceCalibration:
    """Predicts the Dice of proposals, calibrated on those that were corrected.

    A weighted ridge regression of the Dice on the features, around the mean of the corrections, in which late ones
    weigh more; without many it hardly leaves that mean. The interval is the jackknife+ (Barber et al. 2021,
    https://doi.org/10.1214/20-AOS1965) over the latest corrections, of errors in proportion to what is missing to a
    perfect Dice.

    Parameters
    ----------
    features : sequence of ProposalFeatures
        Of proposals that were corrected, the latest last, each as it was before its scan was learnt from. Scans that
        only judge, proposed by the model in use, may follow them.
    dices : sequence of float
        Dice of each against what was corrected (``trust.CorrectedScan.dice``; leave out where that is None).

    Raises
    ------
    MaskError
        Their numbers differ, or there is none.
    """

    def __init__(self, features: Sequence[ProposalFeatures], dices: Sequence[float]) -> None:
        if len(features) != len(dices):
            raise MaskError(
                f"{len(features)} proposals and {len(dices)} Dice values do not pair up: give one for each."
            )
        if not len(dices):
            raise MaskError("Nothing was corrected yet: without corrections no Dice can be predicted.")
        self._x, self._y = _rows(features), np.asarray(dices, float)
        n = len(self._y)
        weights = 0.5 ** (np.arange(n)[::-1] / _HALF_LIFE)
        self._fit = _Fit(self._x, self._y, weights)
        latest = range(max(0, n - _LATEST), n) if n > 1 else range(0)
        kept = [np.arange(n) != i for i in latest]
        self._without = [_Fit(self._x[k], self._y[k], weights[k]) for k in kept]
        left_out = np.array([fit(self._x[[i]])[0] for i, fit in zip(latest, self._without, strict=True)])
        self._errors = np.abs(self._y[latest.start :] - left_out) / _scale(left_out)

    def predict(self, features: ProposalFeatures) -> PredictedDice:
        """Return the Dice that a proposal probably has."""
        x = _rows([features])
        dice = float(self._fit(x)[0])
        n = len(self._errors)
        rank = math.ceil(_COVERAGE * (n + 1))
        if rank > n:
            return PredictedDice(dice, None, None)
        others = np.array([fit(x)[0] for fit in self._without])
        reach = self._errors * _scale(others)
        low = -np.sort(-(others - reach))[rank - 1]
        high = np.sort(others + reach)[rank - 1]
        return PredictedDice(dice, min(dice, max(0.0, float(low))), max(dice, min(1.0, float(high))))


class _Fit:
    """A weighted ridge regression of the Dice on standardised features."""

    def __init__(self, x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        self._middle = np.average(x, axis=0, weights=weights)
        self._spread = np.sqrt(np.average((x - self._middle) ** 2, axis=0, weights=weights)) + _LEAST_SPREAD
        self._mean = float(np.average(y, weights=weights))
        prior = np.array([_PRIOR_SLOPE * self._spread[0], 0.0])
        scores = (x - self._middle) / self._spread
        pull = scores.T @ (scores * weights[:, None]) + _PRIOR_WEIGHT * np.eye(2)
        self._slopes = prior + np.linalg.solve(pull, scores.T @ (weights * (y - self._mean - scores @ prior)))

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        scores = np.clip((x - self._middle) / self._spread, -_FURTHEST, _FURTHEST)
        return np.clip(self._mean + scores @ self._slopes, 0.0, 1.0)


def _rows(features: Sequence[ProposalFeatures]) -> NDArray[np.float64]:
    return np.array([(each.expected_dice, each.outline_doubt) for each in features], float).reshape(-1, 2)


def _scale(dice: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 - dice + _LEAST_SCALE


def _certainty(n_classes: int) -> NDArray[np.float64]:
    """Return the probability of the likeliest class by entropy (0 to 255), as if only two classes were in question."""
    p = np.linspace(0.5, 1.0, 2001)
    rest = np.maximum(1 - p, 1e-300)
    bits = -(p * np.log2(p) + rest * np.log2(rest))
    entropy = np.minimum(np.arange(256) / 255 * math.log2(n_classes + 1), 1.0)
    return np.interp(entropy, bits[::-1], p[::-1])
