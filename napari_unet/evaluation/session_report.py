"""The report of a session: what was trusted, learnt, forgotten and saved, which model came of it, and who did what.

Each section is fed by one plain data class and is left out where there is none. Names are those that the caller gives:
none is looked up, so that no path and no identifier of a patient gets in that was not put in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_unet.domain.checkpoint import ModelCard
from napari_unet.evaluation.charts import curve_figure, learning_figure, trust_figure
from napari_unet.evaluation.metrics import CaseScores
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
)
from napari_unet.evaluation.plots import ReportPicture, comparison_figure
from napari_unet.evaluation.quality import Flag
from napari_unet.evaluation.report import CONVENTIONS, add_evaluation
from napari_unet.evaluation.trust import CorrectedScan, rolling_mean, stop_hint

_PREDICTED = (
    "Not looked at yet. The Dice is predicted from this project's own corrections, and is no reason not to look: on "
    "four public sets it was off by 0.04 to 0.17 on average. Intervals are made to hold the true Dice nine times in "
    "ten; on those sets they were mostly wider than that takes."
)
#: A scan that lost more Dice than this to its best model is marked.
_FORGOTTEN = 0.02


@dataclass(frozen=True)
class PredictedScan:
    """A scan that nobody has looked at, with the Dice that its proposal probably has, and its interval if known."""

    name: str
    dice: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class History:
    """Dice of the scans that judge, by model.

    Parameters
    ----------
    models : tuple of str
        In the order in which they were made.
    scans : mapping of str to tuple of (float or None)
        By shown name, one Dice per model; None where it was not measured.
    """

    models: tuple[str, ...]
    scans: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class EffortSaved:
    """What correcting took, and what painting all by hand would have taken where that is known.

    Parameters
    ----------
    scans : int
    minutes : float
        Active work on them.
    strokes : int
    voxels : int
        Changed by hand.
    foreground : int
        Voxels of the corrected labels: what painting by hand begins from.
    minutes_by_hand : float or None
        For as many scans, measured on those that were painted without a proposal; None where there were none.
    """

    scans: int
    minutes: float
    strokes: int
    voxels: int
    foreground: int
    minutes_by_hand: float | None = None


@dataclass(frozen=True)
class Update:
    """A model against the one that it replaced.

    Parameters
    ----------
    old, new : str
        Their names.
    changed : tuple of str
        What changed, in sentences: settings, classes, budget.
    data : str
        On which data, in a sentence.
    evaluated : str
        How it was evaluated, in a sentence.
    scans : mapping of str to (before, after)
        Dice of the held-out scans, by shown name.
    verdict : str
        What was said of the new model.
    """

    old: str
    new: str
    changed: tuple[str, ...]
    data: str
    evaluated: str
    scans: Mapping[str, tuple[float | None, float | None]]
    verdict: str = ""


@dataclass(frozen=True)
class AuditCard:
    """Where one mask comes from.

    Parameters
    ----------
    mask : str
        Shown name.
    model : str or None
        Whose proposal it began with; None: painted from nothing.
    edited : float or None
        Share of its foreground that was changed by hand.
    minutes : float or None
        Active work.
    reader : str
        Who accepted it.
    accepted : str
        How much of it was looked at, such as "31 of 31 slices".
    """

    mask: str
    model: str | None
    edited: float | None
    minutes: float | None
    reader: str
    accepted: str = ""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation against truth: scores, their summary, pictures and the names of the classes."""

    cases: tuple[CaseScores, ...]
    summary: dict[str, Any]
    pictures: tuple[ReportPicture, ...] = ()
    names: Mapping[int, str] | None = None


