"""The named recipes: settings that a preset fixes, and how large its patches and batches may become.

Only values stand here; the rules that fit them to scans are in ``plan``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from napari_unet.domain.errors import SettingsError


@dataclass(frozen=True)
class Reach:
    """How far a plan may go in one dimension.

    Parameters
    ----------
    patch_voxels : int
        Most voxels of a patch.
    step_voxels : int
        Voxels of a batch, about.
    smallest_edge : int
        A patch is not cut below this along any axis, however short the memory.
    largest_batch : int
    most_levels : int
        Of down-sampling.
    """

    patch_voxels: int
    step_voxels: int
    smallest_edge: int
    largest_batch: int
    most_levels: int


@dataclass(frozen=True)
class Preset:
    """One recipe.

    Parameters
    ----------
    purpose : str
        What it is for, to follow the words "is made for".
    planes, volumes : Reach
        Of 2D and of 3D networks.
    planes_on_gpu, volumes_on_gpu : Reach, optional
        The same where a GPU computes; None: no other.
    values : mapping
        Settings by dotted key, whatever the scans. A key that is missing is planned, or stays as the settings have it.
    in_3d : mapping
        More of them, for 3D networks.
    on_gpu : mapping
        More of them, where a GPU computes.
    for_one_class : mapping
        More of them, where only one class is to be told from background.
    neighbours : int
        Slices on each side that a 2D network sees of a volume.
    square : bool
        Square patches of a 2D network, and as many levels as they allow; else both follow the voxels' spacing.
    resample : bool
        Scans of different spacing are brought to one.
    coarse_side : int, optional
        Planes with a longer side are seen coarser, whole if possible, where what is labelled is wide enough.
    """

    purpose: str
    planes: Reach
    volumes: Reach
    values: Mapping[str, Any]
    planes_on_gpu: Reach | None = None
    volumes_on_gpu: Reach | None = None
    in_3d: Mapping[str, Any] = field(default_factory=dict)
    on_gpu: Mapping[str, Any] = field(default_factory=dict)
    for_one_class: Mapping[str, Any] = field(default_factory=dict)
    neighbours: int = 1
    square: bool = False
    resample: bool = False
    coarse_side: int | None = None

    def reach(self, dimensions: int, device: str) -> Reach:
        """Return how far a plan may go for a network of that many dimensions on a device."""
        here, on_gpu = (self.planes, self.planes_on_gpu) if dimensions == 2 else (self.volumes, self.volumes_on_gpu)
        return here if device == "cpu" or on_gpu is None else on_gpu


# Small patches, small batches: in a budget of seconds the number of steps decides, not what each step sees
# (docs/architecture.md, "Learning in seconds").
_SECONDS_2D = Reach(patch_voxels=128**2, step_voxels=16 * 32**2, smallest_edge=32, largest_batch=16, most_levels=4)
_SECONDS_3D = Reach(patch_voxels=48**3, step_voxels=2 * 32**3, smallest_edge=16, largest_batch=4, most_levels=4)

_PRESETS: dict[str, Preset] = {
    "default": Preset(
        purpose="learning from corrections within seconds",
        planes=_SECONDS_2D,
        volumes=_SECONDS_3D,
        square=True,
        coarse_side=128,
        values={"network.dimensions": 2},
    ),
    # "PyTorch Unet for medical image segmentation", the guide that this project began with; its network is that of
    # Ronneberger et al. 2015. docs/plan.md says where it had to be mended.
    "classic": Preset(
        purpose="comparison: the U-Net as the textbooks have it",
        planes=_SECONDS_2D,
        volumes=_SECONDS_3D,
        square=True,
        values={
            "network.dimensions": 2,
            "network.base_channels": 64,
            "network.max_channels": 1024,
            "network.norm": "batch",
            "network.activation": "relu",
            "network.activation_first": True,
            "network.upsampling": "transposed",
            "preparation.normalisation": "unit",
            "preparation.context_slices": 0,
            "augmentation.rotation_degrees": 15,
            "augmentation.elastic": 0.3,
            "augmentation.gamma": 0.2,
            "augmentation.scale": 0,
            "augmentation.brightness": 0,
            "augmentation.contrast": 0,
            "augmentation.noise": 0,
            "augmentation.mirror": (),
            "training.optimiser": "adam",
            "training.learning_rate": 1e-4,
            "training.weight_decay": 0,
            "training.schedule": "plateau",
            "training.patience": 3,
            "training.warmup_steps": 0,
            "training.ema_decay": 0,
            "training.first_proposals": False,
        },
        for_one_class={"network.head": "sigmoid"},
    ),
    # nnU-Net's experience (Isensee et al. 2021, and the residual encoders of Isensee et al. 2024), at sizes that a
    # workplace computer can train.
    "thorough": Preset(
        purpose="whole sets of labelled scans and minutes to hours of training",
        # What a CPU gets through a thousand times or more in half an hour. Whole pictures wherever they fit: with
        # instance normalisation a network that learns on small parts sees other statistics when it predicts, and a
        # small organ is found by what lies around it (cardiac MR of 256 x 256 after two minutes: Dice 0.53 with
        # patches of 256 x 256, 0.04 with 128 x 128, 0.25 if it predicts in such parts as well).
        planes=Reach(patch_voxels=256**2, step_voxels=2 * 256**2, smallest_edge=32, largest_batch=16, most_levels=5),
        volumes=Reach(patch_voxels=48**3, step_voxels=2 * 48**3, smallest_edge=16, largest_batch=4, most_levels=4),
        planes_on_gpu=Reach(
            patch_voxels=256**2, step_voxels=4 * 256**2, smallest_edge=64, largest_batch=32, most_levels=6
        ),
        volumes_on_gpu=Reach(
            patch_voxels=64**3, step_voxels=2 * 64**3, smallest_edge=32, largest_batch=8, most_levels=5
        ),
        resample=True,
        neighbours=2,
        values={
            "network.base_channels": 20,
            "network.max_channels": 320,
            "network.encoder": "residual",
            # Wider changes than those for seconds: after 1200 steps on 128 hippocampus scans the Dice of 32 others was
            # equal (0.8745 with these and turns of 30 degrees, 0.8742 without), the training loss higher (0.20, 0.17).
            "augmentation.scale": 0.3,
            "augmentation.elastic": 0.5,
            "augmentation.gamma": 0.3,
            "augmentation.noise": 0.1,
            "augmentation.blur": 1,
            "augmentation.low_resolution": 0.5,
            "training.learning_rate": 3e-3,
            "training.warmup_steps": 50,
            "training.schedule": "poly",
            # A folder has no newest scan, and enough of them for a network.
            "training.newest_fraction": 0,
            "training.first_proposals": False,
            "training.ema_decay": 0.99,
            "training.budget_seconds": 1800,
        },
        on_gpu={"network.base_channels": 32, "network.max_channels": 512, "training.learning_rate": 2e-3},
        in_3d={"network.max_channels": 320, "network.deep_supervision": True},
    ),
}

PRESETS = tuple(_PRESETS)


def preset_named(name: str) -> Preset:
    """Return a preset.

    Raises
    ------
    SettingsError
        There is none of that name; says which there are.
    """
    if name not in _PRESETS:
        raise SettingsError(f"There is no preset {name!r}; the presets are: {', '.join(PRESETS)}.")
    return _PRESETS[name]
