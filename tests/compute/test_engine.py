"""The engine with real Dask processes: what goes right."""

from __future__ import annotations

import mmap
import socket
import ssl
import stat
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from napari_unet.compute.device import resolving
from napari_unet.compute.engine import Engine
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import EngineError, TrainingError
from napari_unet.domain.progress import Progress
from napari_unet.domain.settings import ComputeSettings
from tests.compute import jobs
from tests.compute.conftest import Heard, begin, finish, poll_until


def processes(engine):
    """The engine's processes: scheduler, nanny, and what they started."""
    mine = [
        child for child in psutil.Process().children() if str(engine._place.folder.path) in " ".join(child.cmdline())
    ]
    return [*mine, *(below for child in mine for below in child.children(recursive=True))]


def test_events_arrive_complete_and_in_order(engine):
    heard = finish(engine, jobs.count, 2000)
    assert heard.events == [Progress(i / 2000) for i in range(2000)]
    assert heard.results == [2000]
    assert heard.errors == []
    assert heard.job.state == "done"
    assert engine.state == "ready"


def test_large_events_and_results_keep_their_place(engine):
    heard = finish(engine, jobs.mixed, 30)
    assert [event.index for event in heard.events] == list(range(30))
    assert all((event.labels == event.index).all() for event in heard.events)
    assert heard.events[3].labels.nbytes > 2**20
    np.testing.assert_array_equal(heard.results[0], np.arange(500_000))
    assert list(engine._place.folder.messages.iterdir()) == []


def test_each_job_gets_its_threads(engine):
    """Dask gives its workers one OpenMP thread; half the speed was lost to that once."""
    assert finish(engine, jobs.environment).results[0]["torch_threads"] == 2
    one = ResolvedCompute("cpu", "float32", 1)
    assert finish(engine, jobs.with_settings, one).results == [1]
    assert finish(engine, jobs.with_settings, resolved=ResolvedCompute("cpu", "float32", 2)).results == [2]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems' allocators have no such threshold")
def test_freed_memory_is_kept_for_the_next_tensor(engine):
    """Dask lets its workers give it back at once; networks took twice as long then."""
    pages = 4 * 2**20 // mmap.PAGESIZE
    assert finish(engine, jobs.page_faults, 4, 50).results[0] < 5 * pages


def test_callbacks_run_on_the_polling_thread_only(engine):
    threads = []
    heard = Heard()
    callbacks = {name: lambda *_: threads.append(threading.get_ident()) for name in heard.callbacks}
    job = engine.submit(jobs.count, 5, **callbacks)
    time.sleep(0.5)
    assert threads == []
    engine.wait(job, 30)
    assert threads == [threading.get_ident()] * 6


def test_what_a_callback_raises_is_logged_and_loses_nothing(engine, caplog):
    results = []

    def explode(event):
        raise RuntimeError("a slip in the window")

    job = engine.submit(jobs.count, 3, on_event=explode, on_result=results.append)
    engine.wait(job, 30)
    assert results == [3]
    assert [str(record.exc_info[1]) for record in caplog.records] == ["a slip in the window"] * 3


def test_wake_is_called_once_per_batch(tmp_path):
    calls = []
    with_wake = Engine(wake=lambda: calls.append(threading.get_ident()))
    job = with_wake.submit(lambda: threading.Lock(), threading.Lock())  # cannot be pickled: queued at once
    with_wake.submit(lambda: None, threading.Lock())
    assert len(calls) == 1
    with_wake.poll()
    assert job.state == "failed"
    with_wake.submit(lambda: None, threading.Lock())
    assert len(calls) == 2
    with_wake.close()


def test_a_shared_array_is_stored_once_and_mapped_read_only(engine):
    array = np.arange(1000, dtype=np.int16).reshape(10, 10, 10)
    shared = engine.share("hash-1/with odd:characters", array)
    assert engine.share("hash-1/with odd:characters", np.zeros(3)) is shared
    assert (shared.shape, shared.dtype) == ((10, 10, 10), "<i2")
    assert finish(engine, jobs.total, shared).results == [(499500, "memmap", False)]
    np.testing.assert_array_equal(shared.open(), array)
    folder = engine._place.folder.path
    assert shared.path.parent == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    engine.forget(shared.key)
    assert not shared.path.exists()
    (error,) = finish(engine, jobs.total, shared).errors
    assert isinstance(error, EngineError)
    assert "disk space" in str(error)


def test_a_job_waits_for_the_array_it_is_given(engine):
    shared = engine.share("large", np.ones(40_000_000, np.uint8))
    assert finish(engine, jobs.total, shared).results == [(40_000_000, "memmap", False)]
    engine.forget("large")


def test_arguments_are_taken_as_they_are_when_submitted(engine):
    values = np.ones(100_000)
    heard = Heard()
    job = engine.submit(jobs.total, _Array(values), **heard.callbacks)
    values[:] = 0
    engine.wait(job, 30)
    assert heard.results[0][0] == 100_000


class _Array:
    def __init__(self, values):
        self.values = values

    def open(self):
        return self.values