@dataclass(frozen=True)
class SessionResult:
    """What a session has to show; what is empty or None has no section.

    Parameters
    ----------
    title : str
    lines : tuple of str
        Sentences below it.
    effort : EffortSaved or None
    corrected : tuple of CorrectedScan
        In the order of correction; ``scan`` is shown.
    predicted : tuple of PredictedScan
    prediction_note : str
        A sentence on what the prediction lacks.
    history : History or None
        Learning curve and table of what was forgotten.
    losses : tuple of (step, loss)
        Of the last training.
    evaluated : Evaluated or None
    pictures : tuple of ReportPicture
        Corrected scans with their proposals.
    flags : tuple of Flag
        What stands out of the cohort.
    updates : tuple of Update
    model : ModelCard or None
    audits : tuple of AuditCard
    """

    title: str
    lines: tuple[str, ...] = ()
    effort: EffortSaved | None = None
    corrected: tuple[CorrectedScan, ...] = ()
    predicted: tuple[PredictedScan, ...] = ()
    prediction_note: str = ""
    history: History | None = None
    losses: tuple[tuple[int, float], ...] = ()
    evaluated: Evaluated | None = None
    pictures: tuple[ReportPicture, ...] = ()
    flags: tuple[Flag, ...] = ()
    updates: tuple[Update, ...] = ()
    model: ModelCard | None = None
    audits: tuple[AuditCard, ...] = ()


def write_session_report(folder: Path, result: SessionResult) -> Path:
    """Write ``report.html``, ``report.pdf`` and the figures of a session.

    Parameters
    ----------
    folder : Path
        Made if need be; a report that lies there is replaced.
    result : SessionResult

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ExportError
        The folder cannot be written.
    """
    page = Page(folder, result.title, result.lines)
    if result.effort is not None:
        page.cards(effort_cards(result.effort))
    if result.corrected or result.predicted or result.prediction_note:
        add_trust(page, result.corrected, result.predicted, result.prediction_note)
    if result.history is not None:
        add_history(page, result.history)
    if result.losses:
        page.section(
            "Last training", page.figure(curve_figure(result.losses, ()), "training", "Loss over the last training")
        )
    if result.pictures:
        page.section("Pictures", *(page.figure(comparison_figure(p), p.name, p.title) for p in result.pictures))
    if result.evaluated is not None:
        found = result.evaluated
        add_evaluation(page, found.cases, found.summary, found.pictures, found.names or {})
    if result.flags:
        page.section(
            "Worth a look",
            paragraph("These scans stand out of the cohort. They need not be wrong."),
            _flags(result.flags),
        )
    for update in result.updates:
        add_update(page, update)
    if result.model is not None:
        page.section("Model card", model_table(result.model))
    if result.audits:
        page.section("Where the masks come from", audit_table(result.audits))
    if result.evaluated is not None:
        page.section("How to read this", paragraph(CONVENTIONS))
    return page.write()


def effort_cards(effort: EffortSaved) -> list[tuple[str, str]]:
    """Return the large figures of what correcting took and what it saved."""
    cards = [
        (str(effort.scans), "scan corrected" if effort.scans == 1 else "scans corrected"),
        (number(effort.minutes, 1), "minutes of active work"),
        (f"{effort.strokes:,}", "strokes"),
        (percent(share(effort.voxels, effort.foreground)), "voxels changed, of all that were to be painted"),
    ]
    if effort.minutes_by_hand is not None:
        saved = effort.minutes_by_hand - effort.minutes
        what = "saved against" if saved >= 0 else "more than"
        cards.append((f"{abs(saved):.1f} min", f"{what} {effort.minutes_by_hand:.1f} min by hand"))
    return cards


def add_trust(
    page: Page, corrected: Sequence[CorrectedScan], predicted: Sequence[PredictedScan], note: str = ""
) -> None:
    """Add the trust curve, the hint to stop, the table of scans that nobody has looked at, and what it lacks."""
    dices = [scan.dice for scan in corrected]
    hint = stop_hint(corrected)
    parts = [paragraph(hint)] if hint is not None else []
    if corrected or predicted:
        figure = trust_figure(
            dices, rolling_mean(dices), [s.model for s in corrected], [(p.dice, p.low, p.high) for p in predicted]
        )
        parts.append(page.figure(figure, "trust", "Dice of the proposals before correction, scan by scan"))
    if predicted:
        parts.append(paragraph(_PREDICTED))
        rows = [row(p.name, [cell(number(p.dice, 2), p.dice), cell(_interval(p))]) for p in predicted]
        parts.append(table(["Scan", "Predicted Dice", "Interval"], rows))
    if note:
        parts.append(paragraph(note))
    page.section("Trust", *parts)


