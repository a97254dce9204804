"""The engine on a real Dask cluster over TLS: what goes right, what is refused, and what is lost."""

from __future__ import annotations

import contextlib
import sys
import time

import numpy as np
import pytest

from napari_unet import __version__
from napari_unet.compute.cluster import require_safe
from napari_unet.compute.device import resolving
from napari_unet.compute.engine import Engine
from napari_unet.domain.errors import ClusterError, EngineError, TrainingError
from napari_unet.domain.progress import Progress
from napari_unet.domain.settings import ComputeSettings
from tests.compute import jobs
from tests.compute.cluster import dask_configured, running, until
from tests.compute.conftest import begin, finish, poll_until


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


class TestJobs:
    def test_events_and_results_arrive_complete_and_in_order(self, remote):
        heard = finish(remote, jobs.count, 500)
        assert heard.events == [Progress(i / 500) for i in range(500)]
        assert (heard.results, heard.errors) == ([500], [])

    def test_large_ones_keep_their_place(self, remote):
        heard = finish(remote, jobs.mixed, 7)
        assert [event.index for event in heard.events] == list(range(7))
        assert all((event.labels == event.index).all() for event in heard.events)
        np.testing.assert_array_equal(heard.results[0], np.arange(500_000))

    def test_an_array_is_handed_over_once_per_worker(self, remote):
        array = np.random.default_rng(0).integers(0, 9, (300, 4000))
        shared = remote.share("hash of the content", array)
        again = remote.share("hash of the content", array)
        places = [finish(remote, jobs.where_an_array_lies, each).results[0] for each in (shared, again, shared)]
        assert {total for *_, total in places} == {int(array.sum())}
        assert len({place for *place, _ in places for place in [tuple(place)]}) == len({pid for pid, *_ in places})
        total, _, writable = finish(remote, jobs.total, shared).results[0]
        assert (total, writable) == (int(array.sum()), False)
        remote.forget("hash of the content")

    def test_errors_come_as_sentences(self, remote):
        heard = finish(remote, jobs.fail, TrainingError("The loss is not a number."))
        assert isinstance(heard.errors[0], TrainingError)
        assert "unexpectedly (ValueError)" in str(finish(remote, jobs.fail, ValueError("/home/a patient")).errors[0])

    def test_a_cancelled_job_stops_over_there(self, remote, tmp_path):
        heard = begin(remote, jobs.polite, str(tmp_path))
        heard.job.cancel()
        remote.wait(heard.job, 20)
        assert heard.cancelled == 1
        poll_until(remote, lambda: (tmp_path / "closed").exists())

    def test_one_that_does_not_stop_is_nobodys_to_kill(self, remote):
        """The worker serves others too: the person waits for no more than two seconds, and it ends by itself."""
        heard = begin(remote, jobs.stubborn, 4)
        started = time.monotonic()
        heard.job.cancel()
        remote.wait(heard.job, 20)
        assert time.monotonic() - started < 3.5
        assert heard.cancelled == 1
        assert finish(remote, jobs.count, 3).results == [3]

    def test_a_large_call_does_not_pass_through_the_schedulers_tables(self, remote):
        total = finish(remote, jobs.total_of, np.arange(1_000_000)).results[0]
        assert total == 499_999_500_000

    def test_what_there_is_to_compute_with_is_asked_over_there(self, remote):
        compute = finish(remote, resolving, ComputeSettings(device="cpu")).results[0]
        assert compute.device == "cpu"
        assert compute.threads >= 1

    def test_a_program_that_is_gone_leaves_no_job_behind(self, cluster, tmp_path):
        engine = Engine(address=cluster.address)
        begin(engine, jobs.polite, str(tmp_path))
        engine.close()
        until(lambda: (tmp_path / "closed").exists())
        assert (tmp_path / "closed").exists()

    def test_it_says_what_there_is(self, remote, cluster):
        words = remote.cluster.in_words()
        assert cluster.address in words
        assert "2 workers, no GPU" in words


