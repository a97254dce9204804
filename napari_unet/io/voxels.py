"""What every format needs done to its array before it is a Scan: numbers, colours, the right way up.

Pure functions on arrays that report what they changed; no file is opened here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import ScanError

GREY_AS_COLOUR = "grey picture stored as colour: read as grey"

#: A palette made by colour quantisation holds "black" and "white" that are a few steps off, as in (4, 2, 4).
_PALETTE_NOISE = 8


def tidy_voxels(array: NDArray, name: str) -> tuple[NDArray, list[str]]:
    """Return an own, writable, C-ordered, native-endian array with finite values of a dtype that torch knows.

    The array itself where it is all that, else a copy; either way the caller must let go of what it gave.

    Parameters
    ----------
    array : array
        Any shape; any dtype that a file can hold.
    name : str
        File name for messages.

    Returns
    -------
    array : array
        uint8, int8, uint16, int16, int32 or float32. Booleans become uint8; wider integers int32 where they fit,
        else float32; other floats float32.
    warnings : list of str
        What was changed beyond the number format.

    Raises
    ------
    ScanError
        No voxels, complex or non-numeric values, or not one finite value.
    """
    if array.size == 0:
        raise ScanError(f"{name} holds no voxels: its shape is {'x'.join(map(str, array.shape))}.")
    kind = array.dtype.kind
    if kind == "c":
        raise ScanError(f"{name} holds complex numbers: save their magnitude and load that.")
    if kind not in "biuf":
        raise ScanError(f"{name} holds values of type {array.dtype}, which are not numbers.")
    warnings: list[str] = []
    # A dtype that is native already stays itself: an equal one of another identity would make numpy copy.
    dtype = array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")
    if kind == "b":
        dtype = np.dtype(np.uint8)
    elif kind == "f":
        dtype = np.dtype(np.float32)
    elif np.iinfo(dtype).max > np.iinfo(np.int32).max:
        fits = array.min() >= np.iinfo(np.int32).min and array.max() <= np.iinfo(np.int32).max
        dtype = np.dtype(np.int32 if fits else np.float32)
        if not fits:
            warnings.append("integers beyond 32 bits: rounded to float32")
    with np.errstate(over="ignore", invalid="ignore"):
        tidy = np.require(array, dtype, ["C", "W", "O", "E"])
    if kind == "f":
        warnings += _replace_non_finite(tidy, name)
    return tidy, warnings


def _replace_non_finite(array: NDArray, name: str) -> list[str]:
    finite = np.isfinite(array)
    missing = array.size - int(np.count_nonzero(finite))
    if missing == 0:
        return []
    if missing == array.size:
        raise ScanError(f"{name} holds not a single finite number (only NaN or infinity).")
    low, high = array[finite].min(), array[finite].max()
    np.nan_to_num(array, copy=False, nan=low, neginf=low, posinf=high)
    verb = "voxel is" if missing == 1 else "voxels are"
    return [f"{missing} {verb} NaN or infinite: replaced by the nearest finite bound ({low:g} or {high:g})"]


def simplify_colour(array: NDArray, axes: str, has_opacity: bool) -> tuple[NDArray, str, list[str]]:
    """Leave out channels that say nothing: constant opacity, and colours that are all one grey.

    Parameters
    ----------
    array : array
        Channels last where ``axes`` ends in ``c``.
    axes : str
        ``yx``, ``zyx``, ``yxc`` or ``zyxc``.
    has_opacity : bool
        The last channel is opacity.

    Returns
    -------
    array, axes, warnings
        A view, its axes, and what was left out.
    """
    if not axes.endswith("c"):
        return array, axes, []
    warnings: list[str] = []
    if has_opacity and array.shape[-1] in (2, 4):
        opacity = array[..., -1]
        constant = opacity.size == 0 or bool((opacity == opacity.flat[0]).all())
        if constant or array.shape[-1] == 2:
            array = array[..., :-1]
            warnings.append(f"opacity {'is the same everywhere' if constant else 'varies'}: left out")
    if array.shape[-1] == 1:
        return array[..., 0], axes[:-1], warnings
    if array.shape[-1] == 3 and channels_equal(array):
        return array[..., 0], axes[:-1], [GREY_AS_COLOUR]
    return array, axes, warnings


def channels_equal(array: NDArray) -> bool:
    """Return whether the first three channels (last axis) are equal in every voxel."""
    return np.array_equal(array[..., 0], array[..., 1]) and np.array_equal(array[..., 0], array[..., 2])


def colours_of_palette(indices: NDArray, palette: NDArray[np.uint8], as_mask: bool) -> NDArray:
    """Return what the indices of a palette picture stand for.

    Parameters
    ----------
    indices : integer array
        Any shape.
    palette : (n, 3) uint8 array
        Red, green, blue of each index.
    as_mask : bool
        A grey palette gives grey values. A palette that is grey but for quantisation noise gives greys with its
        near-black as 0 and its near-white as 255. A palette of real colours paints classes: the indices are them.

    Returns
    -------
    array
        As a picture: ``indices.shape + (3,)``, uint8. As a mask: same shape as ``indices``.
    """
    if not as_mask:
        return palette[indices]
    used = np.unique(indices)
    colours = palette[used].astype(np.int16)
    spread = int((colours.max(axis=1) - colours.min(axis=1)).max())
    if spread > _PALETTE_NOISE:
        return indices
    greys = np.zeros(len(palette), np.uint8)
    greys[used] = np.rint(colours.mean(axis=1))
    if spread > 0:
        greys[greys <= _PALETTE_NOISE] = 0
        greys[greys >= 255 - _PALETTE_NOISE] = 255
    return greys[indices]


def upright(array: NDArray, orientation: int, y_axis: int = 0) -> NDArray:
    """Undo the camera's turn.

    Parameters
    ----------
    array : array
        Rows at ``y_axis``, columns at the axis after it.
    orientation : int
        EXIF and TIFF tag 274: 1 (as it is) to 8; anything else counts as 1.

    Returns
    -------
    array
        A view; rows and columns are swapped for 5 to 8.
    """
    if orientation in (5, 6, 7, 8):
        array = np.swapaxes(array, y_axis, y_axis + 1)
    if orientation in (3, 4, 7, 8):
        array = np.flip(array, y_axis)
    if orientation in (2, 3, 6, 7):
        array = np.flip(array, y_axis + 1)
    return array


def slice_axis_of(spacing: tuple[float, ...] | None, slowest: int) -> int:
    """Return the axis across the acquired plane of a volume.

    Parameters
    ----------
    spacing : tuple of float or None
        Millimetres along z, y, x as loaded.
    slowest : int
        The loaded axis that varies slowest in the file; taken unless one spacing stands out by more than 10 %.
    """
    if spacing is None:
        return slowest
    largest = int(np.argmax(spacing))
    others = [step for axis, step in enumerate(spacing) if axis != largest]
    return largest if spacing[largest] > 1.1 * max(others) else slowest
