"""A plan in plain sentences, for people who do not train networks for a living. Nothing is decided here.

Each sentence ends with the settings it speaks of, so that it can be overridden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any

from napari_unet.domain.settings import ModelSettings
from napari_unet.training.fingerprint import Fingerprint
from napari_unet.training.memory import step_memory
from napari_unet.training.plan import (
    FEWEST_SLICES_IN_3D,
    LARGEST_ANISOTROPY_IN_3D,
    SECONDS_FOR_3D_ON_A_CPU,
    suited_dimensions,
)
from napari_unet.training.presets import PRESETS, preset_named

# A class with a smaller share of the labelled voxels than this is worth a word.
_RARE = 0.05


def in_words(settings: ModelSettings, found: Fingerprint) -> list[str]:
    """Return a plan as sentences, each with the settings it speaks of in brackets.

    Parameters
    ----------
    settings : ModelSettings
        As planned, overrides included.
    found : Fingerprint
        The scans that it was planned for.

    Returns
    -------
    list of str
        What was found, what the network sees, what it is, how it learns, when it stops. Every setting that differs
        from its default or from its preset is named.
    """
    lines = [
        *_scans(settings, found),
        *_dimensions(settings, found),
        *_coarser(settings),
        *_intensities(settings, found),
        *_network(settings),
        *_patches(settings, found),
        *_changes(settings, found),
        *_learning(settings),
        *_end(settings),
    ]
    rest = _unnamed(settings, "\n".join(lines))
    return [*lines, f"Set besides: {'; '.join(rest)}."] if rest else lines


def _unnamed(settings: ModelSettings, text: str) -> list[str]:
    """Return ``key = value`` of what is neither in the text nor as everybody would expect it."""
    plain = ModelSettings()
    recipe = preset_named(settings.preset).values if settings.preset in PRESETS else {}
    # What follows from scans and classes is no choice.
    follows = {"preset", "network.in_channels", "network.out_channels"}
    rest = []
    for key in sorted(set(ModelSettings.keys()) - follows):
        value, usual = _value(settings, key), _value(plain, key)
        if key not in text and (value != usual or value != recipe.get(key, usual)):
            rest.append(f"{key} = {value}")
    return rest


def _value(settings: ModelSettings, key: str) -> Any:
    return attrgetter(key)(settings)


def _scans(settings: ModelSettings, found: Fingerprint) -> Iterator[str]:
    if settings.preset in PRESETS:
        yield f"The recipe {settings.preset!r} is made for {preset_named(settings.preset).purpose} (preset)."
    n, kind = len(found.scans), "scan" if found.has_volumes else "picture"
    modality = f" ({found.modality})" if found.modality else ""
    shape = found.median_shape[0 if found.has_volumes else 1 :]
    size = f"{_times(shape)} {'voxels' if found.has_volumes else 'pixels'}"
    spacing = found.median_spacing
    mm = "of unknown size" if spacing is None else f"of {_times(spacing[-len(shape) :])} mm"
    order = "slices, rows, columns" if found.has_volumes else "rows, columns"
    yield (
        f"{n} {kind}{modality} of {size} {mm} ({order})."
        if n == 1
        else f"{n} {kind}s{modality} of about {size} {mm} ({order})."
    )
    for each, share in _rare(found):
        yield (
            f"Only {share:.1%} of what is labelled is label {each}: if it is missed, favour it "
            "(training.rare_class_fraction)."
        )


def _rare(found: Fingerprint) -> list[tuple[int, float]]:
    total = sum(c.voxels for c in found.classes)
    return [(c.value, c.voxels / total) for c in found.classes if c.voxels < _RARE * total]


def _dimensions(settings: ModelSettings, found: Fingerprint) -> Iterator[str]:
    three = settings.network.dimensions == 3
    how = "with whole blocks of slices (3D)" if three else "slice by slice (2D)"
    if not found.has_volumes:
        how = "with blocks of one slice (3D)" if three else "on one picture at a time (2D)"
    yield f"The network works {how}{_why_dimensions(settings, found)} (network.dimensions)."
    reach = settings.preparation.context_slices
    if reach:
        which = "the slice on either side" if reach == 1 else f"the {reach} slices on either side"
        yield f"With each slice it is shown {which} (preparation.context_slices)."
    target = settings.preparation.spacing
    if target is None:
        alike = "" if found.median_spacing is not None else ", since the size of their voxels is not known"
        what = "Scans" if found.has_volumes else "Pictures"
        yield f"{what} are seen as they were acquired, without resampling{alike} (preparation.spacing)."
    else:
        sizes = f"{_times(target)} mm between slices, rows and columns" if three else f"{_times(target[1:])} mm a pixel"
        yield (
            f"Scans are resampled to {sizes}, and masks back to each scan's own voxels: it is the middle of sizes that "
            "differ (preparation.spacing)."
            if target == found.median_spacing
            else f"Scans are resampled to {sizes}, and masks back to each scan's own voxels (preparation.spacing)."
        )


def _coarser(settings: ModelSettings) -> Iterator[str]:
    ratio = settings.preparation.coarsen
    if ratio != 1:
        yield (
            f"It sees them {ratio:g} times coarser: what is labelled is wide enough for that, and more of what lies "
            "around it fits into view (preparation.coarsen)."
        )


def _why_dimensions(settings: ModelSettings, found: Fingerprint) -> str:
    """Return the reason for 2D or 3D; that of a preset or of the person is not in the scans."""
    spacing = found.median_spacing
    if settings.network.dimensions != suited_dimensions(found):
        if settings.network.dimensions == 2:
            sooner = ", which learns sooner; the scans would do for whole blocks (3D) as well"
            return f"{sooner}{_when_3d_pays(settings)}"
        return ", although the scans suit 2D better"
    if settings.network.dimensions == 3:
        if spacing is None:
            return f", since there are {found.n_slices} slices; their distance is unknown and taken to be a pixel"
        return f", since the slices lie {spacing[0]:.2g} mm apart and the pixels {min(spacing[1:]):.2g} mm"
    if found.has_volumes and found.n_slices < FEWEST_SLICES_IN_3D:
        return f", since {found.n_slices} slices are too few for blocks"
    if spacing is not None and found.anisotropy > LARGEST_ANISOTROPY_IN_3D:
        return f", since the slices lie {spacing[0]:.2g} mm apart and the pixels {min(spacing[1:]):.2g} mm"
    return ""


def _when_3d_pays(settings: ModelSettings) -> str:
    """Return what a recipe that leaves the dimensions open waits for on a CPU; the device is not known here."""
    is_open = settings.preset in PRESETS and "network.dimensions" not in preset_named(settings.preset).values
    if not is_open or (settings.training.budget_seconds or 0) >= SECONDS_FOR_3D_ON_A_CPU:
        return ""
    return f", but without a GPU those pay only with hours of training, {SECONDS_FOR_3D_ON_A_CPU / 3600:g} or more"


def _intensities(settings: ModelSettings, found: Fingerprint) -> Iterator[str]:
    chosen = settings.preparation
    if any(scan.is_coloured for scan in found.scans):
        seen = "in colour" if chosen.colour == "rgb" else "in shades of grey"
        yield f"Colour pictures are seen {seen} (preparation.colour)."
    if chosen.equalise != "none":
        how = "over the whole scan" if chosen.equalise == "histogram" else "region by region"
        yield f"Brightness is spread evenly {how} first (preparation.equalise)."
    if chosen.window is not None:
        low, high = chosen.window
        unit = " Hounsfield units" if found.is_hounsfield else ""
        yield (
            f"Intensities from {low:g} to {high:g}{unit} are told apart, those of what is labelled with a margin; all "
            "beyond is black or white (preparation.window)."
        )
        return
    if chosen.clip_percentiles is not None:
        low, high = chosen.clip_percentiles
        yield (
            f"The darkest {low:g} % and the brightest {100 - high:g} % of a scan's voxels are cut off "
            "(preparation.clip_percentiles)."
        )
    scale = {
        "zscore": "are shifted and stretched to mean 0 and standard deviation 1",
        "unit": "are stretched to between 0 and 1",
        "symmetric": "are stretched to between -1 and 1",
        "none": "are taken as they are",
    }[chosen.normalisation]
    yield f"Intensities of each scan {scale} (preparation.normalisation)."


def _network(settings: ModelSettings) -> Iterator[str]:
    network = settings.network
    levels = len(network.strides)
    factors = [1] * network.dimensions
    for stride in network.strides:
        factors = [f * s for f, s in zip(factors, stride, strict=True)]
    scales = f"{levels + 1} scales, the coarsest {_times(factors)} times smaller" if levels else "one scale only"
    yield (
        f"The network looks at {scales} (network.strides), with {network.base_channels} features at full size, doubled "
        f"at each scale up to {network.max_channels} (network.base_channels, network.max_channels)."
    )
    if network.kernels is not None:
        yield (
            "At the finest scales it compares voxels within a slice only, since the slices lie farther apart "
            "(network.kernels)."
        )
    encoder = {
        "plain": "",
        "residual": "Its first half adds to what it saw instead of replacing it, which trains better when deep "
        "(network.encoder).",
        "pretrained": f"Its first half is a {network.backbone} (network.encoder, network.backbone).",
    }[network.encoder]
    if encoder:
        yield encoder
    if network.bottleneck == "transformer":
        yield "At the coarsest scale every place is compared with every other, as in a TransUNet (network.bottleneck)."
    if network.attention_gates:
        yield "Details pass a gate that learns where to look (network.attention_gates)."
    if network.deep_supervision:
        yield "Its coarser scales are corrected as well while it learns (network.deep_supervision)."
    n = network.out_channels - 1
    if network.head == "softmax":
        kinds = "the label" if n == 1 else f"one of the {n} labels"
        yield f"Each voxel gets {kinds} or background, never two at once (network.head)."
    elif n == 1:
        yield "Each voxel gets the label or not, by one figure between no and yes (network.head)."
    else:
        also = ", network.regions" if network.regions is not None else ""
        yield f"Each of the {network.n_logits} regions is decided by itself: they may overlap (network.head{also})."


def _patches(settings: ModelSettings, found: Fingerprint) -> Iterator[str]:
    training, n = settings.training, settings.network.dimensions
    if training.patch_size is not None:
        spacing = settings.preparation.spacing or found.median_spacing
        extent = ""
        if spacing is not None:
            extent = f" ({_times([p * s for p, s in zip(training.patch_size, spacing[-n:], strict=True)])} mm)"
        unit = "pixels" if n == 2 else "voxels"
        yield (
            f"It learns from patches of {_times(training.patch_size)} {unit}{extent} (training.patch_size), "
            f"{training.batch_size} in each step (training.batch_size)."
        )
        need = step_memory(settings)
        yield f"A step needs about {_bytes(need.total)} of memory."
    if training.activation_checkpointing:
        yield "To save memory, half of the work is done twice (training.activation_checkpointing)."
    if training.accumulate > 1:
        yield f"To save memory, a step is computed in {training.accumulate} pieces (training.accumulate)."
    centred = _percent(training.foreground_fraction)
    yield f"{centred} of the patches are centred on labels (training.foreground_fraction)."
    if training.rare_class_fraction:
        yield (
            f"For {_percent(training.rare_class_fraction)} of the patches the label is drawn first, so that rare ones "
            "come as often as others (training.rare_class_fraction)."
        )
    if len(found.scans) > 1:
        newest = f"{_percent(training.newest_fraction)} of the patches come from the newest scan"
        yield f"{newest if training.newest_fraction else 'All scans teach alike'} (training.newest_fraction)."


def _changes(settings: ModelSettings, found: Fingerprint) -> Iterator[str]:
    chosen = settings.augmentation
    if chosen.probability > 0:
        parts = [
            (chosen.rotation_degrees, f"turned by up to {chosen.rotation_degrees:g} degrees", "rotation_degrees"),
            (chosen.scale, f"enlarged or shrunk by up to {_percent(chosen.scale)}", "scale"),
            (chosen.shift, f"shifted by up to {_percent(chosen.shift)} of their size", "shift"),
            (chosen.elastic, "bent smoothly", "elastic"),
        ]
        used = [part for part in parts if part[0]]
        if used:
            yield (
                f"So that it knows a thing in any pose, {_percent(chosen.probability)} of the patches are "
                f"{_and([words for _, words, _ in used])} (augmentation.probability, "
                f"{', '.join(f'augmentation.{key}' for _, _, key in used)})."
            )
    yield _mirroring(settings, found)
    parts = [
        (chosen.brightness, "brightness", "brightness"),
        (chosen.contrast, "contrast", "contrast"),
        (chosen.gamma, "the balance of dark and bright", "gamma"),
        (chosen.noise, "noise", "noise"),
        (chosen.blur, "sharpness", "blur"),
        (chosen.low_resolution, "resolution", "low_resolution"),
    ]
    used = [part for part in parts if part[0]]
    if used:
        yield (
            f"So that it copes with other scanners, {_and([words for _, words, _ in used])} are varied at random "
            f"({', '.join(f'augmentation.{key}' for _, _, key in used)})."
        )


def _mirroring(settings: ModelSettings, found: Fingerprint) -> str:
    axes = settings.augmentation.mirror
    names = ("slices", "rows", "columns")[3 - settings.network.dimensions :]
    if axes:
        first = 3 - settings.network.dimensions
        why = (
            ", since no label has a side there" if {a + first for a in axes} <= set(found.symmetric_axes or ()) else ""
        )
        return f"Patches are mirrored at random along {_and([names[a] for a in axes])}{why} (augmentation.mirror)."
    if found.symmetric_axes is None:
        return "Patches are not mirrored, since nothing tells yet whether the labels have sides (augmentation.mirror)."
    return "Patches are not mirrored: where a label lies may be part of what it means (augmentation.mirror)."


def _learning(settings: ModelSettings) -> Iterator[str]:
    training = settings.training
    terms = [
        (training.cross_entropy_weight, "voxel by voxel (training.cross_entropy_weight)"),
        (training.dice_weight, "by the overlap of whole labels (training.dice_weight)"),
    ]
    used = [words for weight, words in terms if weight]
    if used:
        yield f"Its errors are counted {_and(used)}."
    fall = {
        "poly": "falls evenly to nothing until the end",
        "cosine": "falls slowly, then fast, then slowly to nothing until the end",
        "plateau": f"falls to a tenth when {training.patience} checks on scans kept apart show no progress",
        "constant": "stays as it is",
    }[training.schedule]
    also = ", training.patience, training.validation_interval" if training.schedule == "plateau" else ""
    yield (
        f"Corrections are worked out by {training.optimiser} (training.optimiser); their size begins at "
        f"{training.learning_rate:g} (training.learning_rate) and {fall} (training.schedule{also})."
    )
    if training.warmup_steps:
        yield f"The first {training.warmup_steps} steps are smaller ones (training.warmup_steps)."
    if training.ema_decay:
        yield "The mean of its latest states predicts, which is steadier than the last one (training.ema_decay)."
    if training.first_proposals and settings.network.dimensions == 2:
        yield (
            "While scans are few, filters classify single pixels beside it, as much as helped on the newest scan "
            "(training.first_proposals)."
        )
    if training.consistency_weight:
        yield (
            "Where nothing is labelled it learns to agree with that mean, as a Mean Teacher does "
            "(training.consistency_weight)."
        )


def _end(settings: ModelSettings) -> Iterator[str]:
    training = settings.training
    limits = []
    if training.budget_seconds is not None:
        limits.append(f"{_duration(training.budget_seconds)} (training.budget_seconds)")
    if training.steps is not None:
        limits.append(f"{training.steps} steps (training.steps)")
    if limits:
        yield f"Training stops after {' or '.join(limits)}{', whichever comes first' if len(limits) > 1 else ''}."


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in values)


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:g} seconds"
    return f"{seconds / 60:g} minutes" if seconds < 7200 else f"{seconds / 3600:.3g} hours"
