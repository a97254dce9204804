"""Where to look next: rankings of slices and of scans against random and regular spacing, with equal budgets.

Slice by slice (``hippocampus_mr``): of each scan of the stream so many slices are corrected and accepted, one after the
other as *Next* suggests them; the model learns from them for a fixed number of steps. Scan by scan
(``cardiac_cine_mr``): the next patient of a pool is chosen, and corrected as a whole.

Effort is the voxels corrected on what was chosen; the Dice of the test scans says what that was good for. Steps are
fixed and not seconds, so that the figures do not depend on what else the machine does. One JSON per set, ranking and
seed; those that are there are skipped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from effort_sets import DATA, SETS, Scans
from numpy.typing import NDArray
from record import begin_with_patient_threads, circumstances, write

from napari_unet.compute.device import resolve
from napari_unet.compute.predictor import Prediction, Predictor
from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.settings import ComputeSettings, ModelSettings
from napari_unet.evaluation.effort import pooled_dice
from napari_unet.io.pairs import LabelledScan
from napari_unet.session.state import ScanState, open_scan
from napari_unet.session.suggesting import SUGGESTIONS, next_slice

_RESULTS = Path(__file__).resolve().parent / "results" / "selection"
_PACKAGES = ("napari-unet", "torch", "numpy")
_SLICES, _SLICE_STEPS = 4, 60
#: With regular spacing about as many voxels are corrected on so many slices as on four of those that look unsure.
_MORE_SLICES = 7
_POOL, _PATIENTS, _PATIENT_STEPS = 16, 6, 80
_BINS = 32


class Learner:
    """A model that learns a fixed number of steps from each lesson, and proposes."""

    def __init__(self, scans: Scans, seed: int, steps: int, compute: ResolvedCompute) -> None:
        self._scans, self._seed, self._steps, self._compute = scans, seed, steps, compute
        self._lessons: list[Any] = []
        self._settings: ModelSettings | None = None
        self._n = 0
        self.model: Checkpoint | None = None

    def learn(self, taught: Sequence[tuple[LabelledScan, NDArray | None]]) -> None:
        """Learn from scans with their truth, where a mask says that it was reviewed (None: everywhere)."""
        from napari_unet.cli.training import follow
        from napari_unet.training.fine_tune import fine_tune
        from napari_unet.training.fingerprint import fingerprint
        from napari_unet.training.lesson import Lesson
        from napari_unet.training.plan import plan_for

        if self._settings is None:
            found = fingerprint([item.scan for item, _ in taught], [item.labels for item, _ in taught])
            self._settings = plan_for(found, len(self._scans.schema.classes))
        self._lessons += [Lesson(item.scan, item.labels, reviewed) for item, reviewed in taught]
        settings = self._settings.with_values(
            {
                "training.seed": self._seed * 1000 + self._n,
                "training.budget_seconds": None,
                "training.steps": self._steps,
            }
        )
        self._n += 1
        job = fine_tune(self._lessons, settings, self._scans.schema, self._compute, base=self.model, name=f"v{self._n}")
        self.model = follow(job, lambda line: None).checkpoint

    def propose(self, scan: Any) -> Prediction | None:
        """Return labels of a scan, and how unsure the model is of them; None before it has learnt."""
        return None if self.model is None else Predictor(self.model, self._compute, {}).predict(scan, uncertainty=True)

    def test(self, names: Sequence[str]) -> float:
        """Return the mean Dice of groups of scans."""
        n, found = len(self._scans.schema.classes), []
        for name in names:
            group = self._scans(name)
            proposals = [self.propose(item.scan) for item in group]
            labels = [each.labels for each in proposals if each is not None]
            found.append(pooled_dice(labels, [item.labels for item in group], n))
        return float(np.mean([dice for dice in found if dice is not None]))


@dataclass
class Figures:
    """What one run found: voxels corrected, of the truth of what was chosen, and the test scans' Dice."""

    corrected: int = 0
    foreground: int = 0
    test_dice: float = float("nan")


def slice_by_slice(scans: Scans, ranking: str, seed: int, compute: ResolvedCompute, quick: bool) -> Figures:
    """Correct some slices of each scan of the stream, as the session's *Next* goes to them.

    ``ranking`` is one of the session's suggestions, with ``-more`` for more slices.
    """
    how, _, more = ranking.partition("-")
    split, figures = scans.split(seed, 2 if quick else None, 2 if quick else None), Figures()
    learner = Learner(scans, seed, 5 if quick else _SLICE_STEPS, compute)
    for name in split.stream:
        taught: list[tuple[LabelledScan, NDArray | None]] = []
        for item in scans(name):
            state = _proposed(item, learner, scans)
            for _ in range(_MORE_SLICES if more else _SLICES):
                index = next_slice(state, None, how)  # type: ignore[arg-type]
                if index is None:
                    break
                truth, mine = (state.scan.to_planes(each)[index] for each in (item.labels, state.annotation.labels))
                figures.corrected += int((truth != mine).sum())
                figures.foreground += int((truth > 0).sum())
                state.annotation.accepted[index] = True
            taught.append((item, state.annotation.reviewed()))
        learner.learn(taught)
    figures.test_dice = learner.test(split.test)
    return figures


