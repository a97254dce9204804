"""The jobs the engine runs: they open what was handed over, call the floors below, and keep what the next job needs.

The worker keeps the last prepared scans and networks, so that a second slab costs only its own planes.
"""

from __future__ import annotations

import copy
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.compute.device import free_memory, resolve
from napari_unet.compute.predictor import Prediction, Predictor
from napari_unet.compute.transport import SharedArray
from napari_unet.domain.annotation import Annotation, SparseChange
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ModelError
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.progress import Progress, TrainingStep
from napari_unet.domain.proposal import Proposal
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import AfterCareSettings, ComputeSettings, ModelSettings, PreparationSettings
from napari_unet.inference.live import Features, Painted, Refitted, Window

if TYPE_CHECKING:
    from napari_unet.editing.regions import OverwriteRule, Region
    from napari_unet.editing.tools import ToolSettings
    from napari_unet.inference.runner import Runner
    from napari_unet.inference.slabs import Slab, SlabResult
    from napari_unet.patches.prepare import PreparedScan
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


@dataclass(frozen=True)
class WholeLessonHandle:
    """A lesson from a folder as it travels: every slice is reviewed, and all of them teach or all judge."""

    scan: ScanHandle
    labels: SharedArray
    judges: bool

    def open(self) -> Lesson:
        """Return the lesson."""
        from napari_unet.training.lesson import Lesson

        scan = self.scan.open()
        return Lesson(scan, self.labels.open(), locked=np.ones(scan.n_slices, bool) if self.judges else None)


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

    def known(self, key: Any) -> Any:
        """Return a value that was made before, or None."""
        with self._lock:
            return self._values.get(key)


_images = _Recent(2)
_checkpoints = _Recent(3)
_networks = _Recent(3)
_runners = _Recent(3)
_predictors = _Recent(4)
# What is odd about a scan in the eyes of a model.
_oddities = _Recent(64)
# For live refits: what is known of single slices, up to 80 MB each, and what was proposed for them lately.
_slices = _Recent(4)
_answers = _Recent(256)
_LARGEST_ANSWER = 2**20


def _same(value: Any) -> Any:
    return value


def _checkpoint(file: SharedArray) -> Any:
    from napari_unet.storage.checkpoint_file import from_bytes

    return _checkpoints.get(file.key, lambda: from_bytes(file.open().tobytes()))


def _network(file: SharedArray) -> Any:
    """Return the network of a checkpoint, and what has a say beside it."""
    from napari_unet.inference.predict import PixelShare
    from napari_unet.inference.runtimes import network_of

    def make() -> Any:
        checkpoint = _checkpoint(file)
        if checkpoint.card.nnunet is not None:
            raise ModelError("A model of nnU-Net's predicts whole scans only: use napari-unet predict with it.")
        return network_of(checkpoint), PixelShare.of(checkpoint)

    return _networks.get(file.key, make)


def _runner(file: SharedArray, compute: ResolvedCompute) -> Runner:
    """Return the network of a checkpoint where it runs; it keeps what it learns about memory and device."""
    from napari_unet.inference.runner import Runner

    settings = _checkpoint(file).card.settings
    runtime = compute.runtime_for(settings.network.dimensions)
    # One for all that come to the same, so that what it learns is learnt once.
    key = (file.key, compute.device, compute.precision, compute.threads, runtime, compute.runtime_wanted)

    def make() -> Runner:
        network = _network(file)[0]
        # On a GPU of its own, so that a copy stays on the CPU whatever else uses the network.
        return Runner(network if compute.device == "cpu" else copy.deepcopy(network), settings, compute)

    return _runners.get(key, make)


