"""TIFF, ImageJ hyperstacks and OME-TIFF to Scan: pictures, and stacks of equal pages as volumes.

A physical size is believed only where ImageJ or OME states it with a unit of length; plain resolution tags
("72 dpi") say how a picture is to be printed.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_unet.domain.errors import ScanError
from napari_unet.domain.geometry import AxisMap, Geometry
from napari_unet.domain.scan import Scan
from napari_unet.io.reading import ReadOptions, choose_volume, parsing
from napari_unet.io.voxels import colours_of_palette, simplify_colour, slice_axis_of, tidy_voxels, upright

_MM_PER_UNIT = {
    "m": 1000.0,
    "cm": 10.0,
    "inch": 25.4,
    "in": 25.4,
    "mm": 1.0,
    "µm": 1e-3,
    "μm": 1e-3,
    "um": 1e-3,
    "micron": 1e-3,
    "microns": 1e-3,
    "micrometer": 1e-3,
    "nm": 1e-6,
    "å": 1e-7,
    "pm": 1e-9,
    "dm": 100.0,
    "km": 1e6,
    "thou": 0.0254,
    "ft": 304.8,
}
_READABLE = {
    tifffile.PHOTOMETRIC.MINISBLACK,
    tifffile.PHOTOMETRIC.MINISWHITE,
    tifffile.PHOTOMETRIC.RGB,
    tifffile.PHOTOMETRIC.PALETTE,
    tifffile.PHOTOMETRIC.YCBCR,  # JPEG-compressed colour, which is decoded to RGB
}
# What tifffile logs reaches a person as warnings of the scan, or as an error; never as lines on standard error.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_OPACITY = {tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA}


def read_tiff(path: Path, options: ReadOptions) -> Scan:
    """Read the first image of a TIFF file.

    Parameters
    ----------
    path : Path
        TIFF of any flavour that tifffile decodes.
    options : ReadOptions
        ``volume`` chooses a time point; ``as_mask`` keeps palette indices of coloured palettes.

    Returns
    -------
    Scan
        ``yx``, ``yxc``, ``zyx`` or ``zyxc``. Spacing is None where not stated in a unit of length; the affine is
        None always.

    Raises
    ------
    ScanError
        Damaged, a colour space that is not RGB or grey, axes that are not understood, or several time points and
        none chosen.
    """
    with parsing(path, "TIFF"), tifffile.TiffFile(path) as file:
        series = file.series[0]
        page = series.keyframe
        _refuse_incomplete(file, path)
        warnings = _oddities(file, path)
        array, axes = _canonical_axes(series.asarray(), series.axes, path, options.volume)
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
            palette = (np.asarray(page.colormap).T >> 8).astype(np.uint8)
            array = colours_of_palette(array, palette, options.as_mask)
            axes += "c" * (array.ndim - len(axes))
        orientation = int(page.tags["Orientation"].value) if "Orientation" in page.tags else 1
        has_opacity = bool(_OPACITY & set(page.extrasamples)) or page.samplesperpixel == 4
        spacing = spacing_mm(file, with_z="z" in axes)

    if orientation != 1:
        array = upright(array, orientation, axes.index("y"))
        warnings.append("turned upright, as the file's orientation tag says")
        if spacing is not None and orientation >= 5:
            spacing = (*spacing[:-2], spacing[-1], spacing[-2])
    array, axes, colour_notes = simplify_colour(array, axes, has_opacity)
    data, number_notes = tidy_voxels(array, path.name)
    is_volume = axes.startswith("z")
    return Scan(
        data,
        axes,
        Geometry(spacing, axis_map=AxisMap.identity(3 if is_volume else 2)),
        slice_axis=slice_axis_of(spacing, 0) if is_volume else None,
        source=path,
        warnings=(*warnings, *colour_notes, *number_notes),
    )


def _refuse_incomplete(file: tifffile.TiffFile, path: Path) -> None:
    """Refuse what tifffile would read as fewer pages, or fill up with zeros, and only log."""
    where = file.pages.next_page_offset
    page = file.series[0].keyframe
    complete = len(page.dataoffsets) >= math.prod(page.chunked) and None not in file.series[0].pages
    if where is not None:
        # Behind the last page a sound file holds zeros for "no further page".
        file.filehandle.seek(where)
        complete &= file.filehandle.read(file.tiff.offsetsize) == bytes(file.tiff.offsetsize)
    if not complete:
        raise ScanError(f"{path.name} is damaged or cut short: some of its pages are missing; copy it again.")


def _oddities(file: tifffile.TiffFile, path: Path) -> list[str]:
    page = file.series[0].keyframe
    if page.photometric not in _READABLE:
        name = tifffile.PHOTOMETRIC(page.photometric).name
        raise ScanError(f"{path.name} holds {name} colours: save it as grey or RGB.")
    found = []
    # Thumbnails and pyramid levels are flagged as reduced; anything else that does not fit the first page is lost.
    others = [s for s in file.series[1:] if not s.keyframe.is_reduced]
    if others:
        found.append(f"{1 + len(others)} images of different kinds in one file: the first was read")
    # Programs that write 1-bit masks differ on the tag, and agree on the values.
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and page.bitspersample > 1:
        found.append("stored with 0 as white: values kept, so that it looks inverted")
    return found


def _canonical_axes(array: NDArray, axes: str, path: Path, volume: int | None) -> tuple[NDArray, str]:
    """Return the chosen volume with axes ``[z,] y, x[, c]``, given tifffile's axis letters."""
    # I and Q are pages in a row that nothing is said about.
    letters = axes.replace("I", "Z").replace("Q", "Z").replace("S", "C").lower()
    keep = [letter in "yx" or length > 1 for letter, length in zip(letters, array.shape, strict=True)]
    array = array.reshape([length for length, kept in zip(array.shape, keep, strict=True) if kept])
    letters = "".join(letter for letter, kept in zip(letters, keep, strict=True) if kept)
    if len(set(letters)) < len(letters) or not set("yx") <= set(letters) <= set("tzyxc"):
        shape = "x".join(map(str, array.shape))
        raise ScanError(f"{path.name} has axes that are not understood ({axes}, {shape}): save one stack of it.")
    n_volumes = array.shape[letters.index("t")] if "t" in letters else 1
    volume = choose_volume(path, n_volumes, volume)
    if "t" in letters:
        array = np.take(array, volume, axis=letters.index("t"))
        letters = letters.replace("t", "")
    target = "".join(letter for letter in "zyxc" if letter in letters)
    return np.transpose(array, [letters.index(letter) for letter in target]), target


