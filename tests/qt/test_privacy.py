"""A patient's name, number and date of birth go into nothing that this program writes or shows (fault 58)."""

from __future__ import annotations

import json
import logging
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from qtpy.QtWidgets import QApplication, QLabel

from napari_unet.session.log import log_file
from napari_unet.storage.journal import decode
from tests.io import dicom_files
from tests.qt.conftest import Desk

pytestmark = pytest.mark.gui

NAME, NUMBER, BORN = "Mustermann^Erika", "PID-4711-08-15", "19700229"
SECRETS = [NAME, "Mustermann", "Erika", NUMBER, BORN]


def traces(text: bytes) -> list[str]:
    return [secret for secret in SECRETS if secret.encode() in text or secret.encode("utf-16-le") in text]


def files_with_secrets(folder: Path) -> list[str]:
    """Return the files below a folder whose name or content tells of the patient."""
    found = []
    for path in folder.rglob("*"):
        inside = path.read_bytes() if path.is_file() else b""
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                inside += b"".join(key.encode() + archive[key].tobytes() for key in archive.files)
        if traces(path.name.encode() + inside):
            found.append(path.name)
    return found


def columns_with_secrets(project: Path) -> set[str]:
    """Return the columns of the project's database that tell of the patient; entries of the journal are unpacked."""
    found = set()
    with closing(sqlite3.connect(project / "project.db")) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            rows = database.execute(f"SELECT * FROM {table}")
            names = [column[0] for column in rows.description]
            for row in rows:
                for name, value in zip(names, row, strict=True):
                    text = json.dumps(decode(value).facts) if name == "payload" else str(value)
                    if traces(text.encode()):
                        found.add(f"{table}.{name}")
    return found


def test_nothing_tells_who_the_patient_is(desk: Desk, tmp_path: Path) -> None:
    folder = tmp_path / f"{NAME} {BORN}"
    array = dicom_files.volume((6, 40, 44))
    dicom_files.write_series(folder, array, PatientName=NAME, PatientID=NUMBER, PatientBirthDate=BORN)
    desk.widget.open_path(folder)
    desk.settle()
    session = desk.session
    assert session.active is not None
    desk.layer.brush_size = 6
    desk.drag((2, 12, 12), (2, 20, 20))
    session.accept_slices(session.active, [2])
    session.learning.begin(steps=3)
    desk.until(lambda: session.learning.verdict is not None, 120)
    session.learning.use_new()
    session.proposals.begin()
    desk.until(lambda: session.proposals.run.is_over, 120)
    # An error that names the file, on its way to the log.
    desk.widget.open_path(folder / "missing.dcm")
    logging.getLogger("napari_unet.test").error("an error", exc_info=OSError(str(folder)))
    desk.qtbot.wait(600)  # saving follows the stroke by 0.4 s

    shown = [layer.name for layer in desk.viewer.layers] + [desk.viewer.title]
    shown += [label.text() for label in desk.widget.findChildren(QLabel) if "missing.dcm" not in label.text()]
    shown += [widget.windowTitle() for widget in QApplication.topLevelWidgets()]
    assert [text for text in shown if traces(text.encode())] == []
    # The folder that the person chose is kept where the scan is found again, and nowhere else.
    assert set(files_with_secrets(tmp_path / "project")) <= {"project.db", "project.db-wal"}
    assert columns_with_secrets(tmp_path / "project") == {"places.path"}
    assert any((tmp_path / "project").rglob("*.safetensors"))
    assert any((tmp_path / "project").rglob("*.npz"))
    assert log_file().exists()
    assert traces(log_file().read_bytes()) == []
    # What the computing process gets lies in a private folder while it runs.
    running = [p for p in Path(tempfile.gettempdir()).glob("napari-unet-*") if p.is_dir()]
    assert running
    assert [name for place in running for name in files_with_secrets(place)] == []
