"""The correcting hand's tools: what may be overwritten, what a tool would change, and carrying that out as one step."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

from napari_unet.compute.engine import Engine
from napari_unet.compute.jobs import edit
from napari_unet.domain.annotation import Correction, SparseChange
from napari_unet.domain.errors import NapariUnetError, SessionError
from napari_unet.editing.brushes import smart_stroke, stroke_mask
from napari_unet.editing.intensities import typical_range
from napari_unet.editing.pieces import piece_at
from napari_unet.editing.regions import OverwriteRule, Region
from napari_unet.editing.tools import FillBetween, ToolSettings, Work, carry_out
from napari_unet.session.worker import Worker, wait_until

if TYPE_CHECKING:
    from napari_unet.session.session import Session
    from napari_unet.session.state import ScanState

#: How far around a stroke, in radii, the smart brush looks.
_BEYOND = 1.5

#: What brushes of this program's leave behind; those of the view's own are the view's.
STROKES = frozenset({"smart stroke", "ball", "erase ball"})

Scope = Literal["slice", "slab", "scan"]


@dataclass(frozen=True, eq=False)
class _Preview:
    """What a tool would change in a scan as it was then; of a tool for one slice, which one that is."""

    state: ScanState
    version: int
    change: SparseChange
    kind: str
    shown: int | None = None


class Tools:
    """Locks, the overwrite rule, and the tools of :mod:`napari_unet.editing.tools` on the active scan.

    Parameters
    ----------
    session : Session
    worker : Worker
    commit : callable
        Carries out a correction of a scan as a step that undo takes back.
    """

    changed = Signal()  # a preview was begun, is there, or is out of date: read ``preview``
    rules_changed = Signal()  # read ``rule`` and ``locked``

    def __init__(self, session: Session, worker: Worker, commit: Callable[[ScanState, Correction], None]) -> None:
        self._session, self._worker, self._commit = session, worker, commit
        #: What brush and tools may overwrite, and classes that neither gain nor lose a voxel by them.
        self.rule: OverwriteRule = "unlocked"
        self.locked: frozenset[int] = frozenset()
        #: Slices of a slab, the one on screen in the middle.
        self.slab = 5
        self._awaited: object | None = None
        self._preview: _Preview | None = None
        session.labels_changed.connect(lambda change: self._outdate(change.state))
        session.acceptance_changed.connect(self._outdate)
        session.active_changed.connect(self.dismiss)
        self.rules_changed.connect(self.dismiss)

    def set_rule(self, rule: OverwriteRule) -> None:
        """Say what brush and tools may overwrite."""
        self.rule = rule
        self.rules_changed.emit()

    def lock(self, value: int, locked: bool) -> None:
        """Protect a class from brush and tools, or no longer."""
        self.locked = self.locked | {value} if locked else self.locked - {value}
        self.rules_changed.emit()

    def unlock_all(self) -> None:
        """Protect no class any more: in another project the numbers stand for others."""
        self.locked = frozenset()
        self.rules_changed.emit()

    @property
    def protects(self) -> bool:
        """Whether there is anything that a stroke may not paint over."""
        return self.rule == "empty" or (self.rule == "unlocked" and bool(self.locked))

    def forbidden(self, before: NDArray, after: NDArray) -> NDArray[np.bool_]:
        """Return which voxels may not change from one label to another, as rule and locks say."""
        refused = np.zeros(before.shape, bool)
        if self.rule != "all" and self.locked:
            refused |= np.isin(before, list(self.locked)) | np.isin(after, list(self.locked))
        if self.rule == "empty":
            # What is taken away, and painting a class over itself, leaves nothing to protect.
            refused |= (before > 0) & (after > 0) & (before != after)
        return refused

    @property
    def is_looking(self) -> bool:
        """Whether a preview is under way."""
        return self._awaited is not None

    @property
    def preview(self) -> tuple[ScanState, SparseChange] | None:
        """The active scan and what would change in it; None where nothing was asked, or it has changed since."""
        return None if self._preview is None else (self._preview.state, self._preview.change)

    def region(self, state: ScanState, scope: Scope) -> Region:
        """Return the part of a scan that a tool is restricted to."""
        shape, axis, here = state.scan.spatial_shape, state.scan.slice_axis, self._session.visible_slice
        if scope == "scan" or axis is None:
            return Region.whole(shape)
        before = 0 if scope == "slice" else self.slab // 2
        after = 1 if scope == "slice" else self.slab - before
        return Region.slices(shape, axis, here - before, here + after)

    def look(self, settings: ToolSettings, value: int, scope: Scope) -> None:
        """Find out what a tool would change; :attr:`changed` tells when :attr:`preview` is there.

        Parameters
        ----------
        settings : ToolSettings
        value : int
            The class to work on.
        scope : {"slice", "slab", "scan"}
            The slice on screen, those around it, or everything. On one slice the answer is there at once.

        Raises
        ------
        SessionError
            No scan is open.
        SettingsError
            The tool cannot do what is asked.
        """
        state = self._session.active
        if state is None:
            raise SessionError("No scan is open: there is nothing to work on.")
        self.dismiss()
        self._session.clean_up.dismiss()  # of two previews one would be shown and the other applied
        kind = _in_words(type(settings).__name__)
        if scope == "slice" and not isinstance(settings, FillBetween):
            # A slice that is on screen may be changed, accepted or not; others only as long as they are not accepted.
            change = carry_out(settings, self._work(state, value, scope), self.rule, tuple(self.locked))
            self._preview = _Preview(state, state.version, change, kind, self._session.visible_slice)
            self.changed.emit()
            return
        self._ask(state, settings, value, "scan" if isinstance(settings, FillBetween) else scope, kind)

    def apply(self) -> None:
        """Carry out what was previewed, as one step that undo takes back; what changes counts as painted by hand.

        Raises
        ------
        SessionError
            There is no preview, what it was made from has changed since, or it is of another slice.
        """
        found = self._preview
        if found is None or found.version != found.state.version:
            raise SessionError("Something has changed since: press Preview again.")
        if found.shown is not None and found.shown != self._session.visible_slice:
            raise SessionError("The preview is of another slice: go back to it, or press Preview again.")
        self._put(found.state, found.change, found.kind)

    def dismiss(self) -> None:
        """Forget the preview, and the one that is awaited."""
        if self._preview is not None or self._awaited is not None:
            self._preview = self._awaited = None
            self.changed.emit()

    def wait(self, engine: Engine, timeout: float | None = None) -> None:
        """Poll until no preview is under way."""
        wait_until(lambda: not self.is_looking, engine, timeout, "the preview")

    def typical(self, state: ScanState, value: int) -> tuple[float, float] | None:
        """Return the range of grey values of what a class has on the slice on screen; None where it has nothing."""
        region = self.region(state, "slice")
        inside = region.cut(state.annotation.labels) == value
        return typical_range(region.cut(state.scan.grey())[inside]) if inside.any() else None

    # -- strokes ----------------------------------------------------------------------------------------------

    def stroke(
        self,
        state: ScanState,
        path: NDArray,
        radius_mm: float,
        value: int,
        *,
        across: int | None,
        ball: bool,
        smart: bool,
    ) -> int:
        """Paint along a path; return how many labels changed.

        Parameters
        ----------
        state : ScanState
        path : (n, ndim) array
            Where the brush's middle went, in voxels along the spatial axes.
        radius_mm : float
            In voxels where the spacing is not known.
        value : int
            The class, or 0 to erase.
        across : int or None
            The axis across the planes that were painted on; None in 2D. On each plane that the path comes to, the part
            of it there is a stroke.
        ball : bool
            Through the planes around too.
        smart : bool
            Only as far as the structure goes that the path runs along.
        """
        flat = None if ball or across is None else across
        pieces = [path] if flat is None else [path[path[:, flat] == at] for at in np.unique(path[:, flat])]
        found = [self._covered(state, piece, radius_mm, flat, smart) for piece in pieces]
        places = np.unique(np.concatenate(found))
        before = state.annotation.labels.flat[places]
        after = np.full_like(before, value)
        free = (before != after) & ~self.forbidden(before, after)
        change = self._on_screen_or_open(state, SparseChange(places[free], before[free], after[free]))
        if len(change):
            self._put(state, change, "smart stroke" if smart else "ball" if value else "erase ball")
        return len(change)

    def _covered(
        self, state: ScanState, path: NDArray, radius_mm: float, flat: int | None, smart: bool
    ) -> NDArray[np.int64]:
        """Return the flat indices of the voxels that a brush covers: on one plane, or in all directions."""
        scan, widths = state.scan, np.asarray(state.scan.spacing_or_unit)
        reach = _BEYOND * radius_mm / widths
        low, high = np.floor(path.min(axis=0) - 1 - reach), np.ceil(path.max(axis=0) + 2 + reach)
        if flat is not None:
            low[flat], high[flat] = path[0, flat], path[0, flat] + 1
        box = tuple(
            slice(max(0, int(a)), min(n, int(b))) for a, b, n in zip(low, high, scan.spatial_shape, strict=True)
        )
        if any(side.start >= side.stop for side in box):
            return np.zeros(0, np.int64)
        kept = [axis for axis in range(len(box)) if axis != flat]
        shape = tuple(box[axis].stop - box[axis].start for axis in kept)
        within = (path - [side.start for side in box])[:, kept]
        spacing = None if scan.geometry.spacing is None else [scan.geometry.spacing[axis] for axis in kept]
        if smart:
            mask = smart_stroke(scan.grey()[box].reshape(shape), within, radius_mm, spacing)
        else:
            mask = stroke_mask(shape, within, radius_mm, spacing)
        whole = mask.reshape([side.stop - side.start for side in box])
        where = [found + side.start for found, side in zip(np.nonzero(whole), box, strict=True)]
        return np.ravel_multi_index(tuple(where), scan.spatial_shape)

    # -- pieces -----------------------------------------------------------------------------------------------

    def accept_piece(self, state: ScanState, point: tuple[int, ...]) -> int:
        """Declare the connected piece at a voxel right: it is learnt from, and no proposal changes it."""
        return self._on_piece(state, point, None, "accept piece")

    def remove_piece(self, state: ScanState, point: tuple[int, ...]) -> int:
        """Make the connected piece at a voxel background."""
        return self._on_piece(state, point, 0, "remove piece")

    def recolour_piece(self, state: ScanState, point: tuple[int, ...], value: int) -> int:
        """Give the connected piece at a voxel to another class."""
        return self._on_piece(state, point, value, "recolour piece")

    def _on_piece(self, state: ScanState, point: tuple[int, ...], value: int | None, kind: str) -> int:
        annotation = state.annotation
        if not annotation.labels[point]:
            raise SessionError("There is no label: click on a piece of a class.")
        places = np.flatnonzero(piece_at(annotation.labels, point))
        before = annotation.labels.flat[places]
        after = before if value is None else np.full_like(before, value)
        if value is not None and self.forbidden(before[:1], after[:1]).any():
            raise SessionError("That class is locked, or may not be overwritten: see its lock and the overwrite rule.")
        change = self._on_screen_or_open(state, SparseChange(places, before, after))
        self._put(state, change, kind)
        left = len(places) - len(change)
        if left:
            self._session.tell(
                f"{left:,} voxels of that piece stay as they are: they are on accepted slices, not on screen."
            )
        return len(change)

    def _on_screen_or_open(self, state: ScanState, change: SparseChange) -> SparseChange:
        """Return what of a change is on slices that are not accepted, or on the one on screen."""
        return _open_only(state, change, self._session.visible_slice if state is self._session.active else None)

    # -- helpers ------------------------------------------------------------------------------------------------

    def _put(self, state: ScanState, change: SparseChange, kind: str) -> None:
        was = state.annotation.painted.flat[change.indices]
        painted = SparseChange(change.indices, was, np.ones_like(was))
        labels = change if (change.before != change.after).any() else None
        self._commit(state, Correction(kind, labels, painted, proposal=state.proposed_by))

    def _work(self, state: ScanState, value: int, scope: Scope) -> Work:
        annotation, scan = state.annotation, state.scan
        return Work(
            scan.grey(),
            annotation.labels,
            annotation.painted,
            np.flatnonzero(annotation.accepted),
            scan.slice_axis,
            scan.geometry.spacing,
            value,
            self.region(state, scope),
            state.before_proposal,
        )

    def _ask(self, state: ScanState, settings: ToolSettings, value: int, scope: Scope, kind: str) -> None:
        question = self._awaited = object()
        engine, version, annotation = self._worker.engine, state.version, state.annotation
        keys = [f"{what}-{uuid.uuid4().hex}" for what in ("labels", "painted", "earlier")]
        earlier = state.before_proposal

        def over() -> bool:
            for key in keys:
                engine.forget(key)
            mine, self._awaited = self._awaited is question, None if self._awaited is question else self._awaited
            return mine

        def finished(change: SparseChange) -> None:
            if not over():
                return
            if state.version == version:
                self._preview = _Preview(state, version, _open_only(state, change), kind)
            else:
                self._session.tell("The labels have changed meanwhile: press Preview again.")
            self.changed.emit()

        def failed(error: NapariUnetError) -> None:
            if over():
                self._session.tell(str(error))
                self.changed.emit()

        engine.submit(
            edit,
            settings,
            self._worker.share_scan(state.scan),
            engine.share(keys[0], annotation.labels.copy()),
            engine.share(keys[1], annotation.painted.copy()),
            None if earlier is None else engine.share(keys[2], earlier),
            np.flatnonzero(annotation.accepted),
            value,
            self.region(state, scope),
            self.rule,
            tuple(self.locked),
            on_result=finished,
            on_error=failed,
            on_cancelled=over,
        )
        self.changed.emit()

    def _outdate(self, state: ScanState) -> None:
        if self._preview is not None and self._preview.state is state and self._preview.version != state.version:
            self.dismiss()


def _in_words(name: str) -> str:
    """Return the name of a tool's settings as the journal calls it: ``fill between``."""
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()


def _open_only(state: ScanState, change: SparseChange, shown: int | None = None) -> SparseChange:
    """Return what of a change is not on accepted slices, but for the one that is shown."""
    annotation = state.annotation
    if annotation.slice_axis is None or not annotation.accepted.any():
        return change
    where = np.unravel_index(change.indices, annotation.labels.shape)[annotation.slice_axis]
    free = ~annotation.accepted[where] | (where == shown)
    return SparseChange(change.indices[free], change.before[free], change.after[free])
