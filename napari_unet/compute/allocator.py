"""What becomes of memory that was freed: kept for the next tensor, or given back to the system and asked for again."""

from __future__ import annotations

import ctypes
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: The largest that glibc accepts for the second: blocks up to this are kept when they are freed.
_KEPT_BYTES, _LARGEST_BLOCK_BYTES = 2**30, 32 * 2**20


def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB of freed memory. Does nothing where the C library is not glibc.

    A network frees and asks for the same blocks with every layer. Dask starts its workers with
    ``MALLOC_TRIM_THRESHOLD_=65536``, for tables that grow and shrink: then each block comes as fresh pages that the
    system has to empty first, and a U-Net takes twice as long (docs/architecture.md).
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
