"""Reports: one HTML page and its pictures in a folder, for an evaluation and for the demo.

The page needs no network, no script and no style sheet; its pictures lie in ``pictures/`` beside it, so that the folder
can be moved as a whole. What is drawn stands in ``plots``; nothing is computed here but what a table shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from napari_unet.domain.errors import ExportError
from napari_unet.domain.labels import LabelSchema
from napari_unet.evaluation.metrics import METRICS, CaseScores
from napari_unet.evaluation.plots import ReportPicture, comparison_figure, curve_figure, scores_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESEARCH_ONLY = "For research use only"

_PICTURES = "pictures"
_DPI = 130

_STYLE = """
:root { --ink:#1f2933; --faint:#616e7c; --line:#e4e7eb; --page:#f5f7fa; --card:#fff; --accent:#0072b2; --bar:#cfe6f5 }
* { box-sizing:border-box }
body { margin:0; background:var(--page); color:var(--ink); font:15px/1.5 system-ui,"Segoe UI",Roboto,sans-serif }
main { max-width:1120px; margin:0 auto; padding:32px 24px 48px }
h1 { margin:0 0 4px; font-size:28px; letter-spacing:-.01em }
h2 { margin:36px 0 12px; font-size:18px }
p { margin:4px 0; color:var(--faint) }
.notice { display:inline-block; margin-top:12px; padding:3px 12px; border-radius:99px; background:#fdf0d9;
  color:#7a4b00; font-size:13px; font-weight:600 }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(180px,1fr)); gap:14px; margin-top:24px }
.card, figure, .table { background:var(--card); border:1px solid var(--line); border-radius:10px }
.card { padding:14px 18px }
.card b { display:block; font-size:26px; font-variant-numeric:tabular-nums }
.card span { color:var(--faint); font-size:13px }
.table { overflow-x:auto }
table { width:100%; border-collapse:collapse; font-variant-numeric:tabular-nums }
th, td { padding:7px 14px; text-align:right; border-top:1px solid var(--line); white-space:nowrap }
th { font-weight:600 }
thead th { border-top:0; color:var(--faint); font-size:12.5px }
th[scope=row], thead th.name, td.name { text-align:left }
th[scope=row] { max-width:340px; white-space:normal; overflow-wrap:anywhere; vertical-align:top }
.bar { display:inline-block; min-width:92px; padding:0 7px; border-radius:3px;
  background:linear-gradient(90deg,var(--bar) var(--share),#f1f4f7 var(--share)) }
figure { margin:0 0 16px; padding:12px; text-align:center }
img { max-width:100%; height:auto }
footer { margin-top:40px; padding-top:12px; border-top:1px solid var(--line); font-size:13px }
@media print { body { background:#fff } figure, tr { break-inside:avoid } * { print-color-adjust:exact } }
"""

_COLUMNS = {"dice": "Dice", "iou": "IoU", "hd95_mm": "HD95", "nsd": "NSD"}
_MISSING = "–"


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


def write_evaluation_report(
    folder: Path,
    cases: Sequence[CaseScores],
    summary: dict[str, Any],
    pictures: Sequence[ReportPicture],
    schema: LabelSchema | None = None,
) -> Path:
    """Write ``report.html`` and its pictures for ``evaluate --report``.

    Parameters
    ----------
    folder : Path
        Made if need be; a report that lies there is replaced.
    cases : sequence of CaseScores
        In the order to be shown.
    summary : dict
        Of :func:`napari_unet.evaluation.metrics.summarise`.
    pictures : sequence of ReportPicture
        Drawn in this order.
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
    names = {c.id: c.name for c in schema.classes} if schema is not None else {}
    unit = summary["unit"] or "mm or px"
    overall = {metric: summary[metric]["overall"] for metric in METRICS}
    cards = [
        (str(summary["cases"]), "case" if summary["cases"] == 1 else "cases"),
        (_number(overall["dice"]["mean"]), "mean Dice"),
        (_number(overall["hd95_mm"]["median"], 1), f"median HD95 ({unit})"),
        (_number(overall["nsd"]["mean"]), f"mean NSD at {_number(summary['nsd_tolerance'], 1)} {unit}"),
    ]
    writer = _Writer(folder)
    parts = [_header("Evaluation", ["Predicted masks against the truth, case by case."]), _cards(cards)]
    if any(case.dice for case in cases):
        parts += ["<h2>Scores</h2>", writer.figure(scores_figure(cases, names), "scores", "Scores per class")]
        parts += ["<h2>Per class</h2>", _class_table(summary, names, unit)]
    if pictures:
        parts += ["<h2>Pictures</h2>", *writer.pictures(pictures)]
    parts += ["<h2>Per case</h2>", _case_table(cases, names), _conventions()]
    return writer.page("Evaluation", parts)


def write_demo_report(folder: Path, result: DemoResult) -> Path:
    """Write ``report.html`` and its pictures for the demo.

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
    cards = [
        (_change(_mean(s.dice_before for s in scans), _mean(s.dice_after for s in scans), _number), "mean Dice"),
        (
            _change(
                _share(sum(s.effort_before for s in scans), foreground),
                _share(sum(s.effort_after for s in scans), foreground),
                _percent,
            ),
            "voxels left to correct, of painting all by hand",
        ),
        (str(len(scans)), "scans it had not seen" if len(scans) != 1 else "scan it had not seen"),
    ]
    writer = _Writer(folder)
    parts = [_header(result.title, result.lines), _cards(cards), "<h2>Scan by scan</h2>", _demo_table(scans)]
    if result.pictures:
        parts += ["<h2>Before and after</h2>", *writer.pictures(result.pictures)]
    if result.losses:
        curves = curve_figure(result.losses, result.dices)
        parts += ["<h2>Fine-tuning</h2>", writer.figure(curves, "training", "Loss and Dice over training")]
    return writer.page(result.title, parts)


class _Writer:
    """Puts pictures and the page into a folder; a failing disk becomes one sentence."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def pictures(self, pictures: Iterable[ReportPicture]) -> list[str]:
        return [self.figure(comparison_figure(p), p.name, p.title) for p in pictures]

    def figure(self, figure: Figure, name: str, description: str) -> str:
        """Save a figure and return its HTML."""
        self._count += 1
        # The number keeps two pictures of one name apart.
        stem = re.sub(r"[^\w-]+", "-", name).strip("-")[:60] or "picture"
        file = f"{self._count:02d}-{stem}.png"
        try:
            (self._folder / _PICTURES).mkdir(parents=True, exist_ok=True)
            figure.savefig(self._folder / _PICTURES / file, dpi=_DPI)
        except OSError as error:
            raise self._failure(error) from error
        return f'<figure><img src="{_PICTURES}/{quote(file)}" alt="{escape(description)}"></figure>'

    def page(self, title: str, parts: Sequence[str]) -> Path:
        """Write the page and return its path."""
        path = self._folder / "report.html"
        text = (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)} · napari-unet</title><style>{_STYLE}</style></head>\n<body><main>\n"
            + "\n".join(parts)
            + f"\n<footer><p>{RESEARCH_ONLY}: not a medical device. Written by {_product()}.</p></footer>\n"
            "</main></body></html>\n"
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise self._failure(error) from error
        return path

    def _failure(self, error: OSError) -> ExportError:
        reason = error.strerror or str(error)
        return ExportError(f"The report could not be written to {self._folder} ({reason}): choose another folder.")


def _product() -> str:
    try:
        return f"napari-unet {version('napari-unet')}"
    except PackageNotFoundError:
        return "napari-unet"


def _header(title: str, lines: Iterable[str]) -> str:
    sentences = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<header><h1>{escape(title)}</h1>{sentences}<span class="notice">{RESEARCH_ONLY}</span></header>'


def _cards(cards: Iterable[tuple[str, str]]) -> str:
    body = "".join(f'<div class="card"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for v, k in cards)
    return f'<div class="cards">{body}</div>'


def _table(heads: Sequence[str], rows: Iterable[str], text_columns: int) -> str:
    head = "".join(
        f'<th scope="col"{" class=name" if i < text_columns else ""}>{escape(h)}</th>' for i, h in enumerate(heads)
    )
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _cell(text: str, share: float | None = None) -> str:
    """Return a cell, with a bar behind its text where a share between 0 and 1 is given."""
    if share is None:
        return f"<td>{escape(text)}</td>"
    width = 100 * min(max(share, 0.0), 1.0)
    return f'<td><span class="bar" style="--share:{width:.1f}%">{escape(text)}</span></td>'


def _metric_cell(metric: str, value: float | None) -> str:
    if metric == "hd95_mm":
        return _cell(_number(value, 1))
    return _cell(_number(value), value)


def _class_table(summary: dict[str, Any], names: dict[int, str], unit: str) -> str:
    def row(name: str, tables: dict[str, dict[str, Any]]) -> str:
        dice, distance = tables["dice"], tables["hd95_mm"]
        cells = [
            _metric_cell("dice", dice["mean"]),
            _cell(_number(dice["median"])),
            _cell(_number(dice["std"])),
            _metric_cell("iou", tables["iou"]["mean"]),
            _cell(_number(distance["mean"], 1)),
            _cell(_number(distance["median"], 1)),
            _metric_cell("nsd", tables["nsd"]["mean"]),
            _cell(str(dice["n"])),
        ]
        return f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>'

    heads = ["Class", "Dice mean", "median", "deviation", "IoU mean", f"HD95 mean ({unit})", "median", "NSD mean", "n"]
    labels = summary["dice"]["per_label"]
    rows = [row(_name(names, int(i)), {m: summary[m]["per_label"][i] for m in METRICS}) for i in labels]
    if len(labels) > 1:
        rows.append(row("all, case by case", {m: summary[m]["overall"] for m in METRICS}))
    return _table(heads, rows, text_columns=1)


def _case_table(cases: Sequence[CaseScores], names: dict[int, str]) -> str:
    rows = []
    for case in cases:
        for position, label in enumerate(case.dice):
            first = f'<th scope="row" rowspan="{len(case.dice)}">{escape(case.case)}</th>' if position == 0 else ""
            cells = []
            for metric in METRICS:
                value = getattr(case, metric).get(label)
                if metric == "hd95_mm":
                    cells.append(_cell(_MISSING if value is None else f"{_number(value, 1)} {case.unit}"))
                else:
                    cells.append(_metric_cell(metric, value))
            rows.append(f'<tr>{first}<td class="name">{escape(_name(names, label))}</td>{"".join(cells)}</tr>')
    return _table(["Case", "Class", *_COLUMNS.values()], rows, text_columns=2)


def _demo_table(scans: Sequence[DemoScan]) -> str:
    rows = []
    for scan in scans:
        before, after = (_share(effort, scan.foreground) for effort in (scan.effort_before, scan.effort_after))
        cells = [
            _cell(_number(scan.dice_before), scan.dice_before),
            _cell(_number(scan.dice_after), scan.dice_after),
            _cell(_percent(before), before),
            _cell(_percent(after), after),
            _cell(f"{scan.effort_before:,} to {scan.effort_after:,}"),
        ]
        rows.append(f'<tr><th scope="row">{escape(scan.name)}</th>{"".join(cells)}</tr>')
    heads = [
        "Scan",
        "Dice before",
        "Dice after",
        "Left to correct before",
        "Left to correct after",
        "Voxels to correct",
    ]
    return _table(heads, rows, text_columns=1)


def _conventions() -> str:
    return (
        "<h2>How to read this</h2>"
        "<p>Dice and IoU: overlap, 1 is perfect. HD95: the larger of the two directed 95th percentiles of the distance "
        "between the surfaces. NSD: share of both surfaces within the tolerance of the other (Nikolov et al. 2018). "
        "A class absent from prediction and truth scores 1 and distance 0; absent from one of them, 0 and the diagonal "
        "of the image. Pictures show the plane with most of the truth, whatever the prediction is like there.</p>"
    )


def _name(names: dict[int, str], label: int) -> str:
    return names.get(label, f"label {label}")


def _number(value: float | None, digits: int = 3) -> str:
    return _MISSING if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return _MISSING if value is None else f"{100 * value:.0f} %"


def _change(before: float | None, after: float | None, show: Any) -> str:
    return f"{show(before)} → {show(after)}"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