def _ready(scan: ScanHandle, file: SharedArray) -> tuple[Scan, PreparedScan, str | None]:
    """Return a scan, what a model sees of it, and what is odd about it in its eyes."""
    from napari_unet.inference.suitability import unlike
    from napari_unet.patches.prepare import PreparedScan

    card, opened = _checkpoint(file).card, scan.open()
    # What is made of the voxels depends on how they stand too.
    key = (scan.voxels.key, scan.axes, scan.geometry.spacing, scan.slice_axis, card.settings.preparation)
    image = _images.get(key, lambda: PreparedScan(opened, card.settings.preparation))
    odd = _oddities.get((*key, file.key), lambda: unlike(card, opened, image))
    return opened, image, odd


def look_around(settings: ComputeSettings) -> Generator[object, None, tuple[ResolvedCompute, int]]:
    """Return what there is to compute with, and the bytes of memory that are free there."""
    yield from ()
    compute = resolve(settings)
    return compute, free_memory(compute)


def make_ready(scan: ScanHandle, checkpoint_file: SharedArray, compute: ResolvedCompute) -> Generator[None, None, None]:
    """Measure a scan and load a model before they are asked for, so that the first proposal is there sooner."""
    yield
    _ready(scan, checkpoint_file)
    _runner(checkpoint_file, compute.in_torch())


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
    from napari_unet.patches.spacing import zoom_of
    from napari_unet.training.examples import to_label_values

    card = _checkpoint(checkpoint_file).card
    opened, image, odd = _ready(scan, checkpoint_file)
    zoom = zoom_of(opened, card.settings)
    runner, pixels = _runner(checkpoint_file, compute), _network(checkpoint_file)[1]
    key = (scan.voxels.key, scan.axes, scan.geometry.spacing, scan.slice_axis)
    for result in predict(runner, image, card.settings, compute, slabs, zoom, pixels):
        if result.classes[0].size <= _LARGEST_ANSWER:
            for index in range(result.slab.start, result.slab.stop):
                _answers.get((*key, checkpoint_file.key, index), partial(_same, result))
        labels = to_label_values(result.classes, card.label_schema)
        notes = tuple(note for note in (odd, result.note) if note)
        yield Proposal(result.slab.start, labels, result.uncertainty, checkpoint_file.key, scan.voxels.key, notes)


