"""Settings of networks, preparation, augmentation, training and inference.

One class each feeds the form, the command line (``--set training.batch_size=4``), the run record and the model card.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from napari_unet.domain.errors import SettingsError

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cuda", "mps", "cpu"]
Runtime = Literal["auto", "torch", "onnx", "openvino"]


class _Frozen(BaseModel):
    # An infinite budget would never end, and NaN compares as neither in nor out of range.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkSettings(_Frozen):
    """A U-Net in 2D or 3D (Ronneberger 2015, Cicek 2016) and its relatives."""

    dimensions: Literal[2, 3] = Field(2, description="2: one plane at a time; 3: a volume at a time")
    in_channels: int = Field(1, ge=1, le=64, description="Image channels")
    out_channels: int = Field(2, ge=2, le=1024, description="Classes, background included")
    head: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="softmax: one class per voxel; sigmoid: each region by itself, so that they may overlap"
    )
    regions: tuple[tuple[int, ...], ...] | None = Field(
        None,
        description="With sigmoid: each region as the classes it unites (1 is the first); None: every class is one",
    )
    base_channels: int = Field(16, ge=4, le=128, description="Features at full resolution; doubled per level")
    max_channels: int = Field(256, ge=16, le=1024, description="Features never grow beyond this")
    strides: tuple[tuple[int, ...], ...] = Field(
        ((2, 2), (2, 2), (2, 2), (2, 2)), description="Down-sampling from each level to the next, per axis"
    )
    kernels: tuple[tuple[int, ...], ...] | None = Field(
        None, description="Width of the convolutions per level, the bottom included, and axis; None: 3 everywhere"
    )
    encoder: Literal["plain", "residual", "pretrained"] = Field(
        "plain", description="Convolutions, residual blocks, or a ResNet whose weights were trained elsewhere"
    )
    backbone: Literal["resnet10", "resnet18", "resnet34", "resnet50"] = Field(
        "resnet18", description="Which ResNet a pretrained encoder is"
    )
    backbone_weights: str | None = Field(
        None, description="Weights of the ResNet: a file, or hub:OWNER/NAME to fetch them; None: random"
    )
    bottleneck: Literal["convolution", "transformer"] = Field(
        "convolution", description="The deepest level; transformer makes it a TransUNet (Chen 2021)"
    )
    transformer_layers: int = Field(4, ge=1, le=24, description="Depth of a transformer bottleneck")
    attention_gates: bool = Field(False, description="Skips pass a gate that learns where to look (Oktay 2018)")
    deep_supervision: bool = Field(False, description="Coarser levels of the decoder are taught as well (Lee 2015)")
    norm: Literal["instance", "batch"] = Field(
        "instance", description="Features are evened out per patch, or over the whole batch"
    )
    activation: Literal["leaky_relu", "relu"] = Field("leaky_relu", description="The bend behind each convolution")
    upsampling: Literal["interpolated", "transposed"] = Field(
        "interpolated", description="How the decoder enlarges; transposed convolutions leave a checkerboard early on"
    )
    activation_first: bool = Field(False, description="Conv-activation-norm, as the classic guide has it")

    @property
    def n_logits(self) -> int:
        """Channels that come out of the network: classes, or regions of a sigmoid head."""
        return self.out_channels if self.head == "softmax" else len(self.members)

    @property
    def divisor(self) -> tuple[int, ...]:
        """Spatial sizes of an input must be multiples of this, per axis."""
        return tuple(math.prod(stride[axis] for stride in self.strides) for axis in range(self.dimensions))

    @property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """The classes that each region of a sigmoid head unites."""
        return self.regions or tuple((k,) for k in range(1, self.out_channels))


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
    equalise: Literal["none", "histogram", "clahe"] = Field(
        "none", description="Spread the histogram, of the whole scan or region by region (CLAHE), before normalisation"
    )
    spacing: tuple[float, float, float] | None = Field(
        None,
        description="Millimetres between slices, rows and columns that the network sees; None: as acquired. 2D "
        "networks leave the slices as they are",
    )
    coarsen: float = Field(
        1.0,
        ge=1,
        le=8,
        description="The network sees pixels so many times larger, in rows and columns: more of its surroundings, less "
        "of the detail",
    )
    context_slices: int = Field(0, ge=0, le=5, description="2.5D: so many neighbouring slices on each side as channels")
    colour: Literal["grey", "rgb"] = Field("grey", description="Colour pictures as luminance or as three channels")


class AugmentationSettings(_Frozen):
    """Random changes to training patches, drawn anew at each step."""

    probability: float = Field(0.8, ge=0, le=1, description="Share of patches that are deformed")
    rotation_degrees: float = Field(180.0, ge=0, le=180, description="Largest rotation within the plane")
    scale: float = Field(0.15, ge=0, le=0.9, description="Zoom between 1 - s and 1 + s")
    shift: float = Field(0.0, ge=0, le=0.5, description="Largest shift, as a share of the patch")
    elastic: float = Field(0.0, ge=0, le=1, description="Strength of smooth random deformation")
    mirror: tuple[int, ...] = Field(
        (), description="Axes of the patch, from 0, that are mirrored at random: those along which labels have no sides"
    )
    brightness: float = Field(0.1, ge=0, le=1, description="Additive, in standard deviations")
    contrast: float = Field(0.25, ge=0, le=0.9, description="Multiplicative, between 1 - c and 1 + c")
    gamma: float = Field(0.2, ge=0, le=0.9, description="Gamma between 1 - g and 1 + g")
    noise: float = Field(0.05, ge=0, le=1, description="Gaussian noise, in standard deviations")
    blur: float = Field(0.0, ge=0, le=3, description="Gaussian blur of up to so many voxels, in a fifth of the patches")
    low_resolution: float = Field(
        0.0, ge=0, le=0.9, description="A fifth of the patches are coarsened to between 1 - r and 1 of their resolution"
    )


class TrainingSettings(_Frozen):
    """The one training loop and the fine-tuning policy around it."""

    optimiser: Literal["adamw", "adam", "sgd"] = Field(
        "adamw", description="How steps follow from gradients; sgd has Nesterov momentum 0.99"
    )
    learning_rate: float = Field(6e-3, gt=0, le=1, description="Size of the steps at its highest")
    encoder_rate: float = Field(
        1.0,
        gt=0,
        le=10,
        description="Rate of the encoder, as a share of the others': below 1 it keeps more of what it knew before",
    )
    weight_decay: float = Field(1e-2, ge=0, le=1, description="Pull of the weights towards zero")
    schedule: Literal["poly", "cosine", "plateau", "constant"] = Field(
        "poly",
        description="Decay of the rate: over the budget, or to a tenth whenever the validation loss has stood still",
    )
    patience: int = Field(3, ge=1, le=1000, description="Validations without progress before a plateau is declared")
    stop_after_plateaus: int | None = Field(
        None, ge=1, description="With schedule 'plateau': stop at the plateau of this number, whatever time is left"
    )
    validation_interval: int = Field(100, ge=1, description="Steps between validations, which only 'plateau' needs")
    validation_fraction: float = Field(
        0.2, ge=0, le=0.5, description="Share of a folder's scans (or patients) that judge and never teach"
    )
    warmup_steps: int = Field(20, ge=0, le=10_000, description="Steps until the rate is at its highest")
    batch_size: int = Field(4, ge=1, le=512, description="Patches per step")
    accumulate: int = Field(
        1, ge=1, le=512, description="A batch is computed in so many pieces: less memory, more time, the same step"
    )
    activation_checkpointing: bool = Field(
        False, description="Compute activations again instead of keeping them: less memory, more time, the same step"
    )
    patch_size: tuple[int, ...] | None = Field(None, description="Per network axis, in voxels; None: planned")
    foreground_fraction: float = Field(0.5, ge=0, le=1, description="Patches centred on a foreground voxel")
    rare_class_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Patches for which the class is drawn first, then a scan that has it: favours rare ones",
    )
    newest_fraction: float = Field(
        0.25, ge=0, le=1, description="Patches drawn from the newest scan; 0: it is one like the others"
    )
    dice_weight: float = Field(1.0, ge=0, le=10, description="Of the soft Dice of the foreground")
    cross_entropy_weight: float = Field(
        1.0, ge=0, le=10, description="Of the cross entropy, binary with a sigmoid head"
    )
    class_weights: tuple[float, ...] | None = Field(
        None, description="In the cross entropy, background first; None: all equal (softmax head)"
    )
    positive_weight: float = Field(
        1.0, gt=0, le=1000, description="Of foreground against background in the binary cross entropy (sigmoid head)"
    )
    gradient_clip: float = Field(12.0, gt=0, description="Longer gradients are shortened to this norm")
    ema_decay: float = Field(0.97, ge=0, lt=1, description="Weights that predict are a moving average; 0: off")
    first_proposals: bool = Field(
        True,
        description="Filters classify single pixels beside a 2D network, for as long as that leaves less to correct",
    )
    consistency_weight: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Mean Teacher: weight of agreeing with the averaged weights where nothing is known",
    )
    consistency_ramp_steps: int = Field(100, ge=0, description="Steps until that weight is reached")
    budget_seconds: float | None = Field(60.0, gt=0, description="Stop after this wall time")
    steps: int | None = Field(None, ge=1, description="Stop after this many steps, whatever the time")
    seed: int = Field(0, ge=0, description="Of everything random: first weights, patches, changes")
    deterministic: bool = Field(
        False,
        description="Only reproducible operations: two runs of equal steps give equal weights, more slowly on GPUs",
    )


class InferenceSettings(_Frozen):
    """Tiled prediction with Gaussian blending (nnU-Net's window)."""

    tile: tuple[int, ...] | None = Field(None, description="Per network axis, in voxels; None: as trained or whole")
    overlap: float = Field(0.5, ge=0, lt=1, description="Of neighbouring tiles, as a share of their side")
    mirror: bool = Field(True, description="Average over flips of the axes that training mirrored")
    turns: bool = Field(True, description="Average over quarter turns too, where training turned full circle (2D)")
    skip_constant: bool = Field(
        True, description="Tiles of a single value (air, padding) are computed once; changes nothing but the time"
    )
    thresholds: tuple[float, ...] | None = Field(
        None,
        description="Least probability of each class for it to be proposed, the first class first; None: the likeliest",
    )


class AfterCareSettings(_Frozen):
    """What is done to a mask as a whole once it has been proposed."""

    smooth_mm: float = Field(0.0, ge=0, le=100, description="Borders follow a blur of this deviation; 0: as they are")
    fill_holes: bool = Field(False, description="Each class gets the background that it encloses on all sides")
    smallest_mm3: float = Field(
        0.0, ge=0, description="Connected pieces of a class below this volume are removed (mm2 in pictures)"
    )
    keep_largest: bool = Field(False, description="Of each class only the largest connected piece stays")

    @property
    def does_something(self) -> bool:
        """Whether any of it is asked for."""
        return self != AfterCareSettings()


class ComputeSettings(_Frozen):
    """Where and how to compute. Resolved once by the client; travels with the job."""

    device: Device = "auto"
    precision: Precision = "auto"
    runtime: Runtime = "torch"
    threads: int | None = Field(None, ge=1, le=512, description="CPU threads; None: all cores")


def _check_kernels(network: NetworkSettings) -> None:
    kernels, levels = network.kernels, len(network.strides) + 1
    if kernels is None:
        return
    if len(kernels) != levels:
        raise ValueError(f"network.kernels wants {levels} entries, one per level, not {len(kernels)}")
    if not all(width % 2 for kernel in kernels for width in kernel):
        raise ValueError("network.kernels wants odd widths")
    if network.encoder == "pretrained":
        raise ValueError("network.kernels cannot be chosen for a pretrained encoder")


def _check_head(network: NetworkSettings, training: TrainingSettings) -> None:
    classes, regions = network.out_channels - 1, network.regions
    if network.head == "softmax":
        if regions is not None:
            raise ValueError("network.regions go with network.head=sigmoid")
        if training.positive_weight != 1:
            raise ValueError("training.positive_weight goes with network.head=sigmoid; for softmax: class_weights")
    elif training.class_weights is not None:
        raise ValueError("training.class_weights go with network.head=softmax; for sigmoid: positive_weight")
    if regions is not None:
        if not all(region and set(region) <= set(range(1, classes + 1)) for region in regions):
            raise ValueError(f"network.regions wants lists of classes from 1 to {classes}, not {list(regions)}")
        columns = [tuple(k in region for region in regions) for k in range(classes + 1)]
        if len(set(columns)) < len(columns):
            raise ValueError("network.regions must tell all classes, and the background, from one another")
    weights = training.class_weights
    if weights is not None and (len(weights) != classes + 1 or min(weights) < 0 or max(weights) == 0):
        raise ValueError(f"training.class_weights wants {classes + 1} figures from 0, background first")


class ModelSettings(_Frozen):
    """Everything that makes a model what it is; stored in its card."""

    preset: str = "default"
    network: NetworkSettings = NetworkSettings()
    preparation: PreparationSettings = PreparationSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    training: TrainingSettings = TrainingSettings()
    inference: InferenceSettings = InferenceSettings()
    after_care: AfterCareSettings = AfterCareSettings()

    @model_validator(mode="after")
    def _parts_agree(self) -> ModelSettings:
        n = self.network.dimensions
        for key, sizes in (
            *(("network.strides", stride) for stride in self.network.strides),
            *(("network.kernels", kernel) for kernel in self.network.kernels or ()),
            ("training.patch_size", self.training.patch_size),
            ("inference.tile", self.inference.tile),
        ):
            if sizes is not None and (len(sizes) != n or min(sizes) < 1):
                raise ValueError(f"{key} wants {n} whole numbers above 0 for a {n}D network, not {list(sizes)}")
        _check_kernels(self.network)
        _check_head(self.network, self.training)
        if self.training.dice_weight == 0 and self.training.cross_entropy_weight == 0:
            raise ValueError("training.dice_weight and training.cross_entropy_weight cannot both be 0")
        if self.training.consistency_weight > 0 and self.training.ema_decay == 0:
            raise ValueError("training.consistency_weight wants a teacher: set training.ema_decay above 0")
        thresholds = self.inference.thresholds
        if thresholds is not None:
            classes = self.network.out_channels - 1
            if len(thresholds) != classes or not all(0 < each < 1 for each in thresholds):
                raise ValueError(
                    f"inference.thresholds wants {classes} numbers between 0 and 1, not {list(thresholds)}"
                )
        mirror = self.augmentation.mirror
        if not set(mirror) <= set(range(n)) or len(set(mirror)) < len(mirror):
            raise ValueError(f"augmentation.mirror wants axes from 0 to {n - 1}, each once, not {list(mirror)}")
        spacing = self.preparation.spacing
        if spacing is not None and not min(spacing) > 0:
            raise ValueError(f"preparation.spacing wants three lengths above 0 mm, not {list(spacing)}")
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
