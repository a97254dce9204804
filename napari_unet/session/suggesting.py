"""Which slice to look at next: none of the rankings needs the model, so that the answer is there at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from napari_unet.session.state import ScanState

#: ``spacing``: farthest from what was checked; ``unsure``: where the proposal says it is least sure; ``random``.
Suggestion = Literal["spacing", "unsure", "random"]
SUGGESTIONS: tuple[Suggestion, ...] = get_args(Suggestion)


def next_slice(state: ScanState, here: int | None, how: Suggestion = "spacing") -> int | None:
    """Return the slice of a scan that should be checked next; None where all are accepted.

    Slices with labels, and those between them, come before those that lie beyond: there a structure most likely is.

    Parameters
    ----------
    state : ScanState
    here : int or None
        The slice on screen, which is not the next one unless it is the only one left.
    how : {"spacing", "unsure", "random"}
        Published work found no ranking of slices that does better than regular spacing (arXiv 2412.08081).
    """
    open_ = ~state.annotation.accepted
    candidates = np.flatnonzero(open_ & _within(state.labelled))
    if not len(candidates):
        candidates = np.flatnonzero(open_)
    if not len(candidates):
        return None
    others = candidates[candidates != here]
    candidates = others if len(others) else candidates
    if how == "random":
        # The same answer to the same question, so that what was shown can be told from what was done.
        return int(np.random.default_rng(int(state.annotation.accepted.sum())).choice(candidates))
    unsure = state.unsure
    if how == "unsure" and unsure is not None:
        return int(candidates[np.argmax(unsure[candidates])])
    return _farthest(candidates, np.flatnonzero(state.annotation.accepted))


def _within(labelled: NDArray[np.int64]) -> NDArray[np.bool_]:
    found = np.flatnonzero(labelled)
    inside = np.zeros(len(labelled), bool)
    if len(found):
        inside[found[0] : found[-1] + 1] = True
    return inside


def _farthest(candidates: NDArray[np.int64], checked: NDArray[np.int64]) -> int:
    """Return the candidate with the largest distance to any that was checked; the middle one where none was."""
    if not len(checked):
        return int(candidates[len(candidates) // 2])
    away = np.abs(candidates[:, None] - checked[None]).min(axis=1)
    best = candidates[away == away.max()]
    return int(best[len(best) // 2])
