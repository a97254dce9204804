"""Sample data that needs no network: a computed abdominal CT, and pictures that come with scikit-image.

Nothing is downloaded, ever, and nothing here is shown. How the CT is computed stands in ``phantom``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.geometry import AxisMap, Geometry
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan

PHANTOM_SCHEMA = LabelSchema.of("liver", "kidneys", "spleen", "aorta")
PHANTOM_WARNING = "phantom: computed, not a patient"

_PHANTOM_SHAPE = (64, 112, 128)
_PHANTOM_SPACING = (2.5, 2.5, 2.5)

#: File in scikit-image's wheel, and the name shown. The other medical pictures of ``skimage.data`` (brain, kidney,
#: skin...) would be fetched from the network on first use and so are not offered.
_PICTURES = {
    "retina": ("retina.jpg", "Retina, fundus photograph"),
    "ihc": ("ihc.png", "Colon glands, immunohistochemistry"),
    "cell": ("cell.png", "Cell, quantitative phase microscopy"),
    "microaneurysms": ("microaneurysms.png", "Microaneurysms, fundus detail"),
}


def ct_phantom(
    seed: int = 0, spacing: Literal["thin", "thick"] = "thin"
) -> tuple[Scan, NDArray[np.uint8], LabelSchema]:
    """Compute a CT of an upper abdomen: another patient for each seed.

    Ellipsoids and half-spaces under a smooth random deformation, with organ texture, partial volume, noise and
    cupping. Size, habitus, position, shape, contrast phase and noise differ between seeds. Unlabelled neighbours
    (bowel with contrast medium, stomach, vena cava, muscle, bone) share the organs' grey values, so that no threshold
    separates them.

    Parameters
    ----------
    seed : int
        Which patient, from 0; equal seeds give equal voxels.
    spacing : {"thin", "thick"}
        64 slices of 2.5 mm, or the same patient in 32 slices of 5 mm (each the mean of two thin ones). In-plane
        112 rows of 128 pixels of 2.5 mm.

    Returns
    -------
    scan : Scan
        int16 Hounsfield units ``[z, y, x]`` in LPS, ``slice_axis`` 0, without a source.
    labels : array of uint8
        Same shape: 1 liver (its vessels and lesions included), 2 kidneys, 3 spleen, 4 aorta.
    schema : LabelSchema
        The names of these values.

    Raises
    ------
    ValueError
        ``spacing`` is neither.
    """
    from napari_unet.io import phantom

    if spacing not in ("thin", "thick"):
        raise ValueError(f"spacing is 'thin' or 'thick', not {spacing!r}")
    patient = phantom.compute(seed, _PHANTOM_SHAPE, _PHANTOM_SPACING)
    image, organs = patient.image, [patient.liver, patient.kidneys, patient.spleen, patient.aorta]
    steps = _PHANTOM_SPACING
    if spacing == "thick":
        image, *organs = (phantom.pairwise_mean(field) for field in (image, *organs))
        steps = (2 * steps[0], *steps[1:])
    labels = np.zeros(image.shape, np.uint8)
    for value, level in zip(PHANTOM_SCHEMA.ids, organs, strict=True):
        labels[level > 0] = value
    scan = Scan(
        np.clip(np.rint(image), -1024, 3071).astype(np.int16),
        "zyx",
        _centred_geometry(image.shape, steps),
        slice_axis=0,
        modality="CT",
        warnings=(PHANTOM_WARNING,),
    )
    return scan, labels, PHANTOM_SCHEMA


def picture_samples() -> list[tuple[str, str, Callable[[], Scan]]]:
    """Return the medical pictures that lie in the installed scikit-image, as ``(key, display name, loader)``.

    Only files that are there are offered; a loader reads the file itself and never asks ``skimage.data``, which would
    go to the network for a file it misses. The pictures have no known spacing.
    """
    package = find_spec("skimage")
    if package is None or not package.submodule_search_locations:
        return []
    folder = Path(package.submodule_search_locations[0]) / "data"
    return [
        (key, name, partial(_load_picture, folder / file))
        for key, (file, name) in _PICTURES.items()
        if (folder / file).is_file()
    ]


def _load_picture(path: Path) -> Scan:
    from PIL import Image

    with Image.open(path) as picture:
        data = np.array(picture)
    return Scan(data, "yxc" if data.ndim == 3 else "yx", Geometry(None))


def _centred_geometry(shape: tuple[int, ...], spacing: tuple[float, ...]) -> Geometry:
    """Return an upright grid whose middle is the origin of LPS."""
    first = [-(n - 1) / 2 * step for n, step in zip(shape, spacing, strict=True)]
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing
    affine[:, 3] = (*first[::-1], 1)
    return Geometry(spacing, affine, AxisMap.identity(3))