class TestLosses:
    def test_a_job_whose_worker_is_killed_is_run_once_more(self, remote, tmp_path):
        heard = finish(remote, jobs.kill_self_once, str(tmp_path / "was here"))
        assert heard.errors == []
        assert heard.results == ["done by another"]
        # Its events began anew.
        assert heard.events == ["first", "first", "second"]

    def test_twice_is_enough(self, remote):
        heard = finish(remote, jobs.kill_self)
        assert isinstance(heard.errors[0], EngineError)
        assert "twice" in str(heard.errors[0])
        poll_until(remote, lambda: finish(remote, jobs.count, 2).results == [2])

    def test_arrays_are_handed_over_again_when_their_worker_is_killed(self, remote, cluster):
        array = np.arange(100_000)
        shared = remote.share("lost with its worker", array)
        assert finish(remote, jobs.total, shared).results[0][0] == array.sum()
        for process in cluster.worker_processes():
            process.kill()
        assert finish(remote, jobs.total, shared).results[0][0] == array.sum()

    @pytest.mark.slow
    def test_the_scheduler_goes_and_comes_back(self, tmp_path):
        with running(tmp_path, ()) as own, contextlib.closing(Engine(address=own.address)) as engine:
            heard = begin(engine, jobs.polite, str(tmp_path / "nowhere"))
            own.stop(own.scheduler)
            engine.wait(heard.job, 60)
            assert isinstance(heard.errors[0], ClusterError)
            assert "does not answer" in str(heard.errors[0])
            poll_until(engine, lambda: engine.state == "away")
            refused = finish(engine, jobs.count, 3)
            assert isinstance(refused.errors[0], ClusterError)
            own.start_scheduler()
            own.start_worker()
            poll_until(engine, lambda: engine.state == "ready")
            assert engine.trouble is None
            assert finish(engine, jobs.count, 3).results == [3]


class TestResources:
    def test_jobs_go_where_the_gpus_are(self, tmp_path):
        workers = ("--resources", "GPU=1", "--name", "with"), ("--name", "without")
        with running(tmp_path, *workers) as own, contextlib.closing(Engine(address=own.address)) as engine:
            own.until_there(2)
            names = {finish(engine, jobs.name_of_the_worker).results[0] for _ in range(6)}
        assert names == {"with"}


@pytest.fixture
def impatient(monkeypatch):
    """Seconds that nobody needs to wait for, where it is known that nothing comes."""
    monkeypatch.setattr("napari_unet.compute.cluster._CONNECT_SECONDS", 2.0)


@pytest.fixture
def impatient_for_workers(monkeypatch):
    """As above, where there is a scheduler: to connect to it may take its time on a machine that has more to do."""
    monkeypatch.setattr("napari_unet.compute.cluster._WORKER_SECONDS", 1.0)


class TestRefusals:
    @pytest.mark.parametrize("address", ["localhost:8786", "http://localhost:8786", "tls://", "tls://host", "host"])
    def test_what_is_no_address(self, address):
        with pytest.raises(ClusterError, match="no address"):
            Engine(address=address)

    @pytest.mark.parametrize("host", ["10.0.0.3", "gpu.hospital.org", "0.0.0.0", "[2001:db8::1]"])
    def test_a_plain_connection_over_a_network_only_where_it_is_allowed(self, host):
        with pytest.raises(ClusterError, match="not encrypted"):
            require_safe(f"tcp://{host}:8786", insecure=False)
        assert require_safe(f"tcp://{host}:8786", insecure=True)

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
    def test_on_this_computer_it_is(self, host):
        assert require_safe(f" tcp://{host}:8786", insecure=False) == f"tcp://{host}:8786"

    def test_nobody_there(self, impatient):
        with contextlib.closing(Engine(address="tcp://127.0.0.1:1")) as engine:
            heard = finish(engine, jobs.count, 3)
            assert isinstance(heard.errors[0], ClusterError)
            assert "does not answer" in str(heard.errors[0])
            poll_until(engine, lambda: engine.state == "failed")
            assert "does not answer" in str(finish(engine, jobs.count, 3).errors[0])

    def test_no_certificates(self, cluster):
        with dask_configured(dict.fromkeys(cluster.tls, "")), contextlib.closing(Engine(address=cluster.address)) as e:
            assert "names no TLS certificates" in str(finish(e, jobs.count, 3).errors[0])

    def test_a_certificate_that_is_not_there(self, cluster):
        gone = dict.fromkeys(cluster.tls, "/nowhere/key")
        with dask_configured(gone), contextlib.closing(Engine(address=cluster.address)) as engine:
            assert "is not there" in str(finish(engine, jobs.count, 3).errors[0])

    def test_somebody_elses_certificate(self, cluster, tmp_path):
        from tests.compute.cluster import certificates

        with dask_configured(certificates(tmp_path)), contextlib.closing(Engine(address=cluster.address)) as engine:
            assert "do not go together" in str(finish(engine, jobs.count, 3).errors[0])

    def test_a_cluster_without_workers(self, impatient_for_workers, tmp_path):
        with running(tmp_path) as own, contextlib.closing(Engine(address=own.address)) as engine:
            assert "has no workers" in str(finish(engine, jobs.count, 3).errors[0])

    def test_workers_of_another_version_are_refused_with_both(self, tmp_path):
        (tmp_path / "sitecustomize.py").write_text("import napari_unet\nnapari_unet.__version__ = '9.9.9'\n")
        path = {"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"}
        with running(tmp_path, (), environment=path) as own, contextlib.closing(Engine(address=own.address)) as engine:
            error = str(finish(engine, jobs.count, 3).errors[0])
        assert "9.9.9" in error
        assert __version__ in error
