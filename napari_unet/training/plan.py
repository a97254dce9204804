"""Settings from the scans: the rules that turn a fingerprint and a preset into a network, patches and preparation.

The rules follow nnU-Net (Isensee et al. 2021, "nnU-Net: a self-configuring method for deep learning-based biomedical
image segmentation") where they fit the budget; where measurement here taught otherwise the reason stands beside the
rule. docs/plan.md lists them. What is measured stands in ``fingerprint``, what a preset fixes in ``presets``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from napari_unet.domain.errors import SettingsError
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ModelSettings
from napari_unet.networks.adapting import fits, shape_of
from napari_unet.training.fingerprint import Fingerprint, fingerprint
from napari_unet.training.memory import step_memory
from napari_unet.training.presets import PRESETS, Preset, Reach, preset_named

__all__ = [
    "FEWEST_SLICES_IN_3D",
    "LARGEST_ANISOTROPY_IN_3D",
    "LARGEST_SPACING_RATIO",
    "PRESETS",
    "SECONDS_FOR_3D_ON_A_CPU",
    "plan",
    "plan_for",
    "plan_upon",
    "suited_dimensions",
]

#: Scans of fewer slices are learnt slice by slice: there is no depth to halve.
FEWEST_SLICES_IN_3D = 12
#: So are scans whose slices lie more than so many pixels apart: what neighbours share is too little.
LARGEST_ANISOTROPY_IN_3D = 3.0
#: Scans whose spacing differs by more than this are brought to one; less is within what augmentation covers.
LARGEST_SPACING_RATIO = 1.1

#: On a CPU so long is worth a 3D network. Taught for seven minutes on two cores with 128 hippocampus scans, a 2D one
#: with its neighbours had a Dice of 0.876 on 32 others, a 3D one 0.864 (2026-11-23, one seed).
SECONDS_FOR_3D_ON_A_CPU = 4 * 3600

# The deepest features keep at least so many voxels along each side.
_SMALLEST_FEATURE_EDGE = 4
# An axis joins in once its voxels are less than so many times as large as the finest (nnU-Net).
_SAME_SCALE = 2.0
# A ResNet's stem and its four stages.
_MOST_RESNET_STAGES = 5
_SMALLEST_BATCH = 2
# Pixels of the radius that structures keep when the network sees them coarser; less than this saved is not worth it.
_COARSE_RADIUS = 8.0
_WORTH_COARSENING = 1.4
# Of the free memory: the estimate may be somewhat low, and the scans and other programs need some.
_SHARE_OF_MEMORY = 0.7


def plan(
    scans: Sequence[Scan],
    n_classes: int,
    preset: str = "default",
    labels: Sequence[NDArray] | None = None,
    *,
    memory_bytes: int | None = None,
    budget_seconds: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> ModelSettings:
    """Return settings that fit these scans.

    Parameters
    ----------
    scans : sequence of Scan
        What will be trained on, at least one; all 2D or all 3D.
    n_classes : int
        Foreground classes.
    preset : {"default", "classic", "thorough"}
        ``default`` learns within seconds, ``classic`` is the 2015 recipe, ``thorough`` is for whole sets.
    labels : sequence of array, optional
        Known labels of each scan, over its spatial axes, 0 where nothing was reviewed. They choose the window of
        intensities in CT, and the axes that may be mirrored.
    memory_bytes : int, optional
        Free memory where the training will run; batch, patch and the way of computing are chosen to fit.
    budget_seconds : float, optional
        Of wall time for the training; the preset's own otherwise.
    overrides : mapping, optional
        Settings by dotted key that are wished otherwise, such as ``{"network.dimensions": 3}``. What depends on them
        is planned to fit.
    device : str
        Where the training will run: ``cpu``, ``cuda`` or ``mps``. 3D networks, and large steps, are for GPUs and for
        hours.

    Returns
    -------
    ModelSettings

    Raises
    ------
    SettingsError
        Unknown preset or setting, or values that contradict each other.
    TrainingError
        Channel counts differ between scans.
    ScanError
        A scan is larger than the memory.
    """
    # A slip of the pen is answered before the scans are measured.
    preset_named(preset)
    return plan_for(
        fingerprint(scans, labels),
        n_classes,
        preset,
        memory_bytes=memory_bytes,
        budget_seconds=budget_seconds,
        overrides=overrides,
        device=device,
    )


def plan_for(
    found: Fingerprint,
    n_classes: int,
    preset: str = "default",
    *,
    memory_bytes: int | None = None,
    budget_seconds: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> ModelSettings:
    """Do the work of :func:`plan` on scans that were measured before, so that wishes can be tried at no cost."""
    recipe, wished = preset_named(preset), _checked(overrides or {})
    seconds = {**recipe.values, **({_SECONDS: budget_seconds} if budget_seconds else {}), **wished}.get(_SECONDS)
    enough = device != "cpu" or (seconds or 0) >= SECONDS_FOR_3D_ON_A_CPU
    dimensions = {**recipe.values, **wished}.get("network.dimensions") or (suited_dimensions(found) if enough else 2)
    fixed: dict[str, Any] = {
        **recipe.values,
        **(recipe.on_gpu if device != "cpu" else {}),
        **(recipe.in_3d if dimensions == 3 else {}),
        **(recipe.for_one_class if n_classes == 1 else {}),
        **({} if budget_seconds is None else {"training.budget_seconds": budget_seconds}),
        **wished,
    }
    planned = {
        "preset": preset,
        "network.dimensions": dimensions,
        "network.out_channels": n_classes + 1,
        **_preparation(found, dimensions, recipe),
        **_poses(found, dimensions, n_classes),
    } | fixed
    planned = {"network.in_channels": _in_channels(found, planned)} | planned
    _refuse_contradictions(planned)
    sizer = _Sizer.of(found, dimensions, recipe, planned, device)
    sizes = sizer.first()
    settings = ModelSettings().with_values(sizer.values(sizes) | planned)
    if memory_bytes is None:
        return settings
    for candidate in _less_and_less(settings, sizer, sizes, set(fixed)):
        settings = candidate
        if step_memory(settings).total <= _SHARE_OF_MEMORY * memory_bytes:
            break
    return settings


def plan_upon(
    body: ModelSettings,
    found: Fingerprint,
    n_classes: int,
    preset: str = "default",
    *,
    overrides: Mapping[str, Any] | None = None,
    **others: Any,
) -> ModelSettings:
    """Plan as :func:`plan_for` does, for a network that weights from elsewhere can begin.

    Parameters
    ----------
    body : ModelSettings
        Of the network whose weights they are. The plan keeps its shape, is no deeper, and halves all axes at once,
        whatever the shape of the pixels, except where ``overrides`` say otherwise:
        :func:`~napari_unet.networks.adapting.fits` tells whether the weights can be used.
    found, n_classes, preset, overrides, others
        As for :func:`plan_for`.
    """
    wished = dict(overrides or {})
    kept = {**shape_of(body), **wished}
    settings = plan_for(found, n_classes, preset, overrides=kept, **others)
    patch = settings.training.patch_size
    if patch is None or fits(body, settings) or settings.network.dimensions != body.network.dimensions:
        return settings
    levels = max(1, int(math.log2(max(min(patch) / _SMALLEST_FEATURE_EDGE, 1))))
    shape = {"network.strides": body.network.strides[:levels], "network.kernels": None}
    return plan_for(found, n_classes, preset, overrides={**kept, **shape, **wished}, **others)


def suited_dimensions(found: Fingerprint) -> int:
    """Return 3 for volumes with enough slices that lie close enough, else 2."""
    if not found.has_volumes or found.n_slices < FEWEST_SLICES_IN_3D:
        return 2
    return 2 if found.anisotropy > LARGEST_ANISOTROPY_IN_3D else 3


def _checked(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return overrides as the settings hold them ("4" as 4); what contradicts something else is found out later."""
    checked: dict[str, Any] = {}
    known = set(ModelSettings.keys())
    for key, value in overrides.items():
        group, _, leaf = key.rpartition(".")
        if key not in known or not group:
            # Raises, naming the settings there are; or it is the preset's name, which may be any.
            checked |= {key: ModelSettings().with_values({key: value}).preset}
            continue
        kind: Any = ModelSettings.model_fields[group].annotation
        try:
            checked[key] = getattr(kind.model_validate({leaf: value}), leaf)
        except ValidationError:
            # Raises the same, in words.
            ModelSettings().with_values({key: value})
    return checked


