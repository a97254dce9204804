"""The effort benchmark: a stream of scans is proposed, corrected and learnt from, one by one.

Definitions: docs/benchmarks.md. Effort counts the voxels that are wrong in a proposal, whoever the annotator is; one
with a brush also counts strokes and seconds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ModelError, PairingError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.settings import ModelSettings
from napari_unet.evaluation.effort import correction_effort, pooled_dice
from napari_unet.evaluation.simulated_annotator import Annotator, Corrected, OracleAnnotator
from napari_unet.inference.predict import PixelShare, predict
from napari_unet.inference.runtimes import network_of
from napari_unet.inference.slabs import plan_slabs
from napari_unet.io.pairs import LabelledScan, Pair, group_of
from napari_unet.patches.prepare import prepare
from napari_unet.patches.spacing import zoom_of
from napari_unet.session.models import has_learnt, require_channels, require_classes
from napari_unet.training.examples import prepare_lesson, to_label_values
from napari_unet.training.fine_tune import train_examples
from napari_unet.training.fingerprint import fingerprint
from napari_unet.training.lesson import Lesson
from napari_unet.training.plan import plan_for, plan_upon

Group = list[LabelledScan]


@dataclass(frozen=True)
class Split:
    """Names of the groups that stream in, in order, and of those that test."""

    stream: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Simulation:
    """Figures of one run; ``None`` where a figure is not defined. See docs/benchmarks.md."""

    cumulative_effort: float | None
    effort: list[float | None]
    corrective_dice: list[float | None]
    false_positive_voxels: list[int | None]
    test_dice: float | None
    test_dice_per_case: list[float | None]
    steps_per_scan: list[int]
    seconds_per_scan: list[float]
    strokes_per_scan: list[int | None]
    path_per_scan: list[float | None]
    correcting_seconds_per_scan: list[float | None]


@dataclass(frozen=True)
class _Round:
    """One scan of the stream: voxels to correct, voxels of the truth, and what correcting and learning took."""

    changed: int
    foreground: int
    dice: float | None
    surplus: int | None
    strokes: int | None
    path: float | None
    correcting_seconds: float | None
    steps: int
    seconds: float


def group_pairs(pairs: Sequence[Pair], group_by: str | None) -> dict[str, list[Pair]]:
    """Return pairs by group, groups in the order of their names as strings."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(group_of(pair.stem, group_by), []).append(pair)
    return {name: groups[name] for name in sorted(groups)}


def split_groups(names: Sequence[str], scans: int, test: int | None, test_regex: str | None, seed: int) -> Split:
    """Choose stream and test groups by the benchmark's rule.

    Parameters
    ----------
    names : sequence of str
        All groups, sorted.
    scans : int
        Length of the stream.
    test : int or None
        How many groups test: the last of the permutation.
    test_regex : str or None
        Instead: the groups whose name matches leave for the test first.
    seed : int
        Of ``numpy.random.default_rng(seed).permutation``.

    Raises
    ------
    PairingError
        Not enough groups, so that stream and test would overlap, or a regex that is none.
    """
    rest, tested = list(names), []
    if test_regex is not None:
        try:
            pattern = re.compile(test_regex)
        except re.error as error:
            raise PairingError(f"--test-regex {test_regex!r} is not a regular expression: {error}.") from error
        tested = [name for name in names if pattern.search(name)]
        rest = [name for name in names if name not in set(tested)]
        if not tested:
            raise PairingError(f"--test-regex {test_regex!r} matches none of {len(names)} scans, such as {names[0]!r}.")
    order = [rest[i] for i in np.random.default_rng(seed).permutation(len(rest))]
    wanted = scans + (test or 0 if test_regex is None else 0)
    if wanted > len(order):
        raise PairingError(
            f"{wanted} scans are needed for the stream and the test but there are {len(order)}: ask for fewer with "
            "--scans or --test."
        )
    if test_regex is None:
        tested = order[len(order) - test :] if test else []
    return Split(tuple(order[:scans]), tuple(tested))