def add_history(page: Page, history: History) -> None:
    """Add the learning curve and the table of what was forgotten."""
    by_model = [[values[i] for values in history.scans.values()] for i in range(len(history.models))]
    figure = learning_figure(history.models, by_model)
    rows = []
    for name, values in history.scans.items():
        cells, best = [], None
        for value in values:
            lost = value is not None and best is not None and best - value > _FORGOTTEN
            cells.append(cell(f"{number(value, 2)}{' ▾' if lost else ''}", worse=lost))
            best = value if best is None else best if value is None else max(best, value)
        rows.append(row(name, cells))
    rows.append(row("mean", [cell(number(mean(values), 2)) for values in by_model]))
    page.section("Learning", page.figure(figure, "learning", "Dice of the held-out scans, by model"))
    page.section(
        "Forgetting",
        paragraph(f"Dice of each scan that judges, by model. ▾: more than {_FORGOTTEN:g} below an earlier model."),
        table(["Scan", *history.models], rows, wide=True),
    )


def add_update(page: Page, update: Update) -> None:
    """Add what changed from one model to the next, on which data, evaluated how, before and after."""
    lines = [*update.changed, update.data, update.evaluated, update.verdict]
    before, after = ([pair[i] for pair in update.scans.values()] for i in (0, 1))
    rows = [_change(name, *pair) for name, pair in update.scans.items()]
    rows.append(_change("mean", mean(before), mean(after)))
    page.section(
        f"From {update.old} to {update.new}",
        *(paragraph(line) for line in lines if line),
        table(["Held-out scan", f"Dice with {update.old}", f"Dice with {update.new}", "Change"], rows),
    )


def model_table(card: ModelCard) -> str:
    """Return the model's card as a table: what it is for, what it learnt from, how; scans only by their number."""
    network, patch, dice = card.settings.network, card.settings.training.patch_size, mean(card.scores.values())
    entries = {
        "Name": card.name,
        "Made": card.created or MISSING,
        "Use": "Research only. Its masks are proposals: look at each before it is used.",
        "Classes": ", ".join(each.name for each in card.label_schema.classes),
        "Modality": card.modality or "not known",
        "Learnt from": f"{_counted(len(card.seen), 'scan')}, {_counted(card.steps, 'step')} in its last training",
        "Judged by": _counted(len(card.scores), "held-out scan") + ("" if dice is None else f", mean Dice {dice:.3f}"),
        "Network": f"{network.dimensions}D, channels: {network.in_channels} in, {network.out_channels} out",
        "Patch": " x ".join(str(side) for side in patch or ()) or MISSING,
        "Computed on": card.compute or MISSING,
        "Versions": ", ".join(f"{name} {version}" for name, version in card.versions.items()) or MISSING,
    }
    return table([], [row(name, [text_cell(value)]) for name, value in entries.items()])


def audit_table(audits: Sequence[AuditCard]) -> str:
    """Return where each mask comes from: model, share edited by hand, minutes of active work, reader."""
    rows = [
        row(
            each.mask,
            [
                text_cell(each.model or "painted by hand"),
                text_cell(each.reader or MISSING),
                text_cell(each.accepted or MISSING),
                cell(percent(each.edited, 1), each.edited),
                cell(number(each.minutes, 1)),
            ],
        )
        for each in audits
    ]
    return table(["Mask", "Proposed by", "Reader", "Looked at", "Edited by hand", "Minutes"], rows, text_columns=4)


def _flags(flags: Sequence[Flag]) -> str:
    rows = [row(each.name, [text_cell(each.kind), text_cell(each.sentence)]) for each in flags]
    return table(["Scan", "What", "Why"], rows, text_columns=3)


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' if n != 1 else ''}"


def _interval(scan: PredictedScan) -> str:
    if scan.low is None or scan.high is None:
        return "too few corrections"
    return f"{scan.low:.2f} to {scan.high:.2f}"


def _change(name: str, before: float | None, after: float | None) -> str:
    change = None if before is None or after is None else after - before
    worse = change is not None and change < -_FORGOTTEN
    text = MISSING if change is None else f"{change:+.3f}{' ▾' if worse else ''}"
    return row(name, [cell(number(before)), cell(number(after)), cell(text, worse=worse)])
