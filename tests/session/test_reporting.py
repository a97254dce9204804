"""The report of a project holds what was done, and nothing that tells whose scans they are."""

from __future__ import annotations

import time

import numpy as np
import pytest

from napari_unet.domain.errors import SessionError
from napari_unet.domain.geometry import AxisMap, Geometry
from napari_unet.domain.proposal import Proposal
from napari_unet.domain.scan import Scan
from napari_unet.evaluation.trust import stop_hint
from napari_unet.io.registry import read_scan
from napari_unet.session.reporting import gathered
from napari_unet.session.state import Flag
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


def scan_of_array(data):
    return Scan(data, "zyx", Geometry((3.0, 1.0, 1.0), axis_map=AxisMap.identity(3)), slice_axis=0)


def proposed_scan(session, model, number, true, said, n_slices=10):
    """A scan in which the model took rows up to ``said`` for the structure, and was the less sure the less it found."""
    data = np.random.default_rng(number).integers(0, 99, (n_slices, 12, 16)).astype(np.uint8)
    state = session.add_scan(scan_of_array(data))
    propose(session, state, np.s_[:, :said])
    state.proposers["a" * 32] = model.card
    doubt = np.full(data.shape, 20 * abs(true - said) + 5, np.uint8)
    state.put_uncertainty(Proposal(0, doubt, doubt, "a" * 32, state.scan.fingerprint))
    return state


def correct(session, state, true, slices):
    wanted = state.annotation.labels.copy()
    wanted[slices] = 0
    wanted[slices, :true] = 1
    session.record_edit(state, wanted, slice(None))
    session.accept_slices(state, slices)


def test_slices_that_nobody_looked_at_are_no_reason_to_trust(open_session, trained):
    session = open_session()
    states = [proposed_scan(session, trained, number, 9, 4, 100) for number in range(8)]
    session.add_scan(scan_of_array(np.zeros((4, 5, 6), np.uint8)))
    session.set_flag(session.active, Flag(1))
    for state in reversed(states):
        correct(session, state, 9, [0])
    result = gathered(session)
    assert [each.scan for each in result.corrected] == [f"scan {number}" for number in range(8, 0, -1)]
    assert {(round(each.dice, 2), round(each.share, 2)) for each in result.corrected} == {(0.62, 0.56)}
    assert stop_hint(result.corrected) is None
    assert result.effort.scans == 8  # and one with nothing but a mark


def test_what_nobody_looked_at_has_a_predicted_dice_and_what_stands_out_is_said(open_session, trained):
    session = open_session(schema=trained.card.label_schema)
    session.models.use(trained)
    rows = (9, 8, 9, 7, 8, 9, 6, 9, 8, 7)
    states = [proposed_scan(session, trained, number, 9, said) for number, said in enumerate(rows)]
    proposed_scan(session, trained, 20, 9, 9)
    odd = proposed_scan(session, trained, 21, 9, 1)
    result = gathered(session)
    assert result.predicted == ()
    assert "cannot be predicted yet" in result.prediction_note
    for state in states[:8]:
        correct(session, state, 9, [2, 3])
    result = gathered(session)
    assert "need 9 scans" in result.prediction_note
    assert {each.low for each in result.predicted} == {None}
    for state in states[8:]:
        correct(session, state, 9, [2, 3])
    result = gathered(session)
    assert result.prediction_note == ""
    good, bad = result.predicted
    assert (good.name, bad.name) == ("scan 11", "scan 12")
    assert bad.dice < good.dice
    assert good.low <= good.dice <= good.high
    assert "volume" in {flag.kind for flag in result.flags if flag.name == odd.name}


def test_deleted_models_and_unknown_scans_are_not_lost_in_what_was_forgotten(open_session, trained):
    session = open_session()
    session.set_flag(session.add_scan(scan_of_array(np.zeros((4, 5, 6), np.uint8))), Flag(1))
    for name in ("v1", "v2", "v3"):
        card = trained.card.model_copy(update={"name": name, "scores": {"a" * 32: 0.7, "b" * 32: 0.6}})
        session.project.write_model(type(trained)(trained.weights, card))
    session.models.remove(["v2"])
    history = gathered(session).history
    assert history.models == ("v1", "v2", "v3")
    assert list(history.scans.values()) == [(0.7,) * 3, (0.6,) * 3]


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
