"""Folders of scans: what was done is left, whatever has changed is done again, and the table tells of all."""

from __future__ import annotations

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from napari_unet.compute.predictor import Predictor
from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.labels import LabelSchema
from napari_unet.session.cohort import TABLE
from napari_unet.session.predicting import MaskFolder, find_targets, predict_targets
from napari_unet.storage.checkpoint_file import write_checkpoint
from tests.cli.test_contract import run
from tests.training.lessons import CPU, lesson


@pytest.fixture
def folder(tmp_path):
    """Three volumes, one of them in a subfolder, with 3 mm3 voxels."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for number, name in enumerate(("a", "b", "sub/c")):
        one = lesson((5, 24, 24), seed=number)
        affine = np.diag([1.0, 1.0, 3.0, 1.0])
        nib.save(nib.Nifti1Image(one.scan.data.T, affine), tmp_path / "in" / f"{name}.nii.gz")
    return tmp_path / "in"


def predicted(folder, out, checkpoint, values=None, **more):
    return list(predicting(folder, out, checkpoint, values, **more))


def predicting(folder, out, checkpoint, values=None, **more):
    values = {"inference.mirror": False, **(values or {})}
    into = MaskFolder(out, checkpoint, values, **{"format_name": None, **more})
    return predict_targets(find_targets([folder]), Predictor(checkpoint, CPU, values), into)


def files(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def left(outcomes):
    return [outcome.done_before for outcome in outcomes]


class TestResuming:
    def test_what_was_done_is_left_to_the_byte(self, trained, folder, tmp_path):
        out = tmp_path / "out"
        first = predicted(folder, out, trained)
        before = files(out)
        again = predicted(folder, out, trained)
        assert (left(first), left(again)) == ([False] * 3, [True] * 3)
        assert {
            path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()
        } == before
        assert [o.volumes for o in again] == [o.volumes for o in first]
        assert [o.written for o in again] == [o.written for o in first]

    @pytest.mark.parametrize(
        "change", ["scan", "place", "model", "setting", "mask", "no mask", "no record", "odd record", "uncertainty"]
    )
    def test_whatever_has_changed_is_done_again(self, trained, folder, tmp_path, change):
        out, model, values, more = tmp_path / "out", trained, {}, {}
        predicted(folder, out, trained)
        mask, record = out / "b.nii.gz", out / "b.json"
        good = np.asarray(nib.load(mask).dataobj)
        image = nib.load(folder / "b.nii.gz")
        if change == "scan":
            nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32) + 1, image.affine), folder / "b.nii.gz")
        elif change == "place":
            moved = image.affine.copy()
            moved[:3, 3] = 5
            nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), moved), folder / "b.nii.gz")
        elif change == "model":
            weights = {name: array * np.float32(1.0001) for name, array in trained.weights.items()}
            model = Checkpoint(weights, trained.card)
        elif change == "setting":
            values = {"after_care.keep_largest": True}
        elif change == "mask":
            mask.write_bytes(mask.read_bytes()[:-9])
        elif change == "no mask":
            mask.unlink()
        elif change == "no record":
            record.unlink()
        elif change == "odd record":
            text = json.loads(record.read_text(encoding="utf-8"))
            record.write_text(json.dumps({**text, "prediction": 7}), encoding="utf-8")
        else:
            more = {"uncertainty": True}
        everything = change in ("model", "setting", "uncertainty")
        assert left(predicted(folder, out, model, values, **more)) == (
            [False] * 3 if everything else [True, False, True]
        )
        if change in ("mask", "no mask", "no record", "odd record"):
            np.testing.assert_array_equal(np.asarray(nib.load(mask).dataobj), good)
        assert left(predicted(folder, out, model, values, **more)) == [True] * 3

    def test_an_old_uncertainty_map_is_never_taken_for_a_new_one(self, trained, folder, tmp_path):
        out = tmp_path / "out"
        predicted(folder, out, trained, uncertainty=True)
        assert left(predicted(folder, out, trained, uncertainty=True)) == [True] * 3
        assert left(predicted(folder, out, trained)) == [True] * 3
        unsure = out / "b-uncertainty.nii.gz"
        assert unsure.exists()
        odd = {"inference.thresholds": [0.3]}
        predicted(folder, out, trained, odd)
        assert not unsure.exists(), "it belonged to the mask before"
        assert left(predicted(folder, out, trained, odd, uncertainty=True)) == [False] * 3

    def test_other_names_of_the_classes_count(self, trained, folder, tmp_path):
        predicted(folder, tmp_path / "out", trained)
        card = trained.card.model_copy(update={"label_schema": LabelSchema.of("another name")})
        assert left(predicted(folder, tmp_path / "out", Checkpoint(trained.weights, card))) == [False] * 3

    def test_an_interrupted_run_is_taken_up_where_it_stopped(self, trained, folder, tmp_path):
        running = predicting(folder, tmp_path / "out", trained)
        next(running)
        running.close()
        assert left(predicted(folder, tmp_path / "out", trained)) == [True, False, False]


def test_volumes_are_in_millilitres(trained, folder, tmp_path):
    for outcome in predicted(folder, tmp_path / "out", trained):
        n = np.count_nonzero(np.asarray(nib.load(outcome.written).dataobj))
        (volume,) = outcome.volumes
        assert (volume.voxels, volume.millilitres) == (n, pytest.approx(n * 3 / 1000))


def test_the_table_tells_what_became_of_each_scan(trained, folder, tmp_path, capsys):
    write_checkpoint(trained, tmp_path / "m.safetensors")
    (folder / "broken.nii.gz").write_text("not a scan")
    Image.fromarray(np.zeros((24, 24), np.uint8)).save(folder / "picture.png")
    words = ("predict", folder, "--out", tmp_path / "out", "--model", tmp_path / "m.safetensors", "--device", "cpu")
    assert run(*words, "--keep-going", "--runtime", "torch") == 1

    def rows():
        with (tmp_path / "out" / TABLE).open(encoding="utf-8-sig", newline="") as file:
            return {row["scan"]: row for row in csv.DictReader(file)}

    found = rows()
    assert {name: row["status"] for name, row in found.items()} == {
        **{"a.nii.gz": "done", "b.nii.gz": "done", "broken.nii.gz": "failed"},
        **{"picture.png": "done", "sub/c.nii.gz": "done"},
    }
    assert found["sub/c.nii.gz"]["mask"] == "sub/c.nii.gz"
    assert "broken.nii.gz" in found["broken.nii.gz"]["notes"]
    name = trained.card.label_schema.classes[0].name
    assert float(found["a.nii.gz"][f"{name} (mL)"]) > 0
    assert found["picture.png"][f"{name} (mL)"] == "", "a picture has no volume"
    (folder / "broken.nii.gz").unlink()
    capsys.readouterr()
    assert run(*words, "--runtime", "torch") == 0
    assert {row["status"] for row in rows().values()} == {"done before"}
    assert rows()["a.nii.gz"][f"{name} (mL)"] == found["a.nii.gz"][f"{name} (mL)"]
    assert "done before" in capsys.readouterr().err


def test_a_single_scan_has_no_table(trained, folder, tmp_path):
    write_checkpoint(trained, tmp_path / "m.safetensors")
    words = ("--out", tmp_path / "out", "--model", tmp_path / "m.safetensors", "--runtime", "torch")
    assert run("predict", folder / "a.nii.gz", *words) == 0
    assert not (tmp_path / "out" / TABLE).exists()
