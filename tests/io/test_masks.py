import imagecodecs
import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_unet.domain.errors import MaskError, ScanError
from napari_unet.io.masks import LabelMapping, TruthRule, check_same_grid, distinct_values, infer_classes, read_mask
from napari_unet.io.registry import read_scan
from tests.io.nifti_files import placed_affine, poke, random_array, save_nifti


class TestReadMask:
    def test_stored_values_survive(self, tmp_path):
        instances = random_array((20, 30), np.uint16) * 300
        tifffile.imwrite(tmp_path / "i.tif", instances)
        mask = read_mask(tmp_path / "i.tif")
        assert mask.data.dtype == np.uint16
        np.testing.assert_array_equal(mask.data, instances)

    @pytest.mark.parametrize("channels", [3, 4])
    def test_equal_channels_are_one(self, tmp_path, channels):
        grey = (random_array((20, 30)) > 50).astype(np.uint8) * 255
        colour = np.stack([grey] * channels, -1)  # opacity varies with the mask
        (tmp_path / "m.png").write_bytes(imagecodecs.png_encode(colour))
        mask = read_mask(tmp_path / "m.png")
        assert mask.axes == "yx"
        np.testing.assert_array_equal(mask.data, grey)

    def test_colours_are_refused(self, tmp_path):
        (tmp_path / "m.png").write_bytes(imagecodecs.png_encode(random_array((20, 30, 3), np.uint8)))
        with pytest.raises(MaskError, match=r"m\.png is a colour picture"):
            read_mask(tmp_path / "m.png")

    def palette(self, path, colours):
        indices = random_array((20, 30), np.uint8) % len(colours)
        image = Image.fromarray(indices)
        image.putpalette([value for colour in colours for value in colour])
        image.save(path)
        return indices, read_mask(path).data

    def test_a_grey_palette_gives_greys(self, tmp_path):
        indices, values = self.palette(tmp_path / "m.gif", [(255,) * 3, (0,) * 3])
        np.testing.assert_array_equal(values, np.where(indices == 0, 255, 0))

    def test_a_palette_that_is_nearly_black_and_white(self, tmp_path):
        indices, values = self.palette(tmp_path / "m.gif", [(4, 2, 4), (252, 254, 252)])
        np.testing.assert_array_equal(values, indices * 255)

    def test_a_coloured_palette_gives_its_indices(self, tmp_path):
        indices, values = self.palette(tmp_path / "m.png", [(0, 0, 0), (128, 0, 0), (0, 128, 0)])
        np.testing.assert_array_equal(values, indices)
        colormap = np.random.default_rng(0).integers(0, 65535, (3, 256), np.uint16)
        tifffile.imwrite(tmp_path / "m.tif", indices, photometric="palette", colormap=colormap)
        np.testing.assert_array_equal(read_mask(tmp_path / "m.tif").data, indices)

    def test_one_bit(self, tmp_path):
        array = random_array((20, 30)) > 50
        Image.fromarray(array).save(tmp_path / "m.png")
        tifffile.imwrite(tmp_path / "m.tif", array)
        for name in ("m.png", "m.tif"):
            mask = read_mask(tmp_path / name).data
            assert mask.dtype == np.uint8
            np.testing.assert_array_equal(mask, array)

    def test_whole_floats_become_integers(self, tmp_path):
        mask = read_mask(save_nifti(tmp_path / "m.nii", random_array((3, 4, 5), np.float32)))
        assert mask.data.dtype == np.uint8
        mask = read_mask(save_nifti(tmp_path / "n.nii", random_array((3, 4, 5), np.float64) - 50))
        assert mask.data.dtype == np.int32

    def test_other_floats_are_refused(self, tmp_path):
        with pytest.raises(MaskError, match=r"fractions such as 0\.37"):
            read_mask(save_nifti(tmp_path / "m.nii", np.full((3, 4, 5), 0.37, np.float32)))
        with pytest.raises(MaskError, match="too large"):
            read_mask(save_nifti(tmp_path / "n.nii", np.full((3, 4, 5), 2.0**30, np.float32)))

    def test_never_int64(self, tmp_path):
        image = nib.Nifti1Image(random_array((3, 4, 5), np.int64), np.eye(4), dtype=np.int64)
        nib.save(image, tmp_path / "m.nii")
        assert read_mask(tmp_path / "m.nii").data.dtype == np.int32

    def test_unreadable(self, tmp_path):
        with pytest.raises(ScanError):
            read_mask(tmp_path / "missing.png")


