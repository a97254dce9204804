"""A scan: voxels, where they stand, and what is odd about them. No files are read here."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.geometry import Geometry

#: What is said where a lazy scan cannot be worked on.
TOO_LARGE = (
    "This scan is too large for this computer's memory: it can be looked at, but not segmented. Save a part of it, or "
    "a lower resolution, and open that."
)
#: Most bytes of a lazy scan that are held at once.
_PIECE_BYTES = 1 << 28


@dataclass(frozen=True)
class SeriesInfo:
    """One series found at a path: identifier, free description, shape, and whether it is the one loaded."""

    uid: str
    description: str
    shape: tuple[int, ...]
    chosen: bool = False


@dataclass(frozen=True, eq=False)
class Scan:
    """One image, as loaded.

    Parameters
    ----------
    data : array
        ``[z, y, x]`` or ``[y, x]``, with a trailing channel axis where ``axes`` ends in ``c``. Native byte
        order, finite, any real dtype. Volumes stand in LPS: z rises towards the head, y to the back, x to the
        left of the patient. A scan too large for the memory is a dask array instead, which is read from the disk
        where it is indexed (then :attr:`is_lazy`); its shape, dtype and indexing are those of a numpy array.
    axes : str
        One letter per axis of ``data``: ``zyx``, ``yx``, ``zyxc`` or ``yxc``.
    geometry : Geometry
        Spacing in mm, affine, and the way back to the file's own axes.
    slice_axis : int or None
        The axis across the acquired plane (people read the other two); None in 2D.
    modality : str or None
        DICOM modality where known (``CT``, ``MR``, ``US``...).
    source : Path or None
        Where it was read from. Private: never shown in layer names or logs.
    warnings : tuple of str
        One line per oddity that the person should know.
    series : tuple of SeriesInfo
        All series found at the source.
    window : (low, high) or None
        Intensities that the source wants shown from black to white; None where it does not say.
    inverted : bool
        Low values are meant to be shown white (DICOM's MONOCHROME1); the voxels are as stored.
    source_files : tuple of Path
        Where a scan is made of several files: those that hold its voxels. Private, as ``source`` is.
    choices : mapping
        What the person chose where the source leaves a choice (``series``, ``volume``, ``untrusted``, ``resample``), so
        that the same can be read again. Private, as ``source`` is.
    """

    data: NDArray
    axes: str
    geometry: Geometry
    slice_axis: int | None = None
    modality: str | None = None
    source: Path | None = None
    warnings: tuple[str, ...] = ()
    series: tuple[SeriesInfo, ...] = field(default=())
    window: tuple[float, float] | None = None
    inverted: bool = False
    source_files: tuple[Path, ...] = ()
    choices: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.axes) != self.data.ndim:
            raise ValueError(f"axes {self.axes!r} do not describe an array of shape {self.data.shape}")

    @property
    def has_channels(self) -> bool:
        """Whether the last axis holds channels."""
        return self.axes.endswith("c")

    @property
    def n_channels(self) -> int:
        """Number of channels (1 without a channel axis)."""
        return self.data.shape[-1] if self.has_channels else 1

    @property
    def is_rgb(self) -> bool:
        """Whether the channels are red, green, blue (and opacity)."""
        return self.has_channels and self.n_channels in (3, 4)

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Shape without the channel axis: ``(z, y, x)`` or ``(y, x)``."""
        return self.data.shape[:-1] if self.has_channels else self.data.shape

    @property
    def n_slices(self) -> int:
        """Number of slices across the acquired plane (1 in 2D)."""
        return 1 if self.slice_axis is None else self.spatial_shape[self.slice_axis]

    @property
    def spacing_or_unit(self) -> tuple[float, ...]:
        """Spacing in mm, or ones (pixels) where it is not known."""
        return self.geometry.spacing or (1.0,) * len(self.spatial_shape)

    @property
    def is_lazy(self) -> bool:
        """Whether the voxels stay on the disk until they are asked for."""
        return not isinstance(self.data, np.ndarray)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the voxels, their shape and dtype; equal content has an equal fingerprint, whatever its name.

        It does not depend on how the voxels are stored either, so that work on a scan is found again on a machine
        with more memory. A lazy scan is read through once, piece by piece.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{self.data.shape}{self.data.dtype.str}".encode())
        for piece in [self.data] if not self.is_lazy else _in_order(self.data):
            digest.update(np.ascontiguousarray(piece).view(np.uint8).data)
        return digest.hexdigest()

    def channels_first(self) -> NDArray:
        """Return the voxels as ``(C, *spatial)``, a view where possible."""
        return np.moveaxis(self.data, -1, 0) if self.has_channels else self.data[np.newaxis]

    def grey(self) -> NDArray:
        """Return grey values over the spatial axes: of colours the mean, else the first channel."""
        if self.is_rgb:
            return self.data[..., :3].mean(axis=-1, dtype=np.float32)
        return self.data[..., 0] if self.has_channels else self.data

    def to_planes(self, array: NDArray) -> NDArray:
        """View an array over the spatial axes as ``(slices, height, width)`` of acquired planes."""
        if self.slice_axis is None:
            return array[np.newaxis]
        return np.moveaxis(array, self.slice_axis, 0)

    def from_planes(self, planes: NDArray) -> NDArray:
        """Undo :meth:`to_planes`."""
        if self.slice_axis is None:
            return planes[0]
        return np.moveaxis(planes, 0, self.slice_axis)


def _in_order(array: Any) -> Iterator[NDArray]:
    """Yield the elements of a lazy array in C order, in pieces of a bounded size."""
    plane = math.prod(array.shape[1:]) * array.dtype.itemsize
    if plane > _PIECE_BYTES and array.ndim > 1:
        for index in range(array.shape[0]):
            yield from _in_order(array[index])
        return
    step = max(1, _PIECE_BYTES // max(plane, 1))
    # Whole layers of chunks, where they fit: each is decoded once then.
    layer = max(array.chunks[0])
    step -= step % layer if step > layer else 0
    for start in range(0, array.shape[0], step):
        yield np.asarray(array[start : start + step])
