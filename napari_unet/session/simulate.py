"""The effort benchmark: a stream of scans is proposed, corrected and learnt from, one by one.

Definitions: docs/benchmarks.md. The annotator is an oracle that corrects every voxel; effort counts the voxels it
had to change.
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
from napari_unet.evaluation.simulated_annotator import OracleAnnotator
from napari_unet.inference.predict import predict
from napari_unet.inference.slabs import plan_slabs
from napari_unet.io.pairs import LabelledScan, Pair, group_of
from napari_unet.networks.factory import build, load_weights
from napari_unet.patches.prepare import prepare
from napari_unet.patches.spacing import zoom_of
from napari_unet.session.models import require_channels, require_classes
from napari_unet.training.examples import prepare_lesson, to_label_values
from napari_unet.training.fine_tune import train_examples
from napari_unet.training.lesson import Lesson
from napari_unet.training.plan import plan

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
    ) -> None:
        self._load, self._schema, self._compute = load, schema, compute
        self._budget, self._seed, self._base, self._adjust = budget_seconds, seed, base, adjust
        self._annotator = OracleAnnotator()
        self.settings: ModelSettings | None = None
        if base is not None:
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
        changed, foreground, dices, surplus = [], [], [], []
        steps, seconds = [], []
        for number, name in enumerate(split.stream):
            group = self._load(name)
            proposals, truths = self._propose(model, group), [item.labels for item in group]
            corrected = [self._annotator.correct(p, t) for p, t in zip(proposals, truths, strict=True)]
            n_foreground = sum(int(np.count_nonzero(t)) for t in truths)
            changed.append(correction_effort(proposals, truths))
            foreground.append(n_foreground)
            surplus.append(sum(int(np.count_nonzero(p)) for p in proposals) if n_foreground == 0 else None)
            dices.append(pooled_dice(proposals, truths, len(self._schema.classes)))
            if self.settings is None:
                self.settings = self._plan(group)
            settings = self.settings.with_values(
                {"training.seed": self._seed * 1000 + number, "training.budget_seconds": self._budget}
            )
            started = time.perf_counter()
            new = [Lesson(item.scan, labels) for item, labels in zip(group, corrected, strict=True)]
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
            steps.append(outcome.steps)
            seconds.append(time.perf_counter() - started)
            report(_line(number, name, changed[-1], n_foreground, dices[-1], steps[-1], seconds[-1]))
        tested = [self._test(model, name) for name in split.test]
        defined = [d for d in tested if d is not None]
        return Simulation(
            cumulative_effort=sum(changed) / sum(foreground) if sum(foreground) else None,
            effort=[c / f if f else None for c, f in zip(changed, foreground, strict=True)],
            corrective_dice=dices,
            false_positive_voxels=surplus,
            test_dice=float(np.mean(defined)) if defined else None,
            test_dice_per_case=tested,
            steps_per_scan=steps,
            seconds_per_scan=[round(s, 3) for s in seconds],
        )

    def _plan(self, group: Group) -> ModelSettings:
        scans, labels = [item.scan for item in group], [item.labels for item in group]
        return self._adjust(plan(scans, len(self._schema.classes), labels=labels))

    def _test(self, model: Checkpoint | None, name: str) -> float | None:
        group = self._load(name)
        return pooled_dice(self._propose(model, group), [item.labels for item in group], len(self._schema.classes))

    def _propose(self, model: Checkpoint | None, group: Group) -> list[NDArray]:
        """Return label arrays for a group; empty ones while no model has learnt anything."""
        if model is None or model.card.steps == 0:
            return [np.zeros_like(item.labels) for item in group]
        network = build(model.card.settings.network, seed=0)
        load_weights(network, model.weights)
        found = []
        for item in group:
            require_channels(model, item.scan)
            image = prepare(item.scan, model.card.settings.preparation)
            classes = np.zeros(image.shape[1:], np.uint8)
            slabs = plan_slabs(image.shape[1:], model.card.settings)
            zoom = zoom_of(item.scan, model.card.settings)
            for result in predict(network, image, model.card.settings, self._compute, slabs, zoom):
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
    known = set(model.card.seen)
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


def _line(number: int, name: str, changed: int, foreground: int, dice: float | None, steps: int, seconds: float) -> str:
    effort = f"{changed / foreground:.2f}" if foreground else "-"
    return (
        f"scan {number + 1} ({name}): effort {effort}, Dice before correction "
        f"{'-' if dice is None else f'{dice:.3f}'}; {steps} steps in {seconds:.1f} s"
    )
