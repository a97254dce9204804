"""PNG, JPEG, BMP and GIF pictures to Scan, through Pillow.

Pictures have no physical size: what such files call resolution is meant for printing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_unet.domain.errors import ScanError
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.scan import Scan
from napari_unet.io.reading import ReadOptions, choose_volume, parsing
from napari_unet.io.voxels import colours_of_palette, simplify_colour, tidy_voxels, upright

_FORMATS = ("PNG", "JPEG", "BMP", "GIF")
_AS_THEY_ARE = {"1", "L", "LA", "RGB", "RGBA", "I", "I;16", "I;16B", "I;16L", "F"}
_EXIF_ORIENTATION = 274


def read_raster(path: Path, options: ReadOptions) -> Scan:
    """Read a picture.

    Parameters
    ----------
    path : Path
        PNG, JPEG, BMP or GIF, recognised by content.
    options : ReadOptions
        ``as_mask`` keeps the stored values of palette pictures where the palette paints classes.

    Returns
    -------
    Scan
        ``yx`` or ``yxc`` (RGB, RGBA), turned upright as EXIF says; uint8, or uint16 for 16-bit PNG. No spacing.

    Raises
    ------
    ScanError
        Damaged, not a picture, or too big to be opened safely.
    """
    warnings = []
    with parsing(path, "PNG, JPEG, BMP or GIF"):
        try:
            image = Image.open(path, formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise ScanError(f"{path.name} has more pixels than a picture file should: save it as TIFF.") from error
        with image:
            choose_volume(path, 1, options.volume)
            if getattr(image, "n_frames", 1) > 1:
                warnings.append(f"animated, {image.n_frames} frames: the first was read")  # type: ignore[attr-defined]
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
            array, has_opacity = _png(path) if _needs_own_decoder(path, image) else _pixels(image, options.as_mask)

    if orientation in range(2, 9):
        array = upright(array, orientation)
        warnings.append("turned upright, as its EXIF tag says")
    array, axes, colour_notes = simplify_colour(array, "yxc"[: array.ndim], has_opacity)
    data, number_notes = tidy_voxels(array, path.name)
    return Scan(data, axes, Geometry(None), source=path, warnings=(*warnings, *colour_notes, *number_notes))


def _pixels(image: Image.Image, as_mask: bool) -> tuple[NDArray, bool]:
    """Return the decoded pixels and whether the last channel is opacity."""
    if image.mode == "P":
        palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        return colours_of_palette(np.asarray(image), palette, as_mask), False
    if image.mode in _AS_THEY_ARE:
        return np.asarray(image), image.mode in ("LA", "RGBA")
    has_opacity = image.mode in ("PA", "La", "RGBa")
    return np.asarray(image.convert("RGBA" if has_opacity else "RGB")), has_opacity


def _needs_own_decoder(path: Path, image: Image.Image) -> bool:
    """Whether Pillow would change the stored values: it cuts 16-bit colour to 8 and stretches 2 and 4-bit grey."""
    if image.format != "PNG":
        return False
    depth, colour_type = _png_pixel_type(path)
    return depth == 16 or (depth in (2, 4) and colour_type == 0)


def _png_pixel_type(path: Path) -> tuple[int, int]:
    # Signature (8), IHDR length and name (8), width and height (8), then these two bytes.
    with path.open("rb") as stream:
        start = stream.read(26)
    return start[24], start[25]


def _png(path: Path) -> tuple[NDArray, bool]:
    """Decode a 16-bit or a 2 or 4-bit grey PNG to the values that are stored."""
    import imagecodecs

    depth, colour_type = _png_pixel_type(path)
    array = imagecodecs.png_decode(path.read_bytes())
    if depth < 8:
        array = array // (255 // (2**depth - 1))
    return array, colour_type in (4, 6)
