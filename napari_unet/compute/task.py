"""One job on its way to wherever it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from napari_unet.compute.transport import Parcel, discard, unwrap
from napari_unet.compute.worker import Lane, Outcome

logger = logging.getLogger(__name__)

Verdict = Literal["running", "event", "result", "error", "cancelled"]


@dataclass(eq=False)
class Task:
    """What to run, whom to tell, and how far its present attempt is.

    Parameters
    ----------
    id, lane, threads
        As in :class:`~napari_unet.compute.worker.Order`.
    call : bytes
        The pickled ``(function, args, kwargs)``.
    tell : callable
        Takes a verdict and its value; called on the dispatcher's thread.

    Attributes
    ----------
    attempt : int
        How many times it was sent.
    begun : int
        How many times a worker began with it. More than it was sent, where the scheduler gave it to a second worker
        after the first was lost.
    pid : int or None
        Of the process that runs it.
    garbled : bool
        Something it said could not be read.
    """

    id: str
    lane: Lane
    threads: int
    call: bytes
    tell: Callable[[Verdict, Any], None]
    attempt: int = 0
    begun: int = 0
    pid: int | None = None
    garbled: bool = False
    _received: int = 0
    # What came before its turn: large events of a cluster's job come with its outcome.
    _early: dict[int, Parcel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stop = asyncio.Event()
        self.lost_too_often = asyncio.Event()

    def begin_attempt(self) -> None:
        """Forget the previous attempt: what it still sends is not counted."""
        self.attempt += 1
        self._forget()

    def take(self, number: int, body: Any, most_beginnings: int) -> None:
        """Take one message of the worker."""
        if number < 0:
            self.begun += 1
            self._forget()
            self.pid = body
            if self.begun > most_beginnings:
                self.lost_too_often.set()
            else:
                self.tell("running", None)
            return
        self._early[number] = body
        self._pass_on()

    def is_complete(self, outcome: Outcome) -> bool:
        """Take what came with an outcome; return whether every event was received and understood."""
        self._early.update(outcome.kept)
        self._pass_on()
        return not self.garbled and self._received == outcome.events

    def _pass_on(self) -> None:
        while (body := self._early.pop(self._received, None)) is not None:
            number, self._received = self._received, self._received + 1
            try:
                value = unwrap(body)
            except Exception:
                logger.exception("Event %d of job %s cannot be read", number, self.id)
                self.garbled = True
            else:
                self.tell("event", value)
            finally:
                discard(body)

    def _forget(self) -> None:
        self._received = 0
        self.pid = None
        self._early.clear()
