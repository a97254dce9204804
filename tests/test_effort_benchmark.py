"""The effort benchmark's own parts, without the public tools: split, arithmetic, and cells that were not run."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.scan import Scan
from napari_unet.io.masks import TruthRule
from napari_unet.io.pairs import LabelledScan

_BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
_COMPUTE = ResolvedCompute("cpu", "float32", 1)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(_BENCHMARKS))


@pytest.fixture
def effort() -> ModuleType:
    import effort

    return effort


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine patients with two frames each; a square that moves by a pixel from patient to patient; one empty truth."""
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for patient in range(9):
        for frame in range(2):
            labels = np.zeros((12, 12), np.uint8)
            labels[2:6, patient : patient + 3] = 255
            for kind in ("images", "masks"):
                Image.fromarray(labels).save(tmp_path / kind / f"p{patient}-{frame}.png")
    for kind in ("images", "masks"):
        Image.fromarray(np.zeros((12, 12), np.uint8)).save(tmp_path / kind / "normal-0.png")
    return tmp_path


def scans_of(folder: Path, **changes: Any) -> Any:
    from effort_sets import Scans, ScanSet

    return Scans(ScanSet(TruthRule(), 3, group_by="^(.+)-", exclude="^normal", **changes), folder)


@pytest.mark.parametrize("seed", [0, 3])
def test_the_first_of_the_permutation_stream_and_the_last_test(folder: Path, seed: int) -> None:
    order = [f"p{n}" for n in np.random.default_rng(seed).permutation(9)]
    split = scans_of(folder, test=2).split(seed)
    assert list(split.stream) == order[:3]
    assert list(split.test) == order[-2:]


def test_scans_named_for_the_test_leave_before_the_permutation(folder: Path) -> None:
    split = scans_of(folder, test_regex="^p[01]$").split(0)
    rest = [f"p{n}" for n in range(2, 9)]
    assert list(split.stream) == [rest[i] for i in np.random.default_rng(0).permutation(7)[:3]]
    assert split.test == ("p0", "p1")


class RepeatsTheLast:
    """Proposes what the last scan's labels were: its effort is known without learning."""

    def __init__(self, task: Any) -> None:
        self._labels = np.zeros((12, 12), np.uint8)

    def learn(self, new: Sequence[LabelledScan], seconds: float) -> int:
        self._labels = new[-1].labels.astype(np.uint8)
        return 1

    def propose(self, scan: Scan) -> np.ndarray:
        return self._labels


def test_any_tool_goes_through_the_same_stream(
    effort: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import effort_peers

    monkeypatch.setitem(effort_peers.TOOLS, "repeats", RepeatsTheLast)
    scans = scans_of(folder, test=1)
    split = scans.split(0)
    cell = effort.Cell("any", "repeats", 0, seconds=0.0)
    figures = effort._peer(cell, scans, split, _COMPUTE, effort.Meter())
    places = [int(name[1:]) for name in split.stream]
    # A square of 4 x 3 moved by n columns differs in 8 n pixels, but no more than its own 12 are corrected.
    moved = [12, *(min(12, 8 * abs(b - a)) for a, b in itertools.pairwise(places))]
    assert figures["effort"] == [m / 12 for m in moved]
    assert figures["cumulative_effort"] == pytest.approx(sum(moved) / 36)
    assert figures["corrective_dice"][0] == 0.0
    assert figures["steps_per_scan"] == [1, 1, 1]


def record(effort: float) -> dict[str, Any]:
    return {
        "cumulative_effort": effort,
        "effort_at": {"3": 0.9, "5": 0.8},
        "corrective_dice": [0.0, 0.5, None, 0.7],
        "test_dice": 0.8,
        "steps_per_scan": [100, 120],
        "others_cores_per_scan": [0.0, 0.2],
    }


def rows(text: str) -> dict[str, list[str]]:
    cells = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells}


def test_what_was_not_run_says_so(effort: ModuleType, tmp_path: Path) -> None:
    found = rows(effort.table(tmp_path, sets=["em_membrane"]))
    for recipe in effort.RECIPES.values():
        assert found[recipe.title][0] == "not run"
    assert found[effort.RECIPES["product"].title][6] == "not run"


def test_the_distance_closed_is_between_the_best_public_recipe_and_the_floor(
    effort: ModuleType, tmp_path: Path
) -> None:
    for name, value in {"monai-0": 0.7, "nnunet-0": 0.9, "product-0": 0.4, "product-1": 0.5, "floor-0": 0.3}.items():
        (tmp_path / f"hippocampus_mr-{name}.json").write_text(json.dumps(record(value)), encoding="utf-8")
    found = rows(effort.table(tmp_path, sets=["hippocampus_mr"]))
    product = found[effort.RECIPES["product"].title]
    assert product[:6] == ["0.900", "0.800", "0.450", "0.600", "0.800", "110"]
    assert product[6] == "75% (2 public run)"
    assert product[8] == "0, 1"
    assert found[effort.RECIPES["rootpainter"].title][0] == "not run"


def test_a_starter_that_has_seen_the_set_is_not_taken(effort: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "starter.safetensors").touch()
    assert effort.starter_file("hippocampus_mr", tmp_path) is None
    assert effort.starter_file("em_membrane", tmp_path) == tmp_path / "starter.safetensors"
    own = tmp_path / "starter-without-hippocampus_mr.safetensors"
    own.touch()
    assert effort.starter_file("hippocampus_mr", tmp_path) == own


def test_a_cell_whose_tool_is_missing_is_left_out(effort: ModuleType, tmp_path: Path) -> None:
    cell = effort.Cell("hippocampus_mr", "product-starter", 0)
    given = argparse.Namespace(results=tmp_path, starters=None)
    assert effort.run([cell], given) == 0
    assert effort.recorded(cell, tmp_path) is None


def test_forgetting_is_the_fall_from_the_best() -> None:
    import streams

    lost = streams.forgetting({"5": [0.8, 0.6, None], "10": [0.9, 0.5, None], "15": [0.7, 0.6, None]})
    assert lost == {"mean": pytest.approx(0.1), "worst": pytest.approx(0.2)}


def test_a_window_at_the_border_is_filled_with_zeros() -> None:
    from effort_peers import _window

    picture = np.arange(12).reshape(3, 4)
    assert np.array_equal(_window(picture, (-1, 2), (3, 4)), [[0, 0, 0, 0], [2, 3, 0, 0], [6, 7, 0, 0]])
