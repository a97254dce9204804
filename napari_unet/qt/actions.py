"""What can be done in the window, by which key: one list for keys, buttons, the palette's commands and the dialog.

Keys are bound to the viewer and to the Labels layers, whose own keys would win over the viewer's. What the person chose
is in the preferences, in napari's notation: ``Control-Shift-Z``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from app_model.types import KeyBinding, KeyCode
from napari._app_model import get_app_model
from napari.components import ViewerModel
from napari.layers import Image, Labels
from napari.utils.action_manager import action_manager
from napari.utils.key_bindings import KeymapProvider, coerce_keybinding
from psygnal import Signal
from qtpy.QtWidgets import QAbstractButton, QWidget

from napari_unet.domain.errors import SessionError
from napari_unet.session.preferences import Preferences

#: Set by :func:`~napari_unet.qt.panels.parts.tool`: there is no room for a key on the button, so it stands in the tip.
SMALL = "small"
_TIP = "tip without a key"


@dataclass(frozen=True)
class Action:
    """One thing that can be done.

    ``key`` is the key it has by itself, in napari's notation; empty where it has none. A button whose accessible name
    is the ``title`` shows the key.
    """

    id: str
    title: str
    key: str
    run: Callable[[], None]
    does: str


class Actions:
    """The actions of a window, with their keys as the person has set them.

    Parameters
    ----------
    guard : callable
        Wraps what is done, so that errors are said.
    """

    changed = Signal()  # a key

    def __init__(self, guard: Callable[[Callable[..., Any]], Callable[..., None]]) -> None:
        self._guard = guard
        self._actions: dict[str, Action] = {}
        self._keys: dict[str, str] = {}
        kept = {name: _known(key) for name, key in Preferences.read().keys.items()}
        self._chosen = {name: key for name, key in kept.items() if key is not None}
        self._bound: weakref.WeakSet[KeymapProvider] = weakref.WeakSet()
        self._buttons: list[tuple[QAbstractButton, str]] = []

    def __iter__(self) -> Iterator[Action]:
        return iter(self._actions.values())

    def add(self, name: str, title: str, key: str, run: Callable[..., Any], does: str) -> None:
        """Add an action; a key that the person gave to another one is left to that."""
        own = self._chosen.get(name)
        others = {each for other, each in self._chosen.items() if other != name} | set(self._keys.values())
        self._actions[name] = Action(name, title, normal_key(key) if key else "", self._guard(run), does)
        default = self._actions[name].key
        self._keys[name] = own if own is not None else "" if default in others else default
        for provider in self._bound:
            self._bind(provider, name)

    def run(self, name: str) -> None:
        """Do it."""
        self._actions[name].run()

    def key(self, name: str) -> str:
        """Return the key of an action now, in napari's notation; empty where it has none."""
        return self._keys[name]

    def bind(self, provider: KeymapProvider) -> None:
        """Bind all keys to a viewer or a layer."""
        self._bound.add(provider)
        for name in self._actions:
            self._bind(provider, name)

    def close(self) -> None:
        """Leave the keys to napari again."""
        for provider in self._bound:
            for key in filter(None, self._keys.values()):
                provider.bind_key(key, None)
        self._bound.clear()

    def rebind(self, name: str, key: str) -> None:
        """Give an action another key, or none (empty), from now on and at the next start.

        Raises
        ------
        SessionError
            It is no key that can be told apart on all systems, or one that another action or napari has.
        """
        action = self._actions[name]
        key = normal_key(key) if key else ""
        if key:
            for other in self:
                if other is not action and self._keys[other.id] == key:
                    raise SessionError(f"{in_words(key)} is the key of {other.title}: choose another one.")
            whose = napari_keys().get(key)
            # The window's own defaults replace napari's on purpose.
            if whose is not None and key != action.key:
                raise SessionError(f"{in_words(key)} is napari's key to {whose}: choose another one.")
        self._put({name: key})

    def reset(self) -> None:
        """Give all actions the keys that they have by themselves."""
        self._put({action.id: action.key for action in self})

    def show_on(self, parent: QWidget) -> None:
        """Have the buttons that carry an action's title show its key."""
        names = {action.title: action.id for action in self}
        for each in parent.findChildren(QAbstractButton):
            if each.accessibleName() in names:
                each.setProperty(_TIP, each.toolTip())
                self._buttons.append((each, names[each.accessibleName()]))
        self._label()

    def _put(self, keys: dict[str, str]) -> None:
        # All old keys go before any new one comes: two actions may have changed places.
        for provider in self._bound:
            for name in keys:
                if self._keys[name]:
                    provider.bind_key(self._keys[name], None)
        self._keys |= keys
        for provider in self._bound:
            for name in keys:
                self._bind(provider, name)
        for name, key in keys.items():
            self._chosen.pop(name, None)
            if key != self._actions[name].key:
                self._chosen[name] = key
        Preferences.read().model_copy(update={"keys": dict(self._chosen)}).keep()
        self._label()
        self.changed.emit()

    def _bind(self, provider: KeymapProvider, name: str) -> None:
        if self._keys[name]:
            run = self._actions[name].run
            provider.bind_key(self._keys[name], lambda _: run(), overwrite=True)

    def _label(self) -> None:
        for button, name in self._buttons:
            action, key = self._actions[name], in_words(self._keys[name])
            tip = str(button.property(_TIP))
            button.setToolTip(f"{tip} ({key})" if key else tip)
            if not button.property(SMALL):
                button.setText(f"{action.title}   {key}" if key else action.title)


