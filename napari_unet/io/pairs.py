"""Folders of images and masks as pairs of equal stems, and pairs as labelled scans.

Which files belong together is decided here; what their values mean is decided in :mod:`napari_unet.io.masks`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import MaskError, PairingError
from napari_unet.domain.geometry import AxisMap, Geometry
from napari_unet.domain.scan import Scan
from napari_unet.io.masks import (
    LabelMapping,
    TruthRule,
    check_same_grid,
    distinct_values,
    infer_classes,
    read_mask,
)
from napari_unet.io.registry import find_sources, read_scan, source_stem

_EXAMPLES = 3


@dataclass(frozen=True)
class Pair:
    """An image and its mask; both files are called ``stem`` but for their suffixes."""

    stem: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Pairs:
    """The pairs of two folders, in the order of their stems as strings, and what is left over.

    Parameters
    ----------
    pairs : tuple of Pair
        Iterating and ``len`` go over these.
    images_without_mask, masks_without_image : tuple of Path
        Skipped.
    """

    pairs: tuple[Pair, ...]
    images_without_mask: tuple[Path, ...] = ()
    masks_without_image: tuple[Path, ...] = ()

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True, eq=False)
class LabelledScan:
    """A scan with its truth.

    Parameters
    ----------
    stem : str
        Name of the pair.
    scan : Scan
        The image.
    labels : array of uint8 or uint16
        Over the scan's spatial axes; 0 is background.
    """

    stem: str
    scan: Scan
    labels: NDArray


def find_pairs(images_dir: Path | str, masks_dir: Path | str) -> Pairs:
    """Find images and masks of equal stems; subfolders are not searched.

    Returns
    -------
    Pairs
        At least one.

    Raises
    ------
    PairingError
        A folder is missing, is empty, is the other one, holds one stem twice, or no stems match.
    """
    images_dir, masks_dir = Path(images_dir), Path(masks_dir)
    images, masks = _by_stem(images_dir, "images"), _by_stem(masks_dir, "masks")
    if images_dir.resolve() == masks_dir.resolve():
        raise PairingError(f"Images and masks are one folder ({images_dir}): put the masks into another.")
    shared = sorted(images.keys() & masks.keys())
    if not shared:
        raise PairingError(
            f"None of {len(images)} images and {len(masks)} masks have equal names: images are called "
            f"{_examples(images)}, masks {_examples(masks)}."
        )
    return Pairs(
        tuple(Pair(stem, images[stem], masks[stem]) for stem in shared),
        tuple(path for stem, path in images.items() if stem not in masks),
        tuple(path for stem, path in masks.items() if stem not in images),
    )


def _by_stem(folder: Path, kind: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise PairingError(f"There is no folder of {kind} at {folder}.")
    found: dict[str, Path] = {}
    for path in find_sources(folder, recursive=False):
        twin = found.setdefault(source_stem(path), path)
        if twin != path:
            raise PairingError(
                f"{twin.name} and {path.name} in the folder of {kind} have one stem: take one of them away."
            )
    if not found:
        raise PairingError(f"The folder of {kind} holds nothing that can be read: {folder}.")
    return found


def _examples(stems: Iterable[str]) -> str:
    names = sorted(stems)
    return ", ".join(names[:_EXAMPLES]) + (", ..." if len(names) > _EXAMPLES else "")


def group_of(stem: str, regex: str | None) -> str:
    """Return the group (a patient, say) that a pair belongs to.

    Parameters
    ----------
    stem : str
        Name of the pair.
    regex : str or None
        Its first capture group is the answer; None makes every pair its own group.

    Raises
    ------
    PairingError
        The expression is wrong, has no capture group, or does not match.
    """
    if regex is None:
        return stem
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise PairingError(f"{regex!r} is not a regular expression: {error}.") from error
    if pattern.groups == 0:
        raise PairingError(f"{regex!r} has no capture group: put what names the group into parentheses.")
    match = pattern.search(stem)
    if match is None or match[1] is None:
        raise PairingError(f"{stem!r} does not match {regex!r}, so that its group is unknown.")
    return match[1]


def load_pairs(
    pairs: Iterable[Pair], rule: TruthRule, max_side: int | None = None
) -> tuple[list[LabelledScan], LabelMapping]:
    """Read pairs, with one mapping of values to classes for all of them.

    Parameters
    ----------
    pairs : iterable of Pair
        In the order wanted.
    rule : TruthRule
        What the person said about the values.
    max_side : int, optional
        See :func:`load_pair`.

    Raises
    ------
    ScanError, MaskError
        A file cannot be read, a mask does not fit its scan, or its values are not understood.
    """
    masks = [(pair, read_mask(pair.mask)) for pair in pairs]
    mapping = infer_classes((distinct_values(mask.data) for _, mask in masks), rule)
    return [_labelled(pair, mask, mapping, max_side) for pair, mask in masks], mapping


def load_pair(pair: Pair, mapping: LabelMapping, max_side: int | None = None) -> LabelledScan:
    """Read an image and its truth.

    Parameters
    ----------
    pair : Pair
        What to read.
    mapping : LabelMapping
        From the mask's values to labels.
    max_side : int, optional
        The longest side within the plane is scaled down to so many pixels (never up): the image anti-aliased, the
        truth by nearest neighbour, slices not at all.

    Raises
    ------
    ScanError, MaskError
        See :func:`load_pairs`.
    """
    return _labelled(pair, read_mask(pair.mask), mapping, max_side)


def _labelled(pair: Pair, mask: Scan, mapping: LabelMapping, max_side: int | None) -> LabelledScan:
    scan = read_scan(pair.image)
    check_same_grid(scan, mask)
    try:
        labels = mapping.apply(mask.data)
    except MaskError as error:
        raise MaskError(f"{pair.mask.name}: {error}") from error
    if max_side is not None:
        scan, labels = scale_down(scan, labels, max_side)
    return LabelledScan(pair.stem, scan, labels)


def scale_down(scan: Scan, labels: NDArray, max_side: int) -> tuple[Scan, NDArray]:
    """Scale the acquired plane until its longest side has ``max_side`` pixels; smaller scans stay as they are.

    Parameters
    ----------
    scan : Scan
        2D or 3D.
    labels : array
        Over the scan's spatial axes.
    max_side : int
        In pixels.

    Returns
    -------
    scan, labels
        Both on the new grid, dtypes kept. Spacing and affine follow; the way back to the file's grid is lost.
    """
    shape = scan.spatial_shape
    in_plane = [axis for axis in range(len(shape)) if axis != scan.slice_axis]
    factor = max_side / max(shape[axis] for axis in in_plane)
    if factor >= 1:
        return scan, labels
    from skimage.transform import resize

    target = tuple(max(1, round(n * factor)) if axis in in_plane else n for axis, n in enumerate(shape))
    data = resize(scan.data, target + scan.data.shape[len(shape) :], order=1, anti_aliasing=True, preserve_range=True)
    if scan.data.dtype.kind in "iu":
        data = np.rint(data)
    small = resize(labels, target, order=0, anti_aliasing=False, preserve_range=True)
    steps = np.array(shape) / np.array(target)
    return (
        replace(scan, data=data.astype(scan.data.dtype), geometry=_scaled(scan.geometry, steps)),
        small.astype(labels.dtype),
    )


def _scaled(geometry: Geometry, steps: NDArray[np.float64]) -> Geometry:
    spacing, affine = geometry.spacing, geometry.affine
    if affine is not None:
        # Voxel centres: index i of the new grid covers the old indices around (i + 0.5) * step - 0.5.
        matrix = np.diag([*steps, 1.0])
        matrix[:3, 3] = 0.5 * steps - 0.5
        affine = affine @ matrix
    return Geometry(
        None if spacing is None else tuple(float(old * step) for old, step in zip(spacing, steps, strict=True)),
        affine,
        AxisMap.identity(len(steps)),
        source_orientation=geometry.source_orientation,
    )
