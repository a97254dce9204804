"""Settings from the scans themselves: dimension, depth, patch, batch, and which random changes are safe.

The rules follow nnU-Net's experience (Isensee et al. 2021) where it fits budgets of seconds; where measurement here
taught otherwise the reason stands beside the rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from napari_unet.domain.errors import SettingsError, TrainingError
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import (
    AugmentationSettings,
    ModelSettings,
    NetworkSettings,
    PreparationSettings,
    TrainingSettings,
)

PRESETS = ("default", "classic")

# Small batches: in a budget of seconds the number of steps decides, not what each step sees (docs/architecture.md).
_VOXELS_PER_STEP = 2 * 192 * 192
_LARGEST_PATCH = 192
_LARGEST_BATCH = 16
# The deepest features keep at least so many voxels along each side.
_SMALLEST_FEATURE_EDGE = 4


def plan(scans: Sequence[Scan], n_classes: int, preset: str = "default") -> ModelSettings:
    """Return settings that fit these scans.

    Parameters
    ----------
    scans : sequence of Scan
        What will be trained on, at least one; all 2D or all 3D.
    n_classes : int
        Foreground classes.
    preset : {"default", "classic"}
        ``classic`` is the 2015 recipe: 64 features, four levels, Adam 1e-4.

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
    preparation = PreparationSettings(colour="rgb" if coloured * 2 > len(scans) else "grey")
    plain = {scan.n_channels for scan in scans if not scan.is_rgb}
    if len(plain) > 1:
        raise TrainingError(
            f"The scans have different numbers of channels ({', '.join(map(str, sorted(plain)))}): train on scans of one kind."
        )
    channels = 3 if preparation.colour == "rgb" else max(plain, default=1)
    shapes = np.array([scan.to_planes(np.broadcast_to(np.uint8(0), scan.spatial_shape)).shape for scan in scans])
    height, width = (int(v) for v in np.median(shapes, axis=0)[1:])
    levels = 4
    while levels > 1 and min(height, width) / 2**levels < _SMALLEST_FEATURE_EDGE - 1:
        levels -= 1
    divisor = 2**levels
    patch = tuple(min(_LARGEST_PATCH, -(-size // divisor) * divisor) for size in (height, width))
    batch = int(np.clip(round(_VOXELS_PER_STEP / np.prod(patch)), 2, _LARGEST_BATCH))
    # Volumes stand upright, and classes of one organ may differ only by their side: turning or mirroring them would
    # teach the network that its labels are arbitrary.
    upright = n_classes > 1 or any(scan.slice_axis is not None for scan in scans)
    settings = ModelSettings(
        preset=preset,
        network=NetworkSettings(
            in_channels=channels,
            out_channels=n_classes + 1,
            strides=((2, 2),) * levels,
        ),
        preparation=preparation,
        augmentation=AugmentationSettings(rotation_degrees=15 if upright else 180, mirror=not upright),
        training=TrainingSettings(patch_size=patch, batch_size=batch),
    )
    return settings if preset == "default" else _classic(settings)


def _classic(settings: ModelSettings) -> ModelSettings:
    return settings.with_values(
        {
            "network.base_channels": 64,
            "network.max_channels": 1024,
            "network.norm": "batch",
            "network.activation": "relu",
            "network.activation_first": True,
            "augmentation.rotation_degrees": 15,
            "augmentation.mirror": False,
            "training.optimiser": "adam",
            "training.learning_rate": 1e-4,
            "training.weight_decay": 0,
            "training.schedule": "constant",
            "training.warmup_steps": 0,
            "training.ema_decay": 0,
        }
    )
