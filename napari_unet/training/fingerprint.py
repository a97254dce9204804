"""What is measured of the scans before training is planned: grids, intensities, labels. No rule stands here.

No torch: the window's process measures too, between two clicks, so that intensities are sampled and only labelled
planes are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.annotation import Annotation
from napari_unet.domain.errors import ScanError, TrainingError
from napari_unet.domain.scan import TOO_LARGE, Scan
from napari_unet.domain.settings import PreparationSettings
from napari_unet.patches.prepare import n_input_channels

#: The percentiles that are kept of intensities.
PERCENTILES = (0.5, 50.0, 99.5)
# Voxels looked at per scan: percentiles of more would be no better known.
_SAMPLE = 50_000
# Every so many labelled voxels: neighbours say the same.
_FOREGROUND_STEP = 7
_FEWEST_FOREGROUND_VOXELS = 50
# Labelled planes of a scan whose structures are measured.
_MEASURED_PLANES = 12
# A class whose centre is off the middle by more than this share of the picture has a side.
_NO_SIDE = 0.15
# Values this low are Hounsfield units of air.
_AIR_HU = -800.0

Percentiles = tuple[float, float, float]


@dataclass(frozen=True)
class ScanFingerprint:
    """One scan, measured.

    Parameters
    ----------
    shape : (slices, rows, columns)
        In acquired planes; one slice for a picture.
    spacing : (slices, rows, columns) or None
        Millimetres between voxel centres, 1 between the slices of a picture; None where unknown.
    is_volume : bool
        Whether it has a slice axis at all.
    input_channels : (grey, rgb)
        Channels of the network's input, without neighbouring slices, for either ``preparation.colour``.
    is_coloured : bool
        Red, green and blue.
    is_hounsfield : bool
        Intensities are Hounsfield units: it is a CT, or of unknown kind with values as low as air's.
    modality : str or None
        As the scan says.
    intensities : tuple of float
        :data:`PERCENTILES` of a sample of all voxels.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    is_volume: bool
    input_channels: tuple[int, int]
    is_coloured: bool
    is_hounsfield: bool
    modality: str | None
    intensities: Percentiles


@dataclass(frozen=True)
class ClassFingerprint:
    """One class as labelled: its value, voxels, scans that have it, and :data:`PERCENTILES` of its intensities."""

    value: int
    voxels: int
    n_scans: int
    intensities: Percentiles


@dataclass(frozen=True)
class Fingerprint:
    """The scans of a training, measured.

    Parameters
    ----------
    scans : tuple of ScanFingerprint
    classes : tuple of ClassFingerprint
        What the labels hold, by rising value; empty without labels.
    foreground : tuple of float or None
        :data:`PERCENTILES` of the intensities of all labelled voxels; None where too few are labelled.
    symmetric_axes : tuple of int or None
        Axes (0: slices, 1: rows, 2: columns) along which every class of every scan lies about the middle, so that the
        mirrored scan is a scan that could be; None without labels.
    radius : float or None
        In-plane pixels: radius of discs that are as wide as the labelled parts of the narrowest class; None without
        labels.
    """

    scans: tuple[ScanFingerprint, ...]
    classes: tuple[ClassFingerprint, ...]
    foreground: Percentiles | None
    symmetric_axes: tuple[int, ...] | None
    radius: float | None = None

    @property
    def has_volumes(self) -> bool:
        """Whether any scan has a slice axis."""
        return any(scan.is_volume for scan in self.scans)

    @property
    def n_slices(self) -> int:
        """Median number of slices."""
        return int(self.median_shape[0])

    @property
    def median_shape(self) -> tuple[int, int, int]:
        """Median slices, rows and columns, as acquired."""
        slices, rows, columns = (int(v) for v in np.median([scan.shape for scan in self.scans], axis=0))
        return slices, rows, columns

    @property
    def median_spacing(self) -> tuple[float, float, float] | None:
        """Median millimetres between slices, rows and columns; None if that of any scan is unknown."""
        known = [scan.spacing for scan in self.scans if scan.spacing is not None]
        if len(known) < len(self.scans):
            return None
        slices, rows, columns = (float(v) for v in np.median(known, axis=0))
        return slices, rows, columns

    @property
    def anisotropy(self) -> float:
        """How much farther apart slices lie than pixels, by the median spacing; 1 where that is unknown."""
        spacing = self.median_spacing
        return 1.0 if spacing is None else spacing[0] / min(spacing[1:])

    @property
    def is_hounsfield(self) -> bool:
        """Whether all intensities are Hounsfield units."""
        return all(scan.is_hounsfield for scan in self.scans)

    @property
    def modality(self) -> str | None:
        """The modality that all scans share; None if they differ or do not say."""
        found = {scan.modality for scan in self.scans}
        return found.pop() if len(found) == 1 else None


