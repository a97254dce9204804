import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from napari_unet.domain.errors import ScanError
from napari_unet.domain.labels import LabelSchema
from napari_unet.io.registry import READERS, can_read, find_sources, read_scan, source_stem
from napari_unet.io.writers import write_mask
from tests.io.nifti_files import random_array, save_nifti


@pytest.mark.parametrize(
    "name", ["a.nii", "a.NII.GZ", "a.ome.tif", "a.TIFF", "a.png", "a.jpg", "a.jpeg", "a.bmp", "a.gif"]
)
def test_what_is_read(name):
    assert can_read(name)


@pytest.mark.parametrize("name", ["a.gz", "a.dcm", "a.nrrd", "a.zarr", "a.txt", "a", "nii", "a.nii.bak"])
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


@pytest.mark.parametrize("name", ["a.dcm", "a.nrrd", "a.zarr"])
def test_formats_to_come_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    kind = {"dcm": "DICOM", "nrrd": "NRRD", "zarr": "OME-Zarr"}[name[2:]]
    with pytest.raises(ScanError, match=f"{kind}, which this version does not read yet"):
        read_scan(tmp_path / name)


def test_dicom_is_known_by_its_content(tmp_path):
    (tmp_path / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    for path in (tmp_path / "IM0001", tmp_path):
        with pytest.raises(ScanError, match="DICOM"):
            read_scan(path)
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / ".zattrs").write_text("{}")
    with pytest.raises(ScanError, match="OME-Zarr"):
        read_scan(tmp_path / "volume")


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

    def test_no_folder(self, tmp_path):
        with pytest.raises(ScanError, match="no folder"):
            find_sources(tmp_path / "missing")


def test_reading_needs_no_heavy_library():
    heavy = {"torch", "napari", "skimage", "matplotlib", "dask"}
    code = f"import sys, napari_unet.io.registry; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
