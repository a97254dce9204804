"""Whole scans as nnU-Net predicts them, for models that it has trained: its preparation, its windows, its way back.

Written after nnU-Net 2 (Isensee et al. 2021, Apache 2.0), step by step in its order: transpose, crop to what is not
zero, normalise, resample, windows with a Gaussian over mirrored poses, logits resampled back, labels put into place.
Masks are nnU-Net's own; what this program does otherwise (slabs, percentiles, probabilities) would give others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_unet.domain.errors import ModelError, ScanError
from napari_unet.domain.nnunet import NnunetChannel, NnunetRecipe
from napari_unet.domain.progress import Progress
from napari_unet.domain.scan import TOO_LARGE, Scan

# nnU-Net's own constants.
_ANISOTROPIC = 3.0
_STEP, _SIGMA, _PEAK = 0.5, 1 / 8, 10.0
_EPSILON = 1e-8
_FAR = 999.0

Array = NDArray[np.float32]
Forward = Callable[[Tensor], Tensor]


def predict_whole(scan: Scan, recipe: NnunetRecipe, forward: Forward) -> Generator[Progress, None, NDArray]:
    """Predict the mask of a whole scan.

    Parameters
    ----------
    scan : Scan
        In memory.
    recipe : NnunetRecipe
        Of the model.
    forward : callable
        From ``(1, C, *patch)`` float32 tiles to logits.

    Yields
    ------
    Progress
        After each window.

    Returns
    -------
    integer array over the scan's spatial axes
        Labels as nnU-Net writes them.

    Raises
    ------
    ScanError
        The scan is larger than the memory.
    ModelError
        The scan has another number of channels.
    """
    image, spacing = _as_nnunet_reads(scan, recipe)
    if len(image) != len(recipe.channels):
        raise ModelError(f"The model takes {len(recipe.channels)} channels and this scan has {len(image)}.")
    image = image.transpose(0, *(axis + 1 for axis in recipe.transpose))
    own = tuple(spacing[axis] for axis in recipe.transpose)
    inside = _filled(image)
    box = _box_around(inside)
    cropped, inside = image[:, *box], inside[box]
    wanted = (own[0], *recipe.spacing) if len(recipe.spacing) == 2 else recipe.spacing
    shape = tuple(round(o / w * n) for o, w, n in zip(own, wanted, cropped.shape[1:], strict=True))
    prepared = np.stack([_normalised(plane, inside, how) for plane, how in zip(cropped, recipe.channels, strict=True)])
    prepared = _resampled(prepared, shape, own, wanted, (recipe.data_order, recipe.data_order_between), recipe.separate)
    logits = yield from _windows(prepared, recipe, forward)
    orders = (recipe.logits_order, recipe.logits_order_between)
    logits = _resampled(logits, cropped.shape[1:], wanted, own, orders, recipe.separate)
    labels = np.zeros(image.shape[1:], np.uint16)
    labels[box] = _classes(logits, recipe)
    return _back(labels.transpose(np.argsort(recipe.transpose)), scan)


def _as_nnunet_reads(scan: Scan, recipe: NnunetRecipe) -> tuple[Array, tuple[float, ...]]:
    """Return ``(C, z, y, x)`` in the file's own axes, slowest first, and millimetres along them."""
    if scan.is_lazy:
        raise ScanError(TOO_LARGE)
    channels = scan.channels_first().astype(np.float32)
    spacing = scan.spacing_or_unit
    if recipe.reader == "NaturalImage2DIO":
        # Pictures: nnU-Net looks for no spacing in them, whatever their files say.
        spacing = (1.0,) * len(spacing)
    if scan.slice_axis is None:
        return channels[:, np.newaxis], (_FAR * max(spacing), *spacing)
    axes = scan.geometry.axis_map
    array = np.stack([axes.to_source(channel) for channel in channels])
    along = tuple(spacing[axes.permutation.index(axis)] for axis in range(3))
    if _is_fastest_first(scan):
        return array.transpose(0, 3, 2, 1), along[::-1]
    return array, along


def _back(labels: NDArray, scan: Scan) -> NDArray:
    if scan.slice_axis is None:
        return labels[0]
    labels = labels.transpose(2, 1, 0) if _is_fastest_first(scan) else labels
    return np.ascontiguousarray(scan.geometry.axis_map.to_loaded(labels))


def _is_fastest_first(scan: Scan) -> bool:
    # Volumes of NIfTI, NRRD and MetaImage; DICOM's axes are slices, rows, columns.
    return not scan.series and scan.geometry.source_affine is not None


def _filled(image: Array) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_fill_holes

    filled: NDArray[np.bool_] = binary_fill_holes((image != 0).any(0))
    return filled


def _box_around(inside: NDArray[np.bool_]) -> tuple[slice, ...]:
    if not inside.any():
        return tuple(slice(0, n) for n in inside.shape)
    found = []
    for axis in range(3):
        line = np.flatnonzero(inside.any(tuple(other for other in range(3) if other != axis)))
        found.append(slice(int(line[0]), int(line[-1]) + 1))
    return tuple(found)


def _normalised(image: Array, inside: NDArray[np.bool_], how: NnunetChannel) -> Array:
    image = image.copy()
    if how.scheme == "ZScoreNormalization":
        where = inside if how.inside_mask else np.ones_like(inside)
        image[where] = (image[where] - image[where].mean()) / max(image[where].std(), _EPSILON)
    elif how.scheme == "CTNormalization":
        image = (np.clip(image, how.lowest, how.highest) - np.float32(how.mean)) / max(how.deviation, _EPSILON)
    elif how.scheme == "RescaleTo01Normalization":
        image -= image.min()
        image /= max(image.max(), _EPSILON)
    elif how.scheme == "RGBTo01Normalization":
        image /= 255
    return image.astype(np.float32, copy=False)


