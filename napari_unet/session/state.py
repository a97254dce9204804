"""What the session knows about one open scan."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.annotation import Annotation, Correction, SparseChange
from napari_unet.domain.checkpoint import ModelCard
from napari_unet.domain.errors import MaskError, ScanError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.proposal import Proposal
from napari_unet.domain.scan import TOO_LARGE, Scan
from napari_unet.io.registry import source_stem
from napari_unet.session.history import History

#: One slice, and later one scan, in so many judges.
_ONE_IN = 5


@dataclass(frozen=True)
class Flag:
    """A mark on a scan: ``difficulty`` from 1 (easy) to 3 (hard), and a comment, which may be empty."""

    difficulty: int
    comment: str = ""


@dataclass(eq=False)
class ScanState:
    """An open scan with its annotation and history.

    Parameters
    ----------
    name : str
        What the window calls it: ``scan 1``. Never a patient's name, never a file's.
    scan : Scan
    annotation : Annotation
        The truth; views show copies of its labels.
    locked : (n_slices,) bool array
        Slices that judge models and never teach: all of them, where the scan judges as a whole. A slice never changes
        sides.
    """

    name: str
    scan: Scan
    annotation: Annotation
    locked: NDArray[np.bool_]
    #: (n_slices,) bool: slices that a model has learnt from; they never become judges.
    taught: NDArray[np.bool_] = field(init=False)
    history: History = field(default_factory=History)
    #: Checkpoint of the last proposal that stands, None before any; and the cards of all that proposed, by identifier.
    proposed_by: str | None = None
    proposers: dict[str, ModelCard] = field(default_factory=dict)
    #: Grows with each change of the annotation: what was asked about an earlier one may be of no use.
    version: int = 0
    #: Stem of the source's file, for naming what is exported.
    stem: str = "scan"
    #: Over the spatial axes, 255 = all classes alike: what the last proposal said of itself; None before any.
    uncertainty: NDArray[np.uint8] | None = None

    #: Labels as they were when the last proposal was asked for; None before any.
    before_proposal: NDArray | None = None
    #: What the person noted about the scan: how hard it is, and a comment.
    flag: Flag | None = None
    #: (n_slices,) int arrays: voxels with a label, and painted by hand; None until they are asked for.
    _counts: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    def __post_init__(self) -> None:
        self.taught = np.zeros(self.scan.n_slices, bool)

    def apply(self, correction: Correction) -> None:
        """Carry out a correction; keep the numbers of voxels by slice right, without counting all of them again."""
        if self._counts is not None:
            for counts, change in zip(self._counts, (correction.labels, correction.painted), strict=True):
                if change is not None and len(change):
                    np.add.at(counts, self._slices_of(change.indices), _gains(change))
        self.version += 1
        self.annotation.apply(correction)

    def _slices_of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        axis = self.scan.slice_axis
        if axis is None:
            return np.zeros(len(places), np.int64)
        return np.unravel_index(places, self.scan.spatial_shape)[axis]

    def _count(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self._counts is None:
            arrays = (self.annotation.labels, self.annotation.painted)
            first, second = (np.count_nonzero(self.scan.to_planes(array), axis=(1, 2)) for array in arrays)
            self._counts = first.astype(np.int64), second.astype(np.int64)
        return self._counts

    @property
    def labelled(self) -> NDArray[np.int64]:
        """Voxels with a label, slice by slice: ``(n_slices,)``."""
        return self._count()[0]

    @property
    def painted(self) -> NDArray[np.int64]:
        """Voxels painted by hand, slice by slice: ``(n_slices,)``."""
        return self._count()[1]

    @property
    def unsure(self) -> NDArray[np.float64] | None:
        """How unsure the last proposal is of each slice, 0 to 1; None where it did not say.

        The mean over the voxels of which it is unsure at all: a large structure is not more so than a small one.
        """
        if self.uncertainty is None or not self.uncertainty.any():
            return None
        planes = self.scan.to_planes(self.uncertainty)
        return np.array([plane[plane > 0].mean() / 255 if plane.any() else 0.0 for plane in planes])

    def put_uncertainty(self, proposal: Proposal) -> None:
        """Take over how unsure a proposal is of its slab."""
        if proposal.uncertainty is None:
            return
        if self.uncertainty is None:
            self.uncertainty = np.zeros(self.scan.spatial_shape, np.uint8)
        planes = slice(proposal.first_slice, proposal.first_slice + len(proposal.uncertainty))
        self.scan.to_planes(self.uncertainty)[planes] = proposal.uncertainty

    @property
    def n_accepted(self) -> int:
        """Number of accepted slices."""
        return int(self.annotation.accepted.sum())

    @property
    def is_judge(self) -> bool:
        """Whether the scan judges as a whole, and teaches nothing."""
        return bool(self.locked.all())

    @property
    def is_assigned(self) -> bool:
        """Whether it is known on which side the scan stands."""
        return bool(self.annotation.accepted.any() or self.taught.any() or self.locked.any())

    @property
    def kin(self) -> str:
        """What scans of one patient have in common, as far as that is known: the file or the folder they came from.

        Time points, volumes and series of one source are of one patient. Patient tags are not read for it, and pictures
        that merely lie in one folder may be of anyone.
        """
        return str(self.scan.source or self.scan.fingerprint)

    def teaches(self) -> bool:
        """Return whether anything reviewed in it may be learnt from."""
        return bool((~self.locked[self.annotation.reviewed_slices()]).any())

    def note_taught(self) -> None:
        """Remember that a model is about to learn from what is reviewed now."""
        self.taught[self.annotation.reviewed_slices()] = True
        self.taught &= ~self.locked


def require_openable(scan: Scan, labels: NDArray | None) -> None:
    """Refuse a scan, or labels for it, that cannot be worked on.

    Raises
    ------
    ScanError
        Channels that are neither colour nor single, or a scan larger than the memory.
    MaskError
        ``labels`` has another shape, or values that no label can have.
    """
    if scan.is_lazy:
        raise ScanError(TOO_LARGE)
    if scan.n_channels > 1 and not scan.is_rgb:
        raise ScanError(
            f"This scan has {scan.n_channels} channels that are not colours: save one of them as a scan of its own."
        )
    if labels is None:
        return
    if labels.shape != scan.spatial_shape:
        raise MaskError(
            f"The mask has shape {labels.shape} and the scan {scan.spatial_shape}: they do not belong together."
        )
    if labels.dtype.kind not in "biu" or labels.min(initial=0) < 0 or labels.max(initial=0) > 65535:
        raise MaskError("A mask holds whole numbers from 0 to 65535: convert this one first.")


def open_scan(scan: Scan, labels: NDArray | None, schema: LabelSchema, number: int) -> ScanState:
    """Return the state of a scan that was just opened, as the session's so-many-th, with labels to start from."""
    largest = max(*schema.ids, 0 if labels is None else int(labels.max(initial=0)))
    annotation = Annotation.empty(scan.spatial_shape, scan.slice_axis, np.uint8 if largest < 256 else np.uint16)
    if labels is not None:
        annotation.labels[...] = labels
    return ScanState(
        f"scan {number}",
        scan,
        annotation,
        np.zeros(scan.n_slices, bool),
        stem=source_stem(scan.source) if scan.source is not None else f"scan-{number}",
    )


