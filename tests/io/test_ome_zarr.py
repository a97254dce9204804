import json
import pickle
from contextlib import suppress

import dask
import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_unet.domain.errors import ScanError, VolumeChoiceError
from napari_unet.domain.scan import Scan
from napari_unet.io import ome_zarr
from napari_unet.io.ome_zarr import is_zarr_folder, read_ome_zarr
from napari_unet.io.reading import ReadOptions
from napari_unet.io.registry import read_scan, source_stem
from tests.io.nifti_files import random_array
from tests.io.twins import save_ome_zarr

ARRAY = random_array((7, 6, 5), np.uint16)
SCALE = (2.5, 1.1, 0.9)


def read(path, **options):
    return read_ome_zarr(path, ReadOptions(**options))


def anatomical(value):
    return {"orientation": {"type": "anatomical", "value": value}}


@pytest.fixture
def little_memory(monkeypatch):
    """Let next to nothing count as too much for the memory."""
    monkeypatch.setattr(ome_zarr, "_LARGEST_SHARE", 1e-8)


class TestGrid:
    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    @pytest.mark.parametrize(("unit", "factor"), [("millimeter", 1), ("micrometer", 1e-3), ("angstrom", 1e-7)])
    def test_scale_and_translation_in_mm(self, tmp_path, version, unit, factor):
        path = save_ome_zarr(tmp_path / "a.ome.zarr", ARRAY, "zyx", SCALE, (10, 20, 30), unit, version)
        scan = read(path)
        assert (scan.axes, scan.slice_axis, scan.is_lazy) == ("zyx", 0, False)
        np.testing.assert_array_equal(scan.data, ARRAY)
        np.testing.assert_allclose(scan.geometry.spacing, np.array(SCALE) * factor)
        np.testing.assert_allclose(scan.geometry.translation, np.array([10, 20, 30]) * factor)
        assert scan.geometry.source_orientation is None
        assert any("no sides of the patient" in w for w in scan.warnings)

    def test_transforms_of_the_level_and_of_the_image(self, tmp_path):
        path = save_ome_zarr(tmp_path / "a.zarr", ARRAY, "zyx", (2, 1, 1), (1, 1, 1))
        group = zarr.open_group(str(path), mode="r+")
        ome = group.attrs["ome"]
        ome["multiscales"][0]["coordinateTransformations"] = [
            {"type": "scale", "scale": [10, 10, 10]},
            {"type": "translation", "translation": [1, 2, 3]},
        ]
        group.attrs["ome"] = ome
        scan = read(path)
        assert scan.geometry.spacing == (20, 10, 10)
        assert scan.geometry.translation == (11, 12, 13)

    def test_axes_in_another_order(self, tmp_path):
        path = save_ome_zarr(tmp_path / "a.zarr", ARRAY, "xyz", (0.9, 1.1, 2.5), (3, 2, 1))
        scan = read(path)
        np.testing.assert_array_equal(scan.data, ARRAY.transpose())
        assert scan.geometry.spacing == (2.5, 1.1, 0.9)
        assert scan.geometry.translation == (1, 2, 3)

    def test_sides_of_the_patient(self, tmp_path):
        words = {
            **{"z": anatomical("superior-to-inferior"), "y": anatomical("posterior-to-anterior")},
            **{"x": anatomical("left-to-right")},
        }
        path = save_ome_zarr(tmp_path / "a.zarr", ARRAY, "zyx", SCALE, (10, 20, 30), **words)
        scan = read(path)
        np.testing.assert_array_equal(scan.data, ARRAY[::-1, ::-1, ::-1])
        assert scan.geometry.source_orientation == "IAR"
        # The first voxel stored stands at 10 mm down, 20 mm to the front and 30 mm to the right.
        last = scan.geometry.affine @ [6, 5, 4, 1]
        np.testing.assert_allclose(last[:3], (-30, -20, -10))
        assert scan.warnings == ()

    def test_lengths_without_a_unit_are_not_known(self, tmp_path):
        scan = read(save_ome_zarr(tmp_path / "a.zarr", ARRAY, "zyx", SCALE, unit=None))
        assert (scan.geometry.spacing, scan.geometry.affine) == (None, None)
        assert any("without a unit" in w for w in scan.warnings)
        scan = read(save_ome_zarr(tmp_path / "b.zarr", ARRAY, "zyx", SCALE, unit="furlong"))
        assert scan.geometry.spacing is None

    @pytest.mark.parametrize("step", [0.0, -1.0])
    def test_no_usable_spacing(self, tmp_path, step):
        path = save_ome_zarr(tmp_path / "a.zarr", ARRAY, "zyx", (1, step, 1))
        with pytest.raises(ScanError, match="no usable voxel size"):
            read(path)

    def test_pictures(self, tmp_path):
        for array, axes in ((ARRAY[0], "yx"), (ARRAY[:1], "zyx")):
            path = save_ome_zarr(tmp_path / f"{axes}.zarr", array, axes, SCALE[-len(axes) :])
            scan = read(path)
            assert (scan.axes, scan.slice_axis, scan.geometry.affine) == ("yx", None, None)
            assert scan.geometry.spacing == SCALE[1:]
            np.testing.assert_array_equal(scan.data, ARRAY[0])

    def test_times_and_channels_have_to_be_chosen_from(self, tmp_path):
        array = random_array((2, 3, 7, 6, 5))
        path = save_ome_zarr(tmp_path / "a.zarr", array, "tczyx", (1, 1, *SCALE), chunks=(1, 1, 7, 6, 5))
        with pytest.raises(VolumeChoiceError, match="6 volumes") as caught:
            read(path)
        assert caught.value.n_volumes == 6
        np.testing.assert_array_equal(read(path, volume=5).data, array[1, 2])
        np.testing.assert_array_equal(read(path, volume=1).data, array[0, 1])

    def test_metadata_before_axes_had_descriptions(self, tmp_path):
        array = ARRAY[np.newaxis, np.newaxis]
        path = save_ome_zarr(tmp_path / "a.zarr", array, "tczyx", version="0.4")
        group = zarr.open_group(str(path), mode="r+")
        for axes in (None, list("tczyx")):
            old = {"version": "0.1", "datasets": [{"path": "0"}], **({} if axes is None else {"axes": axes})}
            group.attrs["multiscales"] = [old]
            scan = read(path)
            np.testing.assert_array_equal(scan.data, ARRAY)
            assert scan.geometry.spacing is None


