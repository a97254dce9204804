"""How values travel between the client and the computing process: small ones as bytes, large ones as files.

A topic of Dask passes through the scheduler twice encrypted and is kept there for a while, so that it carries only
what is small; masks and scans go through files in the session's private folder, which both sides see. In a cluster,
where they see no folder together, arrays come with the job.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import EngineError

logger = logging.getLogger(__name__)

#: Pickles up to this many bytes are sent as they are.
INLINE_BYTES = 16 * 1024

#: A pickle (small) or the path of a file that holds one (large).
Parcel = bytes | str


def dumps(value: object) -> bytes:
    """Pickle a value; what lives in ``__main__`` or in a function goes by value."""
    try:
        data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception:  # pickle raises PicklingError, AttributeError, TypeError, ...
        return cloudpickle.dumps(value)
    # A class or function of this side's __main__ pickles by name, and the other side has another __main__.
    return cloudpickle.dumps(value) if b"__main__" in data else data


def wrap(data: bytes, folder: Path | None) -> Parcel:
    """Return a pickle ready to be sent: itself, or the path of a new file in ``folder``, where there is one."""
    if folder is None or len(data) <= INLINE_BYTES:
        return data
    path = folder / f"{uuid.uuid4().hex}.pickle"
    path.write_bytes(data)
    return str(path)


def unwrap(parcel: Parcel) -> Any:
    """Return the value that was wrapped. The file, if there is one, stays."""
    return pickle.loads(parcel if isinstance(parcel, bytes) else Path(parcel).read_bytes())


def discard(parcel: Parcel) -> None:
    """Remove the file of a parcel, if it has one."""
    if isinstance(parcel, str):
        Path(parcel).unlink(missing_ok=True)


#: Arrays that came with the job of a thread, by name.
_at_hand = threading.local()


@contextmanager
def arrays_at_hand(arrays: Mapping[str, NDArray]) -> Iterator[None]:
    """Let :meth:`SharedArray.open` find arrays, on this thread, that came with its job."""
    _at_hand.arrays = arrays
    try:
        yield
    finally:
        _at_hand.arrays = {}


@dataclass(frozen=True)
class SharedArray:
    """An array that lies in the session's folder, for jobs to map into memory, or that comes with its job.

    Parameters
    ----------
    key : str
        What it was shared under: a hash of its content.
    path : Path
        A ``.npy`` file, or only its name.
    shape : tuple of int
    dtype : str
        In NumPy's array-protocol notation, such as ``"<i2"``.
    """

    key: str
    path: Path
    shape: tuple[int, ...]
    dtype: str

    def open(self) -> NDArray:
        """Return the array, read-only and mapped from the file, so that only what is looked at is read.

        Raises
        ------
        EngineError
            The array was never written (disk full) or its session is over.
        """
        array = getattr(_at_hand, "arrays", {}).get(self.path.name)
        if array is not None:
            array = array.view()
            array.flags.writeable = False
            return array
        try:
            return np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise EngineError(
                "The scan could not be handed to the computing process: free some disk space in the temporary "
                "folder and try again."
            ) from error


class SharedArrays:
    """The arrays that were handed over, each written once, in the background.

    Parameters
    ----------
    folder : Path
        Private to the session.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="napari-unet-share")
        self._known: dict[str, tuple[SharedArray, Future[None]]] = {}

    def put(self, key: str, array: NDArray) -> SharedArray:
        """Return the handle of an array at once; it is written behind the caller's back and must not change."""
        if key in self._known:
            shared, written = self._known[key]
            if not (written.done() and written.exception()):
                return shared
        name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        shared = SharedArray(key, self._folder / f"{name}.npy", array.shape, array.dtype.str)
        self._known[key] = shared, self._writer.submit(self._write, shared.path, array)
        return shared

    @staticmethod
    def _write(path: Path, array: NDArray) -> None:
        try:
            np.save(path, array, allow_pickle=False)
        except Exception:
            logger.exception("An array of shape %s could not be shared", array.shape)
            path.unlink(missing_ok=True)
            raise

    def forget(self, key: str) -> None:
        """Remove an array, now or once it has been written; jobs that have opened it keep it until they end."""
        if key not in self._known:
            return
        shared, written = self._known.pop(key)
        if written.done():
            _remove(shared.path)
        else:
            # The caller may be a window, which cannot wait for a disk.
            self._writer.submit(_remove, shared.path)

    def pending(self, data: bytes) -> list[Future[None]]:
        """Return the arrays still being written that a pickle speaks of.

        Their file names are hashes, so that to find one in the bytes is to find the handle; a slab that travels
        with its own job does not wait for the volume that follows.
        """
        return [
            written
            for shared, written in list(self._known.values())
            if not written.done() and shared.path.name.encode() in data
        ]

    def close(self) -> None:
        """Write nothing more. The folder's owner removes the files."""
        self._writer.shutdown(wait=False, cancel_futures=True)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        # Windows keeps what a job has open; the folder goes with the session.
        logger.info("A shared array could not be removed yet: %s", type(error).__name__)
