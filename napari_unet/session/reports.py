"""Reports of evaluations: scores and the pictures that go with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from napari_unet.domain.labels import LabelSchema
from napari_unet.evaluation.metrics import CaseScores
from napari_unet.evaluation.plots import picture_of_scan
from napari_unet.evaluation.report import write_evaluation_report
from napari_unet.io.pairs import LabelledScan


def write_evaluation(
    folder: Path,
    cases: Sequence[CaseScores],
    summary: dict[str, Any],
    pictures: Sequence[tuple[str, LabelledScan, NDArray]],
) -> Path:
    """Write the report of ``evaluate``; the predicted masks stand in for the images, which evaluate is not given."""
    n = max((max(case.dice, default=1) for case in cases), default=1)
    schema = LabelSchema.numbered(n)
    shown = [
        picture_of_scan(item.scan, {"Prediction": labels}, item.labels, schema, name=name, title=name)
        for name, item, labels in pictures
    ]
    return write_evaluation_report(folder, cases, summary, shown, schema)
