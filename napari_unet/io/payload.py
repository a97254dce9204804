"""The voxels behind a text header: raw, deflated, bzip2 or text, in one file or in several.

Parsers written elsewhere trust the header's sizes, or hand out what a damaged stream left in memory (MetaIO 5.4
returns voxels after "Uncompress failed"). Here exactly as many bytes are read as the header promises, checksums are
checked, and nothing is allocated that the files could not fill.
"""

from __future__ import annotations

import bz2
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import ScanError

Encoding = Literal["raw", "deflate", "bzip2", "text"]

#: Bytes handled at a time. Packed ones are fewer, so that little of them waits while they swell.
_BLOCK, _PACKED_BLOCK = 1 << 20, 1 << 18
#: Deflate cannot do better than 258 bytes for 2 bits (RFC 1951).
_BEST_DEFLATE = 1040


@dataclass(frozen=True)
class Payload:
    """Where voxels lie and how they are packed.

    Parameters
    ----------
    files : tuple of Path
        Equal shares of the voxels, one after the other.
    dtype : dtype
        As stored, with its byte order.
    count : int
        How many voxels in all files together.
    encoding : str
        ``deflate`` is gzip as well as zlib.
    offset : int
        Bytes to leave out at the start of each file, counted before unpacking; -1: as many as needed for the voxels
        to end with the file.
    skip : int
        Bytes to leave out after unpacking.
    """

    files: tuple[Path, ...]
    dtype: np.dtype[Any]
    count: int
    encoding: Encoding = "raw"
    offset: int = 0
    skip: int = 0


def read_payload(payload: Payload) -> NDArray:
    """Return the voxels as a flat array, in the order in which they are stored.

    Raises
    ------
    ScanError
        A data file is missing.
    ValueError
        Too few or too many bytes, or a wrong checksum.
    OSError
        A file cannot be read.
    """
    if payload.count % len(payload.files):
        raise ValueError("files hold no equal shares")
    share = payload.count // len(payload.files)
    size = share * payload.dtype.itemsize
    offsets = [_start(path, size, payload) for path in payload.files]
    voxels = np.empty(payload.count, payload.dtype)
    for number, (path, offset) in enumerate(zip(payload.files, offsets, strict=True)):
        part = voxels[number * share : (number + 1) * share]
        with path.open("rb") as stream:
            stream.seek(offset)
            if payload.encoding == "text":
                part[:] = _numbers(stream, payload.dtype, share)
            else:
                _fill(part.view(np.uint8).data, stream, payload)
    return voxels


def data_files(header: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """Return the files that a header names, which are relative to its folder.

    Raises
    ------
    ScanError
        One of them is not there.
    ValueError
        A name that no file has.
    """
    if not all(name.isprintable() for name in names):
        raise ValueError("no file name")
    found = tuple(header.parent / name for name in names)
    for path in found:
        if not path.is_file():
            raise ScanError(
                f"{header.name} keeps its voxels in {path.name}, which is not there: copy both files into one folder."
            )
    return found


def numbered_names(field: str) -> list[str]:
    """Return the file names that a header's field stands for: one, or a numbered pattern, first, last and step."""
    pattern = re.fullmatch(r"(.*%\d*d.*?)\s+(\d+)\s+(\d+)(?:\s+(-?\d+))?(?:\s+\d+)?", field)
    if pattern is None:
        return [field]
    first, last, step = (int(number or 1) for number in pattern.groups()[1:])
    numbers = range(first, last + (1 if step > 0 else -1), step)
    if not 0 < len(numbers) <= 1 << 16:
        raise ValueError("an unlikely number of files")
    return [pattern[1] % number for number in numbers]


def _start(path: Path, size: int, payload: Payload) -> int:
    """Return where the voxels start, after a look at whether there can be so many."""
    if payload.offset == -1 and payload.encoding != "raw":
        raise ValueError("only raw voxels can be counted from the end")
    there = path.stat().st_size
    offset = there - size if payload.offset == -1 else payload.offset
    smallest = {"raw": size + payload.skip, "deflate": size // _BEST_DEFLATE, "bzip2": 0, "text": size // 16}
    if offset < 0 or there - offset < smallest[payload.encoding]:
        raise ValueError("fewer bytes than voxels")
    return offset


def _fill(target: memoryview, stream: BinaryIO, payload: Payload) -> None:
    blocks = _raw(stream) if payload.encoding == "raw" else _unpacked(stream, payload.encoding)
    to_skip, filled = payload.skip, 0
    for block in blocks:
        left_out = min(to_skip, len(block))
        to_skip -= left_out
        useful = block[left_out : left_out + len(target) - filled]
        target[filled : filled + len(useful)] = useful
        filled += len(useful)
        # A packed stream is read to its end, where its checksum stands; a raw file may have something behind.
        if filled == len(target) and payload.encoding == "raw":
            return
        if left_out + len(useful) < len(block):
            raise ValueError("more voxels than the header says")
    if filled < len(target):
        raise ValueError("fewer voxels than the header says")


def _raw(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(_BLOCK):
        yield block


def _unpacked(stream: BinaryIO, encoding: Encoding) -> Iterator[bytes]:
    # 15 + 32: zlib or gzip, whichever the first bytes show.
    fresh: Callable[[], Any] = bz2.BZ2Decompressor if encoding == "bzip2" else lambda: zlib.decompressobj(15 + 32)
    unpacker, packed = fresh(), b""
    while True:
        if getattr(unpacker, "needs_input", True):
            packed = packed or stream.read(_PACKED_BLOCK)
        block = unpacker.decompress(packed, _BLOCK)
        if block:
            yield block
        if unpacker.eof:
            packed = unpacker.unused_data or stream.read(_PACKED_BLOCK)
            # Files zipped in parallel are several streams in a row.
            if packed[:2] not in (b"\x1f\x8b", b"BZ"):
                return
            unpacker = fresh()
        elif not block and not packed:
            raise ValueError("the packed stream ends too early")
        else:
            packed = getattr(unpacker, "unconsumed_tail", b"")


def _numbers(stream: BinaryIO, dtype: np.dtype[Any], count: int) -> NDArray:
    words = stream.read().split()
    if len(words) < count:
        raise ValueError("fewer numbers than the header says")
    if dtype.kind == "f":
        return np.array([float(word) for word in words[:count]], dtype)
    numbers = [int(word) for word in words[:count]]
    return np.array(numbers, dtype)
