"""What each command does with its options, on pictures and volumes of a few pixels."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from PIL import Image

from napari_unet.domain.settings import TrainingSettings
from napari_unet.session.log import log_file
from napari_unet.storage.checkpoint_file import read_checkpoint
from tests.cli.test_contract import only_line, run

#: The contract's options (docs/reference); words and meanings never change.
OPTIONS = {
    "open": "",
    "demo": "--headless --out",
    "info": "--series --volume --untrusted --resample --json",
    "predict": "--out --model --format --device --runtime --compute --insecure --tta --uncertainty --keep-going "
    "--series --volume --untrusted --resample",
    "fine-tune": "--images --masks --out --model --preset --set --budget-seconds --steps --group-by --exclude-regex "
    "--foreground --binary --max-side --unlabelled --device --compute --seed --json",
    "evaluate": "--predictions --truth --foreground --binary --nsd-tolerance --json --report --images",
    "simulate": "--images --masks --scans --budget-seconds --test --test-regex --foreground --binary --max-side --seed "
    "--group-by --annotator --model --allow-seen --json",
}
SMALL = ("--set", "network.base_channels=4", "--set", "training.batch_size=2", "--set", "training.patch_size=[16,16]")


@pytest.fixture
def pictures(tmp_path):
    """Six pictures of 32 x 24 with a bright disc, in ``images``, and their masks of 0 and 255, in ``masks``."""
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    rows, columns = np.ogrid[:32, :24]
    for i in range(6):
        y, x = random.integers(9, 15, 2)
        mask = (rows - y) ** 2 + (columns - x) ** 2 < 50
        image = np.clip(random.normal(60, 10, mask.shape) + 120 * mask, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"P{i} scan.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "masks" / f"P{i} scan.png")
    return tmp_path


def pairs(folder):
    return "--images", folder / "images", "--masks", folder / "masks"


def printed_json(capsys):
    """What was printed, which must be JSON without NaN and nothing else."""
    return json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize("command", OPTIONS)
def test_help_names_every_option_of_the_contract(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(command, "--help") == 0
    words = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert set(OPTIONS[command].split()) <= words


def test_help_of_all_names_every_command(capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in (*OPTIONS, "export", "models", "project"))


INFO_KEYS = {"axes", "shape", "spacing_mm", "orientation", "affine", "dtype", "modality", "series", "warnings"}


class TestInfo:
    def test_a_volume(self, tmp_path, capsys):
        path = tmp_path / "scan.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([-2.0, 2.0, 3.0, 1.0])), path)
        assert run("info", path, "--json", tmp_path / "info.json") == 0
        info = json.loads((tmp_path / "info.json").read_text())
        assert set(info) >= INFO_KEYS
        assert (info["axes"], info["shape"], info["spacing_mm"]) == ("zyx", [6, 5, 4], [3.0, 2.0, 2.0])
        assert (info["orientation"], info["dtype"]) == ("LAS", "int16")
        assert np.shape(info["affine"]) == (4, 4)

    def test_a_picture_on_standard_output(self, pictures, capsys):
        path = pictures / "images" / "P0 scan.png"
        assert run("info", path, "--json", "-") == 0
        info = printed_json(capsys)
        assert set(info) >= INFO_KEYS
        assert (info["axes"], info["shape"], info["spacing_mm"], info["affine"]) == ("yx", [32, 24], None, None)
        assert run("info", path) == 0
        assert printed_json(capsys) == info

    def test_a_result_that_cannot_be_written_is_one_line(self, pictures, capsys):
        assert run("info", pictures / "images" / "P0 scan.png", "--json", pictures / "no folder" / "x.json") == 1
        assert "x.json" in only_line(capsys)


class TestTheMainJob:
    def test_pictures_from_pairs_to_scores(self, pictures, capsys):
        model, masks = pictures / "new" / "model.safetensors", pictures / "predicted"
        words = ("--steps", 40, "--seed", 3, "--json", "-")
        assert run("fine-tune", *pairs(pictures), "--out", model, *SMALL, *words) == 0
        result = printed_json(capsys)
        assert set(result) >= {"validation_dice", "steps", "seconds", "out"}
        assert (result["steps"], result["out"]) == (40, str(model))
        assert result["validation_dice"] > 0.3
        card = read_checkpoint(model).card
        assert len(card.seen) + len(card.looked_at) == 6
        assert card.looked_at, "somebody judged"
        assert card.settings.training.seed == 3
        assert run("predict", pictures / "images", "--out", masks, "--model", model, "--device", "cpu", "--tta") == 0
        assert sorted(p.name for p in masks.glob("*.png")) == [f"P{i} scan.png" for i in range(6)]
        assert sorted(p.name for p in masks.glob("*.json")) == [f"P{i} scan.json" for i in range(6)]
        capsys.readouterr()
        assert run("evaluate", "--predictions", masks, "--truth", pictures / "masks", "--json", "-") == 0
        scores = printed_json(capsys)
        assert [case["case"] for case in scores["cases"]] == [f"P{i} scan" for i in range(6)]
        assert all(set(case) >= {"case", "dice", "iou", "hd95_mm", "nsd"} for case in scores["cases"])
        assert all(set(case["dice"]) == {"1"} for case in scores["cases"])
        assert np.mean([case["dice"]["1"] for case in scores["cases"]]) > 0.3
        assert scores["summary"]

    def test_a_second_training_goes_on_from_the_first_with_a_budget_of_its_own(self, pictures):
        first, second = pictures / "one.safetensors", pictures / "two.safetensors"
        assert run("fine-tune", *pairs(pictures), "--out", first, *SMALL, "--steps", 1) == 0
        again = ("--model", first, "--budget-seconds", 0.2)
        assert run("fine-tune", *pairs(pictures), "--out", second, *again) == 0
        old, new = read_checkpoint(first), read_checkpoint(second)
        assert new.card.parent == old.id
        assert new.card.settings.training.steps is None
        assert new.card.settings.training.budget_seconds == 0.2
        assert new.card.settings.network == old.card.settings.network

    def test_set_is_the_last_word(self, pictures):
        out = pictures / "m.safetensors"
        words = (
            "--steps",
            9,
            "--set",
            "training.steps=1",
            "--set",
            "training.seed=5",
            "--set",
            "training.optimiser=sgd",
        )
        assert run("fine-tune", *pairs(pictures), "--out", out, *SMALL, *words) == 0
        training = read_checkpoint(out).card.settings.training
        assert (training.steps, training.seed, training.optimiser) == (1, 5, "sgd")
        assert run("fine-tune", *pairs(pictures), "--out", out, *SMALL, "--set", "training.steps=1") == 0
        training = read_checkpoint(out).card.settings.training
        assert (training.steps, training.budget_seconds) == (1, TrainingSettings().budget_seconds)

    def test_the_classic_preset_trains(self, pictures):
        out = pictures / "m.safetensors"
        assert run("fine-tune", *pairs(pictures), "--out", out, "--preset", "classic", *SMALL, "--steps", 1) == 0
        settings = read_checkpoint(out).card.settings
        assert (settings.preset, settings.network.norm, settings.training.optimiser) == ("classic", "batch", "adam")
        assert run("predict", pictures / "images" / "P0 scan.png", "--out", pictures / "p", "--model", out) == 0

    def test_scans_can_be_left_out_and_grouped(self, pictures):
        out = pictures / "m.safetensors"
        words = ("--exclude-regex", "^P[0-3]", "--group-by", "^(P.)", "--max-side", 16, "--steps", 1)
        assert run("fine-tune", *pairs(pictures), "--out", out, *SMALL, *words) == 0
        card = read_checkpoint(out).card
        assert len(card.seen) + len(card.looked_at) == 2

    def test_equal_words_make_equal_models(self, pictures):
        for name in ("a", "b"):
            run("fine-tune", *pairs(pictures), "--out", pictures / f"{name}.safetensors", *SMALL, "--steps", 2)
        assert read_checkpoint(pictures / "a.safetensors").id == read_checkpoint(pictures / "b.safetensors").id


class TestSimulate:
    def test_every_key_is_there_and_nothing_is_nan(self, pictures, capsys):
        words = ("--scans", 2, "--test-regex", "P5", "--budget-seconds", 0.2, "--seed", 1, "--group-by", "^(P.) ")
        assert run("simulate", *pairs(pictures), *words, "--json", "-") == 0
        result = printed_json(capsys)
        assert result["test"] == ["P5"]
        order = [f"P{i}" for i in np.random.default_rng(1).permutation(5)]
        assert result["stream"] == order[:2]
        for key in ("effort", "corrective_dice", "steps_per_scan", "seconds_per_scan"):
            assert len(result[key]) == 2
        assert (result["seen"], result["effort"][0], len(result["test_dice_per_case"])) == (False, 1.0, 1)
        assert result["settings"]["budget_seconds"] == 0.2
        assert result["strokes_per_scan"] == result["correcting_seconds_per_scan"] == [None, None]

    def test_a_model_that_has_seen_the_folder_is_refused_unless_allowed(self, pictures, capsys):
        model = pictures / "m.safetensors"
        run("fine-tune", *pairs(pictures), "--out", model, *SMALL, "--steps", 1)
        capsys.readouterr()
        words = ("--scans", 1, "--budget-seconds", 0.1, "--model", model, "--json", "-")
        assert run("simulate", *pairs(pictures), *words) == 1
        assert "--allow-seen" in only_line(capsys)
        assert run("simulate", *pairs(pictures), *words, "--allow-seen", "--annotator", "brush") == 0
        result = printed_json(capsys)
        assert (result["seen"], result["settings"]["annotator"]) == (True, "brush")
        assert result["correcting_seconds_per_scan"][0] >= 0.2 + result["path_per_scan"][0] / 400 - 0.01


class TestErrors:
    """One line, status 1, nothing written."""

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--set", "training.batchsize=4"), "training.batchsize"),
            (("--set", "nothing"), "KEY=VALUE"),
            (("--set", "training.learning_rate=NaN"), "training.learning_rate"),
            (("--set", "training.patch_size=[17,17]"), "training.patch_size"),
            (("--set", "training.budget_seconds=null"), "training.budget_seconds"),
            (("--budget-seconds", "inf"), "training.budget_seconds"),
            (("--preset", "fancy"), "classic"),
            (("--group-by", "^P"), "capture group"),
            (("--group-by", "("), "regular expression"),
            (("--exclude-regex", "("), "regular expression"),
            (("--exclude-regex", "."), "--exclude-regex"),
            (("--foreground", "7", "--foreground", "7"), "7"),
            (("--model", "nobody"), "nobody"),
            (("--model", "v987654321"), "in the project"),
            (("--model", "starter", "--set", "network.base_channels=8"), "network.base_channels"),
        ],
    )
    def test_wishes_that_cannot_be_met(self, pictures, capsys, words, message):
        out = pictures / "out" / "m.safetensors"
        limit = () if "budget_seconds" in str(words) or "--budget-seconds" in words else ("--steps", 1)
        assert run("fine-tune", *pairs(pictures), "--out", out, *limit, *words) == 1
        said = capsys.readouterr().err.splitlines()
        error = [line for line in said if not line.startswith(("learning from", "plan: "))]
        assert len(error) == 1
        assert error[0].startswith("error: ")
        assert message in error[0]
        assert not out.exists()

    def test_a_place_that_cannot_be_written_to_is_found_out_before_training(self, pictures, capsys):
        (pictures / "file").touch()
        for out in (pictures / "file" / "m.safetensors", pictures):
            assert run("fine-tune", *pairs(pictures), "--out", out, "--steps", 10_000_000) == 1
            only_line(capsys)

    @pytest.mark.parametrize("missing", ["images", "masks"])
    def test_folders_that_are_not_there_or_do_not_match(self, pictures, capsys, missing):
        words = {"images": pictures / "images", "masks": pictures / "masks", missing: pictures / "nowhere"}
        for command in (("fine-tune", "--out", pictures / "m.safetensors", "--steps", 1), ("simulate",)):
            assert run(*command, "--images", words["images"], "--masks", words["masks"]) == 1
            assert "nowhere" in only_line(capsys)
        for path in (pictures / "masks").iterdir():
            path.rename(path.with_name(f"mask of {path.name}"))
        assert run("simulate", *pairs(pictures)) == 1
        assert "equal names" in only_line(capsys)

    def test_a_scan_in_its_own_folder_is_not_overwritten(self, pictures, capsys):
        model = pictures / "m.safetensors"
        run("fine-tune", *pairs(pictures), "--out", model, *SMALL, "--steps", 1)
        capsys.readouterr()
        path = pictures / "images" / "P0 scan.png"
        before = path.read_bytes()
        assert run("predict", path, "--out", pictures / "images", "--model", model) == 1
        assert "another folder" in only_line(capsys)
        assert path.read_bytes() == before

    def test_keep_going_does_the_rest_and_still_says_one(self, pictures, capsys):
        model = pictures / "m.safetensors"
        run("fine-tune", *pairs(pictures), "--out", model, *SMALL, "--steps", 1)
        (pictures / "images" / "P1 scan.png").write_bytes(b"no picture")
        capsys.readouterr()
        words = ("--out", pictures / "predicted", "--model", model)
        assert run("predict", pictures / "images", *words, "--keep-going") == 1
        assert len(list((pictures / "predicted").glob("*.png"))) == 5
        error = capsys.readouterr().err
        assert "P1 scan.png" in error
        assert "1 of 6" in error

    @pytest.mark.parametrize(
        "words",
        [
            ("fine-tune", "--images", "a"),
            ("fine-tune", "--images", "a", "--masks", "b", "--out", "c", "--foreground", "1", "--binary"),
            ("fine-tune", "--images", "a", "--masks", "b", "--out", "c", "--steps", "0"),
            ("predict", "a.png", "--out", "o", "--model", "m", "--device", "abacus"),
            ("predict", "a.png", "--out", "o", "--model", "m", "--runtime", "abacus"),
            ("simulate", "--images", "a", "--masks", "b", "--scans", "0"),
            ("simulate", "--images", "a", "--masks", "b", "--annotator", "me"),
            ("models", "fly"),
            ("--flying",),
        ],
    )
    def test_wrong_usage_is_two(self, words, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert run(*words) == 2
        captured = capsys.readouterr()
        assert captured.err
        assert "Traceback" not in captured.err
        assert list(tmp_path.iterdir()) == []


def test_the_log_holds_no_path_and_no_name(pictures, capsys):
    """Neither of what went well nor of what did not."""
    secret = pictures / "Doe^Jane 1970"
    secret.mkdir()
    (secret / "Jane.png").write_bytes(b"no picture")
    (secret / "Jane.nii.gz").write_bytes(b"\x1f\x8b no gzip")
    (secret / "Jane.safetensors").write_bytes(b"no model")
    model = pictures / "m.safetensors"
    for words in (
        ("fine-tune", *pairs(pictures), "--out", model, *SMALL, "--steps", 1),
        ("info", secret / "Jane.png"),
        ("info", secret / "Jane.nii.gz"),
        ("info", secret / "missing.nii.gz"),
        ("predict", secret, "--out", secret / "out", "--model", model),
        ("predict", secret, "--out", secret / "out", "--model", secret / "Jane.safetensors"),
        ("fine-tune", "--images", secret, "--masks", secret, "--out", model),
        ("info", secret / "Jane.png", "--json", secret),
    ):
        run(*words)
    logging.getLogger("napari_unet").error("of another process", exc_info=OSError(2, "no such file", str(secret)))
    text = log_file().read_text()
    assert "trained 1 steps" in text
    assert "FileNotFoundError" in text
    for word in ("Jane", "1970", "P0 scan", str(pictures)):
        assert word not in text


class TestAsAProcess:
    def run(self, *words):
        return subprocess.run(
            [sys.executable, "-m", "napari_unet", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def test_an_error_is_one_line_and_no_traceback(self, tmp_path):
        answer = self.run("info", tmp_path / "nothing.nii.gz")
        assert answer.returncode == 1
        assert answer.stdout == ""
        assert re.fullmatch(r"error: .*nothing\.nii\.gz.*\n", answer.stderr)

    def test_results_alone_are_on_standard_output(self, pictures):
        answer = self.run("info", pictures / "images" / "P0 scan.png", "--json", "-")
        assert (answer.returncode, answer.stderr) == (0, "")
        assert json.loads(answer.stdout)["shape"] == [32, 24]

    def test_info_and_help_need_no_torch_and_no_window(self, pictures):
        code = (
            "import sys\nfrom napari_unet.__main__ import main\n"
            "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
            "print([m for m in ('torch', 'napari', 'qtpy', 'PyQt5', 'PyQt6', 'dask') if m in sys.modules])"
        )
        for words in (["--help"], ["info", str(pictures / "images" / "P0 scan.png")]):
            answer = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
            assert answer.stdout.splitlines()[-1] == "[]"

    def test_without_qt_the_window_says_what_to_install(self):
        code = "import sys; sys.modules['qtpy'] = None; from napari_unet.__main__ import main; main(['open'])"
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert answer.returncode == 1
        assert re.fullmatch(r"error: .*pip install .*\n", answer.stderr)


class TestEvaluationReport:
    @pytest.fixture
    def predicted(self, pictures):
        """Predictions: the true masks, one of them shifted, one empty."""
        (pictures / "predicted").mkdir()
        for i, source in enumerate(sorted((pictures / "masks").iterdir())):
            mask = np.asarray(Image.open(source))
            mask = np.roll(mask, 3, 0) if i == 2 else np.zeros_like(mask) if i == 3 else mask
            Image.fromarray(mask).save(pictures / "predicted" / source.name)
        return ("--predictions", pictures / "predicted", "--truth", pictures / "masks")

    def test_it_shows_the_scans_and_names_no_folder(self, pictures, predicted, capsys):
        report = pictures / "report"
        words = ("--images", pictures / "images", "--report", report, "--json", pictures / "x.json")
        assert run("evaluate", *predicted, *words) == 0
        page = (report / "report.html").read_text(encoding="utf-8")
        assert "Worst case: P3 scan, Dice 0.000" in page
        assert "Best case: P5 scan, Dice 1.000" in page
        for content in (page.encode(), (report / "report.pdf").read_bytes()):
            assert str(pictures).encode() not in content
        found = json.loads((pictures / "x.json").read_text(encoding="utf-8"))
        assert found["cases"][3]["volume_error_relative"] == {"1": -1.0}
        assert found["cases"][3]["volume_unit"] == "px"
        assert found["summary"]["dice"]["overall"]["median"] == 1

    def test_images_of_another_shape_are_refused(self, pictures, predicted, capsys):
        Image.fromarray(np.zeros((5, 5), np.uint8)).save(pictures / "images" / "P0 scan.png")
        assert run("evaluate", *predicted, "--images", pictures / "images", "--report", pictures / "report") == 1
        assert "P0 scan.png has shape (5, 5)" in capsys.readouterr().err
        assert run("evaluate", *predicted, "--images", pictures / "nowhere", "--report", pictures / "report") == 1
        assert "no folder of images" in capsys.readouterr().err
