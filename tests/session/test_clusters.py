"""The session's work on a real Dask cluster: the same masks and models as here, also when workers are killed."""

from __future__ import annotations

import contextlib
import csv
import random
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from napari_unet.compute.engine import Engine
from napari_unet.domain.errors import ClusterError, SessionError
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ComputeSettings
from napari_unet.session.cohort import TABLE
from napari_unet.session.computing import Trial
from napari_unet.session.folder_run import FolderRun
from napari_unet.session.predicting import MaskFolder, Target, find_targets
from napari_unet.session.session import Session
from napari_unet.session.worker import Worker
from napari_unet.storage.checkpoint_file import read_checkpoint, write_checkpoint
from tests.cli.test_contract import run
from tests.compute.cluster import running, until
from tests.compute.conftest import poll_until
from tests.session.conftest import Borrowed
from tests.session.test_session import SECONDS
from tests.training.lessons import SCHEMA, lesson

#: Both sides alike, so that equal bytes can be asked for.
ALIKE = ComputeSettings(device="cpu", precision="float32", threads=1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with running(tmp_path_factory.mktemp("cluster"), (), ()) as found:
        yield found


@pytest.fixture(scope="module")
def remote(cluster):
    cluster.until_there(2)
    with contextlib.closing(Engine(address=cluster.address)) as engine:
        engine.start()
        poll_until(engine, lambda: engine.state == "ready")
        yield engine


def write_scans(folder, n, shape=(5, 24, 24)):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n):
        one = lesson(shape, seed=number)
        nib.save(nib.Nifti1Image(one.scan.data.T, np.diag([1.0, 1.0, 3.0, 1.0])), folder / f"{number:03}.nii.gz")
    return folder


def mask(engine, source, out, checkpoint, settings=ALIKE, **more):
    """Mask a folder with an engine; return the run."""
    heard = []
    folder = MaskFolder(out, checkpoint, {"inference.mirror": False}, format_name=None)
    made = FolderRun(Worker(engine, settings), lambda: find_targets([source]), folder, heard.append, **more)
    made.wait(300)
    assert heard[-1] is None
    assert heard[:-1] == made.outcomes
    return made


def masks(out):
    return {path.name: np.asarray(nib.load(path).dataobj).tobytes() for path in sorted(out.glob("*.nii.gz"))}


