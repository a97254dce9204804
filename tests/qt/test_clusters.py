"""Computing elsewhere, and whole folders, as the person does it in the dock."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QFileDialog

from napari_unet.session.cohort import TABLE
from napari_unet.session.models import find_task_model
from tests.compute.cluster import running
from tests.qt.conftest import Desk, make_scan

pytestmark = pytest.mark.gui


@pytest.fixture
def cluster(tmp_path: Path):
    """One worker on this computer, without TLS, as loopback may be."""
    (tmp_path / "cluster").mkdir()
    with running(tmp_path / "cluster", (), protocol="tcp") as found:
        found.until_there(1)
        yield found


@pytest.mark.slow
def test_a_cluster_is_tried_used_and_left(desk: Desk, cluster) -> None:
    where = desk.widget.propose.where
    desk.until(lambda: "on the CPU" in where.text(), 60)
    desk.push(
        next(b for b in desk.widget.propose.findChildren(type(desk.widget.propose.button)) if "Where" in b.text())
    )
    dialog = desk.widget.propose.compute
    assert dialog.isVisible()
    assert not dialog.test.isEnabled()
    dialog.there.click()
    QTest.keyClicks(dialog.address, "tcp://gpu.hospital.org:8786")
    desk.push(dialog.test)
    assert "not encrypted" in dialog.said.text()
    desk.push(dialog.use)
    assert "not encrypted" in dialog.said.text()
    assert desk.session.computing.address is None
    dialog.address.clear()
    QTest.keyClicks(dialog.address, cluster.address)
    desk.push(dialog.test)
    desk.until(lambda: "1 worker, no GPU" in dialog.said.text(), 60)
    assert desk.session.computing.address is None, "it was only tried"
    desk.push(dialog.use)
    assert not dialog.isVisible()
    desk.until(lambda: "1 worker, no GPU" in where.text(), 60)
    desk.open(make_scan((6, 40, 48)))
    desk.session.models.use(find_task_model("nuclei-fluorescence"))
    desk.push(desk.widget.propose.button)
    desk.until(lambda: desk.session.proposals.run is not None and desk.session.proposals.run.is_over, 90)
    assert desk.layer.data.any()
    cluster.stop(cluster.scheduler)
    desk.until(lambda: "does not answer" in where.text(), 60)
    before = desk.layer.data.copy()
    desk.push(desk.widget.propose.button)
    desk.until(lambda: "does not answer" in desk.said, 30)
    np.testing.assert_array_equal(desk.layer.data, before)
    dialog.show_present()
    dialog.here.click()
    desk.push(dialog.use)
    desk.until(lambda: "on the CPU" in where.text(), 60)
    desk.push(desk.widget.propose.button)
    desk.until(lambda: desk.session.proposals.run.is_over, 90)


def test_a_whole_folder(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tmp_path / "scans", tmp_path / "masks"
    for folder in (source, out):
        folder.mkdir()
    for number in range(3):
        nib.save(nib.Nifti1Image(make_scan((4, 40, 48)).data.T, np.eye(4)), source / f"{number}.nii.gz")
    (source / "bad.nii.gz").write_bytes(b"no scan")
    chosen = iter([str(source), str(out)] * 2)
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: next(chosen))
    panel = desk.widget.finish
    desk.push(panel.folder)
    assert "no model" in desk.said
    desk.session.models.use(find_task_model("nuclei-fluorescence"))
    desk.push(panel.folder)
    assert panel.bar.isVisible()
    assert not panel.folder.isEnabled()
    desk.until(lambda: desk.session.folder.run.is_over, 90)
    desk.spin()
    assert panel.told.text() == f"All 4 scans: 3 masked, 1 failed (the reasons are in {TABLE})."
    assert not panel.bar.isVisible()
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["0.nii.gz", "1.nii.gz", "2.nii.gz"]
    assert (out / TABLE).exists()
