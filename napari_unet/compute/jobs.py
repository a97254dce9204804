"""The jobs the engine runs: they open what was handed over, call the floors below, and keep what the next job needs.

The worker keeps the last prepared scans and networks, so that a second slab costs only its own planes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.compute.transport import SharedArray
from napari_unet.domain.annotation import Annotation
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.progress import TrainingStep
from napari_unet.domain.proposal import Proposal
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ModelSettings

if TYPE_CHECKING:
    from napari_unet.inference.slabs import Slab
    from napari_unet.training.lesson import FineTuned, Lesson


@dataclass(frozen=True)
class ScanHandle:
    """A scan as it travels: voxels by hash, the rest by value (no path, no name)."""

    voxels: SharedArray
    axes: str
    geometry: Geometry
    slice_axis: int | None
    modality: str | None

    @classmethod
    def of(cls, scan: Scan, voxels: SharedArray) -> ScanHandle:
        """Return the handle of a scan whose voxels were shared under its fingerprint."""
        return cls(voxels, scan.axes, scan.geometry, scan.slice_axis, scan.modality)

    def open(self) -> Scan:
        """Return the scan, its voxels mapped from the shared file."""
        scan = Scan(self.voxels.open(), self.axes, self.geometry, self.slice_axis, self.modality)
        # The key is the hash; computing it again would read the whole volume.
        scan.__dict__["fingerprint"] = self.voxels.key
        return scan


@dataclass(frozen=True, eq=False)
class LessonHandle:
    """A :class:`~napari_unet.training.lesson.Lesson` as it travels: only the planes about which something is known.

    Parameters
    ----------
    scan : ScanHandle
    planes : (n,) int64 array
        Slices, along the slice axis, that hold something reviewed.
    labels : (n, h, w) array
        Their labels.
    reviewed : (n, h, w) bool array
        Their reviewed voxels.
    locked : (n_slices,) bool array
        Slices that only judge.
    """

    scan: ScanHandle
    planes: NDArray[np.int64]
    labels: NDArray
    reviewed: NDArray[np.bool_]
    locked: NDArray[np.bool_]

    @classmethod
    def of(cls, handle: ScanHandle, annotation: Annotation, locked: NDArray[np.bool_]) -> LessonHandle:
        """Return a frozen copy of what an annotation says now."""
        planes = annotation.reviewed_slices()
        axis = annotation.slice_axis
        labels, painted = annotation.labels, annotation.painted
        if axis is None:
            labels, painted = labels[np.newaxis], painted[np.newaxis]
        else:
            labels, painted = np.moveaxis(labels, axis, 0), np.moveaxis(painted, axis, 0)
        reviewed = painted[planes] | annotation.accepted[planes, np.newaxis, np.newaxis]
        return cls(handle, planes, labels[planes], reviewed, locked.copy())

    def open(self) -> Lesson:
        """Return the lesson over the whole scan; what did not travel is unreviewed."""
        from napari_unet.training.lesson import Lesson

        scan = self.scan.open()
        labels = np.zeros(scan.spatial_shape, self.labels.dtype)
        reviewed = np.zeros(scan.spatial_shape, bool)
        scan.to_planes(labels)[self.planes] = self.labels
        scan.to_planes(reviewed)[self.planes] = self.reviewed
        return Lesson(scan, labels, reviewed, self.locked if self.locked.any() else None)


class _Recent:
    """The last few values by key; made once even when two threads ask at once."""

    def __init__(self, size: int) -> None:
        self._size, self._values, self._lock = size, OrderedDict[Any, Any](), Lock()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._values:
                self._values[key] = make()
                while len(self._values) > self._size:
                    self._values.popitem(last=False)
            self._values.move_to_end(key)
            return self._values[key]


_images = _Recent(2)
_checkpoints = _Recent(3)
_networks = _Recent(3)


def _checkpoint(file: SharedArray) -> Any:
    from napari_unet.storage.checkpoint_file import from_bytes

    return _checkpoints.get(file.key, lambda: from_bytes(file.open().tobytes()))


def _network(file: SharedArray) -> Any:
    from napari_unet.networks.factory import build, load_weights

    def make() -> Any:
        checkpoint = _checkpoint(file)
        network = build(checkpoint.card.settings.network, seed=0)
        load_weights(network, checkpoint.weights)
        return network

    return _networks.get(file.key, make)


def propose(
    scan: ScanHandle, checkpoint_file: SharedArray, slabs: Sequence[Slab], compute: ResolvedCompute
) -> Generator[Proposal, None, None]:
    """Propose labels for slabs of a scan, in the order given.

    Parameters
    ----------
    scan : ScanHandle
    checkpoint_file : SharedArray
        Bytes of a checkpoint's file (1D uint8).
    slabs : sequence of Slab
    compute : ResolvedCompute

    Yields
    ------
    Proposal
        One per slab, in acquired planes.
    """
    from napari_unet.inference.predict import predict
    from napari_unet.patches.prepare import prepare
    from napari_unet.patches.spacing import zoom_of
    from napari_unet.training.examples import to_label_values

    card = _checkpoint(checkpoint_file).card
    preparation = card.settings.preparation
    opened = scan.open()
    # What is made of the voxels depends on how they stand too.
    key = (scan.voxels.key, scan.axes, scan.geometry.spacing, scan.slice_axis, preparation)
    image = _images.get(key, lambda: prepare(opened, preparation))
    zoom = zoom_of(opened, card.settings)
    for result in predict(_network(checkpoint_file), image, card.settings, compute, slabs, zoom):
        labels = to_label_values(result.classes, card.label_schema)
        yield Proposal(result.slab.start, labels, result.confidence, checkpoint_file.key, scan.voxels.key)


def fine_tune(
    lessons: Sequence[LessonHandle],
    settings: ModelSettings,
    schema: LabelSchema,
    compute: ResolvedCompute,
    base_file: SharedArray | None,
    name: str,
    unlabelled: Sequence[ScanHandle] = (),
) -> Generator[TrainingStep, None, FineTuned]:
    """Open what was handed over and run :func:`napari_unet.training.fine_tune.fine_tune`."""
    from napari_unet.training import fine_tune as training

    opened = [lesson.open() for lesson in lessons]
    base = None if base_file is None else _checkpoint(base_file)
    seen = [scan.open() for scan in unlabelled]
    return (yield from training.fine_tune(opened, settings, schema, compute, base=base, name=name, unlabelled=seen))
