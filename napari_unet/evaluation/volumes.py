"""How large what is segmented is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.labels import LabelSchema

_MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class ClassVolume:
    """The size of one class.

    Parameters
    ----------
    name : str
        Of the class.
    colour : tuple of float
        Of the class.
    voxels : int
    ml : float or None
        Millilitres; None where the spacing is not known, or on a plane.
    pieces : int
        Connected pieces; what touches at a corner is connected.
    """

    name: str
    colour: tuple[float, float, float]
    voxels: int
    ml: float | None
    pieces: int


def class_volumes(labels: NDArray, schema: LabelSchema, voxel_volume: float | None) -> list[ClassVolume]:
    """Return the size of each class, in the order of the classes.

    Parameters
    ----------
    labels : unsigned integer array ``[z, y, x]`` or ``[y, x]``
    schema : LabelSchema
        Values without a class are left out.
    voxel_volume : float or None
        In cubic millimetres, as of a :class:`~napari_unet.domain.geometry.Geometry`; None where it is not known.
    """
    from scipy.ndimage import find_objects, label

    boxes = find_objects(labels)
    voxel_ml = voxel_volume / _MM3_PER_ML if voxel_volume is not None and labels.ndim == 3 else None
    found = []
    for each in schema.classes:
        box = boxes[each.id - 1] if each.id <= len(boxes) else None
        mask = labels[box] == each.id if box is not None else np.zeros((0,) * labels.ndim, bool)
        voxels = int(mask.sum())
        pieces = label(mask, np.ones((3,) * labels.ndim))[1] if voxels else 0
        ml = None if voxel_ml is None else voxels * voxel_ml
        found.append(ClassVolume(each.name, each.colour, voxels, ml, pieces))
    return found
