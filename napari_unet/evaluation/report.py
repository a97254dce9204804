"""Reports of an evaluation and of the demo: what is in them, and in which order.

Nothing is computed here but what a table shows. How the page looks stands in ``page``, what is drawn in ``plots`` and
``charts``; a session's report, with trust and history, in ``session_report``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_unet.domain.labels import LabelSchema
from napari_unet.evaluation.charts import bland_altman_figure, box_figure, curve_figure
from napari_unet.evaluation.metrics import METRICS, CaseScores
from napari_unet.evaluation.page import (
    MISSING,
    Page,
    cell,
    mean,
    number,
    paragraph,
    percent,
    row,
    share,
    table,
    text_cell,
    volume,
)
from napari_unet.evaluation.plots import ReportPicture, comparison_figure

_VOLUME_UNITS = {"mL": "mL", "mm2": "mm²", "px": "voxels"}


@dataclass(frozen=True)
class DemoScan:
    """How one scan of the demo fared.

    Parameters
    ----------
    name : str
        Shown name.
    foreground : int
        Foreground voxels of the truth: what painting by hand from nothing costs.
    dice_before, dice_after : float or None
        Mean Dice over the classes, before and after fine-tuning.
    effort_before, effort_after : int
        Voxels left to correct.
    """

    name: str
    foreground: int
    dice_before: float | None
    dice_after: float | None
    effort_before: int
    effort_after: int


@dataclass(frozen=True)
class DemoResult:
    """What the demo has to show.

    Parameters
    ----------
    title : str
        Heading.
    lines : tuple of str
        Sentences below it: what was done, on which data, for how long.
    scans : tuple of DemoScan
        Scans that the model did not learn from, in order.
    losses : tuple of (step, loss)
        The training loss.
    dices : tuple of (step, Dice)
        Validation Dice along the way; may be empty.
    pictures : tuple of ReportPicture
        Planes before and after, with the truth.
    """

    title: str
    lines: tuple[str, ...]
    scans: tuple[DemoScan, ...]
    losses: tuple[tuple[int, float], ...]
    dices: tuple[tuple[int, float | None], ...]
    pictures: tuple[ReportPicture, ...]


def notable_cases(cases: Sequence[CaseScores]) -> dict[str, CaseScores]:
    """Return the cases of the lowest, the median and the highest mean Dice, by what they are; one case only once.

    Parameters
    ----------
    cases : sequence of CaseScores
        Those without any score are left out; among equals the name decides.
    """
    ranked = sorted((case for case in cases if case.dice), key=lambda case: (_mean_dice(case), case.case))
    if not ranked:
        return {}
    chosen = {"Worst case": ranked[0], "Median case": ranked[(len(ranked) - 1) // 2], "Best case": ranked[-1]}
    found: dict[str, CaseScores] = {}
    for what, case in chosen.items():
        if case not in found.values():
            found[what] = case
    return found


def write_evaluation_report(
    folder: Path,
    cases: Sequence[CaseScores],
    summary: dict[str, Any],
    pictures: Sequence[ReportPicture],
    schema: LabelSchema | None = None,
) -> Path:
    """Write ``report.html``, ``report.pdf`` and the figures for ``evaluate --report``.

    Parameters
    ----------
    folder : Path
        Made if need be; a report that lies there is replaced.
    cases : sequence of CaseScores
        In the order to be shown.
    summary : dict
        Of :func:`napari_unet.evaluation.metrics.summarise`.
    pictures : sequence of ReportPicture
        Drawn in this order, such as those of :func:`notable_cases`.
    schema : LabelSchema, optional
        Names of the labels; by default those of the first picture, else numbers.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ExportError
        The folder cannot be written.
    """
    if schema is None and pictures:
        schema = pictures[0].schema
    page = Page(folder, "Evaluation", ["Predicted masks against the truth, case by case."])
    add_evaluation(page, cases, summary, pictures, {c.id: c.name for c in schema.classes} if schema is not None else {})
    page.section("How to read this", paragraph(CONVENTIONS))
    return page.write()


def add_evaluation(
    page: Page,
    cases: Sequence[CaseScores],
    summary: dict[str, Any],
    pictures: Sequence[ReportPicture],
    names: Mapping[int, str],
) -> None:
    """Add the cards, charts, pictures and tables of an evaluation to a page; parameters as above."""
    unit = summary["unit"] or "mm or px"
    overall = {metric: summary[metric]["overall"] for metric in METRICS}
    page.cards(
        [
            (str(summary["cases"]), "case" if summary["cases"] == 1 else "cases"),
            (number(overall["dice"]["median"]), f"median Dice (mean {number(overall['dice']['mean'])})"),
            (number(overall["hd95_mm"]["median"], 1), f"median HD95 ({unit})"),
            (number(overall["nsd"]["median"]), f"median NSD at {number(summary['nsd_tolerance'], 1)} {unit}"),
        ]
    )
    if any(case.dice for case in cases):
        scores = page.figure(box_figure(cases, names), "scores", "Scores per class: box plots")
        page.section("Scores", scores)
        page.section("Per class", _class_table(summary, names, unit))
    agreement = bland_altman_figure(cases, names)
    if agreement is not None:
        page.section(
            "Volumes",
            paragraph(
                "Predicted less true volume over the mean of both; lines: mean difference and limits of agreement. "
                "Cases where both volumes are 0 are left out."
            ),
            page.figure(agreement, "volumes", "Bland-Altman plot of the volumes"),
        )
    if pictures:
        page.section("Pictures", *(page.figure(comparison_figure(p), p.name, p.title) for p in pictures))
    page.section("Per case", _case_table(cases, names))


def write_demo_report(folder: Path, result: DemoResult) -> Path:
    """Write ``report.html``, ``report.pdf`` and the figures for the demo.

    Parameters
    ----------
    folder : Path
        Made if need be; a report that lies there is replaced.
    result : DemoResult
        What to show.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ExportError
        The folder cannot be written.
    """
    scans = result.scans
    foreground = sum(scan.foreground for scan in scans)
    efforts = [share(sum(getattr(s, when) for s in scans), foreground) for when in ("effort_before", "effort_after")]
    dices = [mean(getattr(s, when) for s in scans) for when in ("dice_before", "dice_after")]
    page = Page(folder, result.title, result.lines)
    page.cards(
        [
            (" → ".join(number(dice) for dice in dices), "mean Dice"),
            (" → ".join(percent(effort) for effort in efforts), "voxels left to correct, of painting all by hand"),
            (str(len(scans)), "scans it had not seen" if len(scans) != 1 else "scan it had not seen"),
        ]
    )
    page.section("Scan by scan", _demo_table(scans))
    if result.pictures:
        page.section("Before and after", *(page.figure(comparison_figure(p), p.name, p.title) for p in result.pictures))
    if result.losses:
        curves = curve_figure(result.losses, result.dices)
        page.section("Fine-tuning", page.figure(curves, "training", "Loss and Dice over training"))
    return page.write()


def _mean_dice(case: CaseScores) -> float:
    return sum(case.dice.values()) / len(case.dice)


def _class_table(summary: dict[str, Any], names: Mapping[int, str], unit: str) -> str:
    volumes = _VOLUME_UNITS.get(summary["volume_unit"], "mL or voxels")

    def cells(tables: dict[str, dict[str, Any]]) -> list[str]:
        dice, distance = tables["dice"], tables["hd95_mm"]
        return [
            cell(number(dice["median"]), dice["median"]),
            cell(_quartiles(dice, 3)),
            cell(number(dice["mean"])),
            cell(number(tables["iou"]["median"])),
            cell(f"{number(distance['median'], 1)} ({_quartiles(distance, 1)})"),
            cell(number(tables["hd_mm"]["median"], 1)),
            cell(number(tables["nsd"]["median"])),
            cell(number(tables["lesion_f1"]["median"])),
            cell(_signed(tables["volume_error_ml"]["median"])),
            cell(percent(tables["volume_error_relative"]["median"], 1)),
            cell(str(dice["n"])),
        ]

    heads = [
        "Class", "Dice median", "quartiles", "mean", "IoU median", f"HD95 median ({unit})", f"HD median ({unit})",
        "NSD median", "F1 of parts", f"Volume error ({volumes})", "in percent", "n",
    ]  # fmt: skip
    labels = summary["dice"]["per_label"]
    rows = [row(_name(names, int(i)), cells({m: summary[m]["per_label"][i] for m in METRICS})) for i in labels]
    if len(labels) > 1:
        rows.append(row("all, case by case", cells({m: summary[m]["overall"] for m in METRICS})))
    return table(heads, rows, wide=True)


def _case_table(cases: Sequence[CaseScores], names: Mapping[int, str]) -> str:
    rows = []
    for case in cases:
        for position, label in enumerate(case.dice):
            found = {metric: getattr(case, metric).get(label) for metric in (*METRICS, "predicted_ml", "truth_ml")}
            cells = [
                text_cell(_name(names, label)),
                cell(number(found["dice"]), found["dice"]),
                cell(number(found["iou"])),
                cell(_distance(found["hd95_mm"], case.unit)),
                cell(_distance(found["hd_mm"], case.unit)),
                cell(number(found["nsd"])),
                cell(number(found["lesion_f1"])),
                cell(volume(found["predicted_ml"])),
                cell(f"{volume(found['truth_ml'])} {_VOLUME_UNITS[case.volume_unit]}"),
                cell(_signed(found["volume_error_ml"])),
                cell(percent(found["volume_error_relative"], 1)),
            ]
            line = row(case.case, cells, span=len(case.dice))
            # The name stands beside all classes of a case.
            rows.append(line if position == 0 else f"<tr>{''.join(cells)}</tr>")
    heads = [
        "Case", "Class", "Dice", "IoU", "HD95", "HD", "NSD", "F1 of parts", "Predicted volume", "True volume",
        "Difference", "in percent",
    ]  # fmt: skip
    return table(heads, rows, text_columns=2, wide=True)


def _demo_table(scans: Sequence[DemoScan]) -> str:
    rows = []
    for scan in scans:
        before, after = (share(effort, scan.foreground) for effort in (scan.effort_before, scan.effort_after))
        cells = [
            cell(number(scan.dice_before), scan.dice_before),
            cell(number(scan.dice_after), scan.dice_after),
            cell(percent(before), before),
            cell(percent(after), after),
            cell(f"{scan.effort_before:,} to {scan.effort_after:,}"),
        ]
        rows.append(row(scan.name, cells))
    heads = [
        "Scan",
        "Dice before",
        "Dice after",
        "Left to correct before",
        "Left to correct after",
        "Voxels to correct",
    ]
    return table(heads, rows)


#: What the figures of an evaluation mean.
CONVENTIONS = (
    "Dice and IoU: overlap, 1 is perfect. HD and HD95: the largest distance between the two surfaces, and the "
    "larger of the two directed 95th percentiles. NSD: share of both surfaces within the tolerance of the other "
    "(Nikolov et al. 2018). F1 of parts: how many connected parts were found, and how many of those found are "
    "right, whatever their outline. Volume error: predicted less true volume. A class absent from prediction and "
    "truth scores 1 and distance 0; absent from one of them, 0 and the diagonal of the image. Quartiles hold the "
    "middle half of the cases. Pictures show the plane with most of the truth, whatever the prediction is like "
    "there."
)


def _quartiles(statistics: dict[str, Any], digits: int) -> str:
    return f"{number(statistics['q1'], digits)} to {number(statistics['q3'], digits)}"


def _signed(value: float | None) -> str:
    text = volume(value)
    return text if text == MISSING or text.startswith("-") else f"+{text}"


def _distance(value: float | None, unit: str) -> str:
    return MISSING if value is None else f"{number(value, 1)} {unit}"


def _name(names: Mapping[int, str], label: int) -> str:
    return names.get(label, f"label {label}")
