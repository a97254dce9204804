"""The effort benchmark: its rule, its arithmetic, its figures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.errors import ModelError, PairingError, TrainingError
from napari_unet.domain.labels import LabelSchema
from napari_unet.evaluation.simulated_annotator import BrushAnnotator
from napari_unet.io.pairs import LabelledScan, Pair
from napari_unet.networks.factory import build, weights_of
from napari_unet.session.simulate import Simulator, Split, group_pairs, refuse_seen, split_groups
from tests.training.lessons import CPU, SCHEMA, square_scan

NAMES = [f"patient {i:02}" for i in range(12)]


def adjust(settings, steps=4):
    return settings.with_values(
        {"network.base_channels": 4, "training.steps": steps, "training.batch_size": 2, "training.patch_size": [16, 16]}
    )


def labelled(seed, empty=False, shape=(4, 24, 24), bright=100.0):
    scan, truth = square_scan(shape, 0 if len(shape) == 3 else None, seed, bright)
    return LabelledScan(f"scan {seed}", scan, truth * (not empty))


def simulator_of(groups, seed=0, base=None, budget=3600.0, adjust=adjust, annotator=None):
    return Simulator(groups.__getitem__, SCHEMA, CPU, budget, seed, base, adjust, annotator)


class TestTheSplit:
    @given(st.integers(1, 9), st.integers(0, 3), st.integers(0, 1000))
    def test_it_is_numpys_permutation_first_the_stream_last_the_test(self, scans, test, seed):
        order = [NAMES[i] for i in np.random.default_rng(seed).permutation(12)]
        split = split_groups(NAMES, scans, test, None, seed)
        assert split.stream == tuple(order[:scans])
        assert split.test == tuple(order[12 - test :])

    def test_matching_groups_leave_before_the_rest_is_permuted(self):
        split = split_groups(NAMES, 3, None, "0[25]$|1[01]$", 4)
        rest = [name for name in NAMES if name not in {"patient 02", "patient 05", "patient 10", "patient 11"}]
        assert split.test == ("patient 02", "patient 05", "patient 10", "patient 11")
        assert split.stream == tuple(rest[i] for i in np.random.default_rng(4).permutation(8))[:3]

    @pytest.mark.parametrize(
        ("scans", "test", "regex"),
        [(13, None, None), (10, 3, None), (12, None, "0"), (1, None, "nobody"), (1, None, "(")],
    )
    def test_too_few_scans_and_bad_patterns_are_refused(self, scans, test, regex):
        with pytest.raises(PairingError):
            split_groups(NAMES, scans, test, regex, 0)

    def test_it_just_fits(self):
        assert len(split_groups(NAMES, 9, 3, None, 0).stream) == 9
        assert len(split_groups(NAMES, 10, None, "0[01]$", 0).stream) == 10

    def test_no_test_is_no_test(self):
        for none in (None, 0):
            assert split_groups(NAMES, 12, none, None, 0).test == ()

    def test_frames_of_a_patient_are_one_scan_sorted_as_strings(self):
        stems = ["P10-a", "P9-b", "P10-b", "P1-a"]
        groups = group_pairs([Pair(stem, Path(stem), Path(stem)) for stem in stems], "^(.+)-")
        assert list(groups) == ["P1", "P10", "P9"]
        assert [pair.stem for pair in groups["P10"]] == ["P10-a", "P10-b"]
        assert len(group_pairs([Pair(stem, Path(stem), Path(stem)) for stem in stems], None)) == 4


class TestARun:
    def test_its_figures_are_those_of_the_definition(self):
        groups = {f"{i}": [labelled(i)] for i in range(4)}
        lines = []
        result = simulator_of(groups).run(split_groups(list(groups), 3, 1, None, 0), lines.append)
        assert result.effort[0] == 1.0
        assert result.corrective_dice[0] == 0.0
        assert len(lines) == len(result.effort) == len(result.corrective_dice) == 3
        assert result.steps_per_scan == [4, 4, 4]
        assert all(0 <= e <= 1 for e in result.effort)
        truths = [int(groups[name][0].labels.sum()) for name in split_groups(list(groups), 3, 1, None, 0).stream]
        total = sum(e * t for e, t in zip(result.effort, truths, strict=True)) / sum(truths)
        assert result.cumulative_effort == pytest.approx(total)
        assert result.test_dice == result.test_dice_per_case[0]
        assert all(s >= 0 for s in result.seconds_per_scan)
        assert result.strokes_per_scan == result.path_per_scan == result.correcting_seconds_per_scan == [None] * 3

    def test_it_gets_less_work_once_it_has_learnt(self):
        groups = {f"{i}": [labelled(i), labelled(i + 10)] for i in range(3)}
        settings = adjust
        result = simulator_of(
            groups, adjust=lambda s: settings(s, 60).with_values({"training.learning_rate": 1e-2})
        ).run(split_groups(list(groups), 2, 1, None, 0))
        assert result.effort[1] < 0.6
        assert result.corrective_dice[1] > 0.7
        assert result.test_dice > 0.7

    def test_an_empty_truth_has_no_dice_and_costs_nothing(self):
        groups = {"a": [labelled(0)], "b": [labelled(1, empty=True)], "c": [labelled(2, empty=True)]}
        result = simulator_of(groups).run(Split(("a", "b"), ()))
        assert result.effort == [1.0, None]
        assert result.corrective_dice == [0.0, None]
        assert result.false_positive_voxels[0] is None
        assert result.false_positive_voxels[1] >= 0
        assert result.cumulative_effort == 1.0
        nothing = simulator_of(groups).run(Split(("b",), ("c",)))
        assert nothing.cumulative_effort is None
        assert nothing.test_dice is None
        assert nothing.test_dice_per_case == [None]
        assert not any(isinstance(v, float) and np.isnan(v) for v in asdict(nothing).values())

    def test_equal_seeds_give_equal_figures(self):
        # Hardly brighter than the noise, or all of them would be right.
        groups = {f"{i}": [labelled(i, bright=6.0)] for i in range(4)}
        split = split_groups(list(groups), 2, 2, None, 0)
        runs = [asdict(simulator_of(groups, seed).run(split)) for seed in (3, 3, 4)]
        for run in runs:
            run.pop("seconds_per_scan")
        assert runs[0] == runs[1] != runs[2]

    def test_a_model_to_start_from_proposes_the_first_scan(self, trained):
        groups = {f"{i}": [labelled(i + 5)] for i in range(2)}
        simulator = simulator_of(groups, base=trained, adjust=lambda s: s.with_values({"training.steps": 1}))
        result = simulator.run(split_groups(list(groups), 2, None, None, 0))
        assert result.effort[0] < 0.3
        assert result.corrective_dice[0] > 0.9

    def test_a_models_own_limit_of_steps_does_not_count(self, trained):
        assert trained.card.settings.training.steps is not None
        assert simulator_of({}, base=trained, adjust=lambda s: s).settings.training.steps is None

    def test_pictures_of_a_patient_are_pooled(self):
        groups = {"p": [labelled(i, shape=(24, 24)) for i in range(3)], "q": [labelled(7, shape=(24, 24))]}
        result = simulator_of(groups).run(split_groups(["p", "q"], 2, None, None, 0))
        assert len(result.effort) == 2


class TestTheHandWithTheBrush:
    def test_it_counts_what_the_oracle_does_not(self):
        groups = {"a": [labelled(0)], "b": [labelled(1, shape=(24, 24)), labelled(2, shape=(24, 24))]}
        split = Split(("a", "b"), ())
        by_hand = simulator_of(groups, annotator=BrushAnnotator()).run(split)
        # Each slice is judged, and its square painted with at least one stroke.
        assert by_hand.strokes_per_scan[0] >= 4
        assert by_hand.correcting_seconds_per_scan[0] >= 4 * 0.2 + by_hand.path_per_scan[0] / 400 - 0.01
        assert by_hand.correcting_seconds_per_scan[1] >= 2 * 0.2
        assert by_hand.effort[0] == 1.0

    def test_what_is_not_reviewed_does_not_teach(self):
        # Nobody has the patience to look at a single slice.
        simulator = simulator_of({"a": [labelled(0)]}, annotator=BrushAnnotator(0.1))
        with pytest.raises(TrainingError, match="reviewed"):
            simulator.run(Split(("a",), ()))


def test_a_model_of_another_kind_is_refused_before_anything_is_trained(trained):
    with pytest.raises(ModelError, match="1 classes and the masks hold 2"):
        Simulator({}.__getitem__, LabelSchema.of("a", "b"), CPU, 1.0, 0, trained)
    settings = trained.card.settings.with_values({"network.in_channels": 3})
    colour = Checkpoint(weights_of(build(settings.network)), trained.card.model_copy(update={"settings": settings}))
    simulator = simulator_of({"a": [labelled(5)]}, base=colour)
    with pytest.raises(ModelError, match="3 channels"):
        simulator.run(Split(("a",), ()))


def test_a_model_that_has_seen_a_scan_is_refused_unless_allowed(trained):
    seen, unseen = labelled(0, shape=(6, 24, 24)), labelled(9)
    assert not refuse_seen(trained, [unseen], False)
    with pytest.raises(ModelError, match="1 of these scans"):
        refuse_seen(trained, [unseen, seen], False)
    assert refuse_seen(trained, [unseen, seen], True)