class TestInferClasses:
    @pytest.mark.parametrize(
        ("value_sets", "values"),
        [
            ([{0, 255}, {0}], (255,)),
            ([{0, 1}, {0}], (1,)),
            ([{0, 1}, {0, 1, 2}], (1, 2)),  # one mask may lack a class: the union decides
            ([{0, 20, 7, 255}], (7, 20, 255)),
            ([set(range(33))], tuple(range(1, 33))),
        ],
    )
    def test_without_a_rule(self, value_sets, values):
        assert infer_classes(value_sets, TruthRule()) == LabelMapping(values)

    @pytest.mark.parametrize("values", [set(range(34)), {0, 1, 300}, {-1, 0, 1}])
    def test_values_that_need_a_rule(self, values):
        with pytest.raises(MaskError, match=r"--binary.*--foreground"):
            infer_classes([values], TruthRule())

    def test_masks_without_any_foreground(self):
        mapping = infer_classes([{0}, {0}], TruthRule())
        assert mapping.n_classes == 1
        assert mapping.apply(np.zeros((2, 2), np.uint8)).max() == 0

    def test_binary(self):
        mapping = infer_classes([set(range(500))], TruthRule(binary=True))
        assert (mapping.binary, mapping.n_classes) == (True, 1)
        assert mapping.apply(np.array([0, 1, 7, 400, -1])).tolist() == [0, 1, 1, 1, 0]

    def test_foreground_in_the_order_given(self):
        mapping = infer_classes([{0, 3, 9, 500}, {0, 4}], TruthRule((500, 3)))
        assert (mapping.values, mapping.n_classes) == ((500, 3), 2)
        assert mapping.apply(np.array([0, 3, 4, 9, 500, 77])).tolist() == [0, 2, 0, 0, 1, 0]

    def test_zero_may_be_the_foreground(self):
        mapping = infer_classes([{0, 255}], TruthRule((0,)))
        assert mapping.apply(np.array([0, 255], np.uint8)).tolist() == [1, 0]

    def test_a_foreground_that_is_nowhere(self):
        with pytest.raises(MaskError, match=r"value 5; found are: 0, 1, 2"):
            infer_classes([{0, 1}, {0, 2}], TruthRule((5,)))

    def test_contradiction(self):
        with pytest.raises(MaskError, match="contradict"):
            infer_classes([{0, 1}], TruthRule((1,), binary=True))


class TestMapping:
    def test_values_seen_later(self):
        with pytest.raises(MaskError, match=r"3, 9 .*known: 0, 1, 2"):
            LabelMapping((1, 2)).apply(np.array([[0, 1, 3], [2, 9, 0]]))

    def test_many_classes_are_widened(self):
        mapping = LabelMapping(tuple(range(1, 301)))
        labels = mapping.apply(np.array([0, 255, 300]))
        assert labels.dtype == np.uint16
        assert labels.tolist() == [0, 255, 300]
        assert LabelMapping((1,)).apply(np.array([True, False])).dtype == np.uint8

    def test_distinct_values(self):
        assert distinct_values(np.array([[[3, 1]], [[1, 7]]])) == {1, 3, 7}
        assert distinct_values(np.array([[True, False]])) == {0, 1}


class TestSameGrid:
    def pair(self, tmp_path, scan_affine, mask_affine, shape=(5, 6, 7)):
        scan = read_scan(save_nifti(tmp_path / "scan.nii", random_array((5, 6, 7)), scan_affine))
        mask = read_mask(save_nifti(tmp_path / "mask.nii", random_array(shape, np.uint8), mask_affine))
        return scan, mask

    def test_another_shape(self, tmp_path):
        with pytest.raises(MaskError, match=r"mask\.nii does not fit.*7x6x4 and 7x6x5"):
            check_same_grid(*self.pair(tmp_path, np.eye(4), np.eye(4), (4, 6, 7)))

    def test_another_spacing(self, tmp_path):
        with pytest.raises(MaskError, match=r"spacings are 2\.6 x 1\.1 x 0\.9 and 2\.5"):
            check_same_grid(*self.pair(tmp_path, placed_affine(), placed_affine((0.9, 1.1, 2.6))))

    def test_another_place(self, tmp_path):
        with pytest.raises(MaskError, match=r"1 mm apart"):
            check_same_grid(*self.pair(tmp_path, placed_affine(), placed_affine(offset=(-11.5, 30.25, 7))))

    def test_rounding_is_forgiven(self, tmp_path):
        check_same_grid(*self.pair(tmp_path, placed_affine(), placed_affine((0.90001, 1.1, 2.5))))

    def test_a_twin_in_another_orientation_fits(self, tmp_path):
        array = random_array((5, 6, 7))
        affine = placed_affine()
        flipped = affine @ np.array([[-1.0, 0, 0, 4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        scan = read_scan(save_nifti(tmp_path / "scan.nii", array, affine))
        mask = read_mask(save_nifti(tmp_path / "mask.nii", array[::-1], flipped))
        check_same_grid(scan, mask)
        np.testing.assert_array_equal(scan.data, mask.data)

    def test_a_mask_without_a_position(self, tmp_path):
        scan, _ = self.pair(tmp_path, placed_affine(), placed_affine())
        tifffile.imwrite(tmp_path / "mask.tif", np.zeros((7, 6, 5), np.uint8), photometric="minisblack")
        check_same_grid(scan, read_mask(tmp_path / "mask.tif"))
        poke(tmp_path / "mask.nii", 252, b"\0\0\0\0")
        with pytest.raises(MaskError, match="left and right could be swapped"):
            check_same_grid(scan, read_mask(tmp_path / "mask.nii"))

    def test_pictures_compare_shapes_only(self, tmp_path):
        Image.fromarray(random_array((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
        Image.fromarray(random_array((20, 30), np.uint8)).save(tmp_path / "m.gif")
        check_same_grid(read_scan(tmp_path / "a.png"), read_mask(tmp_path / "m.gif"))
        Image.fromarray(random_array((30, 20), np.uint8)).save(tmp_path / "n.gif")
        with pytest.raises(MaskError, match="30x20 and 20x30"):
            check_same_grid(read_scan(tmp_path / "a.png"), read_mask(tmp_path / "n.gif"))
