"""Settings of networks, preparation, augmentation, training and inference.

One class each feeds the form, the command line (``--set training.batch_size=4``), the run record and the model card.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from napari_unet.domain.errors import SettingsError

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cuda", "mps", "cpu"]


class _Frozen(BaseModel):
    # An infinite budget would never end, and NaN compares as neither in nor out of range.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkSettings(_Frozen):
    """A U-Net in 2D or 3D (Ronneberger 2015, Cicek 2016)."""

    dimensions: Literal[2, 3] = Field(2, description="2: one plane at a time; 3: a volume at a time")
    in_channels: int = Field(1, ge=1, le=64, description="Image channels")
    out_channels: int = Field(2, ge=2, le=1024, description="Classes, background included")
    base_channels: int = Field(16, ge=4, le=128, description="Features at full resolution; doubled per level")
    max_channels: int = Field(256, ge=16, le=1024, description="Features never grow beyond this")
    strides: tuple[tuple[int, ...], ...] = Field(
        ((2, 2), (2, 2), (2, 2), (2, 2)), description="Down-sampling from each level to the next, per axis"
    )
    norm: Literal["instance", "batch"] = "instance"
    activation: Literal["leaky_relu", "relu"] = "leaky_relu"
    upsampling: Literal["interpolated", "transposed"] = Field(
        "interpolated", description="How the decoder enlarges; transposed convolutions leave a checkerboard early on"
    )
    activation_first: bool = Field(False, description="Conv-activation-norm, as the classic guide has it")


class PreparationSettings(_Frozen):
    """How intensities become network input."""

    normalisation: Literal["zscore", "unit", "symmetric", "none"] = Field(
        "zscore", description="Per scan: mean 0 and deviation 1; [0, 1]; [-1, 1]; or as they are"
    )
    clip_percentiles: tuple[float, float] | None = Field(
        (0.5, 99.5), description="Intensities outside these percentiles are clipped first"
    )
    window: tuple[float, float] | None = Field(
        None, description="Fixed intensities that become -2 and 2 (CT); replaces clipping and normalisation"
    )
    context_slices: int = Field(0, ge=0, le=5, description="2.5D: so many neighbouring slices on each side as channels")
    colour: Literal["grey", "rgb"] = Field("grey", description="Colour pictures as luminance or as three channels")


class AugmentationSettings(_Frozen):
    """Random changes to training patches, drawn anew at each step."""

    probability: float = Field(0.8, ge=0, le=1, description="Share of patches that are deformed")
    rotation_degrees: float = Field(180.0, ge=0, le=180, description="Largest rotation within the plane")
    scale: float = Field(0.15, ge=0, le=0.9, description="Zoom between 1 - s and 1 + s")
    elastic: float = Field(0.0, ge=0, le=1, description="Strength of smooth random deformation")
    mirror: tuple[int, ...] = Field(
        (), description="Axes of the patch, from 0, that are mirrored at random: those along which labels have no sides"
    )
    brightness: float = Field(0.1, ge=0, le=1, description="Additive, in standard deviations")
    contrast: float = Field(0.25, ge=0, le=0.9, description="Multiplicative, between 1 - c and 1 + c")
    gamma: float = Field(0.2, ge=0, le=0.9, description="Gamma between 1 - g and 1 + g")
    noise: float = Field(0.05, ge=0, le=1, description="Gaussian noise, in standard deviations")


class TrainingSettings(_Frozen):
    """The one training loop and the fine-tuning policy around it."""

    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = Field(6e-3, gt=0, le=1)
    weight_decay: float = Field(1e-2, ge=0, le=1)
    schedule: Literal["poly", "constant"] = Field("poly", description="Decay of the rate over the budget")
    warmup_steps: int = Field(20, ge=0, le=10_000)
    batch_size: int = Field(4, ge=1, le=512)
    patch_size: tuple[int, ...] | None = Field(None, description="Per network axis, in voxels; None: planned")
    foreground_fraction: float = Field(0.5, ge=0, le=1, description="Patches centred on a foreground voxel")
    newest_fraction: float = Field(0.25, ge=0, le=1, description="Patches drawn from the newest scan")
    dice_weight: float = Field(1.0, ge=0, le=10)
    cross_entropy_weight: float = Field(1.0, ge=0, le=10)
    gradient_clip: float = Field(12.0, gt=0)
    ema_decay: float = Field(0.97, ge=0, lt=1, description="Weights that predict are a moving average; 0: off")
    budget_seconds: float | None = Field(60.0, gt=0, description="Stop after this wall time")
    steps: int | None = Field(None, ge=1, description="Stop after this many steps, whatever the time")
    seed: int = Field(0, ge=0)


class InferenceSettings(_Frozen):
    """Tiled prediction with Gaussian blending (nnU-Net's window)."""

    tile: tuple[int, ...] | None = Field(None, description="Per network axis, in voxels; None: as trained or whole")
    overlap: float = Field(0.5, ge=0, lt=1)
    mirror: bool = Field(True, description="Average over flips of the axes that training mirrored")


class ComputeSettings(_Frozen):
    """Where and how to compute. Resolved once by the client; travels with the job."""

    device: Device = "auto"
    precision: Precision = "auto"
    threads: int | None = Field(None, ge=1, le=512, description="CPU threads; None: all cores")


class ModelSettings(_Frozen):
    """Everything that makes a model what it is; stored in its card."""

    preset: str = "default"
    network: NetworkSettings = NetworkSettings()
    preparation: PreparationSettings = PreparationSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    training: TrainingSettings = TrainingSettings()
    inference: InferenceSettings = InferenceSettings()

    @model_validator(mode="after")
    def _parts_agree(self) -> ModelSettings:
        n = self.network.dimensions
        for key, sizes in (
            *(("network.strides", stride) for stride in self.network.strides),
            ("training.patch_size", self.training.patch_size),
            ("inference.tile", self.inference.tile),
        ):
            if sizes is not None and (len(sizes) != n or min(sizes) < 1):
                raise ValueError(f"{key} wants {n} whole numbers above 0 for a {n}D network, not {list(sizes)}")
        mirror = self.augmentation.mirror
        if not set(mirror) <= set(range(n)) or len(set(mirror)) < len(mirror):
            raise ValueError(f"augmentation.mirror wants axes from 0 to {n - 1}, each once, not {list(mirror)}")
        clip, window = self.preparation.clip_percentiles, self.preparation.window
        if window is not None and not window[0] < window[1]:
            raise ValueError(f"preparation.window wants two rising numbers, not {list(window)}")
        if clip is not None and not 0 <= clip[0] < clip[1] <= 100:
            raise ValueError(f"preparation.clip_percentiles wants two rising numbers from 0 to 100, not {list(clip)}")
        return self

    def with_values(self, values: dict[str, Any]) -> ModelSettings:
        """Return a copy with dotted keys replaced.

        Parameters
        ----------
        values : dict
            Such as ``{"training.batch_size": 4}``. Strings are converted to the field's type.

        Raises
        ------
        SettingsError
            Unknown key or a value out of range; names the keys there are, or the limits.
        """
        tree = self.model_dump()
        for key, value in values.items():
            *groups, leaf = key.split(".")
            node: Any = tree
            for group in groups:
                node = node.get(group) if isinstance(node, dict) else None
            if not isinstance(node, dict) or leaf not in node or isinstance(node[leaf], dict):
                raise SettingsError(f"There is no setting {key!r}; the settings are: {', '.join(self.keys())}.")
            node[leaf] = value
        try:
            return type(self).model_validate(tree)
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:
                raise SettingsError(f"{first['msg'].removeprefix('Value error, ')}.") from error
            where = ".".join(str(part) for part in first["loc"])
            raise SettingsError(f"Setting {where} cannot be {first['input']!r}: {first['msg']}.") from error

    @classmethod
    def keys(cls) -> list[str]:
        """Return all dotted keys."""
        found = []
        for name, value in cls.model_fields.items():
            kind = value.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += [f"{name}.{leaf}" for leaf in kind.model_fields]
            else:
                found.append(name)
        return found
