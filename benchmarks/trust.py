"""Predicted Dice against true Dice, on scans that nobody has looked at.

A session is simulated as ``napari-unet simulate`` does it: the model proposes each scan of a stream, the scan is
corrected, and the model learns for some seconds. What is known of the stream (the proposals, how sure the model was,
and their Dice against the corrected labels) calibrates ``evaluation/trust.py``. The last model then proposes scans that
are in no stream, their Dice is predicted, and only then compared with the truth::

    python benchmarks/trust.py --proposals FOLDER --only nuclei_fluorescence

Proposals are kept in the folder, since making them takes minutes and judging them seconds. One JSON per set and seed is
written to benchmarks/results/trust.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from effort_sets import DATA, SETS, Scans
from numpy.typing import NDArray
from record import begin_with_patient_threads, circumstances, write

from napari_unet.compute.device import resolve
from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.settings import ComputeSettings
from napari_unet.evaluation.effort import pooled_dice
from napari_unet.io.pairs import LabelledScan

_RESULTS = Path(__file__).resolve().parent / "results" / "trust"
_PACKAGES = ("napari-unet", "torch", "numpy", "scipy")
_STREAM, _TEST = 16, 36
#: The model learns after so many scans of the stream, as people do: soon at first, seldom later.
_ROUNDS = (1, 2, 4, 8, 12, 16)


@dataclass(frozen=True, eq=False)
class Proposed:
    """A scan with its proposal: labels, how unsure the model was (0 to 255), and the truth, ``(planes, h, w)`` each."""

    labels: NDArray
    uncertainty: NDArray[np.uint8]
    truth: NDArray


def _propose(model: Checkpoint | None, group: Sequence[LabelledScan], compute: ResolvedCompute) -> Proposed:
    from napari_unet.compute.predictor import Predictor

    truth = np.concatenate([item.scan.to_planes(item.labels) for item in group])
    if model is None:
        return Proposed(np.zeros_like(truth), np.full(truth.shape, 255, np.uint8), truth)
    predictor = Predictor(model, compute, {})
    found = [predictor.predict(item.scan, uncertainty=True) for item in group]
    labels, unsure = (
        np.concatenate([item.scan.to_planes(getattr(each, name)) for each, item in zip(found, group, strict=True)])
        for name in ("labels", "uncertainty")
    )
    return Proposed(labels, unsure, truth)


def simulate(
    name: str, data: Path, seed: int, seconds: float, compute: ResolvedCompute
) -> Iterator[tuple[str, Proposed]]:
    """Yield the proposals of the stream, each made before its scan taught, then those of the scans kept out."""
    import torch

    from napari_unet.cli.training import follow
    from napari_unet.training.fine_tune import fine_tune
    from napari_unet.training.fingerprint import fingerprint
    from napari_unet.training.lesson import Lesson
    from napari_unet.training.plan import plan_for

    torch.set_num_threads(compute.threads)
    scans = Scans(SETS[name], data / name)
    names = list(np.random.default_rng(seed).permutation(scans.names))
    length = min(_STREAM, len(names) // 2)
    model, settings, lessons = None, None, []
    for number, each in enumerate(names[:length]):
        group = scans(each)
        yield f"stream-{number:02d}", _propose(model, group, compute)
        lessons += [Lesson(item.scan, item.labels) for item in group]
        if number + 1 not in _ROUNDS and number + 1 < length:
            continue
        if settings is None:
            found = fingerprint([item.scan for item in group], [item.labels for item in group])
            settings = plan_for(found, len(scans.schema.classes))
        settings = settings.with_values({"training.seed": seed * 1000 + number, "training.budget_seconds": seconds})
        model = follow(
            fine_tune(lessons, settings, scans.schema, compute, base=model, name=f"v{number + 1}"), lambda line: None
        ).checkpoint
    for number, each in enumerate(names[length : length + _TEST]):
        yield f"unseen-{number:02d}", _propose(model, scans(each), compute)


def keep(folder: Path, proposals: Iterator[tuple[str, Proposed]]) -> None:
    """Write proposals to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in proposals:
        print(f"{folder.name} {name}: {pooled_dice([each.labels], [each.truth], 255)}", file=sys.stderr, flush=True)
        np.savez_compressed(folder / f"{name}.npz", **asdict(each))
    (folder / "done").touch()


