"""The main jobs on files and folders."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from napari_unet.compute.predictor import Predictor
from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.errors import ExportError, ModelError, ScanError
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.scan import Scan
from napari_unet.evaluation.effort import pooled_dice
from napari_unet.io.masks import TruthRule, read_mask
from napari_unet.io.registry import read_scan
from napari_unet.session.batch import evaluate_folders, load_training_folder, settings_for
from napari_unet.session.models import find_model, find_task_model
from napari_unet.session.predicting import MaskFolder, find_targets, predict_scan, predict_targets
from napari_unet.storage.checkpoint_file import write_checkpoint
from napari_unet.storage.project_folder import PROJECT_VARIABLE, ProjectFolder
from tests.training.lessons import CPU, lesson


def write_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def picture(seed=0):
    one = lesson((24, 24), seed=seed)
    return np.clip(one.scan.data + 50, 0, 255).astype(np.uint8), one.labels


def outcomes(targets, out, checkpoint, **more):
    values = {"inference.mirror": False, **more.pop("values", {})}
    folder = MaskFolder(out, checkpoint, values, **{"format_name": None, **more})
    return list(predict_targets(targets, Predictor(checkpoint, CPU, values), folder))


class TestPredicting:
    @pytest.mark.parametrize("slice_axis", [0, 1, 2])
    def test_a_whole_scan(self, trained, slice_axis):
        one = lesson((5, 24, 24), slice_axis, seed=5)
        labels = predict_scan(trained, one.scan, CPU, False)
        assert (labels.shape, labels.dtype) == (one.scan.spatial_shape, np.uint8)
        assert pooled_dice([labels], [one.labels], 1) > 0.9

    def test_a_model_for_other_channels_is_refused(self, trained):
        with pytest.raises(ModelError, match="channels"):
            predict_scan(trained, Scan(np.zeros((9, 9, 2)), "yxc", Geometry(None)), CPU, False)

    def test_subfolders_are_kept_and_stems_too(self, trained, tmp_path):
        for name in ("b.png", "sub/ünï cödé.png", "sub/deeper/c.png"):
            write_png(tmp_path / "in" / name, picture()[0])
        done = outcomes(find_targets([tmp_path / "in"]), tmp_path / "out", trained)
        assert [o.error for o in done] == [None] * 3
        written = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")}
        stems = ("b", "sub/ünï cödé", "sub/deeper/c")
        assert written == {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "json")}
        assert {o.written for o in done} == set((tmp_path / "out").rglob("*.png"))
        assert set(np.unique(np.asarray(Image.open(tmp_path / "out" / "b.png")))) <= {0, 1}

    def test_how_unsure_it_is_lies_beside_the_mask_on_the_same_grid(self, trained, tmp_path):
        one = lesson((5, 24, 24), seed=5)
        affine = np.diag([1.5, 2.0, 4.0, 1.0])
        affine[:3, 3] = 7, -3, 11
        (tmp_path / "in").mkdir()
        nib.save(nib.Nifti1Image(one.scan.data.T.astype(np.float32), affine), tmp_path / "in" / "a.nii.gz")
        write_png(tmp_path / "in" / "b.png", picture()[0])
        done = outcomes(find_targets([tmp_path / "in"]), tmp_path / "out", trained, uncertainty=True)
        assert [o.error for o in done] == [None, None]
        mask, unsure = (nib.load(tmp_path / "out" / name) for name in ("a.nii.gz", "a-uncertainty.nii.gz"))
        np.testing.assert_allclose(unsure.affine, mask.affine, atol=1e-6)
        values = unsure.get_fdata()
        assert values.shape == mask.shape
        assert 0 <= values.min() < values.max() <= 1
        # It is sure far from the border and unsure on it.
        labels = np.asarray(mask.dataobj) > 0
        border = labels ^ ndimage.binary_dilation(labels)
        assert values[border].mean() > 2 * values[~border].mean()
        assert np.asarray(Image.open(tmp_path / "out" / "b-uncertainty.png")).dtype == np.uint8
        # Asked for or not, the mask is the same.
        outcomes(find_targets([tmp_path / "in" / "b.png"]), tmp_path / "again", trained)
        same = [np.asarray(Image.open(tmp_path / folder / "b.png")) for folder in ("out", "again")]
        assert np.array_equal(*same)

    def test_after_care_is_a_setting_of_the_model_or_of_the_day(self, trained):
        one = lesson((5, 24, 24), seed=5)
        plain = Predictor(trained, CPU, {}).predict(one.scan).labels
        clean = Predictor(trained, CPU, {"after_care.smallest_mm3": 1e6}).predict(one.scan).labels
        assert plain.any()
        assert not clean.any()

    def test_a_scan_of_another_kind_is_predicted_with_a_word_of_warning(self, trained):
        one = lesson((5, 24, 24), seed=5)
        assert Predictor(trained, CPU, {}).predict(one.scan).notes == ()
        sparse = np.random.default_rng(0).random(one.scan.data.shape) < 0.03
        odd = replace(one.scan, data=sparse.astype(np.float32))
        # As of a model that learnt from many scans: of one alone nobody can tell how much they differ.
        sure = Checkpoint(trained.weights, trained.card.model_copy(update={"intensity_spread": 0.1}))
        (note,) = Predictor(sure, CPU, {}).predict(odd).notes
        assert "unlike" in note
        card = trained.card.model_copy(update={"modality": "CT"})
        ultrasound = replace(one.scan, modality="US")
        (note,) = Predictor(Checkpoint(trained.weights, card), CPU, {}).predict(ultrasound).notes
        assert "learnt from CT and this scan is US" in note

    def test_two_scans_never_share_a_mask(self, trained, tmp_path):
        write_png(tmp_path / "a" / "x.png", picture(0)[0])
        write_png(tmp_path / "b" / "x.png", picture(1)[0])
        with pytest.raises(ExportError, match=r"x\.png"):
            outcomes(find_targets([tmp_path / "a", tmp_path / "b"]), tmp_path / "out", trained)
        assert not (tmp_path / "out").exists()

    def test_a_source_is_never_overwritten(self, trained, tmp_path):
        write_png(tmp_path / "a.png", picture()[0])
        before = (tmp_path / "a.png").read_bytes()
        (outcome,) = outcomes(find_targets([tmp_path / "a.png"]), tmp_path, trained)
        assert isinstance(outcome.error, ExportError)
        assert (tmp_path / "a.png").read_bytes() == before

    def test_one_failure_is_not_the_end(self, trained, tmp_path):
        for name in ("a.png", "c.png"):
            write_png(tmp_path / "in" / name, picture()[0])
        (tmp_path / "in" / "b.png").write_bytes(b"no picture")
        done = outcomes(find_targets([tmp_path / "in"]), tmp_path / "out", trained)
        assert [o.target.source.name for o in done if o.error is not None] == ["b.png"]
        assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["a.png", "c.png"]

    def test_nothing_to_read_is_said(self, tmp_path):
        (tmp_path / "notes.txt").write_text("no scan")
        with pytest.raises(ScanError):
            find_targets([tmp_path])

    def test_a_volume_goes_back_onto_its_grid(self, trained, tmp_path):
        one = lesson((6, 24, 24), seed=5)
        affine = np.array([[0, 0, 1.5, 4], [-1, 0, 0, 5], [0, -1, 0, 6], [0, 0, 0, 1.0]])
        image = nib.Nifti1Image(one.scan.data.transpose(2, 1, 0), affine)
        nib.save(image, tmp_path / "scan.nii.gz")
        (outcome,) = outcomes(find_targets([tmp_path / "scan.nii.gz"]), tmp_path / "out", trained)
        assert outcome.error is None
        back = nib.load(outcome.written)
        np.testing.assert_allclose(back.affine, affine, atol=1e-6)
        assert back.shape == image.shape


class TestTrainingFolders:
    def fill(self, folder, n=6, frames=1):
        for i in range(n):
            for frame in range(frames):
                image, mask = picture(i * 10 + frame)
                write_png(folder / "images" / f"P{i}-f{frame}.png", image)
                write_png(folder / "masks" / f"P{i}-f{frame}.png", mask * 255)
        return folder / "images", folder / "masks", TruthRule()

    def test_a_fifth_judges_by_patient_never_by_frame(self, tmp_path):
        folder = load_training_folder(*self.fill(tmp_path, 6, 2), group_by="^(P.)-")
        judging = {item.stem[:2] for item in folder.judging}
        assert len(judging) == 1
        assert len(folder.judging) == 2
        assert not judging & {item.stem[:2] for item in folder.teaching}
        assert len(folder.teaching) == 10
        assert folder.schema.ids == (1,)

    def test_few_scans_all_teach(self, tmp_path):
        folder = load_training_folder(*self.fill(tmp_path, 4))
        assert (len(folder.teaching), folder.judging) == (4, ())

    def test_the_seed_chooses_who_judges(self, tmp_path):
        paths = self.fill(tmp_path)
        chosen = {load_training_folder(*paths, seed=seed).judging[0].stem for seed in range(12)}
        assert len(chosen) > 1
        assert (
            load_training_folder(*paths, seed=1).judging[0].stem == load_training_folder(*paths, seed=1).judging[0].stem
        )

    def test_stems_can_be_left_out(self, tmp_path):
        folder = load_training_folder(*self.fill(tmp_path), exclude=lambda stem: stem > "P1")
        assert [item.stem for item in folder.teaching] == ["P0-f0"]
        with pytest.raises(ScanError, match="excluded"):
            load_training_folder(tmp_path / "images", tmp_path / "masks", TruthRule(), exclude=lambda stem: True)

    def test_pictures_can_be_scaled_down(self, tmp_path):
        folder = load_training_folder(*self.fill(tmp_path, 2), max_side=16)
        assert {item.scan.spatial_shape for item in folder.teaching} == {(16, 16)}
        assert {item.labels.shape for item in folder.teaching} == {(16, 16)}

    def test_a_base_brings_its_network_and_must_know_the_classes(self, tmp_path, trained):
        folder = load_training_folder(*self.fill(tmp_path, 2))
        settings, found = settings_for(folder, trained, "default", {"training.steps": 7})
        assert len(found.scans) == len(folder.teaching)
        assert settings.network == trained.card.settings.network
        assert settings.training.steps == 7
        two = load_training_folder(tmp_path / "images", tmp_path / "masks", TruthRule(foreground=(255, 0)))
        with pytest.raises(ModelError, match="--foreground"):
            settings_for(two, trained, "default", {})


class TestEvaluating:
    def test_our_own_masks_are_scored_against_any_truth(self, tmp_path):
        _, mask = picture()
        write_png(tmp_path / "truth" / "a.png", mask * 255)
        for name, values in (("ours", mask), ("theirs", mask * 255)):
            write_png(tmp_path / name / "a.png", values)
            ((scores, _, labels),) = evaluate_folders(tmp_path / name, tmp_path / "truth", TruthRule(), 1.0)
            assert scores.dice == {1: 1.0}
            np.testing.assert_array_equal(labels, mask)

    @pytest.mark.parametrize(("recorded", "dice"), [(False, {1: 0.0, 2: 0.0}), (True, {1: 1.0, 2: 1.0})])
    def test_where_values_could_mean_either_the_record_beside_the_mask_decides(self, tmp_path, recorded, dice):
        _, mask = picture()
        two = mask.copy()
        two[0, :4] = 2
        write_png(tmp_path / "truth" / "a.png", two)
        # Classes in another order than their values: 2 is class 1.
        swapped = np.array([0, 2, 1], np.uint8)[two]
        write_png(tmp_path / "found" / "a.png", swapped)
        if recorded:
            (tmp_path / "found" / "a.json").write_text('{"program": "napari-unet"}')
        rule = TruthRule(foreground=(2, 1))
        ((scores, _, _),) = evaluate_folders(tmp_path / "found", tmp_path / "truth", rule, 1.0)
        assert scores.dice == dice


class TestModelNames:
    def test_a_file_a_name_or_nothing(self, tmp_path, trained):
        path = tmp_path / "my model.safetensors"
        write_checkpoint(trained, path)
        assert find_model(str(path)).id == find_task_model(str(path)).id == trained.id
        assert find_model("scratch") is None

    def test_nothing_named_means_scratch_where_no_starter_is_shipped(self, tmp_path, monkeypatch, trained):
        monkeypatch.setattr("napari_unet.session.models.WEIGHTS", tmp_path)
        assert find_model(None) is None
        write_checkpoint(trained, tmp_path / "starter.safetensors")
        assert find_model(None).id == find_model("starter").id == trained.id

    def test_a_checkpoint_of_the_project(self, tmp_path, monkeypatch, trained):
        monkeypatch.setenv(PROJECT_VARIABLE, str(tmp_path))
        ProjectFolder(tmp_path).write_model(trained)
        assert find_task_model("v1").id == trained.id
        with pytest.raises(ModelError, match="no model called 'v2' in the project: give one of v1, or"):
            find_model("v2")
        assert find_model(str(tmp_path / "models" / "v1.safetensors")).id == trained.id

    @pytest.mark.parametrize("name", ["scratch", "starter"])
    def test_what_has_learnt_nothing_does_not_predict(self, name):
        with pytest.raises(ModelError, match=f"^{name} has learnt no task yet: fine-tune it first.$"):
            find_task_model(name)

    @pytest.mark.parametrize("name", ["nobody", "lv-cine-mr", "v1"])
    def test_what_is_not_there_is_said(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("napari_unet.session.models.WEIGHTS", tmp_path)
        with pytest.raises(ModelError, match=name):
            find_model(name)

    def test_a_checkpoint_without_a_step_does_not_predict(self, tmp_path, trained):
        path = tmp_path / "m.safetensors"
        write_checkpoint(trained.__class__(trained.weights, trained.card.model_copy(update={"steps": 0})), path)
        with pytest.raises(ModelError, match="no task yet"):
            find_task_model(str(path))


@pytest.fixture
def one_thread():
    """Dask's threads outlive a test."""
    import dask

    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.mark.usefixtures("one_thread")