def _proposed(item: LabelledScan, learner: Learner, scans: Scans) -> ScanState:
    found = learner.propose(item.scan)
    state = open_scan(item.scan, None if found is None else found.labels, scans.schema, 1)
    state.uncertainty = None if found is None else found.uncertainty
    return state


#: From the groups that are left, the learner and the groups that were taught, to the next one.
Choice = Callable[[list[str], Learner, list[str], Scans], str]


def _in_order(left: list[str], learner: Learner, taught: list[str], scans: Scans) -> str:
    return left[0]  # of a permutation


def _least_sure(left: list[str], learner: Learner, taught: list[str], scans: Scans) -> str:
    if learner.model is None:
        return left[0]

    def doubt(name: str) -> float:
        unsure = [found.uncertainty for item in scans(name) if (found := learner.propose(item.scan)) is not None]
        voxels = np.concatenate([each[each > 0] for each in unsure if each is not None])
        return float(voxels.mean()) if len(voxels) else 0.0

    return max(left, key=doubt)


def _least_alike(left: list[str], learner: Learner, taught: list[str], scans: Scans) -> str:
    """Farthest first (Gonzalez 1985), by the distribution of grey values and the size."""
    if not taught:
        return left[0]
    known = [_looks(scans(name)) for name in taught]
    return max(left, key=lambda name: min(float(np.abs(_looks(scans(name)) - each).sum()) for each in known))


def _looks(group: Sequence[LabelledScan]) -> NDArray[np.float64]:
    grey = np.concatenate([item.scan.grey().ravel() for item in group]).astype(float)
    low, high = np.percentile(grey, (0.5, 99.5))
    counts, _ = np.histogram(np.clip((grey - low) / max(high - low, 1e-6), 0, 1), _BINS, (0, 1))
    return np.append(counts / counts.sum(), np.log2(len(grey)) / 10)


_CHOICES: dict[str, Choice] = {"random": _in_order, "unsure": _least_sure, "unlike": _least_alike}


def scan_by_scan(scans: Scans, ranking: str, seed: int, compute: ResolvedCompute, quick: bool) -> Figures:
    """Correct whole patients, chosen from a pool one after the other."""
    pool, patients = (3, 2) if quick else (_POOL, _PATIENTS)
    split, figures = scans.split(seed, pool, 2 if quick else None), Figures()
    learner = Learner(scans, seed, 5 if quick else _PATIENT_STEPS, compute)
    left, taught = list(split.stream), []
    for _ in range(patients):
        name = _CHOICES[ranking](left, learner, taught, scans)
        left.remove(name)
        taught.append(name)
        group = scans(name)
        for item in group:
            found = learner.propose(item.scan)
            mine = np.zeros_like(item.labels) if found is None else found.labels
            figures.corrected += int((mine != item.labels).sum())
            figures.foreground += int((item.labels > 0).sum())
        learner.learn([(item, None) for item in group])
    figures.test_dice = learner.test(split.test)
    return figures


_RUNS = {
    "hippocampus_mr": (slice_by_slice, (*SUGGESTIONS, "spacing-more"), (0, 1, 2)),
    "cardiac_cine_mr": (scan_by_scan, tuple(_CHOICES), (0, 1, 2)),
}


def main() -> None:
    """Run what is missing; write all of it on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=_RUNS, action="append")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--results", type=Path, default=_RESULTS)
    parser.add_argument("--quick", action="store_true", help="one seed of two scans, 5 steps; nothing is kept")
    parser.add_argument("--json", default=None, help="all figures in one file, or - for standard output")
    given = parser.parse_args()
    compute = resolve(ComputeSettings(device="cpu", threads=given.threads))
    found: dict[str, Any] = {}
    for name in given.only or _RUNS:
        run, rankings, seeds = _RUNS[name]
        scans = Scans(SETS[name], given.data / name)
        for seed in seeds[:1] if given.quick else seeds:
            for ranking in rankings:
                path = given.results / f"{name}-{ranking}-{seed}.json"
                if path.exists() and not given.quick:
                    found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
                    continue
                before = circumstances(_PACKAGES)
                figures = run(scans, ranking, seed, compute, given.quick)
                found[path.stem] = {**before, "set": name, "ranking": ranking, "seed": seed, **asdict(figures)}
                print(f"{path.stem}: {figures}", file=sys.stderr, flush=True)
                if not given.quick:
                    write(found[path.stem], str(path))
    if given.json is not None:
        write(found, given.json)


if __name__ == "__main__":
    begin_with_patient_threads()
    main()
