"""The page that reports are written on: one HTML file that needs nothing else, its figures as PNG, and all in one PDF.

How a report looks stands here; what is in it stands in ``report`` and ``session_report``.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from napari_unet.domain.errors import ExportError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESEARCH_ONLY = "For research use only"
MISSING = "–"

_PICTURES = "pictures"
_DPI = 130
_INK, _FAINT = "#1f2933", "#616e7c"
#: A4, in inches.
_PAPER = (8.27, 11.69)

_STYLE = """
:root { --ink:#1f2933; --faint:#616e7c; --line:#e4e7eb; --page:#f5f7fa; --card:#fff; --accent:#0072b2; --bar:#cfe6f5 }
* { box-sizing:border-box }
body { margin:0; background:var(--page); color:var(--ink); font:15px/1.5 system-ui,"Segoe UI",Roboto,sans-serif }
main { max-width:1160px; margin:0 auto; padding:32px 24px 48px }
h1 { margin:0 0 4px; font-size:28px; letter-spacing:-.01em }
h2 { margin:36px 0 12px; font-size:18px }
p { margin:4px 0; color:var(--faint); max-width:85ch }
p + .table, p + figure { margin-top:12px }
.notice { display:inline-block; margin-top:12px; padding:3px 12px; border-radius:99px; background:#fdf0d9;
  color:#7a4b00; font-size:13px; font-weight:600 }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(180px,1fr)); gap:14px; margin-top:24px }
.card, figure, .table { background:var(--card); border:1px solid var(--line); border-radius:10px }
.card { padding:14px 18px }
.card b { display:block; font-size:26px; font-variant-numeric:tabular-nums }
.card span { color:var(--faint); font-size:13px }
tbody:first-child tr:first-child * { border-top:0 }
.table { overflow-x:auto }
table { width:100%; border-collapse:collapse; font-variant-numeric:tabular-nums }
th, td { padding:7px 12px; text-align:right; border-top:1px solid var(--line); white-space:nowrap }
th { font-weight:600 }
thead th { border-top:0; color:var(--faint); font-size:12.5px; white-space:normal; vertical-align:bottom }
th[scope=row], thead th.name, td.name { text-align:left }
th[scope=row] { max-width:340px; min-width:120px; white-space:normal; overflow-wrap:anywhere; vertical-align:top }
td.name { white-space:normal; overflow-wrap:anywhere }
.wide table { font-size:13.5px }
.wide th, .wide td { padding:6px 9px }
.bar { display:inline-block; min-width:76px; padding:0 7px; border-radius:3px;
  background:linear-gradient(90deg,var(--bar) var(--share),#f1f4f7 var(--share)) }
.worse { background:#fbe3d6 }
figure { margin:0 0 16px; padding:12px; text-align:center }
img { max-width:100%; height:auto }
footer { margin-top:40px; padding-top:12px; border-top:1px solid var(--line); font-size:13px }
@media print { body { background:#fff } figure, tr { break-inside:avoid } * { print-color-adjust:exact } }
"""


class Page:
    """A report on its way into a folder; a failing disk becomes one sentence.

    Parameters
    ----------
    folder : Path
        Made if need be; a report that lies there is replaced.
    title : str
        Heading.
    lines : iterable of str
        Sentences below it.
    """

    def __init__(self, folder: Path, title: str, lines: Iterable[str] = ()) -> None:
        self._folder, self._title, self._lines = folder, title, tuple(lines)
        self._parts = [header(title, self._lines)]
        self._cards: list[tuple[str, str]] = []
        self._figures: dict[str, Figure] = {}

    def cards(self, cards: Iterable[tuple[str, str]]) -> None:
        """Add large figures, each a value and what it is."""
        found = list(cards)
        self._cards += found
        body = "".join(f'<div class="card"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for v, k in found)
        self._parts.append(f'<div class="cards">{body}</div>')

    def section(self, title: str, *html: str) -> None:
        """Add a heading and what stands below it."""
        self._parts += [f"<h2>{escape(title)}</h2>", *html]

    def figure(self, figure: Figure, name: str, description: str) -> str:
        """Save a figure as PNG, keep it for the PDF, and return its HTML, which holds the picture.

        Raises
        ------
        ExportError
            The folder cannot be written.
        """
        # The number keeps two pictures of one name apart.
        stem = re.sub(r"[^\w-]+", "-", name).strip("-")[:60] or "picture"
        file = f"{len(self._figures) + 1:02d}-{stem}.png"
        self._figures[file] = figure
        memory = io.BytesIO()
        figure.savefig(memory, dpi=_DPI)
        try:
            (self._folder / _PICTURES).mkdir(parents=True, exist_ok=True)
            (self._folder / _PICTURES / file).write_bytes(memory.getvalue())
        except OSError as error:
            raise self._failure(error) from error
        source = base64.b64encode(memory.getvalue()).decode("ascii")
        return f'<figure><img src="data:image/png;base64,{source}" alt="{escape(description)}"></figure>'

    def write(self) -> Path:
        """Write ``report.html`` and ``report.pdf``, and return the path of the page.

        Raises
        ------
        ExportError
            The folder cannot be written.
        """
        path = self._folder / "report.html"
        text = (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self._title)} · napari-unet</title><style>{_STYLE}</style></head>\n<body><main>\n"
            + "\n".join(self._parts)
            + f"\n<footer><p>{RESEARCH_ONLY}: not a medical device. Written by {_product()}.</p></footer>\n"
            "</main></body></html>\n"
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            self._write_pdf()
            for left in (self._folder / _PICTURES).glob("[0-9][0-9]-*.png"):
                # Of the report that lay here before.
                if left.name not in self._figures:
                    left.unlink()
        except OSError as error:
            raise self._failure(error) from error
        return path

    def _write_pdf(self) -> None:
        """Write a page with the large figures, then one per figure; tables are the HTML's."""
        from matplotlib.backends.backend_pdf import PdfPages

        with PdfPages(self._folder / "report.pdf", metadata={"Title": self._title, "CreationDate": None}) as pdf:
            pdf.savefig(self._title_page())
            for figure in self._figures.values():
                pdf.savefig(figure)

    def _title_page(self) -> Figure:
        import textwrap

        from matplotlib.figure import Figure

        figure = Figure(figsize=_PAPER, facecolor="white")
        figure.text(0.1, 0.93, self._title, fontsize=20, weight="bold", color=_INK, va="top", parse_math=False)
        lines = [part for line in self._lines for part in textwrap.wrap(line, 85)]
        figure.text(0.1, 0.885, "\n".join(lines), fontsize=10, color=_FAINT, va="top", parse_math=False)
        y = 0.86 - 0.018 * len(lines)
        for value, name in self._cards:
            figure.text(0.1, y, value, fontsize=15, weight="bold", color=_INK, va="top", parse_math=False)
            figure.text(0.45, y - 0.004, name, fontsize=10, color=_FAINT, va="top", parse_math=False)
            y -= 0.04
        figure.text(0.1, 0.05, f"{RESEARCH_ONLY}: not a medical device. Written by {_product()}.", fontsize=8)
        return figure

    def _failure(self, error: OSError) -> ExportError:
        reason = error.strerror or str(error)
        return ExportError(f"The report could not be written to {self._folder} ({reason}): choose another folder.")


def header(title: str, lines: Iterable[str]) -> str:
    """Return the heading of a page."""
    sentences = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<header><h1>{escape(title)}</h1>{sentences}<span class="notice">{RESEARCH_ONLY}</span></header>'


def paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{escape(text)}</p>"


def table(heads: Sequence[str], rows: Iterable[str], text_columns: int = 1, wide: bool = False) -> str:
    """Return a table; the first columns hold text, the others numbers. Without heads each line speaks for itself."""
    head = "".join(
        f'<th scope="col"{" class=name" if i < text_columns else ""}>{escape(h)}</th>' for i, h in enumerate(heads)
    )
    kind, top = "table wide" if wide else "table", f"<thead><tr>{head}</tr></thead>" if heads else ""
    return f'<div class="{kind}"><table>{top}<tbody>{"".join(rows)}</tbody></table></div>'


def row(name: str, cells: Iterable[str], span: int = 1) -> str:
    """Return a line of a table; its name stands beside so many lines."""
    spanned = f' rowspan="{span}"' if span > 1 else ""
    return f'<tr><th scope="row"{spanned}>{escape(name)}</th>{"".join(cells)}</tr>'


def cell(text: str, share: float | None = None, worse: bool = False) -> str:
    """Return a cell, with a bar behind its text where a share between 0 and 1 is given."""
    if share is None:
        return f"<td{' class=worse' if worse else ''}>{escape(text)}</td>"
    width = 100 * min(max(share, 0.0), 1.0)
    return f'<td><span class="bar" style="--share:{width:.1f}%">{escape(text)}</span></td>'


def text_cell(text: str) -> str:
    """Return a cell that holds words."""
    return f'<td class="name">{escape(text)}</td>'


def number(value: float | None, digits: int = 3) -> str:
    """Return a number, or a dash where there is none."""
    return MISSING if value is None or value != value else f"{value:.{digits}f}"


def volume(value: float | None) -> str:
    """Return a volume with three significant digits."""
    if value is None or value != value:
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def percent(value: float | None, digits: int = 0) -> str:
    """Return a share in percent."""
    return MISSING if value is None or value != value else f"{100 * value:.{digits}f} %"


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of what is known."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def share(part: int, whole: int) -> float | None:
    """Return a share; None of nothing."""
    return part / whole if whole else None


def _product() -> str:
    try:
        return f"napari-unet {version('napari-unet')}"
    except PackageNotFoundError:
        return "napari-unet"
