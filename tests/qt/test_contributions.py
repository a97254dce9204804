"""What the manifest offers to napari: the reader, the writer, the samples."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from qtpy.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from qtpy.QtGui import QDragEnterEvent, QDropEvent
from qtpy.QtWidgets import QApplication

from tests.qt.conftest import Desk

pytestmark = pytest.mark.gui

#: A file whose axes run to the right, to the back and to the feet: two of them against LPS as loaded.
AFFINE = np.array([[0.5, 0, 0, -10], [0, -0.75, 0, 20], [0, 0, -3.0, 30], [0, 0, 0, 1]])
SECRET = "Doe^Jane-1970"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file with a name that nobody should see, one bright voxel in it."""
    array = np.zeros((12, 10, 4), np.int16)
    array[2, 3, 1] = 100
    image = nib.Nifti1Image(array, AFFINE)
    image.header["descrip"] = SECRET.encode()
    path = tmp_path / f"{SECRET}.nii.gz"
    nib.save(image, path)
    return path


def drop(desk: Desk, path: Path) -> None:
    """Drop a file onto the window."""
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path))])
    how = Qt.DropAction.CopyAction, data, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    # Qt delivers a drop to what the drag has entered.
    for event in (QDragEnterEvent(QPoint(100, 100), *how), QDropEvent(QPointF(100, 100), *how)):
        QApplication.sendEvent(desk.viewer.window._qt_viewer, event)
    desk.settle()


def test_a_dropped_file_is_upright_nameless_and_writes_back(desk: Desk, source: Path, tmp_path: Path) -> None:
    drop(desk, source)
    state = desk.session.active
    image = desk.widget.layers.image(state)
    assert [layer.name for layer in desk.viewer.layers] == ["scan 1", "scan 1 labels"]
    for text in (desk.widget._notice.text(), desk.widget.scan._about.text(), desk.viewer.title):
        assert SECRET not in text
    assert state.stem == SECRET, "what is exported keeps the person's own name"
    # (2, 3, 1) lies at RAS (-9, 17.75, 27), so at LPS (9, -17.75, 27).
    where = np.argwhere(image.data == 100)[0]
    np.testing.assert_allclose(image.data_to_world(where), (27, -17.75, 9))
    np.testing.assert_allclose(image.scale, (3, 0.75, 0.5))
    assert image.axis_labels == ("z", "y", "x")
    assert {str(unit) for unit in image.units} == {"millimeter"}
    for layer in (image, desk.layer):
        np.testing.assert_allclose(layer.extent.world, image.extent.world)
    desk.layer.data_setitem(tuple(np.array([i]) for i in where), 1)
    written = tmp_path / "mask.nii.gz"
    assert desk.layer.save(str(written), plugin="napari-unet") == [str(written)]
    back = nib.load(written)
    np.testing.assert_array_equal(back.affine, AFFINE)
    assert np.argwhere(np.asarray(back.dataobj)).tolist() == [[2, 3, 1]]


def test_a_file_that_is_damaged_adds_no_layer(desk: Desk, tmp_path: Path) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"nothing of the kind")
    drop(desk, broken)
    assert "broken.nii.gz" in desk.said
    with pytest.raises(Exception, match=r"broken\.nii\.gz"):
        desk.viewer.open(str(broken), plugin="napari-unet")
    assert len(desk.viewer.layers) == 0


def test_a_layer_without_a_scan_is_not_written(desk: Desk, tmp_path: Path) -> None:
    from napari.layers import Labels

    from napari_unet.domain.errors import ScanError

    with pytest.raises(ScanError, match="does not belong to a scan"):
        Labels(np.zeros((4, 5), np.uint8)).save(str(tmp_path / "mask.nii.gz"), plugin="napari-unet")


@pytest.mark.parametrize("spacing", ["thin", "thick"])
def test_phantoms_open_with_their_truth_hidden(desk: Desk, spacing: str) -> None:
    desk.viewer.open_sample("napari-unet", f"phantom_{spacing}")
    desk.settle()
    state = desk.session.active
    truth = next(layer for layer in desk.viewer.layers if layer.name.endswith("truth"))
    image = desk.widget.layers.image(state)
    assert not truth.visible
    assert image.visible
    assert desk.layer.visible
    assert image.axis_labels == truth.axis_labels == ("z", "y", "x")
    np.testing.assert_allclose(image.scale, (2.5 if spacing == "thin" else 5.0, 2.5, 2.5))
    np.testing.assert_allclose(image.extent.world, truth.extent.world)
    assert {str(unit) for unit in image.units} == {"millimeter"}
    # The liver lies on the patient's right: at small x in LPS.
    assert np.argwhere(truth.data == 1)[:, 2].mean() < image.data.shape[2] / 2
    assert not state.annotation.labels.any(), "the truth is to look at, not a start"


@pytest.mark.parametrize("key", ["retina", "ihc", "cell"])
def test_pictures_open(desk: Desk, key: str) -> None:
    desk.viewer.open_sample("napari-unet", key)
    desk.settle()
    state = desk.session.active
    image = desk.widget.layers.image(state)
    assert image.rgb == (key != "cell")
    assert image.axis_labels == ("y", "x")
    assert {str(unit) for unit in image.units} == {"pixel"}
    assert desk.layer.data.shape == image.data.shape[:2]
    assert not desk.widget.correct.ribbon.isVisible()
    assert not desk.widget.correct.accept_scan.isVisible()


@pytest.mark.parametrize(
    ("typed", "kind", "written"),
    [
        ("a.nii.gz", "DICOM segmentation, with the patient's tags (*.dcm)", "a.dcm"),
        ("a.tif", "NIfTI (*.nii.gz)", "a.tif"),
        ("a", "3D Slicer segmentation (*.seg.nrrd)", "a.seg.nrrd"),
        ("a.nii.gz", "NIfTI (*.nii.gz)", "a.nii.gz"),
        ("a.nii.gz", "", "a.nii.gz"),
    ],
)
def test_the_kind_of_file_that_was_chosen_counts(tmp_path: Path, typed: str, kind: str, written: str) -> None:
    from napari_unet.domain.errors import ExportError
    from napari_unet.qt.panels.finish import _of_kind

    assert _of_kind(tmp_path / typed, kind, ".nii.gz") == tmp_path / written
    if typed != written:
        (tmp_path / written).touch()
        with pytest.raises(ExportError, match="there already"):
            _of_kind(tmp_path / typed, kind, ".nii.gz")
