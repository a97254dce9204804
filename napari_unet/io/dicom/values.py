"""Values of a DICOM header as Python numbers and texts, or a sentence that names the element at fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.tag import Tag

from napari_unet.domain.errors import ScanError

#: No scanner is this large: numbers beyond come from damaged headers.
_FAR_AWAY_MM = 1e7


class HeaderValues:
    """Typed values of a header; what cannot be understood becomes a sentence that names the element.

    Parameters
    ----------
    dataset : Dataset
    path : Path
        For messages.
    groups : tuple of Dataset
        Functional groups of a frame, its own before those that all frames share; they count before ``dataset`` where
        a method is told the sequence that an element stands in.
    """

    def __init__(self, dataset: Dataset, path: Path, groups: tuple[Dataset, ...] = ()) -> None:
        self.dataset, self.path, self.groups = dataset, path, groups

    def _raw(self, keyword: str, group: str | None) -> Any:
        try:
            if group is not None:
                for item in self.groups:
                    if item.get(group):
                        value = item[group].value[0].get(keyword)
                        if value is not None:
                            return value
            return self.dataset.get(keyword)
        except Exception as error:
            raise ScanError(self._invalid(keyword)) from error

    def _invalid(self, keyword: str) -> str:
        tag = Tag(tag_for_keyword(keyword) or 0)
        return (
            f"{self.path.name} holds an invalid value or value representation in {keyword} {tag}: "
            "export it again from where it came."
        )

    def _convert(self, keyword: str, group: str | None, kind: Callable[[Any], Any]) -> Any:
        value = self._raw(keyword, group)
        if value is None or (hasattr(value, "__len__") and len(value) == 0):
            return None
        try:
            return kind(value)
        except Exception as error:
            raise ScanError(self._invalid(keyword)) from error

    def text(self, keyword: str) -> str:
        """Return a text, empty where unknown."""
        return self._convert(keyword, None, lambda value: str(value).strip()) or ""

    def texts(self, keyword: str) -> tuple[str, ...]:
        """Return the values of a text of several."""

        def kind(value: Any) -> tuple[str, ...]:
            return (value,) if isinstance(value, str) else tuple(str(v) for v in value)

        return self._convert(keyword, None, kind) or ()

    def whole(self, keyword: str, default: int) -> int:
        """Return a whole number."""
        found = self._convert(keyword, None, int)
        return default if found is None else found

    def number(self, keyword: str, group: str | None = None) -> float | None:
        """Return a finite number, the first of several, or None where unknown."""

        def kind(value: Any) -> float:
            found = float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
            if not np.isfinite(found):
                raise ValueError(keyword)
            return found

        return self._convert(keyword, group, kind)

    def loosely(self, keyword: str, group: str | None = None) -> float | None:
        """Return a number that only helps: nonsense counts as unknown."""
        try:
            return self.number(keyword, group)
        except ScanError:
            return None

    def numbers(self, keyword: str, count: int, group: str | None = None) -> tuple[float, ...] | None:
        """Return so many finite numbers, or None where unknown."""

        def kind(value: Any) -> tuple[float, ...]:
            found = tuple(float(v) for v in value)
            if len(found) != count or not np.isfinite(found).all() or max(map(abs, found)) > _FAR_AWAY_MM:
                raise ValueError(keyword)
            return found

        return self._convert(keyword, group, kind)