def _refuse_contradictions(planned: Mapping[str, Any]) -> None:
    """Refuse wishes of which no sizes could make a network, such as 2D patches of a 3D network."""
    kernels = planned.get("network.kernels")
    levels = 1 if kernels is None else len(kernels) - 1
    any_strides = ((2,) * planned["network.dimensions"],) * levels
    ModelSettings().with_values({"network.strides": any_strides} | dict(planned))


def _preparation(found: Fingerprint, dimensions: int, recipe: Preset) -> dict[str, Any]:
    neighbours = dimensions == 2 and all(scan.is_volume and scan.shape[0] > 1 for scan in found.scans)
    coloured = sum(scan.is_coloured for scan in found.scans)
    return {
        "preparation.colour": "rgb" if coloured * 2 > len(found.scans) else "grey",
        "preparation.window": _window(found),
        # The slice above and the one below tell where an organ ends; as channels they cost next to nothing.
        "preparation.context_slices": recipe.neighbours if neighbours else 0,
        "preparation.spacing": _common_spacing(found, dimensions) if recipe.resample else None,
        "preparation.coarsen": _coarsening(found, recipe),
    }


def _coarsening(found: Fingerprint, recipe: Preset) -> float:
    """Return how much larger the network's pixels are than the scans', so that it sees whole planes of wide structures.

    A small organ is found by what lies around it, and a step over a quarter of the pixels takes a quarter of the time;
    the border of a wide structure falls between pixels, where probabilities are interpolated.
    """
    if recipe.coarse_side is None or found.radius is None:
        return 1.0
    ratio = min(max(found.median_shape[1:]) / recipe.coarse_side, found.radius / _COARSE_RADIUS, 8.0)
    return round(ratio, 2) if ratio >= _WORTH_COARSENING else 1.0


