"""What is said of a new model, by figures alone."""

from __future__ import annotations

import pytest

from napari_unet.domain.labels import LabelSchema
from napari_unet.session.verdict import Verdict, with_history
from napari_unet.training.lesson import CaseVerdict
from tests.session.conftest import renumbered


def verdict_of(trained, *cases, **more):
    """From pairs of Dice before and after, of scan 1, scan 2, ..."""
    made = tuple(CaseVerdict(str(i), *case, 3) for i, case in enumerate(cases))
    return Verdict(trained, made, {str(i): f"scan {i + 1}" for i in range(len(cases))}, "v0", **more)


def test_what_cannot_be_told_is_not(trained):
    for cases in ((), ((None, None),)):
        verdict = verdict_of(trained, *cases)
        assert (verdict.judgement, verdict.recommended) == (None, None)
        assert (verdict.dice_before, verdict.dice_after) == (None, None)
        assert "by eye" in verdict.sentence
    first = verdict_of(trained, (None, 0.5))
    assert (first.judgement, first.recommended) == (None, None)
    assert first.sentence == "v1 is ready: Dice 0.50 on 1 held-out case."


@pytest.mark.parametrize(
    ("cases", "judgement", "words"),
    [
        (
            ((0.5, 0.75), (0.75, 0.75), (0.5, 0.9)),
            "better",
            "v1 is better: it gained on 2 of 3 held-out cases (0.58 -> 0.80).",
        ),
        (((0.91, 0.94),), "better", "v1 is better: it gained on 1 of 1 held-out case (0.91 -> 0.94)."),
        (((0.5, 0.25),), "worse", "v1 is worse: it lost on 1 of 1 held-out case (0.50 -> 0.25)."),
        (((0.5, 0.5),), "as good", "v1 is about as good as v0: it gained on 0 of 1 held-out case (0.50 -> 0.50)."),
        (
            ((0.9, 0.2), (0.5, 0.6), (None, None)),
            "worse",
            "v1 is worse: it lost on 1 of 2 held-out cases (0.70 -> 0.40).",
        ),
    ],
)
def test_it_says_how_many_gained_and_by_how_much(trained, cases, judgement, words):
    verdict = verdict_of(trained, *cases)
    assert verdict.judgement == judgement
    assert verdict.recommended == {"better": True, "worse": False}.get(judgement)
    assert verdict.sentence.startswith(words)


@pytest.mark.parametrize(
    ("changes", "judgement"),
    [
        # One case says little.
        ((0.019,), "as good"),
        ((0.021,), "better"),
        # Small, and everywhere.
        ((0.004,) * 6, "better"),
        ((-0.004,) * 6, "worse"),
        ((0.003,) * 6, "as good"),
        # One lucky case among those that lost, and the other way round.
        ((0.10, -0.03, -0.02, -0.02), "as good"),
        ((-0.10, 0.03, 0.02, 0.02), "as good"),
        ((0.05, 0.04, -0.01, 0.06), "better"),
    ],
)
def test_a_difference_counts_where_it_exceeds_its_standard_error(trained, changes, judgement):
    assert verdict_of(trained, *((0.8, 0.8 + change) for change in changes)).judgement == judgement


def test_cases_that_lost_are_named_even_if_the_rest_gained(trained):
    verdict = verdict_of(trained, (0.5, 0.9), (0.5, 0.9), (0.9, 0.85), (0.9, 0.89), (0.5, 0.9))
    assert verdict.recommended
    assert verdict.sentence.endswith("It got worse on scan 3 (0.90 -> 0.85).")
    many = verdict_of(trained, *((0.9, 0.8 - i / 10) for i in range(5)))
    assert "on scan 5 (0.90 -> 0.40), scan 4 (0.90 -> 0.50), scan 3 (0.90 -> 0.60) and 2 more." in many.sentence


def test_a_class_that_is_forgotten_is_named_and_nothing_recommended(trained):
    """A new class that is learnt must not hide an old one that is lost."""
    two = renumbered(trained, LabelSchema.of("liver", "tumour"))
    case = CaseVerdict("0", 0.45, 0.75, 4, ((0.9, 0.7), (0.0, 0.8)))
    absent = CaseVerdict("1", 0.9, 0.9, 4, ((0.9, 0.9), (None, None)))
    verdict = Verdict(two, (case, absent))
    assert (verdict.judgement, verdict.recommended) == ("better", None)
    assert "What got worse: liver (0.90 -> 0.80)." in verdict.sentence


def test_the_table_says_it_case_by_case(trained):
    rows = verdict_of(trained, (0.5, 0.75), (0.9, 0.87), (None, None), (None, 0.5)).rows
    assert [row.name for row in rows] == ["scan 1", "scan 2", "scan 3", "scan 4"]
    assert [row.change for row in rows] == [0.25, pytest.approx(-0.03), None, None]
    assert [row.is_worse for row in rows] == [False, True, False, False]
    assert {row.slices for row in rows} == {3}


def test_an_earlier_model_that_did_better_on_the_same_scans_is_named(trained):
    verdict = verdict_of(trained, (0.5, 0.75), (0.7, 0.75), (None, None))
    scores = {
        "v0": {"0": 0.99, "1": 0.99},  # in use: its figures were measured anew
        "v1": {"0": 1.0, "1": 1.0},  # itself
        "v5": {"0": 0.9, "1": 0.92},
        "v6": {"0": 0.8, "1": 0.8},
        "v7": {"0": 0.99},  # not on the same scans
        "v8": {"0": 0.99, "1": None},
    }
    assert with_history(verdict, scores).best == ("v5", pytest.approx(0.91))
    assert with_history(verdict, scores).sentence.endswith("Best so far on the same scans: v5, 0.91.")
    assert with_history(verdict, {"v6": {"0": 0.75, "1": 0.75}}).best is None
    assert with_history(verdict_of(trained), scores).best is None
