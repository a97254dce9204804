"""A folder of scans in the background: a thread here reads and writes, the engine predicts."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from napari_unet.compute.engine import Job
from napari_unet.compute.jobs import ScanHandle, predict_whole
from napari_unet.compute.predictor import Prediction
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import (
    ClusterError,
    EngineError,
    ExportError,
    NapariUnetError,
    ScanError,
    traceback_without_messages,
)
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
    find : callable
        Returns the scans; called beside the caller's thread, since a folder may take long to search.
    folder : MaskFolder
        Where the masks go.
    moved : callable
        Called with each outcome, and at the end with None: then :attr:`error` says whether it came to its end.
    keep_going : bool
        Whether the failure of one scan is not the end.
    table : bool
        Write a table of the scans to the folder, every few seconds and in the end.

    Attributes
    ----------
    targets : tuple of Target
        Empty until they were found.
    outcomes : list of Outcome
        In the order in which they came.
    error : NapariUnetError or None
        What ended it before its end.
    """

    def __init__(
        self,
        worker: Worker,
        find: Callable[[], Sequence[Target]],
        folder: MaskFolder,
        moved: Callable[[Outcome | None], None],
        *,
        keep_going: bool = True,
        table: bool = True,
    ) -> None:
        self._find, self._has_table = find, table
        self.targets: tuple[Target, ...] = ()
        self.outcomes: list[Outcome] = []
        self.error: NapariUnetError | None = None
        self._worker, self._engine, self._folder, self._moved = worker, worker.engine, folder, moved
        self._keep_going = keep_going
        self._queue: deque[Target] = deque()
        self._tries: dict[Target, int] = {}
        self._reading = False
        self._jobs: dict[Target, Job] = {}
        self._open = 0  # scans in memory: read, predicted or being written
        self._shared = Counter[str]()  # two files may hold the same voxels
        self._token = uuid.uuid4().hex  # another run may have the same scans
        self._tabling = threading.Lock()
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
        return bool(self.targets) and len(self.outcomes) == len(self.targets)

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
        done = len(self.outcomes) / len(self.targets) if self.targets else 0.0
        return Progress(done, None if each is None else n_left * each)

    def in_words(self) -> str:
        """Return what became of the scans so far, in a sentence."""
        n = {status: sum(o.status == status for o in self.outcomes) for status in ("done", "done before", "failed")}
        parts = [f"{n['done']} masked", f"{n['done before']} masked before" if n["done before"] else ""]
        parts.append(f"{n['failed']} failed (the reasons are in {TABLE})" if n["failed"] else "")
        total = len(self.targets)
        if not total:
            return "Looking for scans..."
        head = f"{len(self.outcomes)} of {total} scans" if len(self.outcomes) < total else f"All {total} scans"
        return f"{head}: {', '.join(filter(None, parts))}."

    def cancel(self) -> None:
        """Stop; what has been written stays, and the next run goes on from there."""
        self._end(None)

    def wait(self, timeout: float | None = None) -> None:
        """Poll until it is over."""
        wait_until(lambda: self._over, self._engine, timeout, "the folder")

    def _begin(self, compute: ResolvedCompute) -> None:
        if self._over:
            return
        self._compute = compute
        self._checkpoint = self._worker.share_checkpoint(self._folder.checkpoint)
        self._behind(self._look, self._found, self._end)

    def _look(self) -> tuple[Target, ...]:
        targets = tuple(self._find())
        require_own_names(targets)
        return targets

    def _found(self, targets: tuple[Target, ...]) -> None:
        self.targets, self._queue = targets, deque(targets)
        self._feed()

    def _feed(self) -> None:
        """Read the next scan, if one more may be in memory."""
        if self._over or self._reading or self._open > self._engine.width:
            return
        if self._queue:
            self._reading = True
            self._open += 1
            target = self._queue.popleft()
            read, opened = partial(self._folder.open, target), partial(self._opened, target)
            self._behind(read, opened, partial(self._not_read, target, time.monotonic()))
        elif not self._open:
            self._end(None)

    def _behind(
        self, work: Callable[[], Any], then: Callable[[Any], object], fail: Callable[[NapariUnetError], object]
    ) -> None:
        """Do work on the thread for files, and then something with its result, or its error, on the caller's."""

        def pass_on(done: Future[Any]) -> None:
            if not done.cancelled():
                self._engine.call(partial(self._take, done, then, fail))

        self._files.submit(work).add_done_callback(pass_on)

    def _take(
        self, done: Future[Any], then: Callable[[Any], object], fail: Callable[[NapariUnetError], object]
    ) -> None:
        if self._over:
            return
        error = done.exception()
        if error is None:
            then(done.result())
        elif isinstance(error, NapariUnetError):
            fail(error)
        else:
            logger.error("A file could not be read or written:\n%s", traceback_without_messages(error))
            kind = (
                "There is not enough memory for it"
                if isinstance(error, MemoryError)
                else "Something unexpected happened"
            )
            fail(ExportError(f"{kind} ({type(error).__name__}): see the log for the details."))

    def _not_read(self, target: Target, started: float, error: NapariUnetError) -> None:
        self._reading = False
        self._close(failed(target, error, started))

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
            voxels = self._engine.share(self._key(opened), scan.data)
            self._shared[self._key(opened)] += 1
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
                on_cancelled=partial(self._let_go, opened),
            )
            self._feed()

    def _predicted(self, opened: OpenedTarget, found: Prediction) -> None:
        self._let_go(opened)
        if self._over:
            return
        fail = partial(self._not_written, opened)
        self._behind(partial(self._folder.write, opened, found), self._close, fail)

    def _not_written(self, opened: OpenedTarget, error: NapariUnetError) -> None:
        self._close(failed(opened.target, error, opened.started))

    def _not_predicted(self, opened: OpenedTarget, error: NapariUnetError) -> None:
        self._let_go(opened)
        if self._over:
            return
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

    def _key(self, opened: OpenedTarget) -> str:
        return f"{opened.scan.fingerprint}-{self._token}"

    def _let_go(self, opened: OpenedTarget) -> None:
        del self._jobs[opened.target]
        self._shared[self._key(opened)] -= 1
        if not self._shared[self._key(opened)]:
            self._engine.forget(self._key(opened))

    def _close(self, outcome: Outcome) -> None:
        """Take down what became of a scan; go on."""
        self._open -= 1
        self.outcomes.append(outcome)
        try:
            self._moved(outcome)
        finally:  # whoever listens does not hold up the rest
            if outcome.error is not None and not self._keep_going:
                self._end(outcome.error)
            elif self._has_table and time.monotonic() - self._table_written > _SECONDS_BETWEEN_TABLES:
                self._table_written = time.monotonic()
                # One that is open in another program is written later.
                self._behind(self._write_table, _nothing, _nothing)
            self._feed()

    def _write_table(self) -> None:
        with self._tabling:
            write_table(self._folder.path, self.targets, list(self.outcomes))

    def _end(self, error: NapariUnetError | None) -> None:
        if self._over:
            return
        self._over, self.error = True, error
        for job in self._jobs.values():
            job.cancel()
        self._files.shutdown(wait=False, cancel_futures=True)
        if self._has_table:
            try:
                self._write_table()
            except ExportError as problem:
                self.error = self.error or problem
        self._moved(None)


def _nothing(_: object) -> None:
    """Take no notice."""
