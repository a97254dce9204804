"""Brings the engine's messages to the window's thread, and keeps errors from ending the program."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QObject, Qt, QTimer, Signal

from napari_unet.domain.errors import NapariUnetError

_log = logging.getLogger(__name__)
# While a stroke is under way messages wait; this is how soon they are looked at again.
_RETRY_MS = 20


class Bridge(QObject):
    """Turns the engine's wake-up call, from any thread, into a poll on the window's thread.

    Parameters
    ----------
    parent : QObject
    poll : callable
        Takes in what has arrived.
    must_wait : callable
        True while nothing may change under the person's hand.
    """

    _woken = Signal()

    def __init__(self, parent: QObject, poll: Callable[[], None], must_wait: Callable[[], bool]) -> None:
        super().__init__(parent)
        self._poll, self._must_wait = poll, must_wait
        self._closed = False
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._deliver)
        self._woken.connect(self._deliver, Qt.ConnectionType.QueuedConnection)

    def wake(self) -> None:
        """Ask for a poll; may be called from any thread."""
        if not self._closed:
            self._woken.emit()

    def close(self) -> None:
        """Deliver nothing more."""
        self._closed = True
        self._timer.stop()

    def _deliver(self) -> None:
        if self._closed:
            return
        if self._must_wait():
            self._timer.start(_RETRY_MS)
            return
        try:
            self._poll()
        except Exception:
            _log.exception("poll failed")


def guarded(say: Callable[[str], None], action: Callable[..., Any]) -> Callable[..., None]:
    """Return an action that says its error in one sentence instead of raising it.

    An exception in a PyQt5 slot would end the program.
    """

    @functools.wraps(action)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            action(*args, **kwargs)
        except NapariUnetError as error:
            say(str(error))
        except Exception:
            _log.exception("unexpected")
            say("Something unexpected happened; your labels are safe. The details are in the log.")

    return run