def _resampled(
    image: Array,
    shape: Sequence[int],
    old: Sequence[float],
    new: Sequence[float],
    orders: tuple[int, int],
    separate: bool | None,
) -> Array:
    """Return ``(C, *shape)``: splines, within planes only where the voxels are long (then ``orders[1]`` between)."""
    from scipy.ndimage import map_coordinates
    from skimage.transform import resize

    if tuple(shape) == image.shape[1:]:
        return image
    axis = _long_axis(old, new, separate)
    made = np.empty((len(image), *shape), image.dtype)
    how = {"mode": "edge", "anti_aliasing": False}
    for channel, target in zip(image.astype(np.float64), made, strict=True):
        if axis is None:
            target[...] = resize(channel, shape, orders[0], **how)
            continue
        planes = np.moveaxis(channel, axis, 0)
        within = tuple(n for other, n in enumerate(shape) if other != axis)
        wide = np.moveaxis(np.stack([resize(plane, within, orders[0], **how) for plane in planes]), 0, axis)
        if wide.shape[axis] != shape[axis]:
            scales = [old_n / new_n for old_n, new_n in zip(wide.shape, shape, strict=True)]
            places = [s * (each + 0.5) - 0.5 for s, each in zip(scales, np.indices(shape), strict=True)]
            wide = map_coordinates(wide, np.array(places), order=orders[1], mode="nearest")
        target[...] = wide
    return made


def _long_axis(old: Sequence[float], new: Sequence[float], separate: bool | None) -> int | None:
    """Return the axis along which voxels are so long that it is resampled by itself; None: there is none."""
    if separate is False:
        return None
    for spacing in (old, new):
        if separate or max(spacing) / min(spacing) > _ANISOTROPIC:
            longest = [axis for axis, size in enumerate(spacing) if size == max(spacing)]
            return longest[0] if len(longest) == 1 else None
    return None


def _windows(image: Array, recipe: NnunetRecipe, forward: Forward) -> Generator[Progress, None, Array]:
    """Return logits ``(K, *spatial)``: the Gaussian mean over windows, each the mean over mirrored poses."""
    flat = len(recipe.patch_size) == 2
    least = (1, *recipe.patch_size) if flat else recipe.patch_size
    short = [max(0, wanted - n) for wanted, n in zip(least, image.shape[1:], strict=True)]
    padded = torch.from_numpy(np.pad(image, [(0, 0), *((n // 2, n - n // 2) for n in short)]))
    weight = torch.from_numpy(_gaussian(recipe.patch_size))
    starts = _starts(padded.shape[-len(recipe.patch_size) :], recipe.patch_size)
    corners = [(plane, *corner) for plane in range(padded.shape[1]) for corner in starts] if flat else starts
    poses = [axes for n in range(len(recipe.mirror) + 1) for axes in itertools.combinations(recipe.mirror, n)]
    total: Tensor | None = None
    # In half precision, as there: what lies on the border between two classes would fall to the other one.
    shares = torch.zeros(padded.shape[1:], dtype=torch.half)
    with torch.inference_mode():
        for done, corner in enumerate(corners, start=1):
            window = tuple(
                slice(first, first + size)
                for first, size in zip(corner[-len(recipe.patch_size) :], recipe.patch_size, strict=True)
            )
            place: tuple[int | slice, ...] = (corner[0], *window) if flat else window
            x = padded[:, *place][None].contiguous()
            found = torch.zeros(())
            for pose in poses:
                axes = [axis + 2 for axis in pose]
                found = found + forward(x.flip(axes)).float().flip(axes)[0]
            if total is None:
                total = torch.zeros(len(found), *padded.shape[1:], dtype=torch.half)
            total[:, *place] += found / len(poses) * weight
            shares[place] += weight
            yield Progress(done / len(corners))
    assert total is not None
    each = (total / shares).unflatten(0, (recipe.folds, -1))
    mean = each[0].clone()
    for fold in each[1:]:
        mean += fold
    mean = mean / recipe.folds if recipe.folds > 1 else mean
    inner = tuple(slice(n // 2, n // 2 + size) for n, size in zip(short, image.shape[1:], strict=True))
    return mean[:, *inner].numpy()


def _starts(shape: Sequence[int], patch: Sequence[int]) -> list[tuple[int, ...]]:
    along = []
    for n, size in zip(shape, patch, strict=True):
        count = int(np.ceil((n - size) / (size * _STEP))) + 1
        step = (n - size) / (count - 1) if count > 1 else 0.0
        along.append([int(np.round(step * i)) for i in range(count)])
    return list(itertools.product(*along))


def _gaussian(patch: tuple[int, ...]) -> NDArray[np.float16]:
    from scipy.ndimage import gaussian_filter

    peak = np.zeros(patch)
    peak[tuple(size // 2 for size in patch)] = 1
    weight = gaussian_filter(peak, [size * _SIGMA for size in patch], mode="constant")
    weight *= _PEAK / weight.max()
    weight = weight.astype(np.float16)
    weight[weight == 0] = weight[weight > 0].min()
    return weight


def _classes(logits: Array, recipe: NnunetRecipe) -> NDArray[np.uint16]:
    if recipe.regions is None:
        return logits.argmax(0).astype(np.uint16)
    labels = np.zeros(logits.shape[1:], np.uint16)
    for region, value in zip(logits, recipe.regions, strict=True):
        labels[region > 0] = value
    return labels
