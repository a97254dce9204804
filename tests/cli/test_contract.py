"""The command line as other programs drive it: words, exit statuses, JSON, one line for each error."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from napari_unet.__main__ import main
from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.settings import ModelSettings
from napari_unet.networks.factory import build, weights_of
from napari_unet.storage.checkpoint_file import write_checkpoint

COMMANDS = ("open", "demo", "info", "predict", "fine-tune", "evaluate", "simulate", "export", "models", "project")


def run(*words: object) -> int:
    """Return the exit status of ``napari-unet`` with these words."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return int(end.value.code or 0)


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line on standard error, which must be an error."""
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert not captured.out
    return lines[0]


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Return a folder with ``images`` and ``masks``: six small volumes with a bright box."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for number in range(6):
        mask = np.zeros((24, 20, 8), np.uint8)
        x, y = rng.integers(2, 8, 2)
        mask[x : x + 9, y : y + 8, 2:6] = 1
        image = (rng.normal(0, 10, mask.shape) + 100 * mask).astype(np.float32)
        affine = np.diag([-1.5, 1.5, 3, 1])
        nibabel.save(nibabel.Nifti1Image(image, affine), tmp_path / "images" / f"case {number}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask, affine), tmp_path / "masks" / f"case {number}.nii.gz")
    return tmp_path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a checkpoint that has done a step."""
    settings = ModelSettings().with_values({"network.base_channels": 4, "network.strides": ((2, 2),)})
    card = ModelCard(name="tiny", settings=settings, label_schema=LabelSchema.of("a"), steps=1)
    path = tmp_path / "tiny.safetensors"
    write_checkpoint(Checkpoint(weights_of(build(settings.network, seed=0)), card), path)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert "Usage" in capsys.readouterr().out


def test_train_predict_evaluate(volumes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, masks = volumes / "model.safetensors", volumes / "predicted"
    pairs = ("--images", volumes / "images", "--masks", volumes / "masks")
    small = ("--set", "network.base_channels=8", "--steps", 120, "--json", volumes / "training.json")
    assert run("fine-tune", *pairs, "--out", out, *small) == 0
    training = json.loads((volumes / "training.json").read_text())
    assert training["steps"] == 120
    assert training["validation_dice"] > 0.6
    assert run("predict", volumes / "images", "--out", masks, "--model", out, "--device", "cpu") == 0
    for runtime in ("torch", "onnx", "openvino"):
        again = volumes / f"by {runtime}"
        words = ("--runtime", runtime, "--uncertainty", "--set", "after_care.keep_largest=true")
        assert run("predict", volumes / "images" / "case 0.nii.gz", "--out", again, "--model", out, *words) == 0
        one, other = (nibabel.load(folder / "case 0.nii.gz").get_fdata() for folder in (volumes / "by torch", again))
        assert (one != other).mean() < 1e-3
        assert (again / "case 0-uncertainty.nii.gz").exists()
    assert run("predict", volumes / "images", "--out", masks, "--model", out, "--set", "network.norm=batch") == 1
    written = nibabel.load(masks / "case 0.nii.gz")
    source = nibabel.load(volumes / "images" / "case 0.nii.gz")
    assert written.shape == source.shape
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-6)
    capsys.readouterr()
    truth = ("--predictions", masks, "--truth", volumes / "masks", "--json", "-", "--report", volumes / "report")
    assert run("evaluate", *truth) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["cases"]) == 6
    assert {"case", "dice", "iou", "hd95_mm", "nsd"} <= set(result["cases"][0])
    assert np.mean([case["dice"]["1"] for case in result["cases"]]) > 0.6
    assert (volumes / "report" / "report.html").stat().st_size > 1000


def test_simulate_tells_all_the_contract_names(volumes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = ("--images", volumes / "images", "--masks", volumes / "masks")
    assert run("simulate", *pairs, "--scans", 3, "--test", 2, "--budget-seconds", 1, "--json", "-") == 0
    result = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert set(result) >= {
        *("cumulative_effort", "effort", "corrective_dice", "test_dice", "test_dice_per_case", "steps_per_scan"),
        *("seconds_per_scan", "stream", "test", "seen", "settings"),
    }
    order = [f"case {i}" for i in np.random.default_rng(0).permutation(6)]
    assert result["stream"] == order[:3]
    assert result["test"] == order[-2:]
    assert result["effort"][0] == 1.0
    assert run("simulate", *pairs, "--scans", 5, "--test", 2) == 1
    assert "7 scans are needed" in only_line(capsys)


def test_bad_input_is_one_line_and_nothing_is_written(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    text = tmp_path / "text.nii.gz"
    text.write_text("not a scan")
    weights = tmp_path / "model.pt"
    weights.write_bytes(pickle.dumps({"a": 1}))
    for scan in (tmp_path / "missing.nii.gz", text):
        assert run("info", scan) == 1
        assert scan.name in only_line(capsys)
        assert run("predict", scan, "--out", out, "--model", model) == 1
        assert scan.name in only_line(capsys)
    assert run("predict", text, "--out", out, "--model", weights) == 1
    assert "pickle" in only_line(capsys)
    assert run("predict", text, "--out", out, "--model", "starter") == 1
    assert "starter has learnt no task yet: fine-tune it first." in only_line(capsys)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run("fine-tune", "--images", empty, "--masks", empty, "--out", out / "m.safetensors") == 1
    only_line(capsys)
    assert not out.exists()


def test_a_mask_of_another_shape_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, size in (("images", (32, 30)), ("masks", (30, 32))):
        (tmp_path / kind).mkdir()
        Image.fromarray(np.eye(*size, dtype=np.uint8) * 255).save(tmp_path / kind / "a.png")
    pairs = ("--images", tmp_path / "images", "--masks", tmp_path / "masks")
    assert run("fine-tune", *pairs, "--out", tmp_path / "m.safetensors", "--steps", 1) == 1
    line = only_line(capsys)
    assert "32" in line
    assert "30" in line
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("fly",),
        ("info",),
        ("predict", "a.png", "--out", "o", "--model", "m", "--insecure"),
        ("predict", "a.png", "--out", "o", "--model", "m", "--runtime", "fast"),
        ("simulate", "--images", "a", "--masks", "b", "--test", "1", "--test-regex", "x"),
        ("export", "m.safetensors"),
        ("export", "m.safetensors", "--onnx", "m.onnx", "--quantise", "int4"),
        ("models", "prune"),
    ],
)
def test_wrong_usage_is_two(words: tuple[str, ...]) -> None:
    assert run(*words) == 2


def test_importing_the_package_costs_neither_torch_nor_a_window() -> None:
    code = "import sys, napari_unet; print([m for m in ('torch','napari','qtpy','PyQt5','PyQt6') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