class TestVoxels:
    def test_values_that_are_not_finite_are_counted(self, tmp_path):
        array = ARRAY.astype(np.float64)
        array[0, 0, 0] = np.nan
        scan = read(save_ome_zarr(tmp_path / "a.zarr", array))
        assert scan.data.dtype == np.float32
        assert any(w.startswith("1 voxel is NaN") for w in scan.warnings)

    def test_pieces_that_are_missing_are_counted(self, tmp_path):
        path = save_ome_zarr(tmp_path / "a.zarr", ARRAY + 1, chunks=(3, 6, 5))
        (path / "0" / "c" / "1" / "0" / "0").unlink()
        scan = read(path)
        assert (scan.data[3:6] == 0).all()
        assert any("1 of 3 pieces are not there" in w for w in scan.warnings)


@pytest.fixture(scope="class")
def one_thread():
    """Let dask work in the test's own thread; the pool that it starts otherwise lives as long as the program."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.mark.usefixtures("one_thread")
class TestLazy:
    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    @pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
    def test_a_scan_too_large_for_the_memory_stays_on_the_disk(self, tmp_path, little_memory, version, dtype):
        array = random_array((2, 20, 30, 40), dtype)
        path = save_ome_zarr(tmp_path / "a.zarr", array, "tzyx", (1, *SCALE), None, "mm", version, (1, 8, 8, 8))
        scan = read(path, volume=1)
        assert scan.is_lazy
        assert (scan.spatial_shape, scan.data.dtype) == ((20, 30, 40), np.dtype(dtype))
        assert type(scan.data[3]).__module__.startswith("dask")
        np.testing.assert_array_equal(np.asarray(scan.data[3, 4:9]), array[1, 3, 4:9])
        assert any("piece by piece" in w for w in scan.warnings)

    @pytest.mark.parametrize("piece", [1, 700, 5000, 1 << 28])
    def test_the_same_fingerprint_as_in_memory(self, tmp_path, monkeypatch, piece):
        array = random_array((20, 30, 40))
        turned = {"z": anatomical("superior-to-inferior"), "y": anatomical("anterior-to-posterior")}
        turned["x"] = anatomical("left-to-right")
        path = save_ome_zarr(tmp_path / "a.zarr", array, "zyx", SCALE, chunks=(8, 8, 8), **turned)
        whole = read(path)
        monkeypatch.setattr(ome_zarr, "_LARGEST_SHARE", 1e-8)
        monkeypatch.setattr("napari_unet.domain.scan._PIECE_BYTES", piece)
        lazy = read(path)
        assert lazy.is_lazy
        assert not whole.is_lazy
        np.testing.assert_array_equal(np.asarray(lazy.data), whole.data)
        if piece >= 700:  # else one task per voxel row
            assert lazy.fingerprint == whole.fingerprint
        again = Scan(lazy.data[:2, :3], "zyx", lazy.geometry, slice_axis=0)
        assert again.fingerprint == Scan(whole.data[:2, :3], "zyx", whole.geometry, slice_axis=0).fingerprint

    def test_nothing_that_is_no_number_comes_out(self, tmp_path, little_memory):
        array = random_array((20, 30, 40), np.float64)
        array[0, 0, :3] = np.nan, np.inf, -np.inf
        scan = read(save_ome_zarr(tmp_path / "a.zarr", array))
        assert scan.data.dtype == np.float32
        assert np.asarray(scan.data[0, 0, :3]).tolist() == [0, 0, 0]

    def test_a_damaged_piece_is_a_sentence_when_it_is_looked_at(self, tmp_path, little_memory):
        path = save_ome_zarr(tmp_path / "a.zarr", random_array((20, 30, 40)), chunks=(10, 30, 40))
        (path / "0" / "c" / "1" / "0" / "0").write_bytes(b"nonsense")
        scan = read(path)
        np.asarray(scan.data[3])
        with pytest.raises(ScanError, match=r"a\.zarr is damaged"):
            np.asarray(scan.data[13])

    def test_masks_are_always_in_memory(self, tmp_path, little_memory):
        path = save_ome_zarr(tmp_path / "a.zarr", random_array((20, 30, 40), np.uint32))
        scan = read(path, as_mask=True)
        assert isinstance(scan.data, np.ndarray)
        assert scan.data.dtype == np.int32


class TestCodecs:
    @pytest.mark.parametrize("keep", [3, 40, 0.5])
    @pytest.mark.parametrize("kind", ["v2", "v3", "sharded"])
    def test_a_blosc_frame_cut_short_is_a_sentence(self, tmp_path, kind, keep):
        """Unchecked, c-blosc reads beyond its end and takes the program with it."""
        array = random_array((7, 60, 50), np.uint16)
        path = save_ome_zarr(tmp_path / "a.zarr", array, version="0.4" if kind == "v2" else "0.5")
        group = zarr.open_group(str(path), mode="r+")
        del group["0"]
        codec = numcodecs.Blosc() if kind == "v2" else zarr.codecs.BloscCodec()
        shards = {"shards": array.shape} if kind == "sharded" else {}
        level = group.create_array("0", shape=array.shape, chunks=array.shape, dtype="u2", compressors=codec, **shards)
        level[...] = array
        np.testing.assert_array_equal(read(path).data, array)
        chunk = path / "0" / ("0.0.0" if kind == "v2" else "c/0/0/0")
        data = bytearray(chunk.read_bytes())
        if kind == "sharded":
            data[12:16] = b"\xff\xff\xff\x7f"  # what the frame says about its own length
        else:
            del data[keep if keep > 1 else len(data) // 2 :]
        chunk.write_bytes(data)
        with pytest.raises(ScanError, match="damaged"):
            read(path)

    @pytest.mark.parametrize("place", ["filters", "compressor"])
    def test_nothing_is_unpickled(self, tmp_path, place):
        path = save_ome_zarr(tmp_path / "a.zarr", ARRAY, version="0.4")
        description = json.loads((path / "0" / ".zarray").read_text()) | {"compressor": None}
        codec = {"id": "pickle"}
        (path / "0" / ".zarray").write_text(json.dumps(description | {place: [codec] if place == "filters" else codec}))
        planted = tmp_path / "executed"
        (path / "0" / "0.0.0").write_bytes(pickle.dumps(_Malicious(planted)))
        with pytest.raises(ScanError):
            read(path)
        assert not planted.exists()

    def test_codecs_that_are_not_known_are_named(self, tmp_path):
        path = save_ome_zarr(tmp_path / "a.zarr", ARRAY, version="0.4")
        description = json.loads((path / "0" / ".zarray").read_text())
        (path / "0" / ".zarray").write_text(json.dumps(description | {"filters": [{"id": "base64"}]}))
        with pytest.raises(ScanError, match="packed with 'base64'"):
            read(path)


class _Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


class TestRefusals:
    def test_what_is_no_single_image(self, tmp_path):
        zarr.create_array(str(tmp_path / "bare.zarr"), data=ARRAY)
        zarr.open_group(str(tmp_path / "empty.zarr"), mode="w")
        zarr.open_group(str(tmp_path / "plate.zarr"), mode="w").attrs["ome"] = {"plate": {"rows": []}}
        several = zarr.open_group(str(tmp_path / "several.zarr"), mode="w")
        several.attrs["ome"] = {"bioformats2raw.layout": 3}
        for name in ("0", "1"):
            save_ome_zarr(tmp_path / "several.zarr" / name, ARRAY)
        (tmp_path / "nothing.zarr").mkdir()
        (tmp_path / "file.zarr").write_text("x")
        for name, message in {
            **{"bare": "bare zarr array", "empty": "no OME-Zarr metadata", "plate": "plate of many images"},
            **{"several": "2 images: open one of its folders 0, 1", "nothing": "no zarr metadata", "file": "is a file"},
        }.items():
            with pytest.raises(ScanError, match=message):
                read(tmp_path / f"{name}.zarr")
        np.testing.assert_array_equal(read(tmp_path / "several.zarr" / "1").data, ARRAY)

    def test_the_single_image_of_bioformats(self, tmp_path):
        zarr.open_group(str(tmp_path / "a.zarr"), mode="w").attrs["ome"] = {"bioformats2raw.layout": 3}
        save_ome_zarr(tmp_path / "a.zarr" / "0", ARRAY)
        np.testing.assert_array_equal(read(tmp_path / "a.zarr").data, ARRAY)

    def test_axes_that_are_not_understood(self, tmp_path):
        with pytest.raises(ScanError, match="axes that are not understood"):
            read(save_ome_zarr(tmp_path / "a.zarr", ARRAY, "zya"))

    def test_a_missing_level(self, tmp_path):
        path = save_ome_zarr(tmp_path / "a.zarr", ARRAY)
        (path / "0" / "zarr.json").unlink()
        with pytest.raises(ScanError, match=r"a\.zarr"):
            read(path)

    def test_pieces_that_cannot_be_held(self, tmp_path):
        path = save_ome_zarr(tmp_path / "a.zarr", ARRAY)
        for change in ({"shape": [10**7] * 3}, {"shape": [10**7] * 3, "chunk": [10**6] * 3}):
            description = json.loads((path / "0" / "zarr.json").read_text())
            description["shape"] = change["shape"]
            if "chunk" in change:
                description["chunk_grid"]["configuration"]["chunk_shape"] = change["chunk"]
            (path / "0" / "zarr.json").write_text(json.dumps(description))
            with pytest.raises(ScanError, match="stored in pieces of"):
                read(path)

    def test_through_the_one_door(self, tmp_path):
        path = save_ome_zarr(tmp_path / "läsion.ome.zarr", ARRAY)
        (tmp_path / "no suffix").mkdir()
        plain = save_ome_zarr(tmp_path / "no suffix", ARRAY)
        for folder in (path, plain):
            np.testing.assert_array_equal(read_scan(folder).data, ARRAY)
        assert source_stem(path) == "läsion"

    def test_is_zarr_folder(self, tmp_path):
        assert is_zarr_folder(save_ome_zarr(tmp_path / "a", ARRAY))
        assert is_zarr_folder(save_ome_zarr(tmp_path / "b", ARRAY, version="0.4"))
        assert not is_zarr_folder(tmp_path)

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    def test_any_bytes_are_a_scan_or_a_sentence(self, tmp_path, version, data):
        path = tmp_path / "fuzz.zarr"
        if not path.exists():
            save_ome_zarr(path, ARRAY, "zyx", SCALE, (1, 2, 3), version=version)
        names = ["zarr.json", "0/zarr.json", "0/c/0/0/0"] if version == "0.5" else [".zattrs", "0/.zarray", "0/0.0.0"]
        target = path / data.draw(st.sampled_from(names))
        before = target.read_bytes()
        broken = bytearray(before)
        for _ in range(data.draw(st.integers(1, 3))):
            broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
        cut = data.draw(st.sampled_from([None, len(broken) // 2]))
        target.write_bytes(broken[:cut])
        with suppress(ScanError):
            read(path)
        target.write_bytes(before)