def _window(found: Fingerprint) -> tuple[float, float] | None:
    """Return the window around the foreground's Hounsfield units (nnU-Net's CT normalisation); None if not CT.

    Whole-scan statistics would spend nearly all contrast on the step from air to tissue.
    """
    if not found.is_hounsfield or found.foreground is None:
        return None
    low, _, high = found.foreground
    # A margin shows what borders on the organ.
    margin = max(50.0, 0.25 * (high - low))
    return round(low - margin, 1), round(high + margin, 1)


def _common_spacing(found: Fingerprint, dimensions: int) -> tuple[float, float, float] | None:
    """Return the median spacing where the scans' differ on an axis that the network works on.

    Scans that agree are left alone: every resampling blurs.
    """
    median = found.median_spacing
    if median is None:
        return None
    each = np.array([scan.spacing for scan in found.scans])[:, 3 - dimensions :]
    return median if (each.max(axis=0) > LARGEST_SPACING_RATIO * each.min(axis=0)).any() else None


def _poses(found: Fingerprint, dimensions: int, n_classes: int) -> dict[str, Any]:
    """Return which turns and mirrorings leave a scan that could be.

    Volumes stand upright, and classes of one organ may differ only by their side: turning them would teach the network
    that its labels are arbitrary. Pictures without an upright pose may be mirrored anyhow; scans without labels to go
    by are not.
    """
    upright = n_classes > 1 or found.has_volumes
    first = 3 - dimensions
    mirror = (found.symmetric_axes or ()) if upright else (1, 2)
    return {
        "augmentation.rotation_degrees": 15 if upright else 180,
        "augmentation.mirror": tuple(axis - first for axis in mirror if axis >= first),
    }


def _in_channels(found: Fingerprint, planned: Mapping[str, Any]) -> int:
    colour = planned["preparation.colour"] == "rgb"
    channels = max(scan.input_channels[colour] for scan in found.scans)
    return channels * (2 * planned["preparation.context_slices"] + 1)


