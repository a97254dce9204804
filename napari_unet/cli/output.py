"""What the command line prints: results as JSON, progress and notices on standard error."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from napari_unet.domain.errors import ExportError
from napari_unet.io.pairs import Pairs


def say(line: str) -> None:
    """Print a line for the person: to standard error, so that standard output holds only results."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def say_unmatched(pairs: Pairs, images: str = "images", masks: str = "masks") -> None:
    """Say which files are left out because their partner is missing."""
    for paths, what, partner in (
        (pairs.images_without_mask, images, masks),
        (pairs.masks_without_image, masks, images),
    ):
        if paths:
            more = "" if len(paths) <= 3 else f" and {len(paths) - 3} more"
            names = ", ".join(path.name for path in paths[:3])
            say(f"note: {len(paths)} of the {what} have no partner among the {partner} and are left out: {names}{more}")


def print_result(line: str) -> None:
    """Print a line of a result to standard output."""
    print(line, flush=True)  # noqa: T201


def to_json(value: Any) -> str:
    """Return JSON in which an undefined figure is null, never NaN."""
    return json.dumps(_clean(value), indent=2, ensure_ascii=False, allow_nan=False)


def write_json(value: Any, target: str | None) -> None:
    """Write a result to a file, or to standard output for ``-``; None: nowhere.

    Raises
    ------
    ExportError
        The file cannot be written.
    """
    if target is None:
        return
    text = to_json(value)
    if target == "-":
        print_result(text)
        return
    try:
        Path(target).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ExportError(f"The result could not be written to {target}: {error.strerror}.") from error


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
