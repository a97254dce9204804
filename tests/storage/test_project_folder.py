"""A project on disk: what was said about a scan comes back, or nothing does."""

from __future__ import annotations

import numpy as np
import pytest

from napari_unet.domain.annotation import Annotation
from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.errors import ExportError, ModelError, ScanError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.settings import ModelSettings
from napari_unet.storage.project_folder import ProjectFolder, SavedAnnotation

KEY = "0123456789abcdef" * 2


def saved_of(shape=(3, 5, 7), slice_axis=0, dtype=np.uint8, seed=0):
    random = np.random.default_rng(seed)
    n = 1 if slice_axis is None else shape[slice_axis]
    annotation = Annotation(
        random.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True),
        slice_axis,
        random.random(shape) < 0.5,
        random.random(n) < 0.5,
    )
    return SavedAnnotation(annotation, random.random(n) < 0.5, random.random(n) < 0.5)


def checkpoint_of(name):
    return Checkpoint(
        {"w": np.zeros(3, np.float32)},
        ModelCard(name=name, settings=ModelSettings(), label_schema=LabelSchema.of("a")),
    )


def assert_same(one, two):
    for name in ("labels", "painted", "accepted"):
        a, b = getattr(one.annotation, name), getattr(two.annotation, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.locked, two.locked)
    np.testing.assert_array_equal(one.taught, two.taught)


class TestAnnotations:
    @pytest.mark.parametrize(
        ("shape", "axis"), [((3, 5, 7), 0), ((3, 5, 7), 1), ((3, 5, 7), 2), ((5, 7), None), ((1, 1, 1), 0)]
    )
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_they_come_back_as_they_were(self, tmp_path, shape, axis, dtype):
        project, saved = ProjectFolder(tmp_path / "project"), saved_of(shape, axis, dtype)
        assert project.read_annotation(KEY, shape, axis) is None
        assert not project.path.exists()
        project.write_annotation(KEY, saved)
        back = project.read_annotation(KEY, shape, axis)
        assert_same(back, saved)
        back.annotation.labels[...] = back.annotation.painted[...] = back.annotation.accepted[...] = 1  # writable

    def test_the_latest_counts(self, tmp_path):
        project = ProjectFolder(tmp_path)
        for seed in (1, 2):
            project.write_annotation(KEY, saved_of(seed=seed))
        assert_same(project.read_annotation(KEY, (3, 5, 7), 0), saved_of(seed=2))
        assert len(list((tmp_path / "labels").iterdir())) == 1

    def test_a_damaged_file_is_refused_and_left_alone(self, tmp_path):
        project, saved = ProjectFolder(tmp_path), saved_of()
        project.write_annotation(KEY, saved)
        (path,) = (tmp_path / "labels").iterdir()
        data = path.read_bytes()
        variants = [data[:size] for size in (0, 1, 30, len(data) // 2, len(data) - 1)]
        variants += [b"not an archive", b"\0" * len(data)]
        for place in range(0, len(data), 3):
            damaged = bytearray(data)
            damaged[place] ^= 0x55
            variants.append(bytes(damaged))
        refused = []
        for variant in variants:
            path.write_bytes(variant)
            try:
                back = project.read_annotation(KEY, (3, 5, 7), 0)
            except ScanError as error:
                refused.append(str(error))
            else:
                assert_same(back, saved)  # the byte was one that says nothing, such as a date
            assert path.read_bytes() == variant
        assert len(refused) > len(variants) / 2
        assert all("left as they are" in message for message in refused)

    @pytest.mark.parametrize(("shape", "axis"), [((3, 7, 5), 0), ((3, 5, 7), 1), ((5, 7), None), ((105,), None)])
    def test_labels_of_another_shape_or_plane_are_refused(self, tmp_path, shape, axis):
        project = ProjectFolder(tmp_path)
        project.write_annotation(KEY, saved_of())
        with pytest.raises(ScanError, match="do not fit"):
            project.read_annotation(KEY, shape, axis)

    def test_a_pickle_in_disguise_is_refused(self, tmp_path):
        project = ProjectFolder(tmp_path)
        (tmp_path / "labels").mkdir()
        np.savez(tmp_path / "labels" / f"{KEY}.npz", labels=np.array([{}], object), slice_axis=0)
        with pytest.raises(ScanError, match="damaged"):
            project.read_annotation(KEY, (1,), None)

    def test_a_full_disk_keeps_the_earlier_labels(self, tmp_path, full_disk):
        project = ProjectFolder(tmp_path)
        project.write_annotation(KEY, saved_of(seed=1))
        with full_disk(), pytest.raises(ExportError, match="still in the window"):
            project.write_annotation(KEY, saved_of(seed=2))
        assert_same(project.read_annotation(KEY, (3, 5, 7), 0), saved_of(seed=1))
        assert len(list((tmp_path / "labels").iterdir())) == 1

    @pytest.mark.parametrize("key", ["", "../../etc/passwd", "A" * 32, KEY + "0", KEY + "\n"])
    def test_only_fingerprints_become_file_names(self, tmp_path, key):
        with pytest.raises(ScanError):
            ProjectFolder(tmp_path).write_annotation(key, saved_of())
        assert list(tmp_path.iterdir()) == []


class TestModels:
    def test_they_are_numbered_in_order_and_kept(self, tmp_path):
        project = ProjectFolder(tmp_path)
        assert (project.model_names(), project.next_model_name()) == ([], "v1")
        for number in (1, 2, 10, 9):
            project.write_model(checkpoint_of(f"v{number}"))
        (tmp_path / "models" / "vain.safetensors").touch()
        (tmp_path / "models" / "v3.tmp").touch()
        assert project.model_names() == ["v1", "v2", "v9", "v10"]
        assert project.next_model_name() == "v11"
        assert project.read_model("v10").card.name == "v10"

    @pytest.mark.parametrize("name", ["starter", "../v1", "v1/../v2", "", "v", "v1\n"])
    def test_only_their_own_names_lead_to_files(self, tmp_path, name):
        with pytest.raises(ModelError):
            ProjectFolder(tmp_path).read_model(name)
        with pytest.raises(ModelError):
            ProjectFolder(tmp_path).write_model(checkpoint_of(name))
        assert list(tmp_path.iterdir()) == []

    def test_one_that_is_not_there_is_one_sentence(self, tmp_path):
        with pytest.raises(ModelError, match="v7"):
            ProjectFolder(tmp_path).read_model("v7")
