"""Starts either face of the program: the command line, or the window. Each is imported only when it is asked for."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Run ``napari-unet`` with the words of the command line; without any, open the window."""
    from napari_unet.domain.errors import NapariUnetError

    words = list(sys.argv[1:] if arguments is None else arguments)
    _log_to_file()
    try:
        _app()(words or ["open"], prog_name="napari-unet")
    except NapariUnetError as error:
        logging.getLogger(__name__).info("refused: %s", type(error).__name__, exc_info=error.__cause__)
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise SystemExit(1) from None
    except MemoryError:
        sys.stderr.write("error: The memory of this computer is used up: close other programs or use a smaller scan.\n")
        raise SystemExit(1) from None
    except Exception:
        logging.getLogger(__name__).exception("unexpected")
        sys.stderr.write(f"error: Something unexpected happened; the details are in {_log_file()}.\n")
        raise SystemExit(1) from None


def _app():
    """Return the command line with the commands that start the window added."""


    from napari_unet.cli.app import app

    return app


def _log_file() -> Path:
    from platformdirs import user_log_dir

    return Path(user_log_dir("napari-unet")) / "napari-unet.log"


def _log_to_file() -> None:
    """Write the log to a rotating file; where that is not possible, go on without one."""
    root = logging.getLogger("napari_unet")
    root.setLevel(logging.INFO)
    root.propagate = False
    try:
        path = _log_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        handler: logging.Handler = logging.handlers.RotatingFileHandler(path, maxBytes=2**20, backupCount=3, delay=True)
    except OSError:
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(process)d] %(message)s"))
    root.addHandler(handler)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUTF8", "1")
    main()