def _less_and_less(settings: ModelSettings, sizer: _Sizer, sizes: _Sizes, fixed: Set[str]) -> Iterator[ModelSettings]:
    """Yield settings that need less and less memory: fewer patches, smaller patches, then more time.

    What was fixed stays.
    """
    yield settings
    if "training.batch_size" not in fixed:
        for batch in range(settings.training.batch_size - 1, _SMALLEST_BATCH - 1, -1):
            settings = settings.with_values({"training.batch_size": batch})
            yield settings
    while (smaller := sizer.smaller(sizes)) is not None:
        sizes = smaller
        values = sizer.values(sizes)
        settings = settings.with_values({key: values[key] for key in values if key not in fixed and key != _BATCH})
        yield settings
    if "training.activation_checkpointing" not in fixed:
        settings = settings.with_values({"training.activation_checkpointing": True})
        yield settings
    if "training.accumulate" not in fixed:
        # Batch normalisation of a single patch would know no batch.
        least = 2 if settings.network.norm == "batch" else 1
        for pieces in range(2, settings.training.batch_size // least + 1):
            settings = settings.with_values({"training.accumulate": pieces})
            yield settings


_BATCH = "training.batch_size"
_SECONDS = "training.budget_seconds"


@dataclass(frozen=True)
class _Sizes:
    """A patch and the network that fits it."""

    patch: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...] | None

    @property
    def divisor(self) -> tuple[int, ...]:
        return _divisor(self.strides, len(self.patch))


