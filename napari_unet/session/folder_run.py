"""A folder of scans in the background: a thread here reads and writes, the engine predicts."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from napari_unet.compute.engine import Job
from napari_unet.compute.jobs import ScanHandle, predict_whole
from napari_unet.compute.predictor import Prediction
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ClusterError, EngineError, ExportError, NapariUnetError, ScanError
from napari_unet.domain.progress import Progress
from napari_unet.session.cohort import TABLE
from napari_unet.session.predicting import (
    MaskFolder,
    OpenedTarget,
    Outcome,
    Target,
    failed,
    require_own_names,
    write_table,
)
from napari_unet.session.worker import Worker, wait_until

logger = logging.getLogger(__name__)

#: A scan whose computing process was lost is tried again after the others, so many times.
_MORE_TRIES = 1
_SECONDS_BETWEEN_TABLES = 5.0


class FolderRun:
    """Masks for many scans; what an earlier run made is left, and the failure of one scan is not the end.

    No more scans are held in memory than the engine computes at the same time, and one.

    Parameters
    ----------
    worker : Worker
    targets : sequence of Target
    folder : MaskFolder
        Where the masks go, and a table of the scans every few seconds, where there are several.
    moved : callable
        Called with each outcome, and at the end with None: then :attr:`error` says whether it came to its end.
    keep_going : bool
        Whether the failure of one scan is not the end.

    Attributes
    ----------
    outcomes : list of Outcome
        In the order in which they came.
    error : NapariUnetError or None
        What ended it before its end.

    Raises
    ------
    ExportError
        Two scans would be written to one file; nothing has been written.
    """

    def __init__(
        self,
        worker: Worker,
        targets: Sequence[Target],
        folder: MaskFolder,
        moved: Callable[[Outcome | None], None],
        *,
        keep_going: bool = True,
    ) -> None:
        require_own_names(targets)
        self.targets = tuple(targets)
        self.outcomes: list[Outcome] = []
        self.error: NapariUnetError | None = None
        self._worker, self._engine, self._folder, self._moved = worker, worker.engine, folder, moved
        self._keep_going = keep_going
        self._queue = deque(targets)
        self._tries: dict[Target, int] = {}
        self._reading = False
        self._jobs: dict[Target, Job] = {}
        self._open = 0  # scans in memory: read, predicted or being written
        self._shared = Counter[str]()  # two files may hold the same voxels
        self._over = False
        self._begun = self._table_written = time.monotonic()
        # One thread, so that a disk is read and written in turns, and masks in the order in which they come.
        self._files = ThreadPoolExecutor(1, thread_name_prefix="napari-unet-files")
        worker.when_resolved(self._begin, self._end)

    @property
    def is_over(self) -> bool:
        """Whether it is done, has failed or was cancelled."""
        return self._over

    @property
    def is_whole(self) -> bool:
        """Whether every scan has its outcome."""
        return len(self.outcomes) == len(self.targets)

    @property
    def n_under_way(self) -> int:
        """How many scans the engine has, those included that are yet to stop."""
        return sum(not job.is_over for job in self._jobs.values())

    @property
    def progress(self) -> Progress:
        """How many scans have their outcome, and the seconds that those of now leave to expect."""
        n_left = len(self.targets) - len(self.outcomes)
        made = [outcome for outcome in self.outcomes if not outcome.done_before]
        each = (time.monotonic() - self._begun) / len(made) if made else None
        return Progress(len(self.outcomes) / len(self.targets), None if each is None else n_left * each)

    def in_words(self) -> str:
        """Return what became of the scans so far, in a sentence."""
        n = {status: sum(o.status == status for o in self.outcomes) for status in ("done", "done before", "failed")}
        parts = [f"{n['done']} masked", f"{n['done before']} masked before" if n["done before"] else ""]
        parts.append(f"{n['failed']} failed (the reasons are in {TABLE})" if n["failed"] else "")
        total = len(self.targets)
        head = f"{len(self.outcomes)} of {total} scans" if len(self.outcomes) < total else f"All {total} scans"
        return f"{head}: {', '.join(filter(None, parts))}."

    def cancel(self) -> None:
        """Stop; what has been written stays, and the next run goes on from there."""
        self._end(None)

    def wait(self, timeout: float | None = None) -> None:
        """Poll until it is over."""
        wait_until(lambda: self._over, self._engine, timeout, "the folder")

    def _begin(self, compute: ResolvedCompute) -> None:
        self._compute = compute
        self._checkpoint = self._worker.share_checkpoint(self._folder.checkpoint)
        self._feed()

    def _feed(self) -> None:
        """Read the next scan, if one more may be in memory."""
        if self._over or self._reading or self._open > self._engine.width:
            return
        if self._queue:
            self._reading = True
            self._open += 1
            target = self._queue.popleft()
            self._behind(partial(self._folder.open, target), partial(self._opened, target))
        elif not self._open:
            self._end(None)

    def _behind(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Do work on the thread for files, and then something with its result on the caller's."""

        def pass_on(done: Future[Any]) -> None:
            if not done.cancelled():
                self._engine.call(partial(self._take, done, then))

        self._files.submit(work).add_done_callback(pass_on)

    def _take(self, done: Future[Any], then: Callable[[Any], None]) -> None:
        if self._over:
            return
        error = done.exception()
        if error is None:
            then(done.result())
        else:
            logger.error("A file could not be read or written", exc_info=error)
            self._end(ExportError("Something unexpected happened to a file: see the log for the details."))

    def _opened(self, target: Target, opened: OpenedTarget | Outcome) -> None:
        self._reading = False
        if isinstance(opened, Outcome):
            self._close(opened)
        elif opened.scan.is_lazy:
            error = ScanError(
                "This scan is larger than the memory: mask it by itself, with predict on the command line."
            )
            self._close(failed(target, error, opened.started))
        else:
            scan = opened.scan
            voxels = self._engine.share(_key(opened), scan.data)
            self._shared[_key(opened)] += 1
            self._jobs[target] = self._engine.submit(
                predict_whole,
                ScanHandle.of(scan, voxels),
                self._checkpoint,
                self._compute,
                self._folder.values,
                self._folder.uncertainty,
                lane="folder",
                on_result=partial(self._predicted, opened),
                on_error=partial(self._not_predicted, opened),
            )
            self._feed()

    def _predicted(self, opened: OpenedTarget, found: Prediction) -> None:
        if self._over:
            return
        self._let_go(opened)
        self._behind(partial(self._folder.write, opened, found), self._close)

    def _not_predicted(self, opened: OpenedTarget, error: NapariUnetError) -> None:
        if self._over:
            return
        self._let_go(opened)
        target = opened.target
        if isinstance(error, ClusterError):
            self._end(error)
        elif isinstance(error, EngineError) and self._tries.get(target, 0) < _MORE_TRIES:
            self._tries[target] = self._tries.get(target, 0) + 1
            self._queue.append(target)
            self._open -= 1
            self._feed()
        else:
            self._close(failed(target, error, opened.started))

    def _let_go(self, opened: OpenedTarget) -> None:
        del self._jobs[opened.target]
        self._shared[_key(opened)] -= 1
        if not self._shared[_key(opened)]:
            self._engine.forget(_key(opened))

    def _close(self, outcome: Outcome) -> None:
        """Take down what became of a scan; go on."""
        self._open -= 1
        self.outcomes.append(outcome)
        self._moved(outcome)
        if outcome.error is not None and not self._keep_going:
            self._end(outcome.error)
        elif len(self.targets) > 1 and time.monotonic() - self._table_written > _SECONDS_BETWEEN_TABLES:
            self._table_written = time.monotonic()
            self._behind(self._write_table, lambda _: None)
        self._feed()

    def _write_table(self) -> None:
        write_table(self._folder.path, self.targets, list(self.outcomes))

    def _end(self, error: NapariUnetError | None) -> None:
        if self._over:
            return
        self._over, self.error = True, error
        for job in self._jobs.values():
            job.cancel()
        self._files.shutdown(wait=False, cancel_futures=True)
        if len(self.targets) > 1:
            try:
                self._write_table()
            except ExportError as problem:
                self.error = self.error or problem
        self._moved(None)


def _key(opened: OpenedTarget) -> str:
    return f"{opened.scan.fingerprint}-of-a-folder"