def lock_scan(state: ScanState, states: Sequence[ScanState], seen: Collection[str] = ()) -> bool:
    """Make a scan that has just been reviewed for the first time a judge as a whole, if it is one's turn.

    One scan in five judges. Scans of one patient, where that is known, stand on one side. A scan that a model has
    learnt from, or of which slices judge, stays what it is.

    Parameters
    ----------
    state : ScanState
        With accepted slices; its ``locked`` is changed.
    states : sequence of ScanState
        All open scans.
    seen : collection of str
        Fingerprints of scans that the model in use has seen, perhaps before they were opened here.

    Returns
    -------
    bool
        Whether it has become a judge.
    """
    if not state.annotation.accepted.any() or state.taught.any() or state.locked.any():
        return False
    if state.scan.fingerprint in seen:
        state.taught[:] = True
        return False
    others = [other for other in states if other is not state and other.is_assigned]
    kin = [other for other in others if other.kin == state.kin]
    if kin:
        chosen = any(other.is_judge for other in kin)
    else:
        judging = {other.kin for other in others if other.is_judge}
        chosen = len(judging) < (len({other.kin for other in others}) + 1) // _ONE_IN
    state.locked[:] = chosen
    return chosen


def lock_judges(states: Sequence[ScanState], seen: Collection[str] = ()) -> None:
    """Put aside what judges models: of five scans or more, one in five; of fewer, a fifth of each one's slices.

    Neighbouring slices look alike, so single slices sprinkled over a scan would flatter the model: judges stand
    together, at the far end of what is accepted. What a model has learnt from never judges, and judges stay judges.
    """
    for state in reversed(states):
        lock_scan(state, states, seen)
    # Whole scans say more than blocks, and both together would keep too much from teaching.
    if any(state.is_judge for state in states):
        return
    for state in states:
        state.locked[_block(state.annotation.accepted, state.locked, state.taught)] = True


def _block(accepted: NDArray[np.bool_], locked: NDArray[np.bool_], taught: NDArray[np.bool_]) -> NDArray[np.int64]:
    n = int(accepted.sum())
    if n < _ONE_IN or (accepted & locked).any():
        return np.zeros(0, np.int64)
    return np.flatnonzero(accepted & ~taught)[-(n // _ONE_IN) :]


def _gains(change: SparseChange) -> NDArray[np.int64]:
    return (change.after != 0).astype(np.int64) - (change.before != 0)