def test_cancelling_closes_the_generator(engine, tmp_path):
    heard = begin(engine, jobs.polite, str(tmp_path))
    assert heard.job.state == "running"
    heard.job.cancel()
    n = len(heard.events)
    engine.wait(heard.job, 30)
    assert heard.job.state == "cancelled"
    assert (heard.cancelled, heard.results, heard.errors, len(heard.events)) == (1, [], [], n)
    assert (tmp_path / "closed").read_text() == "closed"
    assert finish(engine, jobs.environment).results[0]["pid"] == heard.events[0]  # the process lives on


def test_cancelling_a_queued_job_and_one_that_is_over(engine, tmp_path):
    running = begin(engine, jobs.polite, str(tmp_path))
    queued = Heard()
    waiting = engine.submit(jobs.count, 3, **queued.callbacks)
    waiting.cancel()
    engine.wait(waiting, 30)
    assert waiting.state == "cancelled"
    assert (queued.cancelled, queued.events) == (1, [])
    running.job.cancel()
    engine.wait(running.job, 30)
    running.job.cancel()
    engine.poll()
    assert running.cancelled == 1


def test_training_pauses_while_a_quick_job_runs(engine):
    training = begin(engine, jobs.steps, 100_000, 0.005, lane="train")
    quick = finish(engine, jobs.busy, 0.5)
    start, stop = quick.results[0]
    poll_until(engine, lambda: training.events[-1] > stop + 0.1)  # and it goes on afterwards
    training.job.cancel()
    engine.wait(training.job, 30)
    assert training.job.state == "cancelled"
    # The step under way when the quick job began is finished, with the one yield that follows it.
    assert sum(start < t < stop for t in training.events) <= 2
    assert sum(t < start for t in training.events) > 0


def test_training_goes_on_after_a_quick_job_failed_and_can_be_cancelled_while_paused(engine, tmp_path):
    training = begin(engine, jobs.steps, 100_000, 0.005, lane="train")
    assert len(finish(engine, jobs.busy, 0.1, error=True).errors) == 1
    n = len(training.events)
    poll_until(engine, lambda: len(training.events) > n + 5)
    quick = begin(engine, jobs.polite, str(tmp_path))
    training.job.cancel()
    engine.wait(training.job, 30)
    assert quick.job.state == "running"
    quick.job.cancel()
    engine.wait(quick.job, 30)


@pytest.mark.parametrize("error", [TrainingError("Nothing is annotated: paint something."), EngineError("Too bad.")])
def test_named_errors_pass_unchanged(engine, error):
    heard = finish(engine, jobs.fail, error)
    assert type(heard.errors[0]) is type(error)
    assert str(heard.errors[0]) == str(error)
    assert heard.job.state == "failed"


def test_other_errors_become_one_sentence_and_a_traceback_in_the_log(engine, caplog):
    heard = finish(engine, jobs.fail, FileNotFoundError("/home/someone/Doe^John.dcm"))
    (error,) = heard.errors
    assert type(error) is EngineError
    assert "FileNotFoundError" in str(error)
    assert "\n" not in str(error)
    assert "Doe" not in str(error)
    assert "in fail" in caplog.text


def test_errors_that_cannot_travel_arrive_by_kind_and_message(engine):
    (error,) = finish(engine, jobs.fail_unpicklable, "lock").errors
    assert type(error) is TrainingError
    assert str(error) == "The loss is not a number."
    (error,) = finish(engine, jobs.fail_unpicklable, "two").errors
    assert type(error) is TrainingError
    assert str(error) == "Two things went wrong."
    (error,) = finish(engine, jobs.fail_unpicklable, "other").errors
    assert "ValueError" in str(error)


@pytest.mark.parametrize("job", [jobs.yields_lock, jobs.returns_lock, jobs.no_generator, jobs.exits])
def test_odd_jobs_fail_and_harm_nobody(engine, job):
    (error,) = finish(engine, job).errors
    assert type(error) is EngineError
    assert finish(engine, jobs.count, 2).results == [2]


def test_what_cannot_be_sent_is_an_error_at_the_next_poll(engine):
    heard = Heard()
    job = engine.submit(jobs.count, threading.Lock(), **heard.callbacks)
    assert heard.errors == []
    engine.poll()
    assert job.state == "failed"
    assert isinstance(heard.errors[0], EngineError)


def test_waiting_has_a_limit(engine, tmp_path):
    heard = begin(engine, jobs.polite, str(tmp_path))
    with pytest.raises(TimeoutError):
        engine.wait(heard.job, 0.05)
    heard.job.cancel()
    engine.wait(heard.job, 30)


def test_the_device_is_decided_in_the_computing_process(engine):
    heard = finish(engine, resolving, ComputeSettings(device="cpu", precision="float32", threads=1))
    assert heard.results == [ResolvedCompute("cpu", "float32", 1)]


def turns_strangers_away(address):
    """Whether a client without a certificate of the session gets no word."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection(address, timeout=5) as raw, context.wrap_socket(raw) as stranger:
            stranger.sendall(b"\0" * 64)
            return not stranger.recv(1)
    except ssl.SSLError:
        return True


def test_only_loopback_listens_and_only_for_this_sessions_key(engine):
    finish(engine, jobs.count, 1)
    found = processes(engine)
    listening = [c.laddr for process in found for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert len(listening) == 3  # scheduler, nanny, worker; no web server
    assert all(turns_strangers_away(address) for address in listening)
    # The keys are files that nobody else can reach, never words on a command line.
    assert not any("PRIVATE KEY" in " ".join(process.cmdline()) for process in found)
