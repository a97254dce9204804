"""One model predicting whole scans, here or as a job."""

from __future__ import annotations

import math
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ExportError, ModelError, ScanError
from napari_unet.domain.nnunet import NnunetRecipe
from napari_unet.domain.progress import Progress
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ModelSettings


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says about a whole scan.

    Parameters
    ----------
    labels : array over the scan's spatial axes
        In the label schema's values.
    uncertainty : uint8 array of the same shape, or None
        255 = all classes alike; None where it was not asked for.
    notes : tuple of str
        What the person should know: the scan is unlike those that the model learnt from, memory was short.
    """

    labels: NDArray
    uncertainty: NDArray[np.uint8] | None
    notes: tuple[str, ...]


class Predictor:
    """A model, ready to predict one scan after the other.

    Parameters
    ----------
    checkpoint : Checkpoint
    compute : ResolvedCompute
    values : dict
        Settings of the model to replace, such as ``{"inference.mirror": False}``.

    Raises
    ------
    ModelError
        The runtime that was asked for cannot run the model.
    SettingsError
        There is no such setting, or not such a value.
    """

    def __init__(self, checkpoint: Checkpoint, compute: ResolvedCompute, values: dict[str, Any]) -> None:
        from napari_unet.inference.predict import PixelShare
        from napari_unet.inference.runner import Runner
        from napari_unet.inference.runtimes import converted, network_of

        self.checkpoint = checkpoint
        self._settings = checkpoint.card.settings.with_values(values)
        self._compute = compute
        network = network_of(checkpoint)
        self._runner = Runner(network, self._settings, compute)
        self._recipe = checkpoint.card.nnunet
        if self._recipe is not None:
            self._forward = converted(network, self._settings.network, self._runner.compute)
        self._pixels = PixelShare.of(checkpoint)

    def predict(self, scan: Scan, *, uncertainty: bool = False, scratch: Path | None = None) -> Prediction:
        """Do :meth:`steps` to the end, and return what it returns."""
        steps = self.steps(scan, uncertainty=uncertainty, scratch=scratch)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                found: Prediction = end.value
                return found

    def steps(
        self, scan: Scan, *, uncertainty: bool = False, scratch: Path | None = None
    ) -> Generator[Progress, None, Prediction]:
        """Predict the mask of a whole scan.

        Parameters
        ----------
        scan : Scan
            One that is larger than the memory is read slab by slab.
        uncertainty : bool
            Tell how unsure the model is, too.
        scratch : Path, optional
            An empty folder for the mask of a scan that is larger than the memory.

        Yields
        ------
        Progress
            After each slab.

        Returns
        -------
        Prediction

        Raises
        ------
        ScanError
            The scan is larger than the memory, and what is asked for would need all of it there.
        ExportError
            The disk has no room for the mask of such a scan.
        """
        from napari_unet.inference.after_care import after_care
        from napari_unet.inference.predict import predict
        from napari_unet.inference.slabs import plan_slabs
        from napari_unet.inference.suitability import unlike
        from napari_unet.patches.prepare import PreparedScan
        from napari_unet.patches.spacing import zoom_of
        from napari_unet.training.examples import to_label_values

        if self._recipe is not None:
            return (yield from self._as_nnunet(scan, self._recipe, uncertainty))
        settings, schema = self._settings, self.checkpoint.card.label_schema
        if scan.is_lazy:
            _require_piecewise(scan, settings, uncertainty)
        image = PreparedScan(scan, settings.preparation)
        shape, folder = image.shape[1:], scratch if scan.is_lazy else None
        labels = _array(shape, np.uint8 if max(schema.ids) < 256 else np.uint16, folder)
        unsure = np.zeros(shape, np.uint8) if uncertainty else None
        odd = unlike(self.checkpoint.card, scan, image)
        notes = [] if odd is None else [odd]
        slabs, zoom = plan_slabs(shape, settings), zoom_of(scan, settings)
        results = predict(self._runner, image, settings, self._compute, slabs, zoom, self._pixels)
        for n_done, result in enumerate(results, start=1):
            labels[result.slab.start : result.slab.stop] = to_label_values(result.classes, schema)
            if unsure is not None:
                unsure[result.slab.start : result.slab.stop] = result.uncertainty
            notes += [result.note] if result.note else []
            yield Progress(n_done / len(slabs))
        found = scan.from_planes(labels)
        if settings.after_care.does_something:
            found = after_care(found, scan.geometry.spacing, settings.after_care)
        return Prediction(found, None if unsure is None else scan.from_planes(unsure), tuple(notes))

    def _as_nnunet(self, scan: Scan, recipe: NnunetRecipe, uncertainty: bool) -> Generator[Progress, None, Prediction]:
        from napari_unet.inference.after_care import after_care
        from napari_unet.inference.nnunet import predict_whole

        if uncertainty:
            raise ModelError("A model of nnU-Net's gives labels only: leave --uncertainty out.")
        if not self._settings.inference.mirror:
            recipe = recipe.model_copy(update={"mirror": ()})
        found = yield from predict_whole(scan, recipe, self._forward)
        labels = found.astype(np.uint8 if max(self.checkpoint.card.label_schema.ids) < 256 else np.uint16)
        if self._settings.after_care.does_something:
            labels = after_care(labels, scan.geometry.spacing, self._settings.after_care)
        return Prediction(labels, None, ())


def _require_piecewise(scan: Scan, settings: ModelSettings, uncertainty: bool) -> None:
    """Refuse what a scan that is larger than the memory cannot have, before an hour of work.

    Raises
    ------
    ScanError
        After-care, an uncertainty map, or planes that are themselves too large.
    """
    import psutil

    if settings.after_care.does_something:
        raise ScanError(
            "This scan is larger than the memory, and after-care looks at a mask as a whole: switch it off with "
            "--set for each after_care setting of the model, and clean the mask up in parts."
        )
    if uncertainty:
        raise ScanError(
            "This scan is larger than the memory, and its uncertainty map would be four times as large: leave "
            "--uncertainty out."
        )
    height, width = scan.to_planes(scan.data[..., 0] if scan.has_channels else scan.data).shape[1:]
    floats = settings.network.in_channels + settings.network.out_channels + 3
    if 4 * floats * height * width > psutil.virtual_memory().available:
        raise ScanError(
            f"A single plane of this scan ({height} x {width}) is too large for the memory: cut it into parts."
        )


def _array(shape: tuple[int, ...], dtype: type, folder: Path | None) -> NDArray:
    """Return zeros for a mask, in a file where a folder is given.

    Raises
    ------
    ExportError
        The disk has no room for it, and for the mask that is then written.
    """
    if folder is None:
        return np.zeros(shape, dtype)
    try:
        # The file is sparse at first, so that a full disk would show in the midst of the work, as a fault.
        if shutil.disk_usage(folder).free < 2 * math.prod(shape) * np.dtype(dtype).itemsize:
            raise ExportError("The disk has too little room for the mask: free some, or choose another folder.")
        return np.lib.format.open_memmap(folder / "labels.npy", mode="w+", dtype=dtype, shape=shape)
    except OSError as error:
        raise ExportError(f"The mask's folder cannot be written to ({error.strerror}): choose another one.") from error
