"""Named errors. Each message is one sentence (or two) that says what happened and what to do about it."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_unet.domain.scan import SeriesInfo


class NapariUnetError(Exception):
    """Base of every error this package raises on purpose; its message is fit to be shown to a person."""


class ScanError(NapariUnetError):
    """A scan cannot be read, or cannot be read without guessing where its voxels stand."""


class SeriesChoiceError(ScanError):
    """Several series were found and none was chosen.

    Parameters
    ----------
    message : str
        For the person.
    series : sequence of SeriesInfo
        What there is to choose from.
    """

    def __init__(self, message: str, series: Sequence[SeriesInfo] = ()) -> None:
        super().__init__(message)
        self.series = tuple(series)


class VolumeChoiceError(ScanError):
    """A file holds several volumes (time points, channels) and none was chosen.

    Parameters
    ----------
    message : str
        For the person.
    n_volumes : int
        How many there are.
    """

    def __init__(self, message: str, n_volumes: int = 0) -> None:
        super().__init__(message)
        self.n_volumes = n_volumes


class UntrustedError(ScanError):
    """A scan has a fault and loads only if the person says so.

    Parameters
    ----------
    message : str
        For the person: names the fault, and where it is in mm.
    can_resample : bool
        Resampling onto a regular grid would mend it.
    """

    def __init__(self, message: str, can_resample: bool = False) -> None:
        super().__init__(message)
        self.can_resample = can_resample


class UntrustedGeometryError(UntrustedError):
    """The slices form no regular grid, so that nothing measured on them could be trusted."""


class MaskError(NapariUnetError):
    """A mask does not fit its scan, or its values cannot be understood without being told."""


class PairingError(NapariUnetError):
    """A folder of images and a folder of masks do not form pairs."""


class ModelError(NapariUnetError):
    """A model file is unknown, foreign, damaged, or does not fit the scan."""


class TrainingError(NapariUnetError):
    """Training cannot start or cannot go on."""


class SettingsError(NapariUnetError):
    """A setting is unknown or its value is out of range."""


class ExportError(NapariUnetError):
    """A result could not be written."""


class ProjectError(NapariUnetError):
    """The project's folder or database is damaged, in use, or cannot be written."""


class EngineError(NapariUnetError):
    """The computing process failed or was lost."""


class ClusterError(EngineError):
    """The cluster cannot be used, or is gone."""


class SessionError(NapariUnetError):
    """An action does not make sense in the session's present state."""


def traceback_without_messages(error: BaseException) -> str:
    """Return where an error and what led to it arose, and of what kind they are; fit for a log.

    The message of an error may hold a path, and so a patient's name.
    """
    lines: list[str] = []
    link: BaseException | None = error
    told: set[int] = set()
    # An error may be its own cause, directly or in a ring.
    while link is not None and id(link) not in told:
        told.add(id(link))
        lines += [*traceback.format_tb(link.__traceback__), f"{type(link).__module__}.{type(link).__qualname__}"]
        link = link.__cause__ or link.__context__
    return "\n".join(line.rstrip() for line in lines)