def spacing_mm(file: tifffile.TiffFile, with_z: bool) -> tuple[float, ...] | None:
    """Return the millimetres between pixels along ``[z,] y, x`` as ImageJ or OME states them, or None."""
    if file.is_ome:
        steps = _ome_steps(file)
    elif file.is_imagej:
        steps = _imagej_steps(file)
    else:
        return None
    spacing = [steps.get(axis) for axis in ("zyx" if with_z else "yx")]
    known = [step for step in spacing if step is not None and np.isfinite(step) and step > 0]
    return tuple(known) if len(known) == len(spacing) else None


def _imagej_steps(file: tifffile.TiffFile) -> dict[str, float]:
    metadata = file.imagej_metadata or {}
    unit = str(metadata.get("unit", "")).replace("\\u00B5", "µ").lower()
    if unit not in _MM_PER_UNIT:
        return {}
    scale = _MM_PER_UNIT[unit]
    steps = {"z": float(metadata["spacing"]) * scale} if "spacing" in metadata else {}
    tags = file.series[0].keyframe.tags
    for axis, name in (("x", "XResolution"), ("y", "YResolution")):
        numerator, denominator = tags[name].value if name in tags else (0, 1)
        if numerator:
            steps[axis] = denominator / numerator * scale
    return steps


def _ome_steps(file: tifffile.TiffFile) -> dict[str, float]:
    images: Any = tifffile.xml2dict(file.ome_metadata or "").get("OME", {}).get("Image", {})
    pixels = (images[0] if isinstance(images, list) else images).get("Pixels", {})
    steps = {}
    for axis in "xyz":
        name = f"PhysicalSize{axis.upper()}"
        unit = str(pixels.get(f"{name}Unit", "µm")).lower()
        if name in pixels and unit in _MM_PER_UNIT:
            steps[axis] = float(pixels[name]) * _MM_PER_UNIT[unit]
    return steps
