import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageOps

from napari_unet.domain.errors import ScanError
from napari_unet.io.registry import read_scan
from tests.io.nifti_files import random_array

GREY_NOTE = ("grey picture stored as colour: read as grey",)


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "PNG"])
def test_grey(tmp_path, suffix):
    array = random_array((20, 30), np.uint8)
    Image.fromarray(array).save(tmp_path / f"grey.{suffix}")
    scan = read_scan(tmp_path / f"grey.{suffix}")
    assert (scan.axes, scan.slice_axis, scan.geometry.spacing, scan.geometry.affine) == ("yx", None, None, None)
    assert scan.geometry.source_orientation is None
    np.testing.assert_array_equal(scan.data, array)
    assert scan.data.flags.writeable


def test_jpeg(tmp_path):
    Image.fromarray(random_array((20, 30, 3), np.uint8)).save(tmp_path / "a.jpg")
    assert read_scan(tmp_path / "a.jpg").axes == "yxc"
    Image.fromarray(random_array((20, 30, 4), np.uint8), "CMYK").save(tmp_path / "b.jpeg")
    assert read_scan(tmp_path / "b.jpeg").data.shape == (20, 30, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
class TestColours:
    def write(self, path, array):
        path.write_bytes(imagecodecs.png_encode(array))
        return path

    def test_real_colour_stays(self, tmp_path, dtype):
        array = random_array((20, 30, 3), dtype) * dtype(2)
        scan = read_scan(self.write(tmp_path / "a.png", array))
        assert scan.axes == "yxc"
        assert scan.data.dtype == dtype
        np.testing.assert_array_equal(scan.data, array)

    def test_grey_in_disguise(self, tmp_path, dtype):
        grey = random_array((20, 30), dtype) * dtype(2)
        scan = read_scan(self.write(tmp_path / "a.png", np.stack([grey] * 3, -1)))
        assert scan.warnings == GREY_NOTE
        np.testing.assert_array_equal(scan.data, grey)
        opaque = np.full_like(grey, np.iinfo(dtype).max)
        scan = read_scan(self.write(tmp_path / "b.png", np.stack([grey] * 3 + [opaque], -1)))
        assert scan.warnings == GREY_NOTE
        np.testing.assert_array_equal(scan.data, grey)

    def test_constant_opacity_goes_and_varying_opacity_stays(self, tmp_path, dtype):
        array = random_array((20, 30, 4), dtype)
        assert read_scan(self.write(tmp_path / "a.png", array)).data.shape == (20, 30, 4)
        array[..., 3] = 7
        scan = read_scan(self.write(tmp_path / "b.png", array))
        np.testing.assert_array_equal(scan.data, array[..., :3])
        assert any("opacity" in w for w in scan.warnings)

    def test_grey_with_opacity(self, tmp_path, dtype):
        array = random_array((20, 30, 2), dtype)
        scan = read_scan(self.write(tmp_path / "a.png", array))
        np.testing.assert_array_equal(scan.data, array[..., 0])
        assert scan.warnings == ("opacity varies: left out",)


def test_palettes_become_colours_or_grey(tmp_path):
    indices = random_array((20, 30), np.uint8) % 3
    image = Image.fromarray(indices)
    image.putpalette([255, 0, 0, 0, 255, 0, 9, 9, 200])
    image.save(tmp_path / "colour.png")
    scan = read_scan(tmp_path / "colour.png")
    assert scan.data[indices == 2][0].tolist() == [9, 9, 200]
    image.putpalette([200, 200, 200, 0, 0, 0, 10, 10, 10])
    image.save(tmp_path / "grey.gif")
    scan = read_scan(tmp_path / "grey.gif")
    np.testing.assert_array_equal(scan.data, np.array([200, 0, 10], np.uint8)[indices])


def test_one_bit(tmp_path):
    array = random_array((20, 30)) > 50
    Image.fromarray(array).save(tmp_path / "bit.png")
    scan = read_scan(tmp_path / "bit.png")
    assert scan.data.dtype == np.uint8
    np.testing.assert_array_equal(scan.data, array)


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_are_not_stretched(tmp_path, bits):
    import struct
    import zlib

    values = np.arange(2**bits, dtype=np.uint8)
    packed = np.packbits(((values[:, None] >> np.arange(bits)[::-1]) & 1).astype(bool))

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + packed.tobytes())) + chunk(b"IEND", b"")
    (tmp_path / "few.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    np.testing.assert_array_equal(read_scan(tmp_path / "few.png").data, values[np.newaxis])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    image = Image.fromarray(np.kron(random_array((4, 6), np.uint8), np.ones((8, 8), np.uint8)))
    exif = image.getexif()
    exif[274] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    scan = read_scan(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as stored:
        np.testing.assert_array_equal(scan.data, np.asarray(ImageOps.exif_transpose(stored)))
    assert any("upright" in w for w in scan.warnings) == (orientation != 1)


def test_an_animation_gives_its_first_frame_and_says_so(tmp_path):
    frames = [Image.fromarray(random_array((20, 30), np.uint8, seed)) for seed in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    scan = read_scan(tmp_path / "a.gif")
    assert scan.spatial_shape == (20, 30)
    assert any("3 frames" in w for w in scan.warnings)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif"])
@pytest.mark.parametrize("keep", [0, 10, 30, 0.5])
def test_cut_short(tmp_path, suffix, keep):
    Image.fromarray(random_array((64, 64, 3), np.uint8)).save(tmp_path / f"a.{suffix}")
    data = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(data[: keep if keep != 0.5 else len(data) // 2])
    with pytest.raises(ScanError, match="damaged"):
        read_scan(tmp_path / f"cut.{suffix}")


def test_text_named_png(tmp_path):
    (tmp_path / "a.png").write_text("not a picture")
    with pytest.raises(ScanError, match=r"a\.png is damaged, cut short or not a PNG"):
        read_scan(tmp_path / "a.png")


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ScanError, match="more pixels"):
        read_scan(tmp_path / "big.png")


def test_pictures_have_no_volumes_or_series(tmp_path):
    Image.fromarray(random_array((20, 30), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ScanError, match="one volume"):
        read_scan(tmp_path / "a.png", volume=1)
    with pytest.raises(ScanError, match="series"):
        read_scan(tmp_path / "a.png", series="1.2.3")
