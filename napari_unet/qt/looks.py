"""Colours of texts that stand out or step back, readable in napari's dark themes and in its light ones.

A widget says what it is by :func:`look_like`; the dock's style sheet, which its dialogs inherit, has the colours.
Contrasts are at least 4.5 : 1 (WCAG 2.2, success criterion 1.4.3).
"""

from __future__ import annotations

from napari.utils.theme import get_theme
from qtpy.QtGui import QColor, QPalette
from qtpy.QtWidgets import QWidget

# Text, and background where it is a box, in dark themes and in light ones.
_COLOURS: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "notice": (("white", "#2d4a5e"), ("#10303f", "#cfe3f0")),
    "trouble": (("white", "#6b3a20"), ("#5a2408", "#f6d9c8")),
    "wrong": (("#f0956c", ""), ("#98330c", "")),
    "warning": (("#e69f00", ""), ("#7a4f00", "")),
    "faint": (("#a0a4ab", ""), ("#55585e", "")),
}
_LINKS = ("#6cb0ea", "#1b568c")
_HALF = 128
_CONTROLS = ("QPushButton", "QToolButton", "QCheckBox", "QRadioButton", "QComboBox", "QLineEdit", "QAbstractSpinBox")


def look_like(widget: QWidget, look: str) -> None:
    """Have a widget look like a ``notice``, ``trouble``, something ``wrong``, a ``warning`` or something ``faint``."""
    widget.setProperty("look", look)


def style_sheet(theme: str, font_size: float) -> str:
    """Return the style sheet of the dock for one of napari's themes, and a size of letters in points."""
    background = QColor(get_theme(theme).background.as_hex())
    is_light = background.lightness() > _HALF
    rules = []
    for look, colours in _COLOURS.items():
        text, box = colours[is_light]
        more = f" background: {box}; padding: 5px; border-radius: 3px;" if box else ""
        rules.append(f'*[look="{look}"] {{ color: {text};{more} }}')
    rules.append(f'*[wrong="true"] {{ border: 1px solid {_COLOURS["wrong"][is_light][0]}; }}')
    focused = ", ".join(f"{kind}:focus" for kind in _CONTROLS)
    rules.append(f"{focused} {{ border: 1px solid {_LINKS[is_light]}; }}")
    # napari leaves these at the system's size, and spin boxes too narrow for their units.
    rules.append(
        f"QLineEdit, QAbstractSpinBox, QAbstractItemView, QHeaderView::section {{ font-size: {font_size}pt; }}"
    )
    rules.append("QAbstractSpinBox { min-width: 7em; }")
    return "\n".join(rules)


def link_colour(widget: QWidget) -> str:
    """Return the colour of links on a widget's background."""
    return _LINKS[widget.palette().color(QPalette.ColorRole.WindowText).lightness() < _HALF]