class TestLargerThanTheMemory:
    def test_slab_by_slab_it_gives_the_same_mask_and_leaves_nothing_behind(self, trained, tmp_path, monkeypatch):
        from napari_unet.io import ome_zarr
        from tests.io.test_ome_zarr import save_ome_zarr

        one = lesson((9, 24, 24), seed=5)
        path = save_ome_zarr(
            tmp_path / "a.zarr", one.scan.data, "zyx", (2.0, 1.0, 1.0), None, "millimeter", "0.5", (2, 8, 8)
        )
        whole = predict_scan(trained, read_scan(path), CPU, False)
        monkeypatch.setattr(ome_zarr, "_LARGEST_SHARE", 1e-9)
        monkeypatch.setattr(ome_zarr, "_LARGEST_PIECE", 1e-3)
        assert read_scan(path).is_lazy
        (done,) = outcomes(find_targets([path]), tmp_path / "out", trained)
        assert done.error is None
        back = read_mask(done.written)
        assert np.array_equal(np.asarray(back.data), whole)
        assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.ome.zarr", "a.json"}

    def test_what_needs_the_whole_is_refused_at_once(self, trained, tmp_path, monkeypatch):
        import dask.array

        one = lesson((5, 24, 24), seed=5)
        lazy = replace(one.scan, data=dask.array.from_array(one.scan.data, chunks=(1, 24, 24)))
        with pytest.raises(ScanError, match="after-care"):
            Predictor(trained, CPU, {"after_care.fill_holes": True}).predict(lazy, scratch=tmp_path)
        with pytest.raises(ScanError, match="leave --uncertainty out"):
            Predictor(trained, CPU, {}).predict(lazy, uncertainty=True, scratch=tmp_path)
