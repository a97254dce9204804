"""Every setting as something a person can read and fill in: its kind, limits and words.

Made from :class:`~napari_unet.domain.settings.ModelSettings`, so that form, command line and documentation cannot tell
different stories. No widgets here, and no values of a session.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel

from napari_unet.domain.errors import SettingsError
from napari_unet.domain.settings import ModelSettings

Kind = Literal["flag", "choice", "whole", "number", "figures", "text"]

_KINDS: dict[str, Kind] = {
    "boolean": "flag",
    "integer": "whole",
    "number": "number",
    "array": "figures",
    "string": "text",
}
_NONE_MEANS = re.compile(r"None: ([^;.(]+)")
_EXAMPLES = {
    "whole": "a whole number, such as 8",
    "number": "a number, such as 0.05 or 1e-4",
    "figures": "figures in square brackets, such as [32, 32]",
}


@dataclass(frozen=True)
class SettingField:
    """One setting.

    Parameters
    ----------
    key : str
        As ``--set`` takes it: ``training.batch_size``.
    kind : Kind
        ``figures`` are numbers in brackets, of which some settings nest two levels.
    default : Any
        Without a plan.
    optional : bool
        Whether None is a value.
    choices : tuple
        What there is to choose from, where ``kind`` is ``choice``.
    least, most : float or None
        Limits of a number.
    above : bool
        Whether ``least`` itself is out of bounds; ``most`` is too where ``below``.
    description : str
        For the person; empty where the name says it all.
    """

    key: str
    kind: Kind
    default: Any
    optional: bool
    choices: tuple[Any, ...] = ()
    least: float | None = None
    most: float | None = None
    above: bool = False
    below: bool = False
    description: str = ""

    @property
    def group(self) -> str:
        """The part before the dot."""
        return self.key.partition(".")[0]

    @property
    def title(self) -> str:
        """The part after the dot, as words."""
        return self.key.partition(".")[2].replace("_", " ").capitalize()

    @property
    def limits(self) -> str:
        """What may be filled in, in words; empty where the kind says it all."""
        if self.kind == "choice":
            return ", ".join(str(choice) for choice in self.choices)
        if self.kind == "flag":
            return "true, false"
        parts = []
        if self.least is not None:
            parts.append(f"{'above' if self.above else 'from'} {self.least:g}")
        if self.most is not None:
            parts.append(f"{'below' if self.below else 'to'} {self.most:g}")
        return " ".join(parts)

    @property
    def none_means(self) -> str:
        """What leaving it empty means."""
        found = _NONE_MEANS.search(self.description)
        return found[1].strip() if found else "none"

    def to_text(self, value: Any) -> str:
        """Return a value as the person would write it; empty for None."""
        if value is None:
            return ""
        if self.kind == "number":
            return f"{value:.6g}"
        return json.dumps(value) if self.kind == "figures" else str(value)

    def from_text(self, text: str) -> Any:
        """Return what the person wrote as a value; limits are checked by the settings themselves.

        Raises
        ------
        SettingsError
            It cannot be read as this kind, or is empty where something is needed.
        """
        text = text.strip()
        if not text and self.optional:
            return None
        if self.kind == "text":
            return text
        try:
            value = {"number": float, "whole": int}.get(self.kind, json.loads)(text)
            if self.kind == "figures" and not isinstance(value, list):
                raise ValueError
        except ValueError:
            raise SettingsError(f"Write {_EXAMPLES[self.kind]}, not {text!r}.") from None
        return value


@cache
def setting_fields() -> tuple[SettingField, ...]:
    """Return all settings that belong to a group, in the order of their classes."""
    return tuple(
        _field(f"{group}.{leaf}", schema)
        for group, info in ModelSettings.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
        for leaf, schema in info.annotation.model_json_schema()["properties"].items()
    )


def value_of(settings: ModelSettings, key: str) -> Any:
    """Return the value that a dotted key has in some settings."""
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _field(key: str, schema: dict[str, Any]) -> SettingField:
    kinds = schema.get("anyOf", [schema])
    kind = next(each for each in kinds if each["type"] != "null")
    above, below = "exclusiveMinimum" in kind, "exclusiveMaximum" in kind
    return SettingField(
        key,
        "choice" if "enum" in kind else _KINDS[kind["type"]],
        schema["default"],
        len(kinds) > 1,
        tuple(kind.get("enum", ())),
        kind.get("exclusiveMinimum" if above else "minimum"),
        kind.get("exclusiveMaximum" if below else "maximum"),
        above,
        below,
        schema.get("description", ""),
    )
