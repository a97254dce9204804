from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_unet.domain.errors import MaskError, PairingError
from napari_unet.io.masks import LabelMapping, TruthRule
from napari_unet.io.pairs import Pair, find_pairs, group_of, load_pair, load_pairs, scale_down
from napari_unet.io.registry import read_scan
from tests.io.nifti_files import placed_affine, random_array, save_nifti


@pytest.fixture
def folders(tmp_path):
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    return images, masks


def touch(folder, *names):
    for name in names:
        (folder / name).touch()


class TestFindPairs:
    def test_equal_stems_in_string_order(self, folders):
        images, masks = folders
        touch(images, "b.nii.gz", "10.png", "9.tif", "lonely.png", "notes.txt")
        touch(masks, "b.tif", "10.gif", "9.ome.tif", "orphan.png", "._10.gif")
        pairs = find_pairs(images, masks)
        assert [pair.stem for pair in pairs] == ["10", "9", "b"]
        assert next(iter(pairs)) == Pair("10", images / "10.png", masks / "10.gif")
        assert len(pairs) == 3
        assert [path.name for path in pairs.images_without_mask] == ["lonely.png"]
        assert [path.name for path in pairs.masks_without_image] == ["orphan.png"]

    def test_missing_or_empty_folders(self, folders, tmp_path):
        images, masks = folders
        with pytest.raises(PairingError, match="no folder of images"):
            find_pairs(tmp_path / "nowhere", masks)
        with pytest.raises(PairingError, match="folder of images holds nothing"):
            find_pairs(images, masks)
        touch(images, "a.png")
        with pytest.raises(PairingError, match="folder of masks holds nothing"):
            find_pairs(images, masks)
        touch(masks, "b.png", "c.png")
        with pytest.raises(PairingError, match=r"None of 1 images and 2 masks.*called a, masks b, c"):
            find_pairs(images, masks)
        with pytest.raises(PairingError, match="one folder"):
            find_pairs(images, images)

    def test_one_stem_twice(self, folders):
        images, masks = folders
        touch(images, "a.png", "a.tif")
        touch(masks, "a.png")
        with pytest.raises(PairingError, match=r"a\.png and a\.tif"):
            find_pairs(images, masks)


class TestGroups:
    def test_the_first_capture_group(self):
        assert group_of("SC-HF-I-04-IM-0001-0007", "^(.+)-IM-") == "SC-HF-I-04"
        assert group_of("a", None) == "a"

    @pytest.mark.parametrize("regex", ["^(x)", "(", "a", "(x)?a"])
    def test_what_gives_no_group(self, regex):
        with pytest.raises(PairingError):
            group_of("a", regex)


class TestLoading:
    def test_the_union_of_values_decides(self, folders):
        images, masks = folders
        for stem, top in (("a", 1), ("b", 2)):
            save_nifti(images / f"{stem}.nii.gz", random_array((5, 6, 7)), placed_affine())
            save_nifti(masks / f"{stem}.nii.gz", random_array((5, 6, 7), np.uint8) % (top + 1), placed_affine())
        loaded, mapping = load_pairs(find_pairs(images, masks), TruthRule())
        assert mapping == LabelMapping((1, 2))
        assert [item.stem for item in loaded] == ["a", "b"]
        assert loaded[0].labels.max() == 1
        assert loaded[1].labels.dtype == np.uint8
        assert loaded[1].labels.shape == loaded[1].scan.spatial_shape == (7, 6, 5)

    def test_errors_name_the_file(self, folders):
        images, masks = folders
        Image.fromarray(random_array((20, 30), np.uint8)).save(images / "a.png")
        Image.fromarray(np.full((20, 30), 7, np.uint8)).save(masks / "a.png")
        pair = next(iter(find_pairs(images, masks)))
        with pytest.raises(MaskError, match=r"a\.png: .*: 7"):
            load_pair(pair, LabelMapping((255,)))


class TestMaxSide:
    @pytest.fixture
    def picture(self, folders):
        images, masks = folders
        Image.fromarray(random_array((100, 60, 3), np.uint8)).save(images / "a.png")
        Image.fromarray((random_array((100, 60)) > 50).astype(np.uint8) * 255).save(masks / "a.png")
        return next(iter(find_pairs(images, masks)))

    def test_a_picture(self, picture):
        item = load_pair(picture, LabelMapping((255,)), max_side=50)
        assert item.scan.data.shape == (50, 30, 3)
        assert item.scan.data.dtype == np.uint8
        assert item.labels.shape == (50, 30)
        assert set(np.unique(item.labels)) == {0, 1}
        # Averaging noise halves its deviation or more; plain sampling would not.
        assert item.scan.data.std() < 0.7 * read_scan(picture.image).data.std()

    def test_never_up(self, picture):
        assert load_pair(picture, LabelMapping((255,)), max_side=400).scan.data.shape == (100, 60, 3)

    def test_image_and_truth_stay_in_register(self, folders):
        images, _ = folders
        disc = (np.hypot(*(np.indices((90, 120)) - np.array([40, 70]).reshape(2, 1, 1))) < 25).astype(np.uint8)
        Image.fromarray(disc * 200).save(images / "a.png")
        scan, labels = scale_down(read_scan(images / "a.png"), disc, 40)
        assert np.mean((scan.data > 100) == labels) > 0.99

    def test_volumes_keep_their_slices(self, folders):
        images, _ = folders
        affine = placed_affine((0.5, 0.5, 3), degrees=(5, 0, 0), shape=(40, 30, 7))
        scan = read_scan(save_nifti(images / "a.nii", random_array((40, 30, 7), np.float32), affine))
        labels = (scan.data > 50).astype(np.uint8)
        small, small_labels = scale_down(scan, labels, 20)
        assert small.data.shape == small_labels.shape == (7, 15, 20)
        assert small.data.dtype == np.float32
        np.testing.assert_allclose(small.geometry.spacing, (3, 1, 1), rtol=1e-6)
        # The outer border of the volume stays where it was.
        for corner in ((-0.5, -0.5, -0.5), (6.5, 29.5, 39.5)):
            new = [(c + 0.5) * n / o - 0.5 for c, n, o in zip(corner, small.data.shape, scan.data.shape, strict=True)]
            np.testing.assert_allclose(
                small.geometry.affine @ [*new, 1], scan.geometry.affine @ [*corner, 1], atol=1e-4
            )

    def test_the_plane_follows_the_slice_axis(self, folders):
        images, _ = folders
        tifffile.imwrite(images / "a.tif", random_array((30, 40, 50), np.uint8), photometric="minisblack")
        scan = replace(read_scan(images / "a.tif"), slice_axis=2)
        small, _ = scale_down(scan, np.zeros(scan.data.shape, np.uint8), 20)
        assert small.data.shape == (15, 20, 50)