def fingerprint(scans: Sequence[Scan], labels: Sequence[NDArray] | None = None) -> Fingerprint:
    """Measure scans and what is known about them.

    Parameters
    ----------
    scans : sequence of Scan
        At least one; all 2D or all 3D.
    labels : sequence of integer arrays, optional
        Truth of each scan over its spatial axes, in the order of ``scans``. What is not reviewed must be 0 here
        (:func:`known_labels`): a proposal is no truth, and would shift the window and the sides of labels.

    Returns
    -------
    Fingerprint

    Raises
    ------
    TrainingError
        Channel counts differ between scans.
    ScanError
        A scan is larger than the memory.
    """
    plain = {scan.n_channels for scan in scans if not scan.is_rgb}
    if len(plain) > 1:
        raise TrainingError(
            f"The scans have different numbers of channels ({', '.join(map(str, sorted(plain)))}): train on scans of "
            "one kind."
        )
    pairs = zip_longest(scans, list(labels or ())[: len(scans)])
    labelled = [_Labelled.of(scan, mask) for scan, mask in pairs if mask is not None]
    values = [part.values for part in labelled]
    intensities = np.concatenate(values) if values else np.empty(0)
    offsets = [offset for part in labelled for offset in part.offsets.values()]
    return Fingerprint(
        scans=tuple(map(_measure, scans)),
        classes=_classes(labelled),
        foreground=_percentiles(intensities) if intensities.size >= _FEWEST_FOREGROUND_VOXELS else None,
        symmetric_axes=tuple(int(i) for i in np.flatnonzero(np.max(offsets, axis=0) <= _NO_SIDE)) if offsets else None,
        radius=_narrowest([part.radii for part in labelled]),
    )


def known_labels(annotation: Annotation, locked: NDArray[np.bool_] | None = None) -> NDArray:
    """Return an annotation's labels where they are truth, and 0 elsewhere: what :func:`fingerprint` wants.

    Parameters
    ----------
    annotation : Annotation
        Not changed.
    locked : (n_slices,) bool array, optional
        Slices that only judge; nothing is learnt from them, not even a window.

    Returns
    -------
    array
        Of the labels' shape and dtype.
    """
    known = np.zeros_like(annotation.labels)
    # Slice by slice: most are untouched, and their zeros cost neither time nor memory.
    for index in annotation.reviewed_slices():
        if locked is None or not locked[index]:
            where = annotation.slice_index(int(index))
            known[where] = annotation.labels[where] * (annotation.painted[where] | annotation.accepted[index])
    return known


def _measure(scan: Scan) -> ScanFingerprint:
    if scan.is_lazy:
        raise ScanError(TOO_LARGE)
    grid = scan.to_planes(np.broadcast_to(np.uint8(0), scan.spatial_shape)).shape
    step = max(1, math.ceil((scan.data.size / _SAMPLE) ** (1 / len(scan.spatial_shape))))
    sample = scan.data[(slice(None, None, step),) * len(scan.spatial_shape)].ravel()
    grey, rgb = (n_input_channels(scan, PreparationSettings(colour=colour)) for colour in ("grey", "rgb"))
    return ScanFingerprint(
        shape=(grid[0], grid[1], grid[2]),
        spacing=_plane_spacing(scan),
        is_volume=scan.slice_axis is not None,
        input_channels=(grey, rgb),
        is_coloured=scan.is_rgb,
        is_hounsfield=scan.modality == "CT" or (scan.modality is None and float(sample.min()) <= _AIR_HU),
        modality=scan.modality,
        intensities=_percentiles(sample),
    )


