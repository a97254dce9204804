"""A scan: voxels, where they stand, and what is odd about them. No files are read here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.geometry import Geometry


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
        left of the patient.
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

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the voxels, their shape and dtype; equal content has an equal fingerprint, whatever its name."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{self.data.shape}{self.data.dtype.str}".encode())
        digest.update(np.ascontiguousarray(self.data).view(np.uint8).data)
        return digest.hexdigest()

    def channels_first(self) -> NDArray:
        """Return the voxels as ``(C, *spatial)``, a view where possible."""
        return np.moveaxis(self.data, -1, 0) if self.has_channels else self.data[np.newaxis]

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
