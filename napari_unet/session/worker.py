"""The engine as the session uses it: what it computes with, and what was handed over."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from napari_unet.compute.device import resolving
from napari_unet.compute.engine import Engine
from napari_unet.compute.jobs import ScanHandle, WholeLessonHandle, make_ready
from napari_unet.compute.transport import SharedArray
from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import NapariUnetError
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ComputeSettings
from napari_unet.storage.checkpoint_file import to_bytes


def wait_until(is_over: Callable[[], bool], engine: Engine, timeout: float | None, what: str) -> None:
    """Poll the engine until something is over.

    Raises
    ------
    TimeoutError
        It is not within so many seconds; names ``what``.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while not is_over():
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError(f"{what} is not over after {timeout} s")
        engine.poll()
        time.sleep(0.005)


class Worker:
    """Hands scans and checkpoints over once, and finds out once what there is to compute with.

    Parameters
    ----------
    engine : Engine
    settings : ComputeSettings, optional
        What the person wants to compute with; by default what is fastest.
    """

    def __init__(self, engine: Engine, settings: ComputeSettings | None = None) -> None:
        self.engine = engine
        self._settings = settings or ComputeSettings(runtime="auto")
        self.compute: ResolvedCompute | None = None
        self._waiting: list[tuple[Callable[[ResolvedCompute], None], Callable[[NapariUnetError], None]]] = []
        self._asked = False
        self._readying = False
        self._ready_next: tuple[Scan, Checkpoint] | None = None

    def move_to(self, engine: Engine) -> None:
        """Compute elsewhere from now on: nothing is known of it yet, and nothing is handed over."""
        self.engine = engine
        self.compute = None
        self._asked = self._readying = False
        self._waiting.clear()
        self._ready_next = None

    def forget_compute(self) -> None:
        """Find out anew, when it is next asked for, what there is to compute with: it may be another machine then."""
        self.compute, self._asked = None, False

    def resolve(self) -> None:
        """Find out about device, precision and threads, in the engine, so that the window does not wait."""
        if not self._asked:
            self._asked = True
            self.engine.submit(resolving, self._settings, on_result=self._resolved, on_error=self._failed)

    def when_resolved(self, begin: Callable[[ResolvedCompute], None], fail: Callable[[NapariUnetError], None]) -> None:
        """Call ``begin`` with what to compute with, now or once it is known; ``fail`` where that is impossible."""
        if self.compute is not None:
            begin(self.compute)
            return
        self._waiting.append((begin, fail))
        self.resolve()

    def _resolved(self, compute: ResolvedCompute) -> None:
        self.compute = compute
        waiting, self._waiting = self._waiting, []
        for begin, _ in waiting:
            begin(compute)

    def _failed(self, error: NapariUnetError) -> None:
        self._asked = False
        waiting, self._waiting = self._waiting, []
        for _, fail in waiting:
            fail(error)

    def make_ready(self, scan: Scan, checkpoint: Checkpoint) -> None:
        """Have a scan measured for a model, once the engine is up; what goes wrong is told when it proposes."""
        if self.compute is None:
            return
        if self._readying:
            # One at a time, so that a proposal never waits for more than one; then the latest.
            self._ready_next = scan, checkpoint
            return
        self._readying, self._ready_next = True, None
        handle, file = self.share_scan(scan), self.share_checkpoint(checkpoint)
        over = self._ready_over
        self.engine.submit(make_ready, handle, file, self.compute, on_result=over, on_error=over, on_cancelled=over)

    def _ready_over(self, _: object = None) -> None:
        self._readying = False
        if self._ready_next is not None:
            self.make_ready(*self._ready_next)

    def share_scan(self, scan: Scan) -> ScanHandle:
        """Return the handle of a scan, handed over on first use."""
        return ScanHandle.of(scan, self.engine.share(scan.fingerprint, scan.data))

    def share_lesson(self, scan: Scan, labels: NDArray, *, judges: bool) -> WholeLessonHandle:
        """Return the handle of a scan that is labelled as a whole, to learn from or to judge with."""
        key = hashlib.blake2b(np.ascontiguousarray(labels).tobytes(), digest_size=16).hexdigest()
        return WholeLessonHandle(
            self.share_scan(scan), self.engine.share(f"labels-{key}-{labels.shape}", labels), judges
        )

    def share_checkpoint(self, checkpoint: Checkpoint) -> SharedArray:
        """Return the handle of a checkpoint, handed over on first use."""
        # Equal weights may stand under different cards (renamed classes), and the card counts over there.
        card = hashlib.blake2b(checkpoint.card.model_dump_json().encode(), digest_size=8).hexdigest()
        return self.engine.share(f"{checkpoint.id}-{card}", np.frombuffer(to_bytes(checkpoint), np.uint8))
