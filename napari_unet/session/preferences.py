"""What a person chose for all projects: a file in the user's configuration folder."""

from __future__ import annotations

import logging
from pathlib import Path

from platformdirs import user_config_dir
from pydantic import BaseModel, ConfigDict, ValidationError

from napari_unet.storage.atomic import replace_atomically

logger = logging.getLogger(__name__)

_MOST_RECENT = 8


class Preferences(BaseModel):
    """Choices that hold for all projects.

    ``reader`` is the name under which the person's work is recorded, ``projects`` the folders opened last, the latest
    first, ``guide_hidden`` whether the first steps were put away, ``keys`` the keys of the window's actions that were
    changed, in napari's notation (``Control-Z``).
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    reader: str | None = None
    projects: tuple[str, ...] = ()
    guide_hidden: bool = False
    keys: dict[str, str] = {}

    @classmethod
    def read(cls) -> Preferences:
        """Return them as kept; the defaults where nothing was, or it cannot be understood."""
        try:
            return cls.model_validate_json(_file().read_bytes())
        except (OSError, ValidationError):
            return cls()

    def with_project(self, folder: Path) -> Preferences:
        """Return them with a project as the one opened last."""
        path = str(folder.resolve())
        others = [each for each in self.projects if each != path]
        return self.model_copy(update={"projects": (path, *others)[:_MOST_RECENT]})

    def keep(self) -> None:
        """Write them; where that is not possible they hold until the program ends."""
        path = _file()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_atomically(path, self.model_dump_json(indent=2).encode())
        except OSError:
            logger.warning("the preferences could not be written")


def _file() -> Path:
    return Path(user_config_dir("napari-unet")) / "preferences.json"
