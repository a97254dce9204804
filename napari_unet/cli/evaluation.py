"""``evaluate``: predicted masks against true ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari_unet.cli.output import say, say_unmatched
from napari_unet.evaluation.metrics import summarise, to_json
from napari_unet.io.masks import TruthRule
from napari_unet.io.pairs import find_pairs
from napari_unet.session.batch import evaluate_folders


def run_evaluate(
    predictions: Path, truth: Path, rule: TruthRule, tolerance_mm: float, report: Path | None, images: Path | None
) -> dict[str, Any]:
    """Score all cases; return the contract's JSON, and write a report where asked for, over the images where given."""
    say_unmatched(find_pairs(predictions, truth), "predictions", "truths")
    if report is None:
        cases = [scores for scores, _, _ in evaluate_folders(predictions, truth, rule, tolerance_mm)]
        return to_json(cases, summarise(cases))
    from napari_unet.session.reports import picture_of_case, sources_by_stem, write_evaluation

    sources = {} if images is None else sources_by_stem(images)
    cases, pictures = [], {}
    for scores, item, predicted in evaluate_folders(predictions, truth, rule, tolerance_mm):
        cases.append(scores)
        pictures[scores.case] = picture_of_case(scores.case, item, predicted, sources.get(scores.case))
    summary = summarise(cases)
    write_evaluation(report, cases, summary, pictures)
    say(f"wrote {report / 'report.html'}")
    return to_json(cases, summary)
