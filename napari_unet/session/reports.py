"""Reports of evaluations: scores and the pictures that go with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from napari_unet.domain.errors import ScanError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.evaluation.metrics import CaseScores
from napari_unet.evaluation.plots import ReportPicture, picture_of_scan
from napari_unet.evaluation.report import notable_cases, write_evaluation_report
from napari_unet.io.pairs import LabelledScan
from napari_unet.io.registry import find_sources, read_scan, source_stem


def sources_by_stem(folder: Path) -> dict[str, Path]:
    """Return the scans of a folder by their stems.

    Raises
    ------
    ScanError
        There is no such folder.
    """
    if not folder.is_dir():
        raise ScanError(f"There is no folder of images at {folder}: give the one with the scans that were predicted.")
    return {source_stem(path): path for path in find_sources(folder, recursive=False)}


def picture_of_case(name: str, item: LabelledScan, predicted: NDArray, image: Path | None) -> ReportPicture:
    """Return the plane of a case that a report may show.

    Parameters
    ----------
    name : str
        Of the case.
    item : LabelledScan
        The predicted mask as a scan, with the true labels.
    predicted : array
        The predicted labels.
    image : Path or None
        The scan itself; None: the predicted mask stands in for it.

    Raises
    ------
    ScanError
        The scan cannot be read, or has another shape than its mask.
    """
    scan: Scan = item.scan
    if image is not None:
        scan = read_scan(image)
        if scan.spatial_shape != item.labels.shape:
            raise ScanError(
                f"{image.name} has shape {scan.spatial_shape} and its mask {item.labels.shape}: give the scans that "
                "were predicted."
            )
    n = max(int(predicted.max(initial=0)), int(item.labels.max(initial=0)), 1)
    return picture_of_scan(scan, {"Prediction": predicted}, item.labels, LabelSchema.numbered(n), name=name, title=name)


def write_evaluation(
    folder: Path, cases: Sequence[CaseScores], summary: dict[str, Any], pictures: Mapping[str, ReportPicture]
) -> Path:
    """Write the report of ``evaluate``, with pictures of the worst, the median and the best case.

    Parameters
    ----------
    folder : Path
    cases : sequence of CaseScores
    summary : dict
        Of :func:`napari_unet.evaluation.metrics.summarise`.
    pictures : mapping of str to ReportPicture
        By the name of the case.

    Raises
    ------
    ExportError
        The folder cannot be written.
    """
    schema = LabelSchema.numbered(max((max(case.dice, default=1) for case in cases), default=1))
    shown = []
    for what, case in notable_cases(cases).items():
        dice = sum(case.dice.values()) / len(case.dice)
        shown.append(replace(pictures[case.case], schema=schema, title=f"{what}: {case.case}, Dice {dice:.3f}"))
    return write_evaluation_report(folder, cases, summary, shown, schema)
