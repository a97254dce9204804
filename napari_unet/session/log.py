"""The log file: rotating, in the user's log folder. It holds no voxels, no paths of scans and no names."""

from __future__ import annotations

import logging
import logging.handlers
from pathlib import Path
from typing import Any

from platformdirs import user_log_dir

from napari_unet.domain.errors import traceback_without_messages


class PrivateFormatter(logging.Formatter):
    """Writes of an error where it arose and its kind, never its message: that may hold a path, and so a name."""

    def formatException(self, ei: Any) -> str:
        """Return the traceback of an error and of what led to it, without messages."""
        return traceback_without_messages(ei[1])


def log_file() -> Path:
    """Return where the log is written."""
    return Path(user_log_dir("napari-unet")) / "napari-unet.log"


def log_to_file() -> None:
    """Write this package's log to the file, once per process; where that is not possible, go on without one."""
    root = logging.getLogger("napari_unet")
    if root.handlers:
        return
    root.setLevel(logging.INFO)
    root.propagate = False
    try:
        path = log_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        handler: logging.Handler = logging.handlers.RotatingFileHandler(path, maxBytes=2**20, backupCount=3, delay=True)
    except OSError:
        handler = logging.NullHandler()
    handler.setFormatter(PrivateFormatter("%(asctime)s %(levelname)s %(name)s [%(process)d] %(message)s"))
    root.addHandler(handler)
