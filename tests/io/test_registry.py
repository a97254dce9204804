import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from napari_unet.domain.errors import ScanError
from napari_unet.domain.labels import LabelSchema
from napari_unet.io.registry import READERS, can_read, find_sources, list_series, read_scan, reader_of, source_stem
from napari_unet.io.writers import write_mask
from tests.io.dicom_files import volume, write_series
from tests.io.nifti_files import random_array, save_nifti


@pytest.mark.parametrize(
    "name",
    [
        *("a.nii", "a.NII.GZ", "a.ome.tif", "a.TIFF", "a.png", "a.jpg", "a.jpeg", "a.bmp", "a.gif", "a.dcm", "a.IMA"),
        *("a.nrrd", "a.nhdr", "a.mha", "a.mhd", "a.ome.zarr", "a.zarr"),
    ],
)
def test_what_is_read(name):
    assert can_read(name)


@pytest.mark.parametrize("name", ["a.gz", "a.txt", "a", "nii", "a.nii.bak", "DICOMDIR"])
def test_what_is_not(name):
    assert not can_read(name)


def test_no_two_readers_claim_one_suffix():
    suffixes = [suffix for reader in READERS for suffix in reader.suffixes]
    assert len(set(suffixes)) == len(suffixes)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.nii.gz", "a"),
        ("a.b.nii.gz", "a.b"),
        ("a.ome.tif", "a"),
        ("a.b.PNG", "a.b"),
        ("series", "series"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_stems(name, stem):
    assert source_stem(name) == stem


def test_the_stem_of_a_folder_is_its_name(tmp_path):
    for name, stem in [("patient.dcm", "patient.dcm"), ("v1.nii", "v1.nii"), ("a.ome.zarr", "a"), ("1.2.3", "1.2.3")]:
        (tmp_path / name).mkdir()
        assert source_stem(tmp_path / name) == stem


class TestByContent:
    @pytest.fixture
    def series(self, tmp_path):
        folder = write_series(tmp_path / "study" / "series", volume())
        (folder / "000.dcm").rename(folder / "IM0001")
        return folder

    def test_folders_and_files_without_suffix(self, series):
        for path in (series, series / "IM0001", series / "001.dcm"):
            assert can_read(path)
            assert reader_of(path).name == "DICOM"
        assert not can_read(series.parent)
        assert read_scan(series).data.shape == (8, 12, 10)
        with pytest.raises(ScanError, match="is a folder and not a scan"):
            read_scan(series.parent)

    def test_a_folder_named_like_a_file(self, series):
        folder = series.rename(series.with_name("v1.nii.gz"))
        assert reader_of(folder).name == "DICOM"
        assert read_scan(folder).data.shape == (8, 12, 10)

    def test_series(self, series, tmp_path):
        (only,) = list_series(series)
        assert read_scan(series, series=only.uid[:10]).series[0].chosen
        path = save_nifti(tmp_path / "a.nii", random_array((3, 4, 5)))
        assert list_series(path) == ()
        with pytest.raises(ScanError, match="NIfTI file, which has no series"):
            read_scan(path, series="1.2.3")
        with pytest.raises(ScanError, match="There is no file"):
            list_series(tmp_path / "missing")

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="an administrator may read everything")
    def test_a_folder_that_may_not_be_read(self, series):
        series.chmod(0)
        try:
            assert not can_read(series)
            with pytest.raises(ScanError, match="cannot be opened"):
                read_scan(series)
        finally:
            series.chmod(0o755)


def test_what_cannot_be_read_at_all(tmp_path):
    with pytest.raises(ScanError, match="There is no file"):
        read_scan(tmp_path / "missing.nii.gz")
    with pytest.raises(ScanError, match="is a folder"):
        read_scan(tmp_path)
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(ScanError, match="is a folder"):
        read_scan(tmp_path / "folder.nii")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ScanError, match=r"in no format that is read.*\.nii\.gz"):
        read_scan(tmp_path / "a.txt")
    with pytest.raises(ScanError):
        read_scan(tmp_path / ("x" * 300 + ".png"))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="an administrator may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = save_nifti(tmp_path / "a.nii", random_array((3, 4, 5)))
    path.chmod(0)
    with pytest.raises(ScanError, match="cannot be opened"):
        read_scan(path)


