"""Where the session computes: on this computer, or on a Dask cluster; trying one out, and changing over."""

from __future__ import annotations

import threading
from collections.abc import Callable

from psygnal import Signal

from napari_unet.compute.engine import Engine
from napari_unet.session.worker import Worker

_UNKNOWN = "Computing on this computer."


class Trial:
    """A connection that is tried out; nothing is computed.

    Parameters
    ----------
    address : str
    insecure : bool
    wake : callable or None
        As for :class:`~napari_unet.compute.engine.Engine`.

    Raises
    ------
    ClusterError
        The address is none, or not safe.
    """

    def __init__(self, address: str, insecure: bool, wake: Callable[[], None] | None = None) -> None:
        self._engine = Engine(address=address, insecure=insecure, wake=wake)
        self._engine.start()

    @property
    def answer(self) -> tuple[bool, str] | None:
        """Whether it can be used, and what there is or what is wrong; None while it is not known."""
        if self._engine.state == "ready" and self._engine.cluster is not None:
            return True, self._engine.cluster.in_words()
        if self._engine.state in ("failed", "away"):
            return False, self._engine.trouble or "It cannot be used."
        return None

    def close(self) -> None:
        """Let go, without waiting."""
        _close_behind(self._engine)


class Computing:
    """Changes over to another engine, and says in words where things are computed.

    Parameters
    ----------
    worker : Worker
    require_rest : callable
        Raises where something is being computed.
    moved : callable
        Called once another engine is in place.
    """

    changed = Signal()  # where things are computed, or what is known of it

    def __init__(self, worker: Worker, require_rest: Callable[[], None], moved: Callable[[], None]) -> None:
        self._worker, self._require_rest, self._moved = worker, require_rest, moved
        self._told = self.in_words

    @property
    def address(self) -> str | None:
        """The cluster's address; None: this computer."""
        return self._worker.engine.address

    @property
    def in_words(self) -> str:
        """One sentence: where, with what, or why not."""
        engine, compute = self._worker.engine, self._worker.compute
        if engine.trouble is not None:
            return engine.trouble
        if engine.address is not None:
            return f"Connecting to {engine.address}..." if engine.cluster is None else engine.cluster.in_words()
        return _UNKNOWN if compute is None else compute.reason

    def poll(self) -> None:
        """Tell where there is something else to be said than when this was last called."""
        before, self._told = self._told, self.in_words
        if self._told != before:
            if self._worker.engine.state == "away":
                self._worker.forget_compute()
            self.changed.emit()

    def use(self, address: str | None, *, insecure: bool = False) -> None:
        """Compute there from now on; work and edits stay as they are.

        Parameters
        ----------
        address : str or None
            Of a Dask scheduler, such as ``tls://host:8786``; None: this computer.
        insecure : bool
            Allow one that is reached without encryption.

        Raises
        ------
        ClusterError
            The address is none, or not safe.
        SessionError
            Something is being computed.
        """
        self._require_rest()
        before = self._worker.engine
        self._worker.move_to(Engine(wake=before.wake, address=address, insecure=insecure))
        _close_behind(before)
        self._moved()


def _close_behind(engine: Engine) -> None:
    # It takes up to two seconds, and nobody needs to wait for it.
    threading.Thread(target=engine.close, name="napari-unet-closing").start()
