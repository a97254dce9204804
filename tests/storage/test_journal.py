"""The journal: what goes in comes out, nothing is half there, and what was changed shows."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_unet.domain.annotation import Annotation, Correction, SparseChange
from napari_unet.domain.errors import ProjectError
from napari_unet.storage.database import DATABASE, VERSION, open_database, transaction
from napari_unet.storage.journal import BEGINNING, Entry, Journal, KnownScan, Sides, decode, encode
from tests.storage.conftest import foreign_folder, full_disk  # noqa: F401 - fixtures

SHAPE = (4, 5, 6)
SCAN = KnownScan("0123456789abcdef" * 2, SHAPE, 0, (3.0, 1.0, 1.0))


def changes(dtype, size=120):
    """Changes of some elements of an array, in any order."""
    indices = st.lists(st.integers(0, size - 1), unique=True, max_size=30)
    largest = 1 if dtype is bool else np.iinfo(dtype).max

    @st.composite
    def make(draw):
        where = np.array(draw(indices), np.int64)
        values = hnp.arrays(dtype, len(where), elements=st.integers(0, largest).map(dtype))
        return SparseChange(where, draw(values), draw(values))

    return st.none() | make()


corrections = st.builds(
    Correction,
    st.sampled_from(("stroke", "proposal", "accept")),
    st.one_of(changes(np.uint8), changes(np.uint16)),
    changes(bool),
    changes(bool, 4),
)


def assert_same(one, two):
    for name in ("labels", "painted", "accepted"):
        change = getattr(one, name)
        if change is None:
            assert name not in two.changes
            continue
        for part in ("indices", "before", "after"):
            found = getattr(two.changes[name], part)
            np.testing.assert_array_equal(getattr(change, part), found)
            assert found.dtype == getattr(change, part).dtype


@given(corrections)
def test_a_correction_comes_back_as_it_was(correction):
    sides = Sides(np.array([True, False]), np.array([False, True]))
    content = decode(encode(Entry("stroke", SCAN, correction, sides, facts={"n": 1, "name": "v1"})))
    assert_same(correction, content)
    np.testing.assert_array_equal(content.sides.locked, sides.locked)
    np.testing.assert_array_equal(content.sides.taught, sides.taught)
    assert content.facts == {"n": 1, "name": "v1"}


@given(st.binary(max_size=200))
def test_other_bytes_are_refused_in_a_sentence(data):
    with pytest.raises(ProjectError, match="damaged"):
        decode(data)


@settings(max_examples=20)
@given(st.lists(corrections, min_size=1, max_size=12), st.integers(1, 5))
def test_what_was_done_is_done_again_from_any_point(done, known):
    """Also over a state that holds the first of these changes already, as a scan's file may."""
    annotation = Annotation.empty(SHAPE, 0, np.uint16)
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Journal(Path(folder))) as journal:
        states = []
        for correction in done:
            journal.append([Entry(correction.kind, SCAN, correction)], "anna")
            annotation.apply(correction)
            states.append(annotation.copy())
        early = states[min(known, len(states)) - 1]
        for begun in (Annotation.empty(SHAPE, 0, np.uint16), early.copy()):
            for event in journal.events(SCAN.fingerprint):
                event.content().apply(begun)
            for name in ("labels", "painted", "accepted"):
                np.testing.assert_array_equal(getattr(begun, name), getattr(annotation, name))


def some(n=3):
    change = SparseChange(np.arange(n), np.zeros(n, np.uint8), np.ones(n, np.uint8))
    return Correction("stroke", labels=change)


class TestTheChain:
    def test_every_event_follows_from_the_one_before(self, tmp_path):
        with contextlib.closing(Journal(tmp_path)) as journal:
            assert journal.head() == (0, BEGINNING.hex())
            assert journal.append([Entry("stroke", SCAN, some()), Entry("model kept", model="m")], "anna") == 2
            assert journal.append([Entry("undo", SCAN, some().inverse())], "ben") == 3
            events = list(journal.events())
            assert [event.previous for event in events] == [BEGINNING, events[0].hash, events[1].hash]
            assert all(event.hash == event.expected_hash() for event in events)
            assert [(e.action, e.reader, e.voxels) for e in events] == [
                ("stroke", "anna", 3),
                ("model kept", "anna", 0),
                ("undo", "ben", 3),
            ]
            assert journal.head() == (3, events[2].hash.hex())
            assert [event.seq for event in journal.events(SCAN.fingerprint, after=1)] == [3]
            (scan,) = journal.scans()
            assert (scan.fingerprint, scan.shape, scan.slice_axis, scan.spacing) == (
                SCAN.fingerprint,
                SHAPE,
                0,
                (3.0, 1.0, 1.0),
            )

    def test_events_are_neither_changed_nor_removed(self, tmp_path):
        with contextlib.closing(Journal(tmp_path)) as journal:
            journal.append([Entry("stroke", SCAN, some())], "anna")
            for statement in ("UPDATE events SET reader = 'ben'", "DELETE FROM events"):
                with pytest.raises(sqlite3.IntegrityError):
                    journal._connection.execute(statement)

    def test_no_name_and_no_path_is_in_it(self, tmp_path):
        with contextlib.closing(Journal(tmp_path)) as journal:
            journal.append([Entry("stroke", SCAN, some())], "anna")
        data = (tmp_path / DATABASE).read_bytes()
        assert str(tmp_path).encode() not in data