def read(folder: Path, kind: str) -> list[Proposed]:
    """Read the proposals of the stream or of the unseen scans."""
    found = []
    for path in sorted(folder.glob(f"{kind}-*.npz")):
        with np.load(path) as arrays:
            found.append(Proposed(**arrays))
    return found


def judge(folder: Path, n_classes: int) -> dict[str, Any]:
    """Calibrate on a stream, predict the Dice of the unseen scans, and compare it with the true one."""
    from napari_unet.evaluation.calibration import DiceCalibration, proposal_features

    def measured(kind: str) -> list[tuple[Any, float]]:
        pairs = [
            (proposal_features(p.labels, p.uncertainty, n_classes), pooled_dice([p.labels], [p.truth], n_classes))
            for p in read(folder, kind)
        ]
        return [(features, dice) for features, dice in pairs if dice is not None]

    # The first scan had no proposal.
    known, unseen = measured("stream")[1:], measured("unseen")
    calibration = DiceCalibration([f for f, _ in known], [d for _, d in known])
    predicted = [calibration.predict(f) for f, _ in unseen]
    true, said = np.array([d for _, d in unseen]), np.array([p.dice for p in predicted])
    lows, highs = (np.array([getattr(p, end) for p in predicted], float) for end in ("low", "high"))
    plain = np.array([f.expected_dice for f, _ in unseen])
    recent = float(np.mean([d for _, d in known[-5:]]))
    return {
        "corrected": len(known),
        "unseen": len(unseen),
        "correlation": float(np.corrcoef(said, true)[0, 1]),
        "mean_absolute_error": float(np.abs(said - true).mean()),
        "coverage": float(((true >= lows) & (true <= highs)).mean()),
        "interval_width": float((highs - lows).mean()),
        "true_mean": float(true.mean()),
        "true_deviation": float(true.std(ddof=1)),
        "error_of_plain_confidence": float(np.abs(plain - true).mean()),
        "error_of_mean_of_last_five": float(np.abs(recent - true).mean()),
        "stream_dice": [d for _, d in known],
        "unseen_dice": [
            {"true": d, "predicted": p.dice, "low": p.low, "high": p.high}
            for (_, d), p in zip(unseen, predicted, strict=True)
        ],
    }


def main() -> None:
    """Make proposals where they are missing, judge all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proposals", type=Path, required=True, help="folder that keeps them")
    parser.add_argument("--only", choices=SETS, action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each of the six trainings")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--results", type=Path, default=_RESULTS)
    given = parser.parse_args()
    compute = resolve(ComputeSettings(device="cpu", threads=given.threads))
    for name in given.only or ["hippocampus_mr", "cardiac_cine_mr", "nuclei_fluorescence"]:
        folder, before = given.proposals / f"{name}-{given.seed}", circumstances(_PACKAGES)
        if not (folder / "done").exists():
            keep(folder, simulate(name, given.data, given.seed, given.seconds, compute))
        figures = judge(folder, len(Scans(SETS[name], given.data / name).schema.classes))
        print(
            f"{name}: error {figures['mean_absolute_error']:.3f}, correlation {figures['correlation']:.2f}, coverage "
            f"{100 * figures['coverage']:.0f} %",
            file=sys.stderr,
        )
        how = {"set": name, "seed": given.seed, "seconds": given.seconds, "compute": asdict(compute), "rounds": _ROUNDS}
        write({**before, **how, **figures}, str(given.results / f"{name}-{given.seed}.json"))


if __name__ == "__main__":
    begin_with_patient_threads()
    main()
