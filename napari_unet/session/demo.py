"""The main job on computed patients, without a window: propose, correct, fine-tune, propose again.

The same session and engine as the window's; only the hand that corrects is simulated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.compute.engine import Engine
from napari_unet.domain.errors import EngineError
from napari_unet.evaluation.effort import correction_effort, pooled_dice
from napari_unet.evaluation.plots import picture_of_scan
from napari_unet.evaluation.report import DemoResult, DemoScan, write_demo_report
from napari_unet.evaluation.simulated_annotator import BrushAnnotator
from napari_unet.io.samples import ct_phantom
from napari_unet.io.writers import write_mask
from napari_unet.session.models import find_model
from napari_unet.session.session import Session
from napari_unet.session.state import ScanState

_FIRST, _MORE, _UNSEEN = 1, (2, 3), (4, 5)


@dataclass(eq=False)
class _Patient:
    state: ScanState
    truth: NDArray[np.uint8]
    before: NDArray = field(init=False)
    after: NDArray = field(init=False)


def run_demo(out: Path, say: Callable[[str], Any], budget_seconds: float = 45.0, steps: int | None = None) -> Path:
    """Run the demo; write pictures, a report, masks, and its project in ``out/project``.

    Parameters
    ----------
    out : Path
        Folder, made if need be.
    say : callable
        Takes one line at each stage.
    budget_seconds : float
        Wall time of each of the two fine-tunes.
    steps : int, optional
        So many steps instead.

    Returns
    -------
    Path
        The report.
    """
    started = time.monotonic()
    _, _, schema = ct_phantom(_FIRST, "thick")
    session = Session(Engine(), out / "project", schema)
    session.models.begin_anew(find_model(None))
    errors: list[str] = []
    session.notified.connect(lambda notice: errors.append(notice.message))
    session.start()
    try:
        losses: list[float] = []
        say("1. A first scan is opened and painted by hand (simulated).")
        say(f"   That takes {_correct(session, _open(session, _FIRST))}.")
        say("2. Fine-tune: the model learns from it.")
        losses += _fine_tune(session, budget_seconds, steps, errors)
        unseen = [_open(session, seed) for seed in _UNSEEN]
        for patient in unseen:
            patient.before = _propose(session, patient)
        dice = _mean_dice(unseen, "before", len(schema.classes))
        say(f"3. It proposes on two scans it has never seen: Dice {dice:.2f}.")
        for seed in _MORE:
            patient = _open(session, seed)
            proposed = _propose(session, patient)
            effort = correction_effort([proposed], [patient.truth]) / np.count_nonzero(patient.truth)
            took = _correct(session, patient)
            say(f"4. {patient.state.name} is proposed and corrected: {effort:.0%} of the painting was left, {took}.")
        say("5. Fine-tune again, on all corrections.")
        losses += _fine_tune(session, budget_seconds, steps, errors)
        for patient in unseen:
            patient.after = _propose(session, patient)
        say(f"6. It proposes again: Dice {_mean_dice(unseen, 'after', len(schema.classes)):.2f}.")
        (out / "masks").mkdir(parents=True, exist_ok=True)
        for patient in unseen:
            write_mask(patient.after, patient.state.scan, out / "masks" / f"{patient.state.stem}.nii.gz", schema)
    finally:
        session.close()
    minutes = (time.monotonic() - started) / 60
    return write_demo_report(out, _result(unseen, losses, minutes, schema))


def _open(session: Session, seed: int) -> _Patient:
    scan, truth, _ = ct_phantom(seed, "thick")
    return _Patient(session.add_scan(scan), truth)


def _correct(session: Session, patient: _Patient) -> str:
    """Let a simulated hand paint slice by slice, as the window would tell the session; return what that took."""
    state = patient.state
    left = BrushAnnotator().correct(state.annotation.labels, patient.truth, state.scan.slice_axis)
    for i in range(state.scan.n_slices):
        session.record_edit(state, left.labels, slice(i, i + 1))
        session.accept_slices(state, [i])
    return f"{left.strokes} strokes in {left.seconds:.0f} s"


def _fine_tune(session: Session, budget_seconds: float, steps: int | None, errors: list[str]) -> list[float]:
    session.learning.begin(budget_seconds, steps)
    run = session.learning.run
    session.wait()
    if session.learning.verdict is None or run is None:
        raise EngineError(errors[-1] if errors else "The fine-tune ended without a result: see the log.")
    session.learning.use_new()
    return run.losses


def _propose(session: Session, patient: _Patient) -> NDArray:
    session.activate(patient.state)
    session.proposals.begin()
    session.wait()
    return patient.state.annotation.labels.copy()


def _mean_dice(patients: list[_Patient], when: str, n_classes: int) -> float:
    values = [pooled_dice([getattr(p, when)], [p.truth], n_classes) for p in patients]
    return float(np.mean([v for v in values if v is not None]))


def _result(patients: list[_Patient], losses: list[float], minutes: float, schema: Any) -> DemoResult:
    n = len(schema.classes)
    scans = tuple(
        DemoScan(
            p.state.name,
            int(np.count_nonzero(p.truth)),
            pooled_dice([p.before], [p.truth], n),
            pooled_dice([p.after], [p.truth], n),
            correction_effort([p.before], [p.truth]),
            correction_effort([p.after], [p.truth]),
        )
        for p in patients
    )
    pictures = tuple(
        picture_of_scan(
            p.state.scan,
            {"After one scan": p.before, "After three scans": p.after},
            p.truth,
            schema,
            name=p.state.name.replace(" ", "-"),
            title=f"{p.state.name}: never learnt from",
        )
        for p in patients
        if p.before is not None and p.after is not None
    )
    lines = (
        "Computed CT phantoms, no patients: a model learnt from one scan, proposed on two more that were corrected by "
        "a simulated hand, and learnt from those.",
        f"The scans below it has never learnt from. The whole demo took {minutes:.1f} minutes on this computer.",
    )
    return DemoResult("napari-unet: the main job", lines, scans, tuple(enumerate(losses, 1)), (), pictures)
