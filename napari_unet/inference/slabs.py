"""Slabs: acquired planes that are predicted together, and in which order. No torch here: the window plans them too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.settings import ModelSettings

# Planes of a 2D slab: many small ones share one hand-over, large ones go one by one.
_SLAB_PIXELS = 2**18


@dataclass(frozen=True)
class Slab:
    """Consecutive planes ``start <= index < stop``."""

    start: int
    stop: int

    def distance(self, index: int) -> int:
        """Return how many planes away its nearest plane is; 0 for those in it."""
        return max(self.start - index, index - (self.stop - 1), 0)


@dataclass(frozen=True, eq=False)
class SlabResult:
    """What a model says about a slab.

    Parameters
    ----------
    slab : Slab
    classes : (n, h, w) uint8 array
        Network classes.
    confidence : (n, h, w) uint8 array
        Probability of the class, 255 = certain.
    uncertainty : (n, h, w) uint8 array
        Entropy of the class probabilities, 255 = all classes alike.
    note : str
        What went wrong and was got round, for the person; mostly empty.
    """

    slab: Slab
    classes: NDArray[np.uint8]
    confidence: NDArray[np.uint8]
    uncertainty: NDArray[np.uint8]
    note: str = ""


def plan_slabs(shape: tuple[int, ...], settings: ModelSettings, first: int | None = None) -> list[Slab]:
    """Return slabs that cover a scan, the plane on screen leading by itself, then outwards.

    Parameters
    ----------
    shape : (S, H, W)
        Of the scan in acquired planes.
    settings : ModelSettings
        2D networks work plane by plane; 3D ones in slabs of their tile's depth.
    first : int, optional
        Plane on screen; None: from the start, in order.
    """
    n_slices, height, width = shape
    first = None if first is None else int(np.clip(first, 0, n_slices - 1))
    if settings.network.dimensions == 2:
        depth = int(np.clip(_SLAB_PIXELS // (height * width), 1, 16))
    else:
        depth = n_slices if n_slices <= 96 else 48
    slabs = [Slab(a, min(a + depth, n_slices)) for a in range(0, n_slices, depth)]
    if first is not None:
        slabs.sort(key=lambda slab: slab.distance(first))
        if settings.network.dimensions == 2 and n_slices > 1:
            slabs.insert(0, Slab(first, first + 1))
    return slabs
