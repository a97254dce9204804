"""Truth masks: the values that are stored, which classes they mean, and whether they fit their scan.

The many conventions (0/255, colours, instances, inverted, palettes) end here: above this module labels are 0 for
background and 1..n for classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import MaskError
from napari_unet.domain.geometry import AxisMap, corner_distance
from napari_unet.domain.scan import Scan
from napari_unet.io.reading import ReadOptions
from napari_unet.io.registry import read_with
from napari_unet.io.voxels import channels_equal

_MOST_CLASSES = 32
_MOST_LISTED = 12
#: From here on float32, which wider numbers were read as, no longer tells neighbouring integers apart.
_FLOAT32_INTEGERS = 2**24


@dataclass(frozen=True)
class TruthRule:
    """What the person says about the values of their masks.

    Parameters
    ----------
    foreground : tuple of int or None
        These values are classes 1, 2, ... in this order, and everything else is background; 0 is allowed
        (inverted membranes). None: guess from the values.
    binary : bool
        Every value above 0 is one class (instances).
    """

    foreground: tuple[int, ...] | None = None
    binary: bool = False


@dataclass(frozen=True)
class LabelMapping:
    """From the values of masks to labels: class ``i + 1`` is what is stored as ``values[i]``.

    Parameters
    ----------
    values : tuple of int
        Source values in the order of their classes; empty where ``binary``.
    binary : bool
        Every value above 0 is class 1.
    rest_is_background : bool
        Values that are not listed are background; otherwise they are an error.
    """

    values: tuple[int, ...]
    binary: bool = False
    rest_is_background: bool = False

    @property
    def n_classes(self) -> int:
        """Number of classes, background not counted."""
        return 1 if self.binary else len(self.values)

    def apply(self, values: NDArray) -> NDArray:
        """Turn stored values into labels.

        Parameters
        ----------
        values : integer or bool array
            As stored, any shape.

        Returns
        -------
        array of uint8 or uint16
            Same shape, 0 to ``n_classes``; uint16 from 256 classes on.

        Raises
        ------
        MaskError
            A value that is in no class; lists them.
        """
        if self.binary:
            return (values > 0).astype(np.uint8)
        labels = np.zeros(values.shape, np.uint8 if self.n_classes <= 255 else np.uint16)
        if not self.rest_is_background:
            unknown = distinct_values(values) - {0, *self.values}
            if unknown:
                known = _listed({0, *self.values})
                raise MaskError(
                    f"The mask holds values that the others do not: {_listed(unknown)} (known: {known}); "
                    "say what is foreground with --foreground VALUE, or pass --binary."
                )
        for label, value in enumerate(self.values, start=1):
            labels[values == value] = label
        return labels


def read_mask(path: Path | str) -> Scan:
    """Read a mask with its values as stored.

    Parameters
    ----------
    path : Path or str
        Any format that scans are read from.

    Returns
    -------
    Scan
        ``zyx`` or ``yx`` on the axes of its scan, with an integer dtype of at most 32 bits.

    Raises
    ------
    MaskError
        A colour picture, or values that are not whole numbers.
    ScanError
        The file cannot be read.
    """
    path = Path(path)
    scan = read_with(path, ReadOptions(as_mask=True))
    data, axes = scan.data, scan.axes
    if scan.has_channels:
        if scan.n_channels not in (3, 4) or not channels_equal(data):
            raise MaskError(f"{path.name} is a colour picture: a mask has one value per pixel, so save it as grey.")
        data, axes = np.ascontiguousarray(data[..., 0]), axes[:-1]
    return replace(scan, data=_as_integers(data, path.name), axes=axes)


def _as_integers(data: NDArray, name: str) -> NDArray:
    if data.dtype.kind != "f":
        return data
    low, high = float(data.min()), float(data.max())
    if max(-low, high) >= _FLOAT32_INTEGERS:
        raise MaskError(f"{name} holds values up to {high:g}, too large to be told apart: renumber its labels.")
    fractions = data != np.rint(data)
    if fractions.any():
        example = float(data[fractions].flat[0])
        raise MaskError(f"{name} holds fractions such as {example:.4g}: a mask has whole numbers, so threshold it.")
    return data.astype(np.min_scalar_type(int(high)) if low >= 0 else np.int32)


def distinct_values(values: NDArray) -> set[int]:
    """Return the values of an integer or bool array."""
    # One plane after the other: sorting a whole volume would cost several times its memory.
    planes = values if values.ndim > 2 else values[np.newaxis]
    if values.dtype == np.uint8:
        # Counting takes an eighth of the time of sorting.
        return {int(v) for v in np.flatnonzero(sum(np.bincount(plane.ravel(), minlength=256) for plane in planes))}
    return {int(v) for plane in planes for v in np.unique(plane)}


def infer_classes(value_sets: Iterable[Iterable[int]], rule: TruthRule) -> LabelMapping:
    """Return the mapping that holds for all masks of a folder.

    Parameters
    ----------
    value_sets : iterable of iterables of int
        The values in each mask. Their union decides: one mask may lack a class.
    rule : TruthRule
        What the person said.

    Returns
    -------
    LabelMapping
        Without a rule: 0/255 and 0/1 are one class; up to 32 different values from 1 to 255 are classes in the
        order of their values; only zeros are one class that never occurs.

    Raises
    ------
    MaskError
        Both rules given, a foreground value in no mask, or values that cannot be understood without a rule.
    """
    found = set().union(*(set(map(int, values)) for values in value_sets))
    if rule.foreground is not None and rule.binary:
        raise MaskError("--foreground and --binary contradict each other: pass one of them.")
    if rule.binary:
        return LabelMapping((), binary=True)
    if rule.foreground is not None:
        wanted = tuple(dict.fromkeys(rule.foreground))
        missing = set(wanted) - found
        if missing or not wanted:
            raise MaskError(f"No mask holds the foreground value {_listed(missing)}; found are: {_listed(found)}.")
        return LabelMapping(wanted, rest_is_background=True)
    classes = sorted(found - {0})
    if not classes:
        return LabelMapping((), binary=True)
    if len(classes) > _MOST_CLASSES or classes[0] < 0 or classes[-1] > 255:
        raise MaskError(
            f"The masks hold {len(classes)} different values besides 0 ({_listed(classes)}): pass --binary if every "
            "value above 0 is one class (instances), or --foreground VALUE for each value that is a class."
        )
    return LabelMapping(tuple(classes))


def _listed(values: Iterable[int]) -> str:
    ordered = sorted(values)
    text = ", ".join(map(str, ordered[:_MOST_LISTED]))
    return f"{text}, ... {ordered[-1]}" if len(ordered) > _MOST_LISTED else text


def read_mask_of(scan: Scan, path: Path) -> tuple[NDArray, dict[int, str]]:
    """Read a mask that belongs to a scan.

    Parameters
    ----------
    scan : Scan
    path : Path
        Any format that scans are read from, or a DICOM Segmentation of the scan.

    Returns
    -------
    labels : integer array
        Over the scan's spatial axes, values as stored.
    names : dict of int to str
        What the values are called, where the file says so.

    Raises
    ------
    MaskError
        It belongs to another grid or scan, is a colour picture, or does not hold whole numbers.
    ScanError
        The file cannot be read.
    """
    from napari_unet.io.dicom.segmentation import is_dicom_seg, read_dicom_seg, segment_names

    if is_dicom_seg(path):
        return read_dicom_seg(path, scan), segment_names(path)
    mask = read_mask(path)
    check_same_grid(scan, mask)
    return mask.data, {}


def check_same_grid(scan: Scan, mask: Scan) -> None:
    """Refuse a mask that does not lie on its scan's grid.

    What the two files do not both say (position, spacing) is not compared. Files in different axis orders are equal
    here, since both were brought to the same axes.

    Parameters
    ----------
    scan, mask : Scan
        As read.

    Raises
    ------
    MaskError
        Another shape; corners that lie more than 1 % of a voxel (at least 1 um) apart; spacings that differ by
        more than 0.1 %; or a file that says nothing about the order of its axes beside one that does.
    """
    name = mask.source.name if mask.source is not None else "The mask"
    if scan.spatial_shape != mask.spatial_shape:
        shapes = " and ".join("x".join(map(str, shape)) for shape in (mask.spatial_shape, scan.spatial_shape))
        raise MaskError(f"{name} does not fit its scan: their shapes are {shapes}.")
    ours, theirs = scan.geometry, mask.geometry
    spacings = [spacing for spacing in (theirs.spacing, ours.spacing) if spacing is not None]
    if len(spacings) == 2 and not np.allclose(spacings[0], spacings[1], rtol=1e-3, atol=0):
        steps = " and ".join(" x ".join(f"{step:.4g}" for step in spacing) for spacing in spacings)
        raise MaskError(f"{name} does not fit its scan: their spacings are {steps} mm.")
    if ours.affine is not None and theirs.affine is not None and ours.spacing is not None:
        apart = corner_distance(ours.affine, theirs.affine, scan.spatial_shape)
        if apart > max(1e-3, 0.01 * min(ours.spacing)):
            raise MaskError(
                f"{name} does not fit its scan: by their affines they lie up to {apart:.3g} mm apart; "
                "save the mask with the scan's position."
            )
    if (ours.affine is None) != (theirs.affine is None) and _was_reordered(scan) and _was_reordered(mask):
        raise MaskError(
            f"Of {name} and its scan only one says where it stands (the other's sform and qform codes are 0), "
            "so left and right could be swapped: save the mask with the scan's header."
        )


def _was_reordered(scan: Scan) -> bool:
    axis_map = scan.geometry.axis_map
    return len(axis_map.permutation) == 3 and axis_map != AxisMap.identity(3)
