"""Starts either face of the program: the command line, or the window. Each is imported only when it is asked for."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(arguments: list[str] | None = None) -> None:
    """Run ``napari-unet`` with the words of the command line; without any, open the window."""
    from napari_unet.domain.compute import PATIENT_THREADS
    from napari_unet.domain.errors import NapariUnetError
    from napari_unet.session.log import log_file, log_to_file

    for name, value in PATIENT_THREADS.items():
        os.environ.setdefault(name, value)
    words = list(sys.argv[1:] if arguments is None else arguments)
    log_to_file()
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
        sys.stderr.write(f"error: Something unexpected happened; the details are in {log_file()}.\n")
        raise SystemExit(1) from None


def _app() -> Callable[..., Any]:
    """Return the command line with the two commands that may open the window added."""
    from typing import Annotated

    import typer

    from napari_unet.cli.app import app

    if not any(command.name == "open" for command in app.registered_commands):
        app.command("open")(_open)
        app.command("demo")(_demo)
    _open.__annotations__["paths"] = Annotated[list[Path] | None, typer.Argument(help="Scans to load.")]
    return app


def _open(paths: list[Path] | None = None) -> None:
    """Open the window with the plugin docked and the scans loaded (also without any command)."""
    from napari_unet.domain.errors import ScanError, SeriesChoiceError, UntrustedError, VolumeChoiceError
    from napari_unet.io.registry import read_scan
    from napari_unet.qt.start import open_window, require_qt

    for path in paths or ():
        if not path.exists():
            raise ScanError(f"There is no file or folder {path}.")
    require_qt()
    _require_display()
    scans: list[Any] = []
    for path in paths or ():
        try:
            scans.append(read_scan(path))
        except (SeriesChoiceError, UntrustedError, VolumeChoiceError):
            scans.append(path)  # the window asks
    open_window(scans)


def _demo(headless: bool = False, out: Path = Path("demo-output")) -> None:
    """Run the main job on computed sample data: propose, correct, fine-tune, propose again."""
    if not headless and _has_display():
        from napari_unet.qt.start import open_demo, require_qt

        require_qt()
        open_demo()
        return
    from napari_unet.cli.output import say
    from napari_unet.session.demo import run_demo

    report = run_demo(out, say)
    say(f"The report with pictures: {report}")


def _has_display() -> bool:
    if sys.platform != "linux":
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _require_display() -> None:
    from napari_unet.domain.errors import SessionError

    if not _has_display():
        raise SessionError(
            "There is no display to open the window on: use the commands that need none (napari-unet --help), or "
            "napari-unet demo --headless."
        )


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUTF8", "1")
    main()