def _plane_spacing(scan: Scan) -> tuple[float, float, float] | None:
    spacing = scan.geometry.spacing
    if spacing is None:
        return None
    if scan.slice_axis is None:
        return 1.0, float(spacing[0]), float(spacing[1])
    rows, columns = (float(v) for axis, v in enumerate(spacing) if axis != scan.slice_axis)
    return float(spacing[scan.slice_axis]), rows, columns


def _percentiles(values: NDArray) -> Percentiles:
    low, middle, high = (float(v) for v in np.percentile(values, PERCENTILES))
    return low, middle, high


@dataclass(frozen=True, eq=False)
class _Labelled:
    """One scan's labelled voxels: how many per class, how far off the middle, and some of them with intensities."""

    voxels: dict[int, int]
    offsets: dict[int, NDArray]
    classes: NDArray
    values: NDArray
    radii: list[tuple[int, float]]

    @classmethod
    def of(cls, scan: Scan, mask: NDArray) -> _Labelled:
        planes, image = scan.to_planes(mask), scan.to_planes(scan.data)
        classes, values, places = [np.zeros(0, np.int64)], [np.zeros((0, *image.shape[3:]), image.dtype)], []
        for index, plane in enumerate(planes):
            # Most planes of a scan under work are not labelled yet.
            if plane.any():
                rows, columns = np.nonzero(plane)
                classes.append(plane[rows, columns].astype(np.int64))
                values.append(image[index][rows, columns])
                places.append((index, classes[-1], rows, columns))
        all_classes, all_values = np.concatenate(classes)[::_FOREGROUND_STEP], np.concatenate(values)
        voxels, offsets = _spread(planes.shape, places)
        all_values = all_values[::_FOREGROUND_STEP]
        # Each channel of a voxel is a value of its own.
        per_voxel = math.prod(all_values.shape[1:])
        chosen = [index for index, *_ in places[:: max(1, len(places) // _MEASURED_PLANES)]]
        radii = [found for index in chosen for found in _radii(planes[index])]
        return cls(voxels, offsets, np.repeat(all_classes, per_voxel), all_values.ravel(), radii)


def _radii(plane: NDArray) -> list[tuple[int, float]]:
    """Return each class of a plane with the radius of a disc whose pixels lie as deep, on average, as the class's."""
    from scipy.ndimage import distance_transform_edt

    # Within a disc the mean depth is a third of the radius.
    values = np.unique(plane)
    return [(int(v), 3 * float(distance_transform_edt(plane == v)[plane == v].mean())) for v in values[values > 0]]


def _narrowest(radii: list[list[tuple[int, float]]]) -> float | None:
    """Return the smallest of the classes' median radii; each scan has the same say."""
    by_class: dict[int, list[float]] = {}
    for scan in radii:
        for value in {value for value, _ in scan}:
            by_class.setdefault(value, []).append(float(np.median([r for v, r in scan if v == value])))
    return min((float(np.median(found)) for found in by_class.values()), default=None)


def _spread(
    shape: tuple[int, ...], places: list[tuple[int, NDArray, NDArray, NDArray]]
) -> tuple[dict[int, int], dict[int, NDArray]]:
    """Return per class its voxels, and how far its centre is off the middle of each axis, as a share of the axis."""
    if not places:
        return {}, {}
    n = 1 + max(int(classes.max()) for _, classes, _, _ in places)
    count, total = np.zeros(n), np.zeros((n, 3))
    for index, classes, rows, columns in places:
        here = np.bincount(classes, minlength=n)
        count += here
        total[:, 0] += here * index
        total[:, 1] += np.bincount(classes, rows, n)
        total[:, 2] += np.bincount(classes, columns, n)
    size = np.array(shape, float)
    present = np.flatnonzero(count)
    return (
        {int(value): int(count[value]) for value in present},
        {int(value): np.abs(total[value] / count[value] - (size - 1) / 2) / size for value in present},
    )


def _classes(labelled: list[_Labelled]) -> tuple[ClassFingerprint, ...]:
    found = []
    for value in sorted({value for part in labelled for value in part.voxels}):
        values = np.concatenate([part.values[part.classes == value] for part in labelled])
        # The sample may have missed a class of a handful of voxels.
        intensities = _percentiles(values) if values.size else (math.nan,) * 3
        n_scans = sum(value in part.voxels for part in labelled)
        found.append(ClassFingerprint(value, sum(part.voxels.get(value, 0) for part in labelled), n_scans, intensities))
    return tuple(found)
