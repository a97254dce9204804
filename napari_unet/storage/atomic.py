"""Files that are either the old one or the new one, never half of each."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def replace_atomically(path: Path, data: bytes) -> None:
    """Write bytes to a temporary neighbour, flush them to the disk, then take the target's place.

    Raises
    ------
    OSError
        Nothing was replaced.
    """
    # Not tempfile, which lets only its owner read what it makes: models are shared with colleagues.
    temporary = path.parent / f".{secrets.token_hex(6)}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
