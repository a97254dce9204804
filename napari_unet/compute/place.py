"""Where jobs run, as the dispatcher sees it: this computer, or a cluster that somebody runs."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from numpy.typing import NDArray

from napari_unet.compute.task import Task
from napari_unet.compute.transport import SharedArray
from napari_unet.compute.worker import Lane, Outcome


class LostOnTheWayError(Exception):
    """What a job needs was lost while it was handed over; it may be sent again."""


class Place(Protocol):
    """What differs between places. What is async, and what says so, runs on the dispatcher's event loop.

    Attributes
    ----------
    most_beginnings : int
        A job that was begun so often, and lost each time, is not begun again.
    may_go : bool
        The place may be away for a while, and come back: what is asked of it meanwhile fails at once.
    lost, unreachable : str
        What a person is told of a job that was lost, and of a place that does not answer.
    """

    most_beginnings: int
    may_go: bool
    lost: str
    unreachable: str

    @property
    def topic(self) -> str:
        """The Dask topic by which jobs send their events."""

    def share(self, key: str, array: NDArray) -> SharedArray:
        """Hand an array over; from the caller's thread, which does not wait."""

    def forget(self, key: str) -> None:
        """Take an array back; from the caller's thread."""

    def open(self) -> AbstractAsyncContextManager[Any]:
        """Give a connected Dask client whose workers are ready.

        Raises
        ------
        ClusterError
            The place cannot be used, for a reason that a person can do something about.
        """

    async def until_gone(self, client: Any) -> None:
        """Return when the client's cluster is no longer there."""

    def room(self, lane: Lane) -> int:
        """Return how many jobs of a lane may run at the same time; on the event loop."""

    def sent(self, client: Any, task: Task) -> AbstractAsyncContextManager[asyncio.Future[Outcome]]:
        """Send a task, and give what becomes of it.

        Raises
        ------
        LostOnTheWayError
        """

    async def interrupt(self, client: Any, task: Task, result: asyncio.Future[Outcome]) -> None:
        """Ask a task that runs to stop, and see to it that the person does not wait for it."""

    def may_try_again(self, task: Task) -> bool:
        """Return whether a task whose worker was lost is to be sent once more."""

    def last_words(self) -> str:
        """Return what the place's processes wrote lately, for the log."""

    def close(self) -> None:
        """Leave nothing behind; the last call, on the caller's thread."""