class Simulator:
    """One run of the benchmark.

    Parameters
    ----------
    load : callable
        Returns the labelled scans of a group by its name.
    schema : LabelSchema
        Classes.
    compute : ResolvedCompute
        Device, precision, threads.
    budget_seconds : float
        Wall time after each scan; loading and proposing are outside it.
    base : Checkpoint or None
        Model to start from; None: random weights, and the first proposal is empty.
    adjust : callable
        Changes the planned settings (``--set``); identity by default.
    annotator : Annotator, optional
        Who corrects; an oracle by default.
    """

    def __init__(
        self,
        load: Callable[[str], Group],
        schema: LabelSchema,
        compute: ResolvedCompute,
        budget_seconds: float,
        seed: int,
        base: Checkpoint | None = None,
        adjust: Callable[[ModelSettings], ModelSettings] = lambda settings: settings,
        annotator: Annotator | None = None,
    ) -> None:
        self._load, self._schema, self._compute = load, schema, compute
        self._budget, self._seed, self._base, self._adjust = budget_seconds, seed, base, adjust
        self._annotator: Annotator = annotator or OracleAnnotator()
        self.settings: ModelSettings | None = None
        if has_learnt(base):
            require_classes(base, len(schema.classes))
            # A model's own limit of steps was for its own training.
            self.settings = adjust(base.card.settings.with_values({"training.steps": None}))

    def run(self, split: Split, report: Callable[[str], Any] = lambda line: None) -> Simulation:
        """Run the stream, then the test.

        Raises
        ------
        TrainingError, ScanError, MaskError
            As the parts do.
        """
        torch.set_num_threads(self._compute.threads)
        model = self._base
        examples: list[Any] = []
        lessons: list[Lesson] = []
        rounds: list[_Round] = []
        for number, name in enumerate(split.stream):
            group = self._load(name)
            proposals = self._propose(model, group)
            corrected = [
                self._annotator.correct(proposal, item.labels, item.scan.slice_axis)
                for proposal, item in zip(proposals, group, strict=True)
            ]
            if self.settings is None:
                self.settings = self._plan(group, corrected)
            settings = self.settings.with_values(
                {"training.seed": self._seed * 1000 + number, "training.budget_seconds": self._budget}
            )
            started = time.perf_counter()
            new = [_lesson(item, left) for item, left in zip(group, corrected, strict=True)]
            lessons += new
            examples += [prepare_lesson(lesson, settings, self._schema) for lesson in new]
            training = train_examples(
                examples,
                lessons,
                settings,
                self._schema,
                self._compute,
                base=model,
                name=f"v{number + 1}",
                started=started,
            )
            outcome = _drain(training)
            model = outcome.checkpoint
            seconds = time.perf_counter() - started
            rounds.append(self._round(proposals, group, corrected, outcome.steps, seconds))
            report(_line(number, name, rounds[-1]))
        return _figures(rounds, [self._test(model, name) for name in split.test])

    def _round(
        self, proposals: list[NDArray], group: Group, corrected: list[Corrected], steps: int, seconds: float
    ) -> _Round:
        truths = [item.labels for item in group]
        foreground = sum(int(np.count_nonzero(t)) for t in truths)
        return _Round(
            correction_effort(proposals, truths),
            foreground,
            pooled_dice(proposals, truths, len(self._schema.classes)),
            sum(int(np.count_nonzero(p)) for p in proposals) if foreground == 0 else None,
            _total([left.strokes for left in corrected]),
            _total([left.path for left in corrected]),
            _total([left.seconds for left in corrected]),
            steps,
            seconds,
        )

    def _plan(self, group: Group, corrected: list[Corrected]) -> ModelSettings:
        scans, labels = [item.scan for item in group], [left.labels for left in corrected]
        found, n_classes = fingerprint(scans, labels), len(self._schema.classes)
        if self._base is None:
            return self._adjust(plan_for(found, n_classes))
        return self._adjust(plan_upon(self._base.card.settings, found, n_classes))

    def _test(self, model: Checkpoint | None, name: str) -> float | None:
        group = self._load(name)
        return pooled_dice(self._propose(model, group), [item.labels for item in group], len(self._schema.classes))

    def _propose(self, model: Checkpoint | None, group: Group) -> list[NDArray]:
        """Return label arrays for a group; empty ones while no model has learnt anything."""
        if not has_learnt(model):
            return [np.zeros_like(item.labels) for item in group]
        network = network_of(model)
        pixels = PixelShare.of(model)
        found = []
        for item in group:
            require_channels(model, item.scan)
            image = prepare(item.scan, model.card.settings.preparation)
            classes = np.zeros(image.shape[1:], np.uint8)
            slabs = plan_slabs(image.shape[1:], model.card.settings)
            zoom = zoom_of(item.scan, model.card.settings)
            for result in predict(network, image, model.card.settings, self._compute, slabs, zoom, pixels):
                classes[result.slab.start : result.slab.stop] = result.classes
            found.append(item.scan.from_planes(to_label_values(classes, self._schema)))
        return found


