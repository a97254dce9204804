"""Charts for reports: scores, volumes, and how training and trust went, as matplotlib figures.

Like ``plots``, which draws scans, this uses matplotlib's objects only, never ``pyplot``, and writes no files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_unet.domain.labels import PALETTE
from napari_unet.evaluation.metrics import CaseScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _FAINT, _BLUE, _RED = "#1f2933", "#616e7c", "#0072b2", "#d55e00"
_PER_LINE = 3
#: 1.96 standard deviations to either side hold 95 % of differences that are normal.
_AGREEMENT = 1.96
_LONGEST_NAME = 24


def curve_figure(losses: Sequence[tuple[int, float]], dices: Sequence[tuple[int, float | None]]) -> Figure:
    """Draw how a training went.

    Parameters
    ----------
    losses : sequence of (step, loss)
        The training loss.
    dices : sequence of (step, Dice)
        Validation Dice; None where it was undefined. May be empty, and then only the loss is drawn.
    """
    scores = [(step, value) for step, value in dices if value is not None]
    curves = [("Loss", losses, _BLUE, ""), ("Dice on held-out scans", scores, _RED, "o")]
    curves = [c for c in curves if c[1] or c[0] == "Loss"]
    figure = _figure(4.6 * len(curves), 2.9)
    for axes, (name, points, colour, marker) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True
    ):
        _clean(axes, name)
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.8, marker=marker, markersize=4)
        axes.set_xlabel("step", color=_FAINT, fontsize=9)
        axes.set_ylim(0, 1 if marker else None)
        axes.set_xlim(left=0)
    return figure


def box_figure(cases: Sequence[CaseScores], names: Mapping[int, str]) -> Figure:
    """Draw four scores of each case, per class, as dots with a box from the lower to the upper quartile.

    Dice, normalised surface Dice, 95 % Hausdorff distance and relative volume error. A bar in the box is the median;
    whiskers reach to the furthest case within 1.5 times the box's length (Tukey 1977).

    Parameters
    ----------
    cases : sequence of CaseScores
        At least one.
    names : mapping of int to str
        Name of each label id.
    """
    labels = sorted({label for case in cases for label in case.dice})
    units = " or ".join(sorted({case.unit for case in cases}))
    panels = [
        ("dice", "Dice"),
        ("hd95_mm", f"HD95 ({units})"),
        ("nsd", "NSD"),
        ("volume_error_relative", "Volume error"),
    ]
    figure = _figure(9.2, 2 * (0.85 + 0.5 * len(labels)), apart=0.08)
    for axes, (metric, title) in zip(figure.subplots(2, 2, sharey=True).flat, panels, strict=True):
        _clean(axes, title)
        for row, label in enumerate(labels):
            tables = [getattr(case, metric) for case in cases]
            values = np.array([t[label] for t in tables if label in t and math.isfinite(t[label])])
            if not len(values):
                continue
            # Spread by rank, not by chance: equal reports are equal pictures.
            spread = ((np.arange(len(values)) * 0.618) % 1 - 0.5) * 0.5
            axes.plot(values, row + spread, "o", color=PALETTE[6], alpha=0.5, markersize=4.5, markeredgewidth=0)
            _box(axes, values, row)
        axes.set_yticks(range(len(labels)), [_short(names.get(label, f"label {label}")) for label in labels])
        axes.set_ylim(len(labels) - 0.5, -0.5)
        _limits(axes, metric, [v for case in cases for v in getattr(case, metric).values() if math.isfinite(v)])
    return figure


def bland_altman_figure(cases: Sequence[CaseScores], names: Mapping[int, str]) -> Figure | None:
    """Draw how predicted volumes agree with the true ones: the difference over the mean of both, one panel per class.

    The lines are the mean difference and the limits of agreement, 1.96 standard deviations to either side (Bland and
    Altman 1986, https://doi.org/10.1016/S0140-6736(86)90837-8). Cases where both volumes of a class are 0 are left out
    of its panel: nothing was measured there, and their differences of 0 would draw the limits together.

    Parameters
    ----------
    cases : sequence of CaseScores
    names : mapping of int to str
        Name of each label id.

    Returns
    -------
    Figure or None
        None where fewer than two cases have volumes, or cases have volumes of different units.
    """
    labels = sorted({label for case in cases for label in case.truth_ml})
    units = {case.volume_unit for case in cases}
    if len(units) != 1 or sum(bool(case.truth_ml) for case in cases) < 2:
        return None
    unit = {"mL": "mL", "mm2": "mm²", "px": "voxels"}[units.pop()]
    columns = min(_PER_LINE, len(labels))
    lines = -(-len(labels) // columns)
    figure = _figure(9.2 if columns > 1 else 6.0, 3.0 * lines)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels[len(labels) :]:
        axes.set_visible(False)
    for axes, label in zip(panels, labels, strict=False):
        _agreement(axes, cases, label, names.get(label, f"label {label}"), unit)
    return figure


def trust_figure(
    dices: Sequence[float | None],
    rolling: Sequence[float | None],
    models: Sequence[str] = (),
    predicted: Sequence[tuple[float, float | None, float | None]] = (),
) -> Figure:
    """Draw the corrective Dice of each scan, in the order of correction, with its rolling mean.

    Parameters
    ----------
    dices, rolling : sequences of float or None
        Of :class:`napari_unet.evaluation.trust.CorrectedScan` and :func:`~napari_unet.evaluation.trust.rolling_mean`.
    models : sequence of str
        The model that proposed each scan; a line marks where it changed. May be empty.
    predicted : sequence of (Dice, low, high)
        Of scans that nobody has looked at, drawn to the right; the ends of the interval may be None.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(9.2, 3.2)
    axes = figure.subplots()
    _clean(axes, "Dice of the proposals, before correction")
    _line(axes, dices, "o", PALETTE[6], "a corrected scan")
    _line(axes, rolling, "-", _RED, "mean of the last five")
    changes = [i for i in range(1, len(models)) if models[i] != models[i - 1]]
    for i in changes:
        axes.axvline(i + 0.5, color="#cbd2d9", linewidth=1, linestyle=(0, (3, 2)), zorder=0)
    if changes:
        axes.plot([], [], color="#cbd2d9", linestyle=(0, (3, 2)), label="a new model")
    for number, (dice, low, high) in enumerate(predicted, start=len(dices) + 1):
        if low is not None and high is not None:
            axes.plot([number, number], [low, high], color=PALETTE[3], linewidth=2, alpha=0.6)
        axes.plot(
            number, dice, "D", color=PALETTE[3], markersize=4, label="_" if number > len(dices) + 1 else "predicted"
        )
    axes.set_xlabel("scan, in the order of correction", color=_FAINT, fontsize=9)
    axes.set_ylim(0, 1.02)
    axes.set_xlim(0.5, max(len(dices) + len(predicted), 2) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right", fontsize=8.5, frameon=False, labelcolor=_INK)
    return figure


def learning_figure(models: Sequence[str], dices: Sequence[Sequence[float | None]]) -> Figure:
    """Draw the Dice of the held-out scans by model: a dot per scan, and a line through the means.

    Parameters
    ----------
    models : sequence of str
        In the order in which they were made.
    dices : sequence of sequences of float or None
        Of each model, one value per held-out scan; None where it was not measured.
    """
    figure = _figure(9.2, 3.0)
    axes = figure.subplots()
    _clean(axes, "Dice of the held-out scans, by model")
    known = [[value for value in each if value is not None] for each in dices]
    for x, values in enumerate(known):
        axes.plot([x] * len(values), values, "o", color=PALETTE[6], alpha=0.45, markersize=4.5, markeredgewidth=0)
    _line(axes, [float(np.mean(values)) if values else None for values in known], "-", _RED, "mean", start=0)
    # Of many models not every name finds room.
    step = -(-len(models) // 16)
    axes.set_xticks(range(0, len(models), step), [_short(name) for name in models[::step]])
    axes.set_xlim(-0.5, max(len(models), 2) - 0.5)
    axes.set_ylim(0, 1.02)
    return figure


def _agreement(axes: Axes, cases: Sequence[CaseScores], label: int, name: str, unit: str) -> None:
    pairs = [(case.predicted_ml[label], case.truth_ml[label]) for case in cases if label in case.truth_ml]
    predicted, true = np.array([pair for pair in pairs if any(pair)]).reshape(-1, 2).T
    middle, difference = (predicted + true) / 2, predicted - true
    _clean(axes, _short(name))
    axes.set_xlabel(f"mean of both ({unit})", color=_FAINT, fontsize=9)
    axes.set_ylabel(f"predicted less true ({unit})", color=_FAINT, fontsize=9)
    if not len(difference):
        return
    axes.plot(middle, difference, "o", color=PALETTE[6], alpha=0.6, markersize=5, markeredgewidth=0)
    mean, deviation = float(difference.mean()), float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    for value, style in ((mean, "-"), (mean - _AGREEMENT * deviation, "--"), (mean + _AGREEMENT * deviation, "--")):
        axes.axhline(value, color=_RED, linewidth=1.4, linestyle=style)
        axes.annotate(
            f"{value:+.3g}", (1, value), xycoords=axes.get_yaxis_transform(), xytext=(-2, 2),
            textcoords="offset points", ha="right", va="bottom", fontsize=8, color=_RED,
        )  # fmt: skip
    axes.margins(x=0.12, y=0.18)


def _box(axes: Axes, values: np.ndarray, row: float) -> None:
    low, median, high = np.percentile(values, (25, 50, 75))
    reach = 1.5 * (high - low)
    ends = values[(values >= low - reach) & (values <= high + reach)]
    axes.plot([ends.min(), ends.max()], [row, row], color=_INK, linewidth=1, alpha=0.7)
    axes.fill([low, high, high, low], [row - 0.3, row - 0.3, row + 0.3, row + 0.3], color=PALETTE[1], alpha=0.35)
    axes.plot([median] * 2, [row - 0.3, row + 0.3], color=_RED, linewidth=2.4)


def _limits(axes: Axes, metric: str, values: Sequence[float]) -> None:
    from matplotlib.ticker import PercentFormatter

    if metric == "volume_error_relative":
        # A class of a few voxels may be off a hundredfold, and would leave no room for the others.
        reach = min(max((abs(v) for v in values), default=0.0) * 1.1 or 0.1, 1.5)
        axes.set_xlim(-reach, reach)
        axes.axvline(0, color=_FAINT, linewidth=0.8)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes.set_xlim(0, 1.02 if metric in ("dice", "nsd") else 1.05 * max(values, default=0.0) or 1.0)


def _line(axes: Axes, values: Sequence[float | None], style: str, colour: Any, name: str, start: int = 1) -> None:
    points = [(x, value) for x, value in enumerate(values, start=start) if value is not None]
    if points:
        axes.plot(*zip(*points, strict=True), style, color=colour, linewidth=2, markersize=5, label=name)


def _figure(width: float, height: float, apart: float = 0.02) -> Figure:
    """Return an empty figure; panels stand apart by that share of their size at least."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(wspace=apart, hspace=apart)
    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def _short(name: str) -> str:
    """Return a name that fits beside an axis, and that matplotlib does not take for a formula."""
    cut = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    return cut.replace("$", r"\$")


def _clean(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10.5, color=_INK, loc="left", weight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#cbd2d9")
    axes.tick_params(colors=_FAINT, labelsize=9, length=0)
    axes.grid(color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
