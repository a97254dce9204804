"""The report of a project holds what was done, and nothing that tells whose scans they are."""

from __future__ import annotations

import time

import numpy as np
import pytest

from napari_unet.domain.errors import SessionError
from napari_unet.io.registry import read_scan
from tests.io.nifti_files import save_nifti
from tests.session.conftest import painted, renumbered
from tests.storage.test_audit import propose

NAME = "Mustermann_Erika"


def written(session, folder, seconds=120):
    session.reporting.write(folder)
    deadline = time.monotonic() + seconds
    while session.reporting.is_writing:
        assert time.monotonic() < deadline
        session.poll()
        time.sleep(0.02)
    return session.heard.notices[-1]


def test_a_report_of_a_project(open_session, tmp_path, trained):
    session = open_session()
    session.set_reader("AB")
    schema = trained.card.label_schema
    for number in range(2):
        data = np.random.default_rng(number).integers(0, 99, (9, 8, 5)).astype(np.uint8)
        state = session.add_scan(read_scan(save_nifti(tmp_path / f"{NAME}{number}.nii.gz", data)))
        propose(session, state, np.s_[0:4])
        session.record_edit(state, painted(state, np.s_[0, :4], 0), slice(None), "erase")
        session.accept_slices(state)
    parent = renumbered(trained, schema)
    scans = [state.scan.fingerprint for state in session.scans]
    for number, dice in ((1, 0.71), (2, 0.83)):
        card = parent.card.model_copy(
            update={"name": f"v{number}", "scores": {scans[1]: dice}, "parent": trained.id if number == 2 else None}
        )
        kept = session.project.write_model(type(trained)(trained.weights, card))
        session.ledger.note("model kept", kept.id, name=kept.card.name)
    session.models.use_kept("v2")
    said = written(session, tmp_path / "report")
    assert "was written" in said
    page = (tmp_path / "report" / "report.html").read_text()
    for text in ("scan 1", "scan 2", "AB", "0.71", "0.83", "v2", "Research"):
        assert text in page, text
    assert NAME not in page
    assert str(tmp_path) not in page
    assert (tmp_path / "report" / "report.pdf").stat().st_size > 1000


def test_nothing_done_nothing_to_report(open_session, tmp_path):
    session = open_session()
    with pytest.raises(SessionError, match="Nothing was done"):
        session.reporting.write(tmp_path / "report")


def test_a_folder_that_cannot_be_written_is_said(open_session, tmp_path):
    session = open_session()
    state = session.add_scan(read_scan(save_nifti(tmp_path / "scan.nii.gz", np.zeros((5, 5, 5), np.uint8))))
    session.record_edit(state, painted(state, np.s_[0], 1), slice(None))
    (tmp_path / "file").write_text("")
    said = written(session, tmp_path / "file" / "report")
    assert "could not be written" in said or "cannot" in said
