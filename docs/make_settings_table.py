"""Makes ``docs/settings.md``, the table of all settings, from the settings themselves.

python docs/make_settings_table.py
"""

from __future__ import annotations

import json
from pathlib import Path

from napari_unet.session.setting_fields import SettingField, setting_fields

OUT = Path(__file__).parent / "settings.md"
_HEAD = """# Settings

Made by `python docs/make_settings_table.py` from the program itself. The form of settings in the window, `--set` on the
[command line](command-line.md) and the card in every model's file (`napari-unet info FILE`) hold these same keys.

The default is what holds where neither the plan nor a preset says otherwise; the plan is said in words before each
training. An empty value is `null` on the command line; lists are written as JSON, such as
`--set training.patch_size=[64,64]`.

![The form of settings: what each one is, where its value comes from, and what was changed by hand](images/settings.png)
"""
_KINDS = {"whole": "whole number", "number": "number", "figures": "list", "text": "text"}


def _values(field: SettingField) -> str:
    kind = _KINDS.get(field.kind, "")
    said = ", ".join(f"`{choice}`" for choice in field.choices) or field.limits
    return " ".join(part for part in (kind, said, "or `null`" if field.optional else "") if part)


def _row(field: SettingField) -> str:
    default = json.dumps(field.default) if field.kind != "choice" else str(field.default)
    meaning = field.description.replace("None:", "null:")
    return f"| `{field.key}` | `{default}` | {_values(field)} | {meaning} |"


def page() -> str:
    """Return the page."""
    parts = [_HEAD]
    for group in dict.fromkeys(field.group for field in setting_fields()):
        rows = "\n".join(_row(field) for field in setting_fields() if field.group == group)
        parts.append(f"\n## {group.capitalize()}\n\n| key | default | values | meaning |\n|---|---|---|---|\n{rows}\n")
    return "".join(parts)


if __name__ == "__main__":
    OUT.write_text(page(), encoding="utf-8")
