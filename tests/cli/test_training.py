"""``fine-tune`` as a person steers it: the plan said, any setting changed, scans without labels, the card read back."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from napari_unet.domain.settings import ModelSettings
from napari_unet.session.setting_fields import setting_fields
from napari_unet.storage.checkpoint_file import read_checkpoint
from napari_unet.training.presets import PRESETS
from tests.cli.test_contract import only_line, run

DOCS = Path(__file__).resolve().parents[2] / "docs"
SMALL = ("--set", "network.base_channels=4", "--set", "training.batch_size=2", "--set", "training.patch_size=[16,16]")


def draw(path: Path, random: np.random.Generator) -> np.ndarray:
    """Write a picture of a bright disc and return its mask."""
    rows, columns = np.ogrid[:32, :24]
    y, x = random.integers(9, 15, 2)
    mask = (rows - y) ** 2 + (columns - x) ** 2 < 50
    Image.fromarray(np.clip(random.normal(60, 10, mask.shape) + 120 * mask, 0, 255).astype(np.uint8)).save(path)
    return mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures with masks, and two more without."""
    random = np.random.default_rng(0)
    for kind in ("images", "masks", "more"):
        (tmp_path / kind).mkdir()
    for i in range(10):
        mask = draw(tmp_path / "images" / f"P{i}.png", random)
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "masks" / f"P{i}.png")
    for i in range(2):
        draw(tmp_path / "more" / f"Q{i}.png", random)
    return tmp_path


def train(folder: Path, *words: object, out: str = "m.safetensors") -> int:
    """Return the exit status of a short training."""
    pairs = ("--images", folder / "images", "--masks", folder / "masks", "--out", folder / out)
    return run("fine-tune", *pairs, *SMALL, *words)


def test_the_plan_is_said_before_the_training_and_the_card_tells_it_afterwards(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--set", "augmentation.noise=0.33", "--set", "training.validation_fraction=0.4", "--steps", 1)
    assert train(folder, *words) == 0
    said = capsys.readouterr().err.splitlines()
    assert "learning from 6 scans, judging on 4" in said
    plan = [line for line in said if line.startswith("plan: ")]
    assert len(plan) > 5
    assert any("16 x 16" in line for line in plan), "what was set is what is said"
    assert said.index(plan[-1]) < next(i for i, line in enumerate(said) if line.startswith("wrote"))

    assert run("info", folder / "m.safetensors") == 0
    card = json.loads(capsys.readouterr().out)
    checkpoint = read_checkpoint(folder / "m.safetensors")
    assert card["id"] == checkpoint.id
    assert ModelSettings.model_validate(card["settings"]) == checkpoint.card.settings
    assert (card["settings"]["augmentation"]["noise"], card["settings"]["network"]["base_channels"]) == (0.33, 4)
    assert (len(card["seen"]), len(card["looked_at"])) == (6, 4)
    assert (len(card["scores"]), card["parent"], card["steps"]) == (4, None, 1)
    assert card["versions"]


def test_scans_without_labels_teach_by_themselves_and_judges_are_not_among_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # All pictures in one folder, as a person would have them: those with masks are left out by their content.
    for path in (folder / "images").iterdir():
        (folder / "more" / f"copy of {path.name}").write_bytes(path.read_bytes())
    words = ("--steps", 2, "--set", "training.ema_decay=0.9")
    assert train(folder, *words, "--unlabelled", folder / "more") == 0
    said = capsys.readouterr().err
    assert "note: training.consistency_weight is set to 1" in said
    assert "2 without labels" in said
    assert read_checkpoint(folder / "m.safetensors").card.settings.training.consistency_weight == 1
    with_them = read_checkpoint(folder / "m.safetensors").id
    chosen = ("--set", "training.consistency_weight=0.5")
    assert train(folder, *words, *chosen, "--unlabelled", folder / "more") == 0
    assert "note: training" not in capsys.readouterr().err
    assert read_checkpoint(folder / "m.safetensors").card.settings.training.consistency_weight == 0.5
    assert read_checkpoint(folder / "m.safetensors").id != with_them
    assert train(folder, *words, "--unlabelled", folder / "images") == 1
    assert "nothing unlabelled" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "training.validation_fraction=0.9"), "training.validation_fraction"),
        (("--set", "network.head=sigmoid", "--set", "training.class_weights=[1,1]"), "training.class_weights"),
        (("--unlabelled", "nowhere"), "nowhere"),
        (("--preset", "best"), PRESETS[-1]),
    ],
)
def test_wrong_settings_are_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert train(folder, "--steps", 1, *words) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert not (folder / "m.safetensors").exists()


def test_what_a_model_was_made_with_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(folder, "--steps", 1) == 0
    capsys.readouterr()
    again = ("--model", folder / "m.safetensors", "--steps", 1)
    assert train(folder, *again, "--set", "network.base_channels=8", out="n.safetensors") == 1
    assert "network.base_channels was set when the model was made" in only_line(capsys)
    assert train(folder, *again, "--preset", "classic", out="n.safetensors") == 0  # it repeats the model's own 4
    assert "--preset counts from scratch only" in capsys.readouterr().err
    assert read_checkpoint(folder / "n.safetensors").card.settings.preset == "default"


def test_help_tells_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fine-tune", "--help") == 0
    printed = capsys.readouterr().out
    assert [preset for preset in PRESETS if f"{preset}: for" not in printed] == []


def test_the_table_of_settings_is_up_to_date() -> None:
    made = runpy.run_path(str(DOCS / "make_settings_table.py"))["page"]()
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == made, "run python docs/make_settings_table.py"
    assert [field.key for field in setting_fields() if f"`{field.key}`" not in made] == []
