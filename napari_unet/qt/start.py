"""Starts napari with the Annotate dock."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from napari_unet.domain.errors import SessionError
from napari_unet.domain.scan import Scan


def require_qt() -> None:
    """Refuse in one sentence where no Qt binding is installed: the extras leave the choice to the person.

    Raises
    ------
    SessionError
        If there is none.
    """
    try:
        import qtpy  # noqa: F401
    except ImportError:
        raise SessionError(
            'The window needs Qt, which is not installed: run pip install "napari-unet[pyqt5]" (or pyqt6), or use the '
            "commands that need no window (napari-unet --help), or napari-unet demo --headless."
        ) from None


def open_window(scans: Sequence[Scan | Path]) -> None:
    """Open the window with scans loaded; returns when it is closed.

    Parameters
    ----------
    scans : sequence of Scan or Path
        A path is one that leaves a choice, which the window asks for.
    """
    import napari

    viewer = napari.Viewer(title="napari-unet")
    _, widget = viewer.window.add_plugin_dock_widget("napari-unet", "Annotate")
    for scan in scans:
        if isinstance(scan, Path):
            widget.open_path(scan)
        else:
            widget.show_scan(scan)
    napari.run()


def open_demo() -> None:
    """Open the window with two computed patients, the first outlined, and say what to do next."""
    import napari

    from napari_unet.io.samples import ct_phantom

    viewer = napari.Viewer(title="napari-unet demo")
    _, widget = viewer.window.add_plugin_dock_widget("napari-unet", "Annotate")
    first, truth, schema = ct_phantom(1, "thick")
    second, _, _ = ct_phantom(4, "thick")
    session = widget.session
    session.set_schema(schema)
    outlined = session.add_scan(first, truth)
    session.add_scan(second)
    session.activate(outlined)
    widget.say(
        "scan 1 is outlined already: press Accept scan, then Fine-tune. Use the new model, select scan 2 and press "
        "Propose. Correct what is wrong with the brush, accept, and fine-tune again."
    )
    napari.run()
