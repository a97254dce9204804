"""Voxels of DICOM planes: decoded one by one into one array, and brought to the values that they stand for.

Where the planes stand and which belong together is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder, iter_pixels
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes

from napari_unet.domain.errors import ScanError
from napari_unet.domain.geometry import AxisMap
from napari_unet.io.dicom.header import Plane, Storage, quietly

_PALETTE = "PALETTE COLOR"


def read_voxels(planes: Sequence[Plane], axis_map: AxisMap, as_mask: bool = False) -> NDArray:
    """Read planes of one size into one array; beside it, no more than a frame is held.

    Parameters
    ----------
    planes : sequence of Plane
        In the order of the slices along the source's first axis; one alone gives a picture where ``axis_map`` has
        two axes.
    axis_map : AxisMap
        From slice, row, column (or row, column) to the axes as loaded.
    as_mask : bool
        Indices of a palette stay what they are.

    Returns
    -------
    array
        As loaded, with a last axis of three for colours. Integers where slopes and intercepts are whole numbers and
        32 bits hold the values, else float32.

    Raises
    ------
    ScanError
        Damaged or cut short, a slope of 0, a codec that is not installed or does not exist.
    """
    for plane in planes:
        if plane.slope == 0:
            raise ScanError(f"{plane.name} has a rescale slope of 0, which makes all voxels equal: export it again.")
    for dtype in _number_formats(planes):
        loaded = _fill(planes, axis_map, as_mask, dtype)
        if loaded is not None:
            return loaded
    raise AssertionError("float32 holds whatever there is")


def _number_formats(planes: Sequence[Plane]) -> Iterator[np.dtype]:
    """Yield number formats in which the values may fit, the narrowest first.

    What is stored would often not fit by the number of its bits and yet does: only the voxels tell, and starting over
    is rare.
    """
    stored = np.result_type(*(plane.storage.dtype for plane in planes)).newbyteorder("=")
    has_lookup = any(plane.storage.has_lookup for plane in planes)
    if stored.kind in "iu" and all(plane.slope % 1 == 0 and plane.intercept % 1 == 0 for plane in planes):
        if has_lookup or all((plane.slope, plane.intercept) == (1, 0) for plane in planes):
            yield stored
        for whole in (np.dtype(np.int16), np.dtype(np.uint16), np.dtype(np.int32)):
            if whole.itemsize >= stored.itemsize:
                yield whole
    yield np.dtype(np.float32)


def _fill(planes: Sequence[Plane], axis_map: AxisMap, as_mask: bool, dtype: np.dtype) -> NDArray | None:
    """Return all planes in one number format, or None where a value does not fit."""
    loaded = slots = None
    frames = _frames(planes, as_mask)
    for index, (plane, frame) in enumerate(zip(planes, frames, strict=True)):
        is_colour = frame.ndim == 3
        if loaded is None or slots is None:
            shape = (len(planes), *frame.shape[:2])[-len(axis_map.permutation) :]
            whole = (*(shape[axis] for axis in axis_map.permutation), *frame.shape[2:])
            loaded = np.empty(whole, frame.dtype if is_colour else dtype)
            source = axis_map.to_source(loaded)
            slots = source if len(shape) == 3 else source[np.newaxis]
        if frame.shape != slots.shape[1:]:
            raise ScanError(f"{plane.name} has voxels of another size than its header says: copy it again.")
        if is_colour:
            slots[index] = frame
        elif dtype.kind == "f":
            slots[index] = frame * np.float64(plane.slope) + plane.intercept
        elif not _put_whole(slots[index], frame, int(plane.slope), int(plane.intercept)):
            return None
    return loaded


def _put_whole(slot: NDArray, frame: NDArray, slope: int, intercept: int) -> bool:
    """Write rescaled integers, and return True, if they fit."""
    if frame.dtype.kind not in "iu":
        return False
    bounds = np.iinfo(slot.dtype)
    ends = [slope * int(end) + intercept for end in (frame.min(), frame.max())]
    if min(ends) < bounds.min or max(ends) > bounds.max:
        return False
    # The result fits, so that arithmetic modulo the width gives it, whatever happens in between.
    values = frame.astype(slot.dtype, copy=False)
    if slope != 1:
        values = values * np.array(slope).astype(slot.dtype)
    np.add(values, np.array(intercept).astype(slot.dtype), out=slot)
    return True


def check_voxels(planes: Sequence[Plane]) -> None:
    """Decode planes and forget them, to say that a file is damaged before saying what else is odd about it.

    Raises
    ------
    ScanError
        As :func:`read_voxels`.
    """
    for _ in _frames(planes, as_mask=True):
        pass


# ---- files to frames ----


def _frames(planes: Sequence[Plane], as_mask: bool) -> Iterator[NDArray]:
    for storage, group in groupby(planes, key=lambda plane: plane.storage):
        indices = [plane.frame for plane in group]
        frames = _bare_frames(storage, indices) if storage.offset is not None else _decoded(storage, indices)
        if storage.has_lookup or (storage.photometric == _PALETTE and not as_mask):
            yield from _through_table(storage, frames)
        else:
            yield from frames


def _bare_frames(storage: Storage, indices: Sequence[int]) -> Iterator[NDArray]:
    """Take frames from the file as they lie there."""
    assert storage.offset is not None
    assert storage.length is not None
    needed = storage.frames * storage.frame_bytes
    if storage.length < needed:
        raise ScanError(
            f"{storage.file.name} is cut short: it holds {storage.length} of {needed} bytes of voxels; "
            "copy it again from where it came."
        )
    count = storage.rows * storage.columns
    unused = storage.dtype.itemsize * 8 - storage.bits
    for index in indices:
        offset = storage.offset + index * storage.frame_bytes
        frame = np.fromfile(storage.file, storage.dtype, count, offset=offset).reshape(storage.rows, storage.columns)
        if unused > 0 and storage.dtype.kind in "iu":
            # Higher bits are no part of the value: old files keep overlays there. Shifting back keeps the sign.
            frame <<= unused
            frame >>= unused
        yield frame


def _decoded(storage: Storage, indices: Sequence[int]) -> Iterator[NDArray]:
    """Decode frames with the codecs of pydicom; colours become RGB."""
    _require_codec(storage)
    # pydicom 3.0 finds no voxels in deflated files unless it reads them whole.
    is_plain = storage.has_preamble and storage.syntax != DeflatedExplicitVRLittleEndian
    source: Dataset | str = str(storage.file) if is_plain else _whole(storage)
    shape = (storage.rows, storage.columns, *((storage.samples,) if storage.samples > 1 else ()))
    frames = iter_pixels(source, indices=indices)
    for _ in indices:
        try:
            with quietly():
                frame = next(frames)
        except MemoryError:
            raise
        except Exception as error:
            raise ScanError(
                f"{storage.file.name} has voxels that are damaged or cut short: copy it again from where it came."
            ) from error
        if frame.shape != shape:
            raise ScanError(f"{storage.file.name} has voxels of another size than its header says: copy it again.")
        yield frame


def _require_codec(storage: Storage) -> None:
    syntax = storage.syntax
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        name = syntax.name if syntax.is_transfer_syntax else f"an unknown method ({syntax})"
        raise ScanError(
            f"{storage.file.name} is stored with {name}, for which there is no decoder: export it uncompressed."
        ) from error
    if not decoder.is_available:
        package = "pylibjpeg-libjpeg"
        if syntax in JPEG2000TransferSyntaxes or "High-Throughput" in syntax.name:
            package = "pylibjpeg-openjpeg"
        elif syntax in JPEGLSTransferSyntaxes:
            package = "pyjpegls"
        raise ScanError(
            f"{storage.file.name} is compressed with {syntax.name}, and its decoder is not installed: "
            f"install it with 'pip install pylibjpeg {package}'."
        )


def _whole(storage: Storage) -> Dataset:
    with quietly():
        dataset = dcmread(storage.file, force=not storage.has_preamble)
    dataset.file_meta.TransferSyntaxUID = storage.syntax
    return dataset


def _through_table(storage: Storage, frames: Iterator[NDArray]) -> Iterator[NDArray]:
    """Look stored numbers up in the file's own table: colours, or values."""
    with quietly():
        dataset = dcmread(storage.file, stop_before_pixels=True, force=not storage.has_preamble)
    for frame in frames:
        try:
            if storage.photometric != _PALETTE:
                yield apply_modality_lut(frame, dataset)
                continue
            colours = apply_color_lut(frame, dataset)[..., :3]
        except Exception as error:
            raise ScanError(f"{storage.file.name} has a damaged lookup table: export it again.") from error
        yield colours if colours.dtype == np.uint8 else (colours >> 8).astype(np.uint8)