@dataclass(frozen=True)
class _Sizer:
    """Finds patches: the shape (voxels per network axis) and spacing of the scans, and what a preset allows.

    ``strides`` and ``fixed_patch`` are wishes, or None. ``given_kernels`` are not to be planned; a ``pretrained``
    encoder halves all axes at once.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    reach: Reach
    square: bool
    strides: tuple[tuple[int, ...], ...] | None
    given_kernels: bool
    pretrained: bool
    fixed_patch: tuple[int, ...] | None

    @classmethod
    def of(cls, found: Fingerprint, dimensions: int, recipe: Preset, planned: Mapping[str, Any], device: str) -> _Sizer:
        target, coarsen = planned["preparation.spacing"], planned["preparation.coarsen"]
        first = 3 - dimensions
        grids = [
            np.array(scan.shape) * (1.0 if target is None or scan.spacing is None else np.divide(scan.spacing, target))
            for scan in found.scans
        ] / np.array((1, coarsen, coarsen))
        spacing = target or found.median_spacing or (1.0, 1.0, 1.0)
        return cls(
            shape=tuple(max(1, int(v)) for v in np.median(grids, axis=0)[first:]),
            spacing=tuple(spacing[first:]),
            reach=recipe.reach(dimensions, device),
            square=recipe.square and dimensions == 2 and coarsen == 1,
            strides=planned.get("network.strides"),
            given_kernels="network.kernels" in planned,
            pretrained=planned.get("network.encoder") == "pretrained",
            fixed_patch=planned.get("training.patch_size"),
        )

    def values(self, sizes: _Sizes) -> dict[str, Any]:
        """Return what the sizes mean as settings."""
        batch = round(self.reach.step_voxels / math.prod(sizes.patch))
        return {
            "network.strides": sizes.strides,
            "network.kernels": None if self.given_kernels else sizes.kernels,
            "training.patch_size": sizes.patch,
            _BATCH: int(np.clip(batch, _SMALLEST_BATCH, self.reach.largest_batch)),
        }

    def first(self) -> _Sizes:
        """Return the patch to begin with: as large as scans and preset allow."""
        if self.fixed_patch is not None:
            return self._fixed(self.fixed_patch)
        if self.square:
            return self._first_square()
        # Equal millimetres on all axes, of plenty of voxels; the scans' shape cuts it (nnU-Net).
        finest = np.divide(1.0, self.spacing)
        plenty = {2: 2048**2, 3: 256**3}[len(self.shape)]
        wanted = np.round(finest * (plenty / finest.prod()) ** (1 / len(finest)))
        least = [1, 1, *(2 * _SMALLEST_FEATURE_EDGE,) * 2][-len(self.shape) :]
        sizes = self._around(tuple(int(v) for v in np.maximum(np.minimum(wanted, self.shape), least)))
        while math.prod(sizes.patch) > self.reach.patch_voxels and (smaller := self.smaller(sizes)) is not None:
            sizes = smaller
        return sizes

    def smaller(self, sizes: _Sizes) -> _Sizes | None:
        """Return the next smaller patch, cut where it covers most of the scan (nnU-Net); None at the smallest."""
        if self.fixed_patch is not None:
            return None
        if self.square:
            edge = sizes.patch[0] - sizes.divisor[0]
            if edge < max(2 * sizes.divisor[0], self.reach.smallest_edge):
                return None
            return replace(sizes, patch=(edge, edge))
        covered = [size / whole for size, whole in zip(sizes.patch, self.shape, strict=True)]
        for axis in sorted(range(len(covered)), key=lambda i: -covered[i]):
            for size in range(sizes.patch[axis] - 1, self.reach.smallest_edge - 1, -1):
                less = self._around((*sizes.patch[:axis], size, *sizes.patch[axis + 1 :]))
                # Rounding up to what the network can halve must not give back what was cut.
                if math.prod(less.patch) < math.prod(sizes.patch):
                    return less
        return None

    def _first_square(self) -> _Sizes:
        least = min(self.shape)
        strides = self.strides
        if strides is None:
            levels = self.reach.most_levels
            while levels > 1 and least / 2**levels < _SMALLEST_FEATURE_EDGE:
                levels -= 1
            strides = ((2, 2),) * levels
        divisor = math.lcm(*_divisor(strides, 2))
        largest = math.isqrt(self.reach.patch_voxels)
        edge = max(2 * divisor, min(largest, least) // divisor * divisor)
        return _Sizes((edge, edge), strides, None)

    def _around(self, patch: tuple[int, ...]) -> _Sizes:
        """Return a patch rounded up to what its network can halve."""
        strides, kernels = (self.strides, None) if self.strides is not None else self._levels(patch)
        divisor = _divisor(strides, len(patch))
        padded = tuple(math.ceil(size / d) * d for size, d in zip(patch, divisor, strict=True))
        if all(size == d for size, d in zip(padded, divisor, strict=True)):
            # A single deepest feature has no deviation to normalise by.
            padded = tuple(2 * size for size in padded)
        return _Sizes(padded, strides, kernels)

    def _fixed(self, patch: tuple[int, ...]) -> _Sizes:
        if self.strides is not None:
            return _Sizes(patch, self.strides, None)
        strides, kernels = self._levels(patch, exact=True)
        if not strides:
            raise SettingsError(
                f"Patches of {list(patch)} cannot be halved even once: set training.patch_size to even numbers from "
                f"{2 * _SMALLEST_FEATURE_EDGE}, best to multiples of 16."
            )
        return _Sizes(patch, strides, kernels)

    def _levels(
        self, patch: tuple[int, ...], exact: bool = False
    ) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...] | None]:
        """Return strides and kernels by nnU-Net's rule (``get_pool_and_conv_props`` of its planner).

        An axis is halved while half of it leaves the smallest feature edge, and once its voxels are as fine as the
        others, give or take a factor of two; until then no kernel reaches across it. ``exact`` halves even sizes only.
        """
        n, sizes, spacing, kernel = len(patch), patch, self.spacing, (1,) * len(patch)
        strides: list[tuple[int, ...]] = []
        kernels: list[tuple[int, ...]] = []
        most = min(self.reach.most_levels, _MOST_RESNET_STAGES) if self.pretrained else self.reach.most_levels
        while len(strides) < most:
            able = [i for i in range(n) if sizes[i] >= 2 * _SMALLEST_FEATURE_EDGE and not (exact and sizes[i] % 2)]
            if not able or (self.pretrained and len(able) < n):
                break
            if not self.pretrained:
                finest = min(spacing[i] for i in able)
                able = [i for i in able if spacing[i] < _SAME_SCALE * finest]
            # One axis alone is worth a level only if plenty of it is left.
            if len(able) == 1 and sizes[able[0]] < 3 * _SMALLEST_FEATURE_EDGE:
                break
            kernel = tuple(3 if s < _SAME_SCALE * min(spacing) else k for s, k in zip(spacing, kernel, strict=True))
            stride = tuple(2 if i in able else 1 for i in range(n))
            kernels.append(kernel)
            strides.append(stride)
            sizes = tuple(-(-size // step) for size, step in zip(sizes, stride, strict=True))
            spacing = tuple(mm * step for mm, step in zip(spacing, stride, strict=True))
        if not strides and not exact:
            strides, kernels = [(2 if self.pretrained else 1, 2, 2)[-n:]], [(3,) * n]
        kernels.append((3,) * n)
        plain = self.pretrained or all(width == 3 for kernel in kernels for width in kernel)
        return tuple(strides), None if plain else tuple(kernels)


def _divisor(strides: tuple[tuple[int, ...], ...], dimensions: int) -> tuple[int, ...]:
    return tuple(math.prod(stride[axis] for stride in strides) for axis in range(dimensions))
