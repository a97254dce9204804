"""One proposal for one scan: a queue of slabs, nearest to the slice on screen first, at most two with the engine.

Priorities cannot change once a job is submitted, so the queue stays here and a scroll re-orders it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from napari_unet.compute.engine import Engine, Job
from napari_unet.compute.jobs import propose
from napari_unet.domain.annotation import Correction, SparseChange
from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ModelError, NapariUnetError
from napari_unet.domain.progress import Progress
from napari_unet.domain.proposal import Proposal
from napari_unet.inference.slabs import Slab, plan_slabs
from napari_unet.session.history import Step
from napari_unet.session.models import require_channels
from napari_unet.session.state import ScanState
from napari_unet.session.worker import Worker, wait_until

WORSE_THAN_NOTHING = (
    "On the last two new scans, what this model's forerunners would have proposed was no less work to correct than to "
    "paint: accept some slices here and fine-tune, or press Propose again to see it all the same."
)
_IN_FLIGHT = 2
#: Voxels beyond which a faster runtime makes up for the seconds that converting a network takes.
_WORTH_CONVERTING = 2**22

TakeSlab = Callable[[ScanState, Correction, Proposal], None]
Moved = Callable[[NapariUnetError | None], None]


class ProposalRun:
    """Proposing labels for one scan with one checkpoint; everything it does to the scan is one undo step.

    Parameters
    ----------
    worker : Worker
    state : ScanState
        The scan.
    checkpoint : Checkpoint
        Who proposes.
    visible : int
        Slice on screen.
    take : callable
        Carries out a slab's correction, and takes over what else is said of the slab.
    moved : callable
        Called after each slab and at the end, with the error that ended it, if one did.

    Attributes
    ----------
    steps : list of Step
        What undo takes back: one, unless the person worked on the scan in between.
    is_whole : bool
        Whether all of the scan has been proposed.
    after_care : AfterCareSettings
        What the model wants done to the whole of it.
    """

    def __init__(
        self, worker: Worker, state: ScanState, checkpoint: Checkpoint, visible: int, take: TakeSlab, moved: Moved
    ) -> None:
        require_channels(checkpoint, state.scan, state.name)
        self.state = state
        largest = max(checkpoint.card.label_schema.ids)
        if largest > np.iinfo(state.annotation.labels.dtype).max:
            raise ModelError(
                f"The model's labels go up to {largest} and those of {state.name} only to 255: close the scan and open "
                "it again, now that this model is in use."
            )
        self.steps = [Step("proposal", by_machine=True)]
        self._worker, self._checkpoint, self._take, self._moved = worker, checkpoint, take, moved
        shape = state.scan.to_planes(state.annotation.labels).shape
        self._queue = plan_slabs(shape, checkpoint.card.settings, visible)
        self._n_slabs = len(self._queue)
        self._n_done = 0
        self.after_care = checkpoint.card.settings.after_care
        self._jobs: dict[Job, Slab] = {}
        self._started = time.monotonic()
        self._over = False
        self.is_whole = False
        worker.when_resolved(self._begin, self._fail)

    @property
    def is_over(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self._over

    @property
    def progress(self) -> Progress:
        """Share of slabs done, and an estimate of the seconds left."""
        fraction = self._n_done / self._n_slabs if self._n_slabs else 1.0
        seconds = time.monotonic() - self._started
        return Progress(fraction, seconds * (1 - fraction) / fraction if 0 < fraction < 1 else None)

    def look_at(self, index: int) -> None:
        """Re-order what has not been handed to the engine: nearest to this slice first."""
        self._queue.sort(key=lambda slab: slab.distance(index))

    def cancel(self) -> None:
        """Hand out nothing more and drop what is under way; what has arrived stays."""
        if not self._over:
            self._queue.clear()
            jobs, self._jobs = list(self._jobs), {}
            for job in jobs:
                job.cancel()
            self._end(None)

    def wait(self, engine: Engine, timeout: float | None = None) -> None:
        """Poll until it is over."""
        wait_until(lambda: self._over, engine, timeout, "the proposal")

    def _begin(self, compute: ResolvedCompute) -> None:
        if self._over:
            return
        # What is soon done anyway would not wait for the network to be converted.
        self._compute = compute if self.state.annotation.labels.size >= _WORTH_CONVERTING else compute.in_torch()
        self._scan = self._worker.share_scan(self.state.scan)
        self._file = self._worker.share_checkpoint(self._checkpoint)
        self._feed()

    def _feed(self) -> None:
        while self._queue and len(self._jobs) < _IN_FLIGHT and not self._over:
            slab = self._queue.pop(0)
            # Nor does the slice on screen.
            compute = self._compute.in_torch() if self._n_done == 0 and not self._jobs else self._compute
            job = self._worker.engine.submit(
                propose,
                self._scan,
                self._file,
                (slab,),
                compute,
                lane="quick",
                on_event=self._arrived,
                on_result=partial(self._finished, slab),
                on_error=self._fail,
            )
            self._jobs[job] = slab
        if not self._queue and not self._jobs and not self._over:
            self.is_whole = True
            self._end(None)

    @property
    def step(self) -> Step:
        """What the next slab belongs to; a new one where the person has worked on the scan in between."""
        return self.steps[-1]

    def put(self, correction: Correction) -> None:
        """Record a part of the proposal in the scan's history."""
        step = self.state.history.extend(self.step, correction)
        if step is not self.step:
            self.steps.append(step)

    def _arrived(self, proposal: Proposal) -> None:
        if self._over or proposal.scan != self.state.scan.fingerprint:
            return
        proposal = replace(proposal, checkpoint=self._checkpoint.id)
        correction = proposal_correction(self.state, proposal)
        self.put(correction)
        self._take(self.state, correction, proposal)

    def _finished(self, slab: Slab, _: object) -> None:
        if self._over:
            return
        self._jobs = {job: s for job, s in self._jobs.items() if s is not slab}
        self._n_done += 1
        self._feed()
        if not self._over:
            self._moved(None)

    def _fail(self, error: NapariUnetError) -> None:
        if not self._over:
            self._queue.clear()
            jobs, self._jobs = list(self._jobs), {}
            for job in jobs:
                job.cancel()
            self._end(error)

    def _end(self, error: NapariUnetError | None) -> None:
        self._over = True
        self._moved(error)


def proposal_correction(state: ScanState, proposal: Proposal) -> Correction:
    """Return the correction that puts a slab's proposal into an annotation, sparing what the person has said.

    Voxels of accepted slices and voxels painted by hand keep their labels.
    """
    annotation, scan = state.annotation, state.scan
    n = len(proposal.labels)
    index = annotation.slice_index(slice(proposal.first_slice, proposal.first_slice + n))
    planes = proposal.labels.astype(annotation.labels.dtype)
    proposed = scan.from_planes(planes)
    free = ~annotation.painted[index]
    accepted = np.flatnonzero(annotation.accepted[proposal.first_slice : proposal.first_slice + n])
    if len(accepted):
        free[annotation.slice_index(accepted)] = False
    current = annotation.labels[index]
    changed = free & (current != proposed)
    flat = annotation.flat_indices(changed, proposal.first_slice)
    return Correction(
        "proposal", labels=SparseChange(flat, current[changed], proposed[changed]), proposal=proposal.checkpoint
    )