def refit(
    scan: ScanHandle,
    checkpoint_file: SharedArray | None,
    schema: LabelSchema,
    index: int,
    painted: Painted,
    compute: ResolvedCompute,
    rest_seconds: float = 0.0,
) -> Generator[None, None, Refitted | None]:
    """Label a slice anew from what was painted on it; see :mod:`napari_unet.inference.live`.

    Parameters
    ----------
    scan : ScanHandle
    checkpoint_file : SharedArray or None
        Bytes of a checkpoint's file (1D uint8), whose classes lead those of ``schema``; None: no model yet.
    schema : LabelSchema
        Classes that may be painted.
    index : int
        Slice.
    painted : Painted
        All of its painted pixels.
    compute : ResolvedCompute
    rest_seconds : float
        To wait before anything is computed; it can be stopped then.

    Returns
    -------
    Refitted or None
        None where nothing was painted last: then all is made ready for the next stroke.
    """
    from napari_unet.inference import live
    from napari_unet.training.examples import to_label_values, to_network_classes

    compute = compute.in_torch()
    time.sleep(rest_seconds)
    yield
    opened = scan.open()
    height, width = (n for axis, n in enumerate(opened.spatial_shape) if axis != opened.slice_axis)
    settings = None if checkpoint_file is None else _checkpoint(checkpoint_file).card.settings
    window = live.window_around(
        (height, width), painted.focus or (height // 2, width // 2), settings.network.dimensions if settings else 2
    )
    key = (scan.voxels.key, scan.axes, scan.geometry.spacing, scan.slice_axis)
    answer = None if checkpoint_file is None else _answers.known((*key, checkpoint_file.key, index))
    features = _slices.get(
        (*key, None if checkpoint_file is None else checkpoint_file.key, index, window, answer is None),
        lambda: _features(opened, key, checkpoint_file, index, window, compute, answer),
    )
    if painted.focus is None:
        return None
    known = np.isin(painted.values, (0, *schema.ids))
    classes = np.full((height, width), live.FREE, np.int16)
    classes.flat[painted.indices[known]] = to_network_classes(painted.values[known], schema)
    found, reached = live.refit(features, classes[window.box], schema.n_outputs)
    return Refitted(window, to_label_values(found, schema), reached)


def _features(
    scan: Scan,
    key: tuple[Any, ...],
    file: SharedArray | None,
    index: int,
    window: Window,
    compute: ResolvedCompute,
    answer: SlabResult | None,
) -> Features:
    from napari_unet.inference import live
    from napari_unet.inference.predict import predict
    from napari_unet.inference.runtimes import GraphNetwork
    from napari_unet.inference.slabs import Slab
    from napari_unet.patches.prepare import PreparedScan
    from napari_unet.patches.spacing import zoom_of

    if file is None:
        settings = ModelSettings(preparation=PreparationSettings(colour="rgb" if scan.is_rgb else "grey"))
    else:
        settings = _checkpoint(file).card.settings
    image = _images.get((*key, settings.preparation), lambda: PreparedScan(scan, settings.preparation))
    if file is None:
        return live.filtered(image, index, window)
    network, pixels = _network(file)
    if isinstance(network, GraphNetwork):
        # Nobody can see what its head sees.
        return live.filtered(image, index, window)
    zoom = zoom_of(scan, settings)
    if answer is None and pixels is not None:
        # What was not proposed lately is asked for; in one pose, since the person is waiting.
        plain = settings.with_values({"inference.mirror": False, "inference.turns": False})
        answer = next(predict(network, image, plain, compute, (Slab(index, index + 1),), zoom, pixels))
    return live.seen_by_head(network, image, settings, compute, index, window, zoom, answer)


def predict_whole(
    scan: ScanHandle,
    checkpoint_file: SharedArray,
    compute: ResolvedCompute,
    values: dict[str, Any],
    uncertainty: bool,
) -> Generator[Progress, None, Prediction]:
    """Predict the mask of a whole scan; see :class:`~napari_unet.compute.predictor.Predictor`."""
    # One per thread of a cluster's worker: a runner learns as it goes.
    key = (checkpoint_file.key, compute, json.dumps(values, sort_keys=True), get_ident())
    predictor = _predictors.get(key, lambda: Predictor(_checkpoint(checkpoint_file), compute, values))
    return (yield from predictor.steps(scan.open(), uncertainty=uncertainty))


def clean(
    labels: SharedArray, spacing: tuple[float, ...] | None, settings: AfterCareSettings
) -> Generator[None, None, SparseChange]:
    """Return what :func:`napari_unet.inference.after_care.after_care` changes in labels."""
    from napari_unet.inference.after_care import after_care

    yield
    before = labels.open()
    return SparseChange.between(before, after_care(before, spacing, settings))


def edit(
    settings: ToolSettings,
    scan: ScanHandle,
    labels: SharedArray,
    painted: SharedArray,
    earlier: SharedArray | None,
    accepted: NDArray[np.int64],
    value: int,
    region: Region,
    rule: OverwriteRule,
    locked: tuple[int, ...],
) -> Generator[None, None, SparseChange]:
    """Return what a tool changes in labels; see :func:`napari_unet.editing.tools.carry_out`."""
    from napari_unet.editing.tools import Work, carry_out

    yield
    opened = scan.open()
    work = Work(
        opened.grey(),
        labels.open(),
        painted.open(),
        accepted,
        scan.slice_axis,
        scan.geometry.spacing,
        value,
        region,
        None if earlier is None else earlier.open(),
    )
    return carry_out(settings, work, rule, locked)


def fine_tune(
    lessons: Sequence[LessonHandle | WholeLessonHandle],
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
    options: dict[str, Any] = {"base": base, "name": name, "unlabelled": seen}
    return (yield from training.fine_tune(opened, settings, schema, compute.in_torch(), **options))