def table(out):
    with (out / TABLE).open(encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


class TestTheSameAsHere:
    def test_a_cohort_of_sixty(self, remote, engine, trained, tmp_path):
        source = write_scans(tmp_path / "in", 60)
        here = mask(Borrowed(engine), source, tmp_path / "here", trained)
        there = mask(remote, source, tmp_path / "there", trained)
        for made in (here, there):
            assert made.error is None
            assert made.is_whole
            assert [o for o in made.outcomes if o.error is not None] == []
        assert len(masks(tmp_path / "there")) == 60
        assert masks(tmp_path / "there") == masks(tmp_path / "here")
        assert [row["scan"] for row in table(tmp_path / "there")] == [f"{n:03}.nii.gz" for n in range(60)]
        # And again: all of it is there already.
        again = mask(remote, source, tmp_path / "there", trained)
        assert {outcome.status for outcome in again.outcomes} == {"done before"}
        assert again.in_words() == "All 60 scans: 0 masked, 60 masked before."

    def test_proposals_and_models(self, remote, engine, open_session, trained, scan_and_truth):
        found = []
        for where in (Borrowed(engine), Borrowed(remote)):
            session = open_session(f"project {len(found)}", SCHEMA, where)
            session._worker._settings = ALIKE
            state = session.add_scan(scan_and_truth[0])
            session.models.use(trained)
            session.proposals.begin()
            session.wait(SECONDS)
            proposed = state.annotation.labels.copy()
            session.accept_slices(state, list(range(6)))
            session.learning.begin(steps=5)
            session.wait(SECONDS)
            found.append((proposed, session.learning.verdict.checkpoint))
            session.remove_scan(state)
        (here, model_here), (there, model_there) = found
        assert here.any()
        np.testing.assert_array_equal(here, there)
        assert model_here.weights.keys() == model_there.weights.keys()
        for name, weights in model_here.weights.items():
            np.testing.assert_array_equal(weights, model_there.weights[name], err_msg=name)

    @pytest.mark.slow
    def test_the_command_line(self, cluster, trained, tmp_path):
        source = write_scans(tmp_path / "in", 3)
        write_checkpoint(trained, tmp_path / "model.safetensors")
        words = ("predict", source, "--model", tmp_path / "model.safetensors", "--device", "cpu", "--runtime", "torch")
        assert run(*words, "--out", tmp_path / "here") == 0
        assert run(*words, "--out", tmp_path / "there", "--compute", cluster.address) == 0
        assert masks(tmp_path / "there") == masks(tmp_path / "here")
        assert len(table(tmp_path / "there")) == 3

    def test_fine_tuning_on_the_command_line(self, cluster, tmp_path):
        source = write_scans(tmp_path / "images", 3)
        (tmp_path / "masks").mkdir()
        for number in range(3):
            truth = lesson((5, 24, 24), seed=number).labels
            affine = nib.load(source / f"{number:03}.nii.gz").affine
            nib.save(nib.Nifti1Image(truth.T, affine), tmp_path / "masks" / f"{number:03}.nii.gz")
        words = ("fine-tune", "--images", source, "--masks", tmp_path / "masks", "--model", "scratch", "--steps", 3)
        words += ("--device", "cpu", "--set", "network.base_channels=4")
        assert run(*words, "--out", tmp_path / "here.safetensors") == 0
        assert run(*words, "--out", tmp_path / "there.safetensors", "--compute", cluster.address) == 0
        here, there = (read_checkpoint(tmp_path / f"{name}.safetensors") for name in ("here", "there"))
        assert there.card.steps == 3
        for name, weights in here.weights.items():
            np.testing.assert_allclose(weights, there.weights[name], atol=1e-4, err_msg=name)


class TestFailures:
    def test_a_scan_that_fails_is_one_row(self, remote, trained, tmp_path):
        source = write_scans(tmp_path / "in", 3)
        (source / "001.nii.gz").write_bytes(b"not a scan")
        made = mask(remote, source, tmp_path / "out", trained)
        assert [row["status"] for row in table(tmp_path / "out")] == ["done", "failed", "done"]
        assert "1 failed" in made.in_words()
        assert made.error is None
        stopped = mask(remote, source, tmp_path / "other", trained, keep_going=False)
        assert stopped.error is not None

    def test_scans_with_equal_voxels(self, remote, trained, tmp_path):
        """One array is handed over for both, and not taken back while the other needs it."""
        source = write_scans(tmp_path / "in", 1)
        for name in ("a", "b", "c"):
            (source / f"{name}.nii.gz").write_bytes((source / "000.nii.gz").read_bytes())
        made = mask(remote, source, tmp_path / "out", trained)
        assert [outcome.error for outcome in made.outcomes] == [None] * 4

    def test_the_client_is_closed_in_the_midst_and_goes_on_later(self, cluster, trained, tmp_path):
        source = write_scans(tmp_path / "in", 8)
        with contextlib.closing(Engine(address=cluster.address)) as engine:
            folder = MaskFolder(tmp_path / "out", trained, {}, format_name=None)
            made = FolderRun(Worker(engine, ALIKE), lambda: find_targets([source]), folder, lambda _: None)
            poll_until(engine, lambda: len(made.outcomes) >= 3)
            made.cancel()
        with contextlib.closing(Engine(address=cluster.address)) as engine:
            made = FolderRun(Worker(engine, ALIKE), lambda: find_targets([source]), folder, lambda _: None)
            made.wait(120)
        status = [outcome.status for outcome in made.outcomes]
        assert status.count("done before") >= 3
        assert status.count("done before") + status.count("done") == 8

    def test_the_disk_is_full(self, remote, trained, tmp_path, monkeypatch):
        import errno

        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        source = write_scans(tmp_path / "in", 2)
        monkeypatch.setattr("napari_unet.io.writing.replacing.os.replace", full)
        made = mask(remote, source, tmp_path / "out", trained)
        assert [outcome.status for outcome in made.outcomes] == ["failed"] * 2
        assert "space" in str(made.outcomes[0].error).lower() or "disk" in str(made.outcomes[0].error).lower()

    def test_a_worker_that_hangs_for_a_while_loses_no_scan(self, cluster, trained, tmp_path):
        source = write_scans(tmp_path / "in", 10)
        slow, *_ = cluster.worker_processes()
        with contextlib.closing(Engine(address=cluster.address)) as engine:
            engine.start()
            poll_until(engine, lambda: engine.state == "ready")
            folder = MaskFolder(tmp_path / "out", trained, {}, format_name=None)
            made = FolderRun(Worker(engine, ALIKE), lambda: find_targets([source]), folder, lambda _: None)
            poll_until(engine, lambda: made.outcomes)
            # What was handed over to it waits for it, so that the folder may come to a halt meanwhile.
            slow.suspend()
            try:
                until = time.monotonic() + 5
                while time.monotonic() < until:
                    engine.poll()
                    time.sleep(0.02)
            finally:
                slow.resume()
            made.wait(120)
        assert {outcome.status for outcome in made.outcomes} == {"done"}

    @pytest.mark.slow
    def test_workers_killed_at_random_lose_no_scan_and_write_nothing_twice(self, cluster, trained, tmp_path):
        source = write_scans(tmp_path / "in", 60, (60, 128, 128))
        written = []

        class Counting(MaskFolder):
            def write(self, opened, found):
                written.append(opened.target)
                return super().write(opened, found)

        over, kills, chance = threading.Event(), [0], random.Random(0)

        def kill() -> None:
            while not over.is_set() and kills[0] < 20:
                time.sleep(chance.uniform(0.3, 2.0))
                alive = cluster.worker_processes()
                if alive:
                    chance.choice(alive).kill()
                    kills[0] += 1

        killer = threading.Thread(target=kill)
        with contextlib.closing(Engine(address=cluster.address)) as engine:
            engine.start()
            poll_until(engine, lambda: engine.state == "ready")
            folder = Counting(tmp_path / "out", trained, {}, format_name=None)
            killer.start()
            try:
                made = FolderRun(Worker(engine, ALIKE), lambda: find_targets([source]), folder, lambda _: None)
                made.wait(900)
            finally:
                over.set()
                killer.join()
        assert kills[0] == 20, "the folder was done before the killer"
        assert made.error is None
        assert [outcome.error for outcome in made.outcomes if outcome.error is not None] == []
        assert len(masks(tmp_path / "out")) == 60
        assert len(written) == len(set(written)) == 60


class TestChangingOver:
    def test_there_and_back_again(self, cluster, open_session, trained, scan_and_truth):
        session = open_session(schema=SCHEMA, engine=Engine())
        session._worker._settings = ALIKE
        state = session.add_scan(scan_and_truth[0])
        session.models.use(trained)
        told = []
        session.computing.changed.connect(lambda: told.append(session.computing.in_words))
        session.computing.use(cluster.address)
        assert "Connecting" in session.computing.in_words
        session.proposals.begin()
        with pytest.raises(SessionError, match="stop it first"):
            session.computing.use(None)
        session.wait(SECONDS)
        assert state.annotation.labels.any()
        assert "2 workers" in session.computing.in_words
        assert any("2 workers" in words for words in told)
        labels = state.annotation.labels.copy()
        session.computing.use(None)
        assert session.computing.address is None
        np.testing.assert_array_equal(state.annotation.labels, labels)

    def test_a_cluster_that_goes_leaves_work_and_edits(self, open_session, trained, scan_and_truth, tmp_path):
        session = open_session(schema=SCHEMA, engine=Engine())
        session._worker._settings = ALIKE
        state = session.add_scan(scan_and_truth[0])
        session.models.use(trained)
        (tmp_path / "cluster").mkdir()
        with running(tmp_path / "cluster", ()) as own:
            session.computing.use(own.address)
            session.proposals.begin()
            session.wait(SECONDS)
            before = state.annotation.labels.copy()
            own.stop(own.scheduler)
            deadline = time.monotonic() + 60
            while "does not answer" not in session.computing.in_words and time.monotonic() < deadline:
                session.poll()
                time.sleep(0.05)
            session.heard.notices.clear()
            session.proposals.begin()
            session.wait(SECONDS)
            assert any("does not answer" in str(notice) for notice in session.heard.notices)
            np.testing.assert_array_equal(state.annotation.labels, before)
            session.computing.use(None)

    def test_an_address_that_is_refused_changes_nothing(self, session):
        with pytest.raises(ClusterError, match="not encrypted"):
            session.computing.use("tcp://gpu.hospital.org:8786")
        assert session.computing.address is None

    def test_a_trial_says_what_is_there(self, cluster):
        with contextlib.closing(Trial(cluster.address, insecure=False)) as trial:
            until(lambda: trial.answer is not None)
            assert trial.answer[0]
            assert "2 workers" in trial.answer[1]
        threads = [t for t in threading.enumerate() if t.name == "napari-unet-closing"]
        for thread in threads:
            thread.join(20)


def test_a_folder_from_the_session(computing, trained, tmp_path):
    source = write_scans(tmp_path / "in", 3)
    with pytest.raises(SessionError, match="no model"):
        computing.folder.begin(source, tmp_path / "out")
    computing.models.use(trained)
    with pytest.raises(SessionError, match="of their own"):
        computing.folder.begin(source, source)
    computing.folder.begin(source, tmp_path / "out")
    with pytest.raises(SessionError, match="is being masked"):
        computing.folder.begin(source, tmp_path / "out")
    computing.wait(SECONDS)
    assert len(masks(tmp_path / "out")) == 3
    assert computing.folder.run.progress.fraction == 1
    computing.folder.begin(source, tmp_path / "out")
    computing.folder.run.cancel()
    assert computing.folder.run.is_over


@pytest.mark.slow
def test_ten_thousand_queued_scans_take_no_more_memory_than_a_few(engine, trained, tmp_path):
    import psutil

    def tiny(path):
        noise = np.random.default_rng(int(path.stem)).normal(0, 5, (24, 24)).astype(np.float32)
        return Scan(noise, "yx", Geometry((1.0, 1.0)))

    folder = MaskFolder(tmp_path / "out", trained, {}, format_name="png", read=tiny)
    targets = [Target(tmp_path / f"{number}.png", Path()) for number in range(10_000)]
    engine = Borrowed(engine)
    made = FolderRun(Worker(engine, ALIKE), lambda: targets, folder, lambda _: None)
    memory = []
    for n in (300, 1000):
        poll_until(engine, lambda n=n: len(made.outcomes) >= n, 300)
        memory.append(psutil.Process().memory_info().rss)
        assert made.progress.fraction == pytest.approx(n / 10_000, abs=0.01)
    assert memory[1] - memory[0] < 32 * 2**20
    made.cancel()
    assert made.is_over
    poll_until(engine, lambda: not made.n_under_way, 20)
    assert len(table(tmp_path / "out")) == len(made.outcomes)


def test_the_session_closes_while_a_folder_is_masked(open_session, engine, trained, tmp_path):
    source = write_scans(tmp_path / "in", 6)
    session: Session = open_session(schema=SCHEMA, engine=Borrowed(engine))
    session.models.use(trained)
    session.folder.begin(source, tmp_path / "out")
    session.close()
    assert session.folder.run.is_over