@pytest.mark.parametrize(
    "folder", ["Größe 测试", "with  blanks and 'quotes'", "/".join(["d" * 200] * 4)], ids=["unicode", "blanks", "long"]
)
def test_strange_paths(tmp_path, folder):
    directory = tmp_path / folder
    directory.mkdir(parents=True)
    name = "ü 画像 " + "n" * (255 - len("ü 画像 ".encode()) - len(".nii.gz"))
    scan = read_scan(save_nifti(directory / f"{name}.nii.gz", random_array((3, 4, 5))))
    mask = directory / "out" / f"{name}.nii.gz"
    write_mask(np.zeros(scan.data.shape, np.uint8), scan, mask, LabelSchema.numbered(1))
    assert read_scan(mask).data.shape == scan.data.shape
    for suffix in ("png", "tif"):
        Image.fromarray(random_array((4, 5), np.uint8)).save(directory / f"{name}.{suffix}")
        picture = read_scan(directory / f"{name}.{suffix}")
        write_mask(picture.data * 0, picture, directory / "out" / f"{name}.{suffix}", LabelSchema.numbered(1))


class TestFindSources:
    def test_sorted_without_junk(self, tmp_path):
        for name in [
            "b.nii.gz",
            "a.png",
            "sub/c.tif",
            "._a.png",
            ".hidden/d.png",
            "__MACOSX/e.png",
            "notes.txt",
            "sub/.DS_Store",
        ]:
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.touch()
        (tmp_path / "folder.png").mkdir()
        below = [path.relative_to(tmp_path).as_posix() for path in find_sources(tmp_path)]
        assert below == ["a.png", "b.nii.gz", "sub/c.tif"]
        assert [path.name for path in find_sources(tmp_path, recursive=False)] == ["a.png", "b.nii.gz"]

    @pytest.fixture
    def tree(self, tmp_path):
        """A study, a folder that is a series itself, masks, and an OME-Zarr."""
        write_series(tmp_path / "b" / "one", volume())
        write_series(tmp_path / "b" / "two" / "deep", volume())
        write_series(tmp_path / "a", volume())
        save_nifti(tmp_path / "a" / "mask.nii.gz", random_array((3, 4, 5)))
        write_series(tmp_path / "a" / "inner", volume())
        (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
        (tmp_path / "c.ome.zarr" / "0").mkdir(parents=True)
        (tmp_path / "c.ome.zarr" / "0" / "d.png").touch()
        write_series(tmp_path / ".hidden", volume((1, 4, 5)))
        return tmp_path

    def test_folders_that_are_scans(self, tree):
        below = [path.relative_to(tree).as_posix() for path in find_sources(tree)]
        assert below == ["a", "a/inner", "a/mask.nii.gz", "b/one", "b/two/deep", "c.ome.zarr"]
        below = [path.relative_to(tree).as_posix() for path in find_sources(tree, recursive=False)]
        assert below == ["a", "c.ome.zarr"]

    def test_a_source_itself(self, tree):
        assert find_sources(tree / "a") == [tree / "a", tree / "a" / "inner", tree / "a" / "mask.nii.gz"]
        assert find_sources(tree / "b" / "one") == [tree / "b" / "one"]
        assert find_sources(tree / "c.ome.zarr") == [tree / "c.ome.zarr"]

    @pytest.mark.skipif(os.name == "nt", reason="links need rights there")
    def test_links_that_run_in_circles(self, tree):
        (tree / "b" / "loop").symlink_to(tree, target_is_directory=True)
        assert len(find_sources(tree)) == 6

    def test_no_folder(self, tmp_path):
        with pytest.raises(ScanError, match="no folder"):
            find_sources(tmp_path / "missing")


def test_reading_needs_no_heavy_library():
    heavy = {"torch", "napari", "skimage", "matplotlib", "dask"}
    code = f"import sys, napari_unet.io.registry; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