def normal_key(key: str) -> str:
    """Return a key in napari's notation, modifiers in one order.

    Raises
    ------
    SessionError
        It is unknown, or one that comes as another character where another keyboard is in use.
    """
    known = _known(key)
    if known is None:
        raise SessionError(
            "This key cannot be used: choose a letter, a function key or Enter, alone or with Ctrl, Shift or Alt; or a "
            "digit without Shift."
        )
    return known


def in_words(key: str) -> str:
    """Return a key as this system's people know it: ``Ctrl+Z``."""
    return coerce_keybinding(key).to_text() if key else ""


def _known(key: str) -> str | None:
    """Return a key in its normal notation; None for what cannot be used."""
    if not key:
        return ""
    try:
        parts = coerce_keybinding(key).parts
    except ValueError:
        return None
    part = parts[0]
    if len(parts) != 1 or part.key in (None, KeyCode.UNKNOWN) or part.is_modifier_key():
        return None
    name = str(part.key)
    # Shift makes another character of a digit or a sign, which one depends on the keyboard.
    if part.shift and len(name) == 1 and not name.isalpha():
        return None
    return _notation(coerce_keybinding(key))


def _notation(key: KeyBinding) -> str:
    part = key.parts[0]
    held = (("Control", part.ctrl), ("Shift", part.shift), ("Alt", part.alt), ("Meta", part.meta))
    return "-".join([*(name for name, is_held in held if is_held), str(part.key)])


def napari_keys() -> dict[str, str]:
    """Return the keys that napari has for the viewer, its menus, images and labels, and what each is for."""
    found: dict[str, str] = {}
    classes = {each for kind in (ViewerModel, Image, Labels) for each in kind.__mro__}
    for provider in classes:
        for key, function in getattr(provider, "class_keymap", {}).items():
            if isinstance(key, KeyBinding):
                found[_notation(key)] = getattr(function, "__name__", "do something").replace("_", " ")
    for name, keys in action_manager._shortcuts.items():
        action = action_manager._actions.get(name)
        if action is not None and action.keymapprovider in classes:
            for each in keys:
                found[_notation(coerce_keybinding(each))] = _sentence(action.description)
    napari = get_app_model()
    for rule in napari.keybindings:
        title = napari.commands[rule.command_id].title if rule.command_id in napari.commands else rule.command_id
        found.setdefault(_notation(rule.keybinding), _sentence(title))
    return found


def _sentence(description: str) -> str:
    first = description.strip().partition("\n")[0].rstrip(".")
    return first[:1].lower() + first[1:]
