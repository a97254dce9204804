"""Which codecs a zarr array may name, and a Blosc that looks at its input first.

Imported only where a zarr array is opened, since zarr and numcodecs take their time to import.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numcodecs
import zarr
from numcodecs.compat import ensure_contiguous_ndarray
from zarr.codecs import BloscCodec
from zarr.registry import register_codec

from napari_unet.domain.errors import ScanError

#: Codecs that turn bytes into numbers and do nothing else. Others (``pickle`` among them) may run code.
_HARMLESS = {
    *("blosc", "zlib", "gzip", "zstd", "lz4", "bz2", "lzma", "bytes", "transpose", "sharding_indexed"),
    *("crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3", "shuffle", "delta", "bitround", "quantize"),
    *("fixedscaleoffset", "packbits"),
}
_BLOSC_HEADER = 16


class _CheckedBlosc(numcodecs.Blosc):
    """Blosc that refuses a frame shorter than it says: c-blosc 1.21 reads beyond its end, and the program dies."""

    def decode(self, buf: Any, out: Any = None) -> Any:
        data = ensure_contiguous_ndarray(buf).view("u1")
        if data.size < _BLOSC_HEADER or int.from_bytes(data[12:16].tobytes(), "little") > data.size:
            raise ValueError("a Blosc frame ends too early")
        return super().decode(buf, out)


class CheckedBloscCodec(BloscCodec):
    """The same for zarr 3."""

    @cached_property
    def _blosc_codec(self) -> numcodecs.Blosc:
        codec = super()._blosc_codec
        codec.__class__ = _CheckedBlosc
        return codec


register_codec("blosc", CheckedBloscCodec)


@contextmanager
def checked_codecs() -> Iterator[None]:
    """Let arrays of zarr 3 that are opened meanwhile use the codec that looks first; others are left alone."""
    name = f"{CheckedBloscCodec.__module__}.{CheckedBloscCodec.__qualname__}"
    with zarr.config.set({"codecs.blosc": name}):
        yield


def make_safe(array: zarr.Array, path: Path) -> None:
    """Refuse an array whose codecs are not known to be harmless, and let Blosc of zarr 2 look first.

    Raises
    ------
    ScanError
        Names the codec.
    """
    for name in _names(array.metadata.to_dict()):
        if name.removeprefix("numcodecs.") not in _HARMLESS:
            raise ScanError(f"{path.name} is packed with {name[:40]!r}, which is not unpacked here: store it anew.")
    compressor = getattr(array.metadata, "compressor", None)
    if type(compressor) is numcodecs.Blosc:
        compressor.__class__ = _CheckedBlosc


def _names(description: dict[str, Any]) -> Iterator[str]:
    """Yield the codecs of an array's metadata, those within shards too."""
    old = [description.get("compressor"), *(description.get("filters") or ())]
    yield from (str(codec["id"]) for codec in old if codec)
    nested = description.get("configuration", {}) if description.get("name") == "sharding_indexed" else {}
    for codec in (*(description.get("codecs") or ()), *nested.get("codecs", ()), *nested.get("index_codecs", ())):
        yield str(codec["name"])
        yield from _names(codec)
