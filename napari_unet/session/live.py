"""Live: when it is on, the slice on screen is labelled anew soon after each stroke. When to ask, and what to take over.

The fit itself is the engine's. The model is never touched: that is what Fine-tune is for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from napari_unet.compute.engine import Engine, Job
from napari_unet.compute.jobs import refit
from napari_unet.domain.annotation import Correction
from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import NapariUnetError
from napari_unet.domain.proposal import Proposal
from napari_unet.inference.live import Painted, Refitted
from napari_unet.session.history import Step
from napari_unet.session.models import require_channels
from napari_unet.session.proposing import proposal_correction
from napari_unet.session.state import ScanState
from napari_unet.session.tools import STROKES
from napari_unet.session.worker import Worker, wait_until

if TYPE_CHECKING:
    from napari_unet.session.session import LabelsChanged, Session

KIND = "live"
# The hand rests when no stroke has come for so long.
_REST_SECONDS = 0.3


@dataclass(eq=False)
class _Asked:
    """A refit under way, and what it was asked for: where one of them has changed since, its answer is stale."""

    state: ScanState
    index: int
    model: Checkpoint | None
    version: int
    since: float = field(default_factory=time.monotonic)
    job: Job | None = None

    def give_way(self) -> bool:
        """Cancel it if the worker still waits for the hand to rest; once it computes, it is quicker to let it end."""
        if self.job is None or time.monotonic() - self.since > 0.8 * _REST_SECONDS:
            return False
        self.job.cancel()
        return True


class LiveRefit:
    """The slice on screen follows the strokes on it.

    Parameters
    ----------
    session : Session
        Whose active scan, visible slice, classes and model count.
    worker : Worker
    commit : callable
        Carries out a correction of a scan.

    Notes
    -----
    One refit is under way at most. It first waits in the worker until the hand rests; another stroke meanwhile takes
    its place. Later strokes make its answer stale, and it is asked for again.
    """

    def __init__(self, session: Session, worker: Worker, commit: Callable[[ScanState, Correction], None]) -> None:
        self._session, self._worker, self._commit = session, worker, commit
        self._on = False
        self._version = 0
        self._looked_at: tuple[object, ...] = ()
        self._asked: _Asked | None = None
        self._own: Correction | None = None
        # Where the last stroke went that has no answer yet; and whether features are to be made ready.
        self._stroke: tuple[int, int] | None = None
        self._moved = False
        session.labels_changed.connect(self._labels_changed)
        session.proposals.changed.connect(self._ask)
        for signal in (session.active_changed, session.models.changed, session.schema_changed):
            signal.connect(self.look_again)

    @property
    def is_on(self) -> bool:
        """Whether strokes are followed."""
        return self._on

    @property
    def is_over(self) -> bool:
        """Whether nothing is under way or waiting."""
        return self._asked is None and self._stroke is None

    def switch(self, on: bool) -> None:
        """Follow strokes from now on, or no more; an answer under way is dropped."""
        self._on = on
        self.look_again()

    def look_again(self) -> None:
        """See whether another slice, scan or model is there: then drop what was asked, and make ready for a stroke."""
        session = self._session
        looked_at = (self._on, session.active, session.visible_slice, session.models.in_use, session.schema)
        if looked_at != self._looked_at:
            self._looked_at = looked_at
            self._version += 1
            self._stroke, self._moved = None, True
            self._ask()

    def restart(self) -> None:
        """Forget what was asked of an engine that is gone; make ready for a stroke on the new one."""
        self._asked, self._looked_at = None, ()
        self.look_again()

    def wait(self, engine: Engine, timeout: float | None = None) -> None:
        """Poll until nothing is under way."""
        wait_until(lambda: self.is_over, engine, timeout, "the live refit")

    def _labels_changed(self, change: LabelsChanged) -> None:
        session = self._session
        if change.correction is self._own or change.state is not session.active:
            return
        self._version += 1
        if not self._on or not (change.origin == "view" or change.correction.kind in STROKES):
            # A stroke that was undone wants no answer; one beneath a proposal under way still does.
            self._stroke = self._stroke if change.correction.kind == "proposal" else None
            return
        state, changed = change.state, change.correction.labels
        assert changed is not None  # or there would have been no signal
        where = np.array(np.unravel_index(changed.indices, state.annotation.labels.shape))
        axis = state.scan.slice_axis
        if axis is not None:
            where = np.delete(where[:, where[axis] == session.visible_slice], axis, axis=0)
        if where.shape[1] and not state.annotation.accepted[session.visible_slice]:
            row, column = where.mean(axis=1)
            self._stroke = (round(row), round(column))
            self._ask()

    def _ask(self) -> None:
        """Ask for what is wanted, as soon as that can be."""
        session, asked = self._session, self._asked
        if asked is not None and not (asked.version != self._version and asked.give_way()):
            return
        self._asked, state = None, session.active
        if not self._on or state is None:
            self._stroke, self._moved = None, False
            return
        if self._stroke is None and not self._moved:
            return
        if not session.proposals.is_over:
            return
        self._asked = _Asked(state, session.visible_slice, session.models.in_use, self._version)
        self._worker.when_resolved(partial(self._submit, self._asked), partial(self._fail, self._asked))

    def _submit(self, asked: _Asked, compute: ResolvedCompute) -> None:
        if asked is not self._asked:
            return
        asked.version, stroke = self._version, self._stroke
        self._stroke, self._moved = None, False
        state = asked.state
        learnt = asked.model if asked.model is not None and asked.model.card.steps else None
        try:
            if learnt is not None:
                require_channels(learnt, state.scan, state.name)
        except NapariUnetError as error:
            self._fail(asked, error)
            return
        labels, marked = (
            state.scan.to_planes(each)[asked.index] for each in (state.annotation.labels, state.annotation.painted)
        )
        asked.job = self._worker.engine.submit(
            refit,
            self._worker.share_scan(state.scan),
            None if learnt is None else self._worker.share_checkpoint(learnt),
            self._session.schema,
            asked.index,
            Painted(np.flatnonzero(marked), labels[marked], stroke),
            compute,
            _REST_SECONDS,
            on_result=partial(self._take, asked),
            on_error=partial(self._fail, asked),
        )

    def _take(self, asked: _Asked, found: Refitted | None) -> None:
        if asked is not self._asked:
            return
        self._asked = None
        if found is not None and self._fits(asked):
            state = asked.state
            plane = state.scan.to_planes(state.annotation.labels)[asked.index].copy()
            free = ~state.scan.to_planes(state.annotation.painted)[asked.index]
            # What no stroke reached stays as it is, unless nothing has been proposed for this slice yet.
            take = found.reached | (not plane[free].any())
            plane[found.window.box][take] = found.labels[take]
            by = "" if asked.model is None else asked.model.id
            proposal = Proposal(asked.index, plane[np.newaxis], None, by, state.scan.fingerprint)
            self._own = replace(proposal_correction(state, proposal), kind=KIND)
            state.history.extend(Step(KIND, by_machine=True), self._own)
            if asked.model is not None:
                state.proposed_by, state.proposers[by] = by, asked.model.card
            self._commit(state, self._own)
        self._ask()

    def _fits(self, asked: _Asked) -> bool:
        session = self._session
        return (
            self._on
            and asked.version == self._version
            and asked.state is session.active
            and asked.index == session.visible_slice
            and asked.model is session.models.in_use
        )

    def _fail(self, asked: _Asked, error: NapariUnetError) -> None:
        if asked is self._asked:
            self._asked = self._stroke = None
            self._moved = False
            self._session.tell(str(error))
