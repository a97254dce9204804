"""Which scans of a cohort stand out: in volume, shape, number of parts, doubt of the model, or intensities.

Arithmetic on numbers. What stands out is to be looked at; it need not be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.labels import LabelSchema

#: Beyond so many robust deviations from the median (Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers").
_FAR = 3.5
#: The median absolute deviation of a normal distribution, in standard deviations.
_MAD_TO_DEVIATION = 1.4826
_FEWEST = 8
#: Least deviation that is reckoned with where a cohort hardly varies: of logarithms (a twentieth), and of doubt.
_LEAST_LOG, _LEAST_DOUBT = 0.05, 0.02
#: Mean distance of intensity quantiles, in standard deviations, as in ``inference/suitability.py``.
_LEAST_APART, _TIMES_THE_SPREAD = 0.3, 2.5


@dataclass(frozen=True)
class MaskMeasures:
    """One class of one mask, measured.

    Parameters
    ----------
    volume : float
        In mL, or voxels where the spacing is not known.
    components : int
        Connected parts (over faces, edges and corners).
    compactness : float
        Share of its bounding box that the largest part fills; NaN without foreground. Spheres fill half of it.
    elongation : float
        Longest over shortest side of the largest part's bounding box; NaN without foreground.
    """

    volume: float
    components: int
    compactness: float
    elongation: float


@dataclass(frozen=True)
class CohortMember:
    """What is known of one scan of a cohort.

    Parameters
    ----------
    name : str
        Shown name.
    classes : mapping of str to MaskMeasures
        By the name of the class.
    uncertainty : float or None
        Mean doubt of the model at the outlines, 0 to 1 (``calibration.ProposalFeatures.outline_doubt``).
    intensities : tuple of float
        Quantiles of the prepared intensities, as ``patches.prepare.intensity_quantiles`` gives them; may be empty.
    """

    name: str
    classes: Mapping[str, MaskMeasures]
    uncertainty: float | None = None
    intensities: tuple[float, ...] = ()


@dataclass(frozen=True)
class Flag:
    """One reason to look at one scan.

    Parameters
    ----------
    name : str
        Of the scan.
    kind : str
        ``volume``, ``components``, ``shape``, ``uncertainty`` or ``intensities``.
    score : float
        How far it stands out: robust deviations from the median; of intensities the multiple of the limit, times 3.5.
    sentence : str
        For the person.
    """

    name: str
    kind: str
    score: float
    sentence: str


def measure_mask(
    mask: NDArray, spacing: Sequence[float] | None = None, voxel_volume: float | None = None
) -> MaskMeasures:
    """Measure one class.

    Parameters
    ----------
    mask : (h, w) or (z, y, x) array of bool
    spacing : sequence of float or None
        Millimetres between voxels, per array axis.
    voxel_volume : float or None
        In cubic millimetres; None: the product of the spacing. A sheared grid needs it.
    """
    from scipy.ndimage import find_objects, label

    steps = np.ones(mask.ndim) if spacing is None else np.asarray(spacing, float)
    voxel = float(steps.prod()) if voxel_volume is None else voxel_volume
    voxel /= 1 if spacing is None else 1000
    parts, n = label(mask, np.ones((3,) * mask.ndim))
    if not n:
        return MaskMeasures(0.0, 0, math.nan, math.nan)
    sizes = np.bincount(parts.ravel())[1:]
    box = find_objects(parts)[int(sizes.argmax())]
    sides = np.array([side.stop - side.start for side in box])
    lengths = sides * steps
    return MaskMeasures(
        float(sizes.sum() * voxel), n, float(sizes.max() / sides.prod()), float(lengths.max() / lengths.min())
    )


def measure_classes(
    labels: NDArray, schema: LabelSchema, spacing: Sequence[float] | None = None, voxel_volume: float | None = None
) -> dict[str, MaskMeasures]:
    """Measure each class of a label array, by its name; ``spacing`` and ``voxel_volume`` as in :func:`measure_mask`."""
    from scipy.ndimage import find_objects

    boxes = find_objects(labels)
    nothing = (slice(0, 0),) * labels.ndim
    found = {}
    for each in schema.classes:
        box = (boxes[each.id - 1] if each.id <= len(boxes) else None) or nothing
        found[each.name] = measure_mask(labels[box] == each.id, spacing, voxel_volume)
    return found


def robust_scores(values: Sequence[float], least: float) -> NDArray[np.float64]:
    """Return how many robust standard deviations each value lies from the median.

    Parameters
    ----------
    values : sequence of float
        Those that are NaN, and all where fewer than eight are known, have a score of 0.
    least : float
        Least deviation to reckon with, so that a cohort of nearly equal values has no outliers. Otherwise it is the
        median absolute deviation times 1.4826, which is the standard deviation where values are normal.
    """
    x = np.asarray(values, float)
    known = np.isfinite(x)
    if known.sum() < _FEWEST:
        return np.zeros(len(x))
    median = np.median(x[known])
    deviation = _MAD_TO_DEVIATION * np.median(np.abs(x[known] - median))
    return np.where(known, (x - median) / max(deviation, least), 0.0)


def find_outliers(
    cohort: Sequence[CohortMember], trained_on: Sequence[float] = (), trained_spread: float = 0.0, unit: str = "mL"
) -> list[Flag]:
    """Return the scans of a cohort that stand out, the most striking first.

    Parameters
    ----------
    cohort : sequence of CohortMember
        Scans of one kind with masks of one model or reader. Fewer than eight are not compared with one another.
    trained_on, trained_spread : sequence of float, float
        Quantiles of the prepared intensities of the scans that the model learnt from, and by how much these differed
        (``ModelCard.intensities`` and ``intensity_spread``).
    unit : str
        Of the volumes.

    Returns
    -------
    list of Flag
        None where nothing stands out. A class missing in a scan while most others hold it is a volume that stands out.
    """
    flags = []
    names = sorted({name for member in cohort for name in member.classes})
    for name in names:
        having = [member for member in cohort if name in member.classes]
        flags += _missing(having, name)
        for measure in _MEASURES:
            flags += _far_ones(having, name, measure, unit)
    doubts = [math.nan if member.uncertainty is None else member.uncertainty for member in cohort]
    flags += [
        Flag(
            member.name,
            "uncertainty",
            float(score),
            f"The model was far less sure of the outlines in {member.name} than in the other scans ({doubt:.2f}; "
            f"median {_median(doubts):.2f}).",
        )
        for member, doubt, score in zip(cohort, doubts, robust_scores(doubts, _LEAST_DOUBT), strict=True)
        if score > _FAR
    ]
    flags += _drifted(cohort, trained_on, trained_spread)
    return sorted(flags, key=lambda flag: -abs(flag.score))


@dataclass(frozen=True)
class _Measure:
    """A figure above 0, or NaN, that is compared, and how it is told."""

    kind: str
    value: Callable[[MaskMeasures], float]
    tell: Callable[[str, str, float, float, str], str]


def _side(value: float, median: float, low: str, high: str) -> str:
    return low if value < median else high


_MEASURES = (
    _Measure(
        "volume",
        lambda m: m.volume or math.nan,
        lambda scan, name, v, median, unit: (
            f"{name} in {scan} is unusually {_side(v, median, 'small', 'large')}: {v:.3g} {unit}, median "
            f"{median:.3g} {unit}."
        ),
    ),
    _Measure(
        "components",
        lambda m: m.components or math.nan,
        lambda scan, name, v, median, unit: (
            f"{name} in {scan} is in {v:.0f} part{'s' if v != 1 else ''}; in half of the scans it is in at most "
            f"{median:.0f}."
        ),
    ),
    _Measure(
        "shape",
        lambda m: m.compactness,
        lambda scan, name, v, median, unit: (
            f"The shape of {name} in {scan} is unusual: it fills {100 * v:.0f} % of its bounding box, median "
            f"{100 * median:.0f} %."
        ),
    ),
    _Measure(
        "shape",
        lambda m: m.elongation,
        lambda scan, name, v, median, unit: (
            f"The shape of {name} in {scan} is unusual: it is {v:.1f} times as long as wide, median {median:.1f}."
        ),
    ),
)


def _far_ones(cohort: Sequence[CohortMember], name: str, measure: _Measure, unit: str) -> list[Flag]:
    values = [measure.value(member.classes[name]) for member in cohort]
    # Of logarithms, in which half is as far as double.
    scores = robust_scores([math.log(value) for value in values], _LEAST_LOG)
    return [
        Flag(member.name, measure.kind, float(score), measure.tell(member.name, name, value, _median(values), unit))
        for member, value, score in zip(cohort, values, scores, strict=True)
        if abs(score) > _FAR
    ]


def _missing(cohort: Sequence[CohortMember], name: str) -> list[Flag]:
    empty = [member for member in cohort if member.classes[name].components == 0]
    if len(cohort) < _FEWEST or len(empty) * 4 > len(cohort):
        return []
    return [
        Flag(
            member.name,
            "volume",
            2 * _FAR,
            f"{name} was not found in {member.name}, though {len(cohort) - len(empty)} of {len(cohort)} scans hold it.",
        )
        for member in empty
    ]


def _drifted(cohort: Sequence[CohortMember], trained_on: Sequence[float], spread: float) -> list[Flag]:
    if not len(trained_on):
        return []
    limit = max(_LEAST_APART, _TIMES_THE_SPREAD * spread)
    flags = []
    for member in cohort:
        if len(member.intensities) != len(trained_on):
            continue
        apart = float(np.abs(np.subtract(member.intensities, trained_on)).mean())
        if apart > limit:
            flags.append(
                Flag(
                    member.name,
                    "intensities",
                    _FAR * apart / limit,
                    f"The intensities of {member.name} are spread unlike those of the scans that taught the model.",
                )
            )
    return flags


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.median(known)) if known else math.nan
