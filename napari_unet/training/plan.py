"""Settings from the scans themselves: dimension, depth, patch, batch, and which random changes are safe.

The rules follow nnU-Net's experience (Isensee et al. 2021) where it fits budgets of seconds; where measurement here
taught otherwise the reason stands beside the rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import SettingsError, TrainingError
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import (
    AugmentationSettings,
    ModelSettings,
    NetworkSettings,
    PreparationSettings,
    TrainingSettings,
)
from napari_unet.patches.prepare import n_input_channels

PRESETS = ("default", "classic")

# Small patches, small batches: in a budget of seconds the number of steps decides, not what each step sees
# (docs/architecture.md, "What a few seconds of training want").
_VOXELS_PER_STEP = 16 * 32 * 32
_LARGEST_PATCH = 128
_LARGEST_BATCH = 16
# The deepest features keep at least so many voxels along each side.
_SMALLEST_FEATURE_EDGE = 4
# A class whose centre is off the middle by more than this share of the picture has a side.
_NO_SIDE = 0.15
# Values this low are Hounsfield units of air.
_AIR_HU = -800.0
_FEWEST_WINDOW_VOXELS = 50


def plan(
    scans: Sequence[Scan], n_classes: int, preset: str = "default", labels: Sequence[NDArray] | None = None
) -> ModelSettings:
    """Return settings that fit these scans.

    Parameters
    ----------
    scans : sequence of Scan
        What will be trained on, at least one; all 2D or all 3D.
    n_classes : int
        Foreground classes.
    preset : {"default", "classic"}
        ``classic`` is the 2015 recipe: 64 features, four levels, Adam 1e-4.
    labels : sequence of array, optional
        Known labels of each scan, over its spatial axes. In CT they choose the window of intensities.

    Returns
    -------
    ModelSettings

    Raises
    ------
    SettingsError
        Unknown preset.
    TrainingError
        Channel counts differ between scans.
    """
    if preset not in PRESETS:
        raise SettingsError(f"There is no preset {preset!r}; the presets are: {', '.join(PRESETS)}.")
    coloured = sum(scan.is_rgb for scan in scans)
    preparation = PreparationSettings(
        colour="rgb" if coloured * 2 > len(scans) else "grey",
        window=_ct_window(scans, labels or ()),
        # The slice above and the one below tell where an organ ends; as channels they cost next to nothing.
        context_slices=1 if all(scan.n_slices > 1 for scan in scans) else 0,
    )
    plain = {scan.n_channels for scan in scans if not scan.is_rgb}
    if len(plain) > 1:
        raise TrainingError(
            f"The scans have different numbers of channels ({', '.join(map(str, sorted(plain)))}): train on scans of "
            "one kind."
        )
    channels = max(n_input_channels(scan, preparation) for scan in scans)
    shapes = np.array([scan.to_planes(np.broadcast_to(np.uint8(0), scan.spatial_shape)).shape for scan in scans])
    height, width = (int(v) for v in np.median(shapes, axis=0)[1:])
    levels = 4
    while levels > 1 and min(height, width) / 2**levels < _SMALLEST_FEATURE_EDGE:
        levels -= 1
    divisor = 2**levels
    edge = min(_LARGEST_PATCH, max(2 * divisor, min(height, width) // divisor * divisor))
    batch = int(np.clip(round(_VOXELS_PER_STEP / edge**2), 2, _LARGEST_BATCH))
    # Volumes stand upright, and classes of one organ may differ only by their side: turning them would teach the
    # network that its labels are arbitrary.
    upright = n_classes > 1 or any(scan.slice_axis is not None for scan in scans)
    settings = ModelSettings(
        preset=preset,
        network=NetworkSettings(
            in_channels=channels,
            out_channels=n_classes + 1,
            strides=((2, 2),) * levels,
        ),
        preparation=preparation,
        augmentation=AugmentationSettings(
            rotation_degrees=15 if upright else 180, mirror=_mirrored_axes(scans, labels or (), upright)
        ),
        training=TrainingSettings(patch_size=(edge, edge), batch_size=batch),
    )
    return settings if preset == "default" else _classic(settings)


def _mirrored_axes(scans: Sequence[Scan], labels: Sequence[NDArray], upright: bool) -> tuple[int, ...]:
    """Return the in-plane axes (0: rows, 1: columns) along which the labels have no sides.

    Along such an axis every class lies about the middle of the picture, so that the mirrored scan is a scan that could
    be. Pictures without an upright pose may be mirrored anyhow; scans without labels to go by are not.
    """
    if not upright:
        return 0, 1
    offsets = []
    for scan, mask in zip(scans, labels, strict=False):
        planes = scan.to_planes(mask)
        size = np.array(planes.shape[1:])
        for value in np.unique(planes[planes > 0]):
            centre = np.argwhere(planes == value)[:, 1:].mean(axis=0)
            offsets.append(np.abs(centre - (size - 1) / 2) / size)
    if not offsets:
        return ()
    return tuple(int(axis) for axis in np.flatnonzero(np.max(offsets, axis=0) <= _NO_SIDE))


def _ct_window(scans: Sequence[Scan], labels: Sequence[NDArray]) -> tuple[float, float] | None:
    """Return the window around the foreground's Hounsfield units (nnU-Net's CT normalisation); None if not CT.

    Whole-scan statistics would spend nearly all contrast on the step from air to tissue.
    """
    if not all(scan.modality == "CT" or float(scan.data.min()) <= _AIR_HU for scan in scans):
        return None
    samples = [scan.data[mask > 0][::7] for scan, mask in zip(scans, labels, strict=False)]
    values = np.concatenate([s.ravel() for s in samples]) if samples else np.empty(0)
    if values.size < _FEWEST_WINDOW_VOXELS:
        return None
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    # A margin shows what borders on the organ.
    margin = max(50.0, 0.25 * (high - low))
    return round(low - margin, 1), round(high + margin, 1)


def _classic(settings: ModelSettings) -> ModelSettings:
    return settings.with_values(
        {
            "network.base_channels": 64,
            "network.max_channels": 1024,
            "network.norm": "batch",
            "network.activation": "relu",
            "network.upsampling": "transposed",
            "network.activation_first": True,
            "augmentation.rotation_degrees": 15,
            "augmentation.mirror": (),
            "training.optimiser": "adam",
            "training.learning_rate": 1e-4,
            "training.weight_decay": 0,
            "training.schedule": "constant",
            "training.warmup_steps": 0,
            "training.ema_decay": 0,
        }
    )
