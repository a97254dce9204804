"""A project that is sound is called so; one flipped bit anywhere is not."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3

import numpy as np
import pytest

from napari_unet.domain.errors import ProjectError
from napari_unet.storage.database import DATABASE
from napari_unet.storage.verify import verify
from tests.cli.test_contract import run
from tests.session.conftest import open_session  # noqa: F401 - a fixture
from tests.session.test_autosave import saved_files, scan_of, work_on
from tests.training.lessons import CPU, lesson, small_settings
from tests.training.lessons import run as run_job


@pytest.fixture(scope="module")
def checkpoint():
    from napari_unet.training.fine_tune import fine_tune
    from tests.training.lessons import SCHEMA

    return run_job(fine_tune([lesson((4, 24, 24))], small_settings(steps=2), SCHEMA, CPU, name="v1"))[1].checkpoint


@pytest.fixture
def project(open_session, checkpoint):  # noqa: F811
    """Two scans with strokes, undo and accepted slices, and a checkpoint."""
    session = open_session()
    for seed in range(2):
        state = session.add_scan(scan_of(seed=seed))
        work_on(session, state)
        session.undo(state)
        session.redo(state)
        session.undo(state)
    kept = session.project.write_model(checkpoint)
    session.ledger.note("model kept", kept.id, name=kept.card.name)
    session.close()
    return session.project.path


def kinds(project):
    return {problem.kind for problem in verify(project)}


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def test_it_is_sound(project):
    assert list(verify(project)) == []


def test_flipped_weights_show(project):
    path = project / "models" / "v1.safetensors"
    flip(path, path.stat().st_size // 2)
    assert kinds(project) == {"model"}


def test_flipped_labels_show(project):
    for path in (project / "labels").glob("*.npz"):
        flip(path, path.stat().st_size // 2)
    problems = list(verify(project))
    assert {problem.kind for problem in problems} == {"labels"}
    assert len(problems) == 2


def test_other_labels_in_a_sound_file_show(project):
    path = next((project / "labels").glob("*.npz"))
    with np.load(path) as arrays:
        found = dict(arrays)
    found["labels"] = 1 - np.minimum(found["labels"], 1)
    np.savez_compressed(path, **found)
    assert kinds(project) == {"labels"}


def test_a_flipped_bit_of_the_journal_shows(project):
    """Wherever a bit says something: SQLite's own pages have room that says nothing."""
    path, chance = project / DATABASE, random.Random(0)
    sound = path.read_bytes()
    said = set()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for seq, payload, own in connection.execute("SELECT seq, payload, hash FROM events"):
            for part in (payload, own):
                said |= {(seq, sound.index(part) + chance.randrange(len(part)))}
    assert len(said) > 10
    for _, at in said:
        flip(path, at)
        assert "journal" in kinds(project)
        path.write_bytes(sound)
    assert kinds(project) == set()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET reader = 'somebody else' WHERE seq = 3",
        "DELETE FROM events WHERE seq = 3",
        # One bit of a page says what kind of value it holds.
        "UPDATE events SET at = CAST(at AS BLOB) WHERE seq = 3",
        "UPDATE scans SET shape = CAST(shape AS BLOB) || x'ff'",
    ],
)
def test_a_changed_history_shows(project, statement):
    with contextlib.closing(sqlite3.connect(project / DATABASE)) as connection:
        for name in ("events_are_not_changed", "events_are_not_removed"):
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(statement)
        connection.commit()
    assert "journal" in kinds(project)


def test_any_flipped_bit_shows_or_changes_nothing_that_was_said(project):
    path, chance = project / DATABASE, random.Random(0)
    sound = path.read_bytes()

    def said():
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return [connection.execute(f"SELECT * FROM {name}").fetchall() for name in ("events", "scans")]

    expected = said()
    for _ in range(60):
        flip(path, chance.randrange(len(sound)))
        assert kinds(project) or said() == expected
        path.write_bytes(sound)


def test_a_journal_that_was_cut_off_shows_where_something_knows_more(project):
    with contextlib.closing(sqlite3.connect(project / DATABASE)) as connection:
        connection.execute("DROP TRIGGER events_are_not_removed")
        connection.execute("DELETE FROM events WHERE seq > 4")
        connection.commit()
    assert kinds(project) == {"journal"}


def test_a_checkpoint_that_is_gone_or_another_shows(project):
    path = project / "models" / "v1.safetensors"
    path.unlink()
    (problem,) = verify(project)
    assert (problem.kind, problem.path) == ("model", "models/v1.safetensors")


def test_a_damaged_database(project):
    (project / DATABASE).write_bytes(b"no database")
    assert kinds(project) == {"database"}


def test_older_projects_have_no_journal(open_session):  # noqa: F811
    from tests.session.test_autosave import without_journal

    session = open_session()
    work_on(session, session.add_scan(scan_of()))
    session.close()
    without_journal(session)
    assert kinds(session.project.path) == set()
    (path,) = saved_files(session)
    flip(path, path.stat().st_size // 2)
    assert kinds(session.project.path) == {"labels"}


def test_nothing_there(tmp_path):
    with pytest.raises(ProjectError, match="no project"):
        list(verify(tmp_path / "nowhere"))
    with pytest.raises(ProjectError, match="no project"):
        list(verify(tmp_path))


def test_the_command(project, capsys):
    assert run("project", "verify", project, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "problems": []}
    flip(project / "models" / "v1.safetensors", -1)
    assert run("project", "verify", project, "--json", "-") == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert found["problems"][0].keys() == {"kind", "path", "message"}