def refuse_seen(model: Checkpoint, scans: Sequence[LabelledScan], allow: bool) -> bool:
    """Return whether a model learnt from any of these scans; refuse it unless that is allowed.

    Raises
    ------
    ModelError
        It did, and it is not allowed.
    """
    known = {*model.card.seen, *model.card.looked_at}
    n = sum(item.scan.fingerprint in known for item in scans)
    if n and not allow:
        raise ModelError(
            f"The model {model.card.name!r} has learnt from {n} of these scans, so its figures would flatter it: use "
            "another model, or --allow-seen to go on knowing that."
        )
    return n > 0


def _drain(generator: Any) -> Any:
    while True:
        try:
            next(generator)
        except StopIteration as stop:
            return stop.value


def _lesson(item: LabelledScan, left: Corrected) -> Lesson:
    return Lesson(item.scan, left.labels, None if left.reviewed.all() else left.reviewed)


def _total(parts: Sequence[Any]) -> Any:
    """Return the sum over a group; None where the annotator does not count."""
    return None if any(part is None for part in parts) else sum(parts)


def _figures(rounds: Sequence[_Round], tested: list[float | None]) -> Simulation:
    foreground = sum(r.foreground for r in rounds)
    defined = [d for d in tested if d is not None]
    return Simulation(
        cumulative_effort=sum(r.changed for r in rounds) / foreground if foreground else None,
        effort=[r.changed / r.foreground if r.foreground else None for r in rounds],
        corrective_dice=[r.dice for r in rounds],
        false_positive_voxels=[r.surplus for r in rounds],
        test_dice=float(np.mean(defined)) if defined else None,
        test_dice_per_case=tested,
        steps_per_scan=[r.steps for r in rounds],
        seconds_per_scan=[round(r.seconds, 3) for r in rounds],
        strokes_per_scan=[r.strokes for r in rounds],
        path_per_scan=[None if r.path is None else round(r.path, 1) for r in rounds],
        correcting_seconds_per_scan=[
            None if r.correcting_seconds is None else round(r.correcting_seconds, 2) for r in rounds
        ],
    )


def _line(number: int, name: str, result: _Round) -> str:
    effort = f"{result.changed / result.foreground:.2f}" if result.foreground else "-"
    dice = "-" if result.dice is None else f"{result.dice:.3f}"
    line = f"scan {number + 1} ({name}): effort {effort}, Dice before correction {dice}"
    if result.correcting_seconds is not None:
        line += f", {result.strokes} strokes in {result.correcting_seconds:.0f} s"
    return f"{line}; {result.steps} steps in {result.seconds:.1f} s"
