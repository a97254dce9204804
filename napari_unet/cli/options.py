"""Options that several commands share, worded once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from napari_unet.domain.errors import PairingError, SettingsError
from napari_unet.domain.settings import Device as DeviceName
from napari_unet.domain.settings import Runtime as RuntimeName
from napari_unet.io.masks import TruthRule
from napari_unet.training.presets import PRESETS, preset_named

if TYPE_CHECKING:
    from napari_unet.compute.engine import Engine

Images = Annotated[Path, typer.Option("--images", help="Folder of images.")]
Masks = Annotated[Path, typer.Option("--masks", help="Folder of masks, called as the images are.")]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - for standard output.")
]
Foreground = Annotated[
    list[int] | None,
    typer.Option("--foreground", metavar="VALUE", help="This value in the masks is a class; several in order."),
]
Binary = Annotated[bool, typer.Option("--binary", help="Every value above 0 is one class.")]
MaxSide = Annotated[
    int | None, typer.Option("--max-side", min=16, help="Scale the longest side down to so many pixels.")
]
GroupBy = Annotated[
    str | None,
    typer.Option("--group-by", metavar="REGEX", help="First capture group of the stem: scans of one patient."),
]


def _known_device(value: str) -> str:
    if value not in get_args(DeviceName):
        raise typer.BadParameter(f"--device is one of {', '.join(get_args(DeviceName))}, not {value!r}.")
    return value


Device = Annotated[str, typer.Option("--device", help="auto, cuda, mps or cpu.", callback=_known_device)]


def _known_runtime(value: str) -> str:
    if value not in get_args(RuntimeName):
        raise typer.BadParameter(f"--runtime is one of {', '.join(get_args(RuntimeName))}, not {value!r}.")
    return value


Runtime = Annotated[
    str,
    typer.Option("--runtime", help="auto (the fastest installed), torch, onnx or openvino.", callback=_known_runtime),
]
_RECIPES = "; ".join(f"{name}: for {preset_named(name).purpose}" for name in PRESETS)
Preset = Annotated[str | None, typer.Option("--preset", metavar="NAME", help=f"{_RECIPES}. The first, if not given.")]
Unlabelled = Annotated[
    Path | None, typer.Option("--unlabelled", metavar="DIR", help="Scans without masks, for a Mean Teacher.")
]
Seed = Annotated[int, typer.Option("--seed", min=0)]
Series = Annotated[str | None, typer.Option("--series", metavar="UID", help="Which series, where there are several.")]
Volume = Annotated[int | None, typer.Option("--volume", min=0, help="Which volume of a 4D scan.")]
Untrusted = Annotated[bool, typer.Option("--untrusted", help="Load a scan whose geometry is doubtful.")]
Resample = Annotated[bool, typer.Option("--resample", help="Resample a scan with uneven slices.")]
ComputeAddress = Annotated[
    str | None,
    typer.Option("--compute", metavar="ADDRESS", help="A running Dask scheduler, tls://host:port (docs/clusters.md)."),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Allow a cluster without TLS: others on the network can read the scans.")
]


def engine_at(address: str | None, insecure: bool) -> Engine | None:
    """Return the engine of a cluster; None where no address was given.

    Raises
    ------
    ClusterError
        The address is none, or not safe.
    """
    if address is None:
        if insecure:
            raise typer.BadParameter("--insecure goes with --compute only.")
        return None
    from napari_unet.compute.engine import Engine

    return Engine(address=address, insecure=insecure)


def truth_rule(foreground: list[int] | None, binary: bool) -> TruthRule:
    """Return how mask values are meant; both ways at once is wrong usage."""
    if foreground and binary:
        raise typer.BadParameter("--foreground and --binary exclude each other.")
    return TruthRule(tuple(foreground) if foreground else None, binary)


def matcher(regex: str | None, option: str) -> Callable[[str], bool]:
    """Return a function that says whether a stem matches; without a regex nothing does."""
    if regex is None:
        return lambda stem: False
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise PairingError(f"{option} {regex!r} is not a regular expression: {error}.") from error
    return lambda stem: pattern.search(stem) is not None


def parse_proposal_settings(assignments: list[str] | None) -> dict[str, Any]:
    """Return :func:`parse_settings` of those that say how a model proposes, not what it is.

    Raises
    ------
    SettingsError
        Another setting: it is part of the model.
    """
    values = parse_settings(assignments)
    for key in values:
        if key.partition(".")[0] not in ("inference", "after_care"):
            raise SettingsError(f"{key} is part of the model: predict takes inference and after_care settings only.")
    return values


def parse_settings(assignments: list[str] | None) -> dict[str, Any]:
    """Return ``KEY=VALUE`` words as a dict; values that are JSON are read as such.

    Raises
    ------
    SettingsError
        A word without ``=``.
    """
    import json

    values: dict[str, Any] = {}
    for word in assignments or ():
        key, sign, text = word.partition("=")
        if not sign:
            raise SettingsError(f"--set wants KEY=VALUE, not {word!r}.")
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    return values