class TestTheDisk:
    def test_a_full_disk_adds_nothing(self, tmp_path, full_disk):  # noqa: F811
        with contextlib.closing(Journal(tmp_path)) as journal:
            journal.append([Entry("stroke", SCAN, some())], "anna")
            with full_disk(), pytest.raises(ProjectError, match="could not be saved"):
                journal.append([Entry("stroke", SCAN, some(100)) for _ in range(50)], "anna")
            assert journal.head()[0] == 1
            assert journal.append([Entry("stroke", SCAN, some())], "anna") == 2

    def test_a_folder_that_may_not_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(ProjectError, match="cannot be made"):
            Journal(tmp_path / "file" / "project")

    @pytest.mark.parametrize("keep", [0.0, 0.3, 0.7])
    def test_a_truncated_database_is_said_and_left(self, tmp_path, keep):
        with contextlib.closing(Journal(tmp_path)) as journal:
            journal.append([Entry("stroke", SCAN, some(i)) for i in range(1, 90)], "anna")
        path = tmp_path / DATABASE
        data = path.read_bytes()[: int(keep * path.stat().st_size)] or b"no database at all"
        path.write_bytes(data)
        with pytest.raises(ProjectError, match="damaged"):
            Journal(tmp_path)
        assert path.read_bytes() == data

    def test_one_of_a_newer_version_is_refused(self, tmp_path):
        Journal(tmp_path).close()
        with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as connection:
            connection.execute(f"PRAGMA user_version = {VERSION + 1}")
        with pytest.raises(ProjectError, match="newer version"):
            Journal(tmp_path)

    def test_one_reads_while_another_writes(self, tmp_path):
        with contextlib.closing(Journal(tmp_path)) as writer:
            writer.append([Entry("stroke", SCAN, some())], "anna")
            with contextlib.closing(Journal(tmp_path, read_only=True)) as reader:
                writer.append([Entry("stroke", SCAN, some())], "anna")
                assert reader.head()[0] == 2
                with pytest.raises(ProjectError):
                    reader.append([Entry("stroke", SCAN, some())], "ben")

    def test_who_may_not_write_reads_all_of_it_or_is_told(self, foreign_folder):  # noqa: F811
        folder, reading = foreign_folder

        def seen(folder):
            with reading(folder), contextlib.closing(Journal(folder, read_only=True)) as reader:
                return reader.head()[0]

        with contextlib.closing(Journal(folder / "kept")) as writer:
            writer.append([Entry("stroke", SCAN, some())], "anna")
            assert seen(folder / "kept") == 1
            # As a synchronised folder has it, or one whose program was killed: the log came, its index did not.
            (folder / "copy").mkdir()
            for name in (DATABASE, f"{DATABASE}-wal"):
                shutil.copy(folder / "kept" / name, folder / "copy" / name)
        with pytest.raises(ProjectError, match="in use by another program, or was left") as told:
            seen(folder / "copy")
        assert "damaged" not in str(told.value)
        assert seen(folder / "kept") == 1  # its log is gone


class TestTransactions:
    def test_they_nest(self, tmp_path):
        with contextlib.closing(open_database(tmp_path / DATABASE)) as connection:
            connection.execute("CREATE TABLE t (x)")

            def rows():
                return [x for (x,) in connection.execute("SELECT x FROM t")]

            with transaction(connection):
                connection.execute("INSERT INTO t VALUES (1)")
                with contextlib.suppress(ZeroDivisionError), transaction(connection):
                    connection.execute("INSERT INTO t VALUES (2)")
                    raise ZeroDivisionError
                with transaction(connection):
                    connection.execute("INSERT INTO t VALUES (3)")
            assert rows() == [1, 3]
            with contextlib.suppress(ZeroDivisionError), transaction(connection):
                connection.execute("INSERT INTO t VALUES (4)")
                with transaction(connection):
                    connection.execute("INSERT INTO t VALUES (5)")
                raise ZeroDivisionError
            assert rows() == [1, 3]
