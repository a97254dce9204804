import resource
import signal

import numpy as np
import pytest
import zarr
from ome_zarr_models.v05 import Image as NgffImage
from ome_zarr_models.v05 import ImageLabel

from napari_unet.domain.errors import ExportError
from napari_unet.domain.labels import LabelSchema
from napari_unet.io.ome_zarr import read_ome_zarr
from napari_unet.io.reading import ReadOptions
from napari_unet.io.registry import read_scan
from napari_unet.io.writers import write_mask
from tests.io.nifti_files import placed_affine, random_array, save_nifti
from tests.io.twins import save_ome_zarr

TWO = LabelSchema.numbered(2)


@pytest.fixture
def volume(tmp_path):
    return read_scan(save_nifti(tmp_path / "scan.nii.gz", random_array((5, 6, 7)), placed_affine(codes="PIR")))


def labels_for(scan, n=2):
    return random_array(scan.spatial_shape, np.uint8) % (n + 1)


def read_zarr(path, as_mask=True):
    return read_ome_zarr(path, ReadOptions(as_mask=as_mask))


def test_it_is_valid_and_says_what_the_labels_are(tmp_path, volume):
    schema = LabelSchema.of("Leber", "tumour")
    write_mask(labels_for(volume), volume, tmp_path / "mask.ome.zarr", schema)
    NgffImage.from_zarr(zarr.open_group(str(tmp_path / "mask.ome.zarr"), mode="r"))
    group = zarr.open_group(str(tmp_path / "mask.ome.zarr" / "labels" / "segmentation"), mode="r")
    ome = ImageLabel.from_zarr(group).attributes.ome
    assert [(p.label_value, p.name) for p in ome.image_label.properties] == [(1, "Leber"), (2, "tumour")]
    assert [c.rgba[:3] for c in ome.image_label.colors] == [(230, 158, 0), (87, 181, 232)]
    assert [axis.unit for axis in ome.multiscales[0].axes] == ["millimeter"] * 3
    scale = ome.multiscales[0].datasets[0].coordinateTransformations[0].scale
    np.testing.assert_allclose(scale, volume.geometry.spacing)
    assert group["0"].nchunks_initialized == group["0"].nchunks


def test_on_the_grid_of_an_ome_zarr_source(tmp_path):
    words = {"z": "superior-to-inferior", "y": "posterior-to-anterior", "x": "right-to-left"}
    fields = {axis: {"orientation": {"type": "anatomical", "value": word}} for axis, word in words.items()}
    array = random_array((5, 6, 7))
    save_ome_zarr(tmp_path / "a.ome.zarr", array, "xzy", (0.9, 2.5, 1.1), (1, 2, 3), **fields)
    scan = read_zarr(tmp_path / "a.ome.zarr", as_mask=False)
    write_mask((scan.data > 50).astype(np.uint8), scan, tmp_path / "mask.ome.zarr", TWO)
    root = zarr.open_group(str(tmp_path / "mask.ome.zarr"), mode="r")
    np.testing.assert_array_equal(root["labels/segmentation/0"][...], array > 50)
    theirs = zarr.open_group(str(tmp_path / "a.ome.zarr"), mode="r").attrs["ome"]["multiscales"][0]
    ours = root.attrs["ome"]["multiscales"][0]
    assert ours["axes"] == theirs["axes"]
    transforms = [m["datasets"][0]["coordinateTransformations"] for m in (ours, theirs)]
    np.testing.assert_allclose(transforms[0][0]["scale"], transforms[1][0]["scale"])
    np.testing.assert_allclose(transforms[0][1]["translation"], transforms[1][1]["translation"])


def test_read_as_an_image_and_as_a_mask(tmp_path, volume):
    write_mask(labels_for(volume), volume, tmp_path / "mask.ome.zarr", TWO)
    for as_mask in (True, False):
        back = read_zarr(tmp_path / "mask.ome.zarr", as_mask)
        np.testing.assert_array_equal(back.data, labels_for(volume))
        np.testing.assert_allclose(back.geometry.affine, volume.geometry.affine, atol=1e-6)


def test_somebody_moved_it_since(tmp_path, volume):
    write_mask(labels_for(volume), volume, tmp_path / "mask.ome.zarr", TWO)
    group = zarr.open_group(str(tmp_path / "mask.ome.zarr" / "labels" / "segmentation"), mode="r+")
    ome = group.attrs["ome"]
    ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][1]["translation"] = [1.0, 2.0, 3.0]
    group.attrs["ome"] = ome
    assert read_zarr(tmp_path / "mask.ome.zarr").geometry.translation == (1, 2, 3)


def test_only_an_older_mask_is_replaced(tmp_path, volume):
    out = tmp_path / "out" / "mask.ome.zarr"
    for n in (1, 2):
        write_mask(labels_for(volume, n), volume, out, TWO)
    np.testing.assert_array_equal(read_zarr(out).data, labels_for(volume))
    assert list(out.parent.iterdir()) == [out]

    foreign = save_ome_zarr(tmp_path / "foreign.ome.zarr", random_array((5, 6, 7)))
    (tmp_path / "folder.ome.zarr").mkdir()
    (tmp_path / "folder.ome.zarr" / "thesis.txt").write_text("x")
    for path in (foreign, tmp_path / "folder.ome.zarr"):
        before = sorted(path.rglob("*"))
        with pytest.raises(ExportError, match="no mask of this program"):
            write_mask(labels_for(volume), volume, path, TWO)
        assert sorted(path.rglob("*")) == before


def test_neither_over_the_source_nor_into_it(tmp_path):
    source = save_ome_zarr(tmp_path / "a.ome.zarr", random_array((5, 6, 7)))
    scan = read_zarr(source, as_mask=False)
    with pytest.raises(ExportError, match="scan itself"):
        write_mask(labels_for(scan), scan, source, TWO)
    for path in (source / "mask.nii.gz", source / "labels" / "mask.ome.zarr"):
        with pytest.raises(ExportError, match="lie in one another"):
            write_mask(labels_for(scan), scan, path, TWO)
    outer = tmp_path / "outer.ome.zarr"
    scan = read_zarr(save_ome_zarr(outer / "inner.zarr", random_array((5, 6, 7))), as_mask=False)
    with pytest.raises(ExportError, match="lie in one another"):
        write_mask(labels_for(scan), scan, outer, TWO)


def test_a_full_disk_leaves_the_old_mask(tmp_path, volume):
    out = tmp_path / "out" / "mask.ome.zarr"
    write_mask(labels_for(volume, 1), volume, out, TWO)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(ExportError, match="could not be written"):
            write_mask(labels_for(volume, 2), volume, out, TWO)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    np.testing.assert_array_equal(read_zarr(out).data, labels_for(volume, 1))
    assert list(out.parent.iterdir()) == [out]
