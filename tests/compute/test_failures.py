"""The engine when something is killed, does not stop, does not start, or is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from napari_unet.compute import local
from napari_unet.compute.engine import Engine
from napari_unet.domain.errors import EngineError
from tests.compute import jobs
from tests.compute.conftest import Heard, begin, finish, poll_until
from tests.compute.test_engine import processes

ROOT = Path(__file__).parents[2]


def gone(pids, seconds=20.0):
    """Whether all processes are gone within some time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        alive = [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]
        if not alive:
            return True
        time.sleep(0.05)
    return False


def test_a_killed_worker_is_one_sentence_and_the_next_job_works(engine, caplog):
    heard = begin(engine, jobs.stubborn, 60)
    queued = Heard()
    following = engine.submit(jobs.count, 3, **queued.callbacks)
    psutil.Process(heard.events[0]).kill()
    engine.wait(heard.job, 30)
    assert heard.job.state == "failed"
    (error,) = heard.errors
    assert type(error) is EngineError
    assert "\n" not in str(error)
    assert "signal 9" in caplog.text
    engine.wait(following, 60)
    assert queued.results == [3]
    assert finish(engine, jobs.environment).results[0]["torch_threads"] == 2


def test_a_job_that_does_not_stop_is_killed_and_the_other_lane_starts_again(engine, tmp_path):
    bystander = begin(engine, jobs.slow_once, str(tmp_path / "marker"), 60, lane="train")
    stubborn = begin(engine, jobs.stubborn, 60)
    stubborn.job.cancel()
    engine.wait(stubborn.job, 30)
    assert stubborn.job.state == "cancelled"
    assert (stubborn.cancelled, stubborn.errors, stubborn.results) == (1, [], [])
    assert gone(stubborn.events[:1])
    engine.wait(bystander.job, 60)
    assert bystander.results == ["again"]
    assert bystander.events[-3:] == [0, 1, 2]
    assert engine.state == "ready"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["distributed.Scheduler", "QuietNanny"])
def test_the_other_processes_are_replaced_too(engine, victim):
    heard = begin(engine, jobs.stubborn, 60)
    (process,) = [p for p in processes(engine) if victim in " ".join(p.cmdline())]
    process.kill()
    engine.wait(heard.job, 60)
    assert heard.job.state == "failed"
    assert isinstance(heard.errors[0], EngineError)
    assert finish(engine, jobs.count, 3).results == [3]
    assert len([p for p in processes(engine) if victim in " ".join(p.cmdline())]) == 1


def test_a_failed_start_is_told_then_a_busy_engine_closes_and_leaves_nothing(monkeypatch, caplog, tmp_path):
    threads = set(threading.enumerate())
    engine = Engine(threads=1)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")
        heard = finish(engine, jobs.count, 3)
        poll_until(engine, lambda: engine.state == "failed")
        assert "could not be started" in str(heard.errors[0])
        assert finish(engine, jobs.count, 3).job.state == "failed"
    assert "nowhere" in caplog.text
    engine.start()
    engine.start()
    engine.share("key", np.zeros(10))
    polite, stubborn = begin(engine, jobs.polite, str(tmp_path), lane="train"), begin(engine, jobs.stubborn, 60)
    queued = engine.submit(jobs.count, 3)
    pids, folder = [p.pid for p in processes(engine)], engine._place.folder.path
    engine.close(timeout=2.0)
    assert gone(pids, seconds=0.1)
    assert set(threading.enumerate()) <= threads
    assert not folder.exists()
    assert [h.state for h in (polite.job, stubborn.job, queued)] == ["cancelled"] * 3
    assert polite.cancelled == 0  # no callback after the end
    assert (tmp_path / "closed").exists()  # the polite one could close what it had open
    assert engine.state == "closed"
    engine.close()
    engine.poll()
    with pytest.raises(EngineError):
        engine.submit(jobs.count, 3)
    with pytest.raises(EngineError):
        engine.start()


def test_closing_before_and_during_the_start():
    Engine().close()
    threads = set(threading.enumerate())
    engine = Engine()
    engine.start()
    time.sleep(0.3)
    pids = [p.pid for p in processes(engine)]
    engine.close()
    for thread in set(threading.enumerate()) - threads:
        thread.join(20)
    assert set(threading.enumerate()) <= threads
    assert gone(pids)
    assert processes(engine) == []
    assert not engine._place.folder.path.exists()


UNGUARDED = """
from napari_unet.compute.engine import Engine

def job(n):
    for i in range(n):
        yield i
    return "made here"

print("started once", flush=True)
engine = Engine(threads=1)
job = engine.submit(job, 3, on_event=print, on_result=print, on_error=print)
engine.wait(job, 60)
print(engine._place.folder.path, flush=True)
{end}
"""


def test_an_unguarded_script_that_never_closes(tmp_path):
    """As napari users write them: run once, not once per process; and nothing stays behind."""
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED.format(end=""))
    (tmp_path / "random.py").write_text("raise SystemExit('a file among the scans was imported')")
    ran = subprocess.run(
        [sys.executable, "-P", script], capture_output=True, text=True, timeout=90, cwd=tmp_path, check=False
    )
    assert ran.stderr == ""
    lines = ran.stdout.split("\n")
    assert lines[:5] == ["started once", "0", "1", "2", "made here"]
    assert not Path(lines[5]).exists()


def test_killing_the_program_ends_the_processes_and_removes_the_scans(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED.format(end="import time; time.sleep(600)"))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as program:
        lines = [program.stdout.readline().strip() for _ in range(6)]
        pids = [p.pid for p in psutil.Process(program.pid).children(recursive=True)]
        assert len(pids) >= 3
        program.send_signal(signal.SIGKILL)
    assert gone(pids)
    deadline = time.monotonic() + 20
    while Path(lines[5]).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(lines[5]).exists()


@pytest.mark.slow
def test_where_dask_has_no_cluster_of_subprocesses(monkeypatch):
    """The way of Windows, walked on this system."""
    monkeypatch.setattr(local, "sys", SimpleNamespace(platform="win32", path=sys.path))
    engine = Engine(threads=1)
    first = finish(engine, jobs.environment).results[0]
    assert first["torch_threads"] == 1
    assert finish(engine, jobs.kill_self).job.state == "failed"
    assert finish(engine, jobs.environment).results[0]["pid"] != first["pid"]
    stubborn = begin(engine, jobs.stubborn, 60)
    engine.close()
    assert gone(stubborn.events)
    assert not engine._place.folder.path.exists()
