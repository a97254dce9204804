"""Masks as OME-Zarr 0.5: ``labels/segmentation`` with the names and colours of the classes.

The folder is an image as well, whose only level is the array of those labels, so that programs that look for an image
first find one. NGFF knows scale and translation only; an oblique position is kept exactly in a key of our own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import ExportError
from napari_unet.domain.geometry import orientation_codes
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.io.ome_zarr import AXIS_OF_CODE, OWN_KEY, WORD_OF_CODE, is_zarr_folder, read_ome_zarr
from napari_unet.io.placement import lps_on_source_grid
from napari_unet.io.reading import ReadOptions
from napari_unet.io.writing.replacing import MaskFile

_NAME = "segmentation"
_LONGEST_CHUNK = {2: 1024, 3: 128}


def ome_zarr_mask(labels: NDArray, scan: Scan, schema: LabelSchema) -> MaskFile:
    """Return how the labels of a scan, on its axes as loaded, become an OME-Zarr folder.

    The array is the one of the source where that is OME-Zarr, so that the two lie on each other chunk by chunk; else
    it is ``[z,] y, x`` as loaded.
    """
    geometry, names = scan.geometry, "zyx"[-labels.ndim :]
    affine, spacing, array = geometry.affine, geometry.spacing, labels
    if scan.source is not None and is_zarr_folder(scan.source):
        array, affine = geometry.axis_map.to_source(labels), lps_on_source_grid(geometry, labels.shape)
        order = np.argsort(geometry.axis_map.permutation)
        names = "".join(names[axis] for axis in order)
        spacing = None if spacing is None else tuple(spacing[axis] for axis in order)
    multiscale = _multiscale(names, spacing, affine)
    own = {} if affine is None else {"affine_lps_mm": affine.tolist()}

    def write(path: Path) -> None:
        import zarr

        with zarr.config.set({"array.write_empty_chunks": True}):
            root = zarr.open_group(str(path), mode="w", zarr_format=3)
            root.attrs.update(_image(multiscale, f"labels/{_NAME}/0", own))
            root.create_group("labels", attributes={"ome": {"version": "0.5", "labels": [_NAME]}})
            group = root.create_group(f"labels/{_NAME}", attributes=_image(multiscale, "0", own, schema))
            stored = group.create_array(
                "0",
                shape=array.shape,
                chunks=tuple(min(n, _LONGEST_CHUNK[array.ndim]) for n in array.shape),
                dtype=array.dtype,
                dimension_names=list(names),
            )
            stored[...] = array

    def is_sound(path: Path) -> bool:
        _refuse_invalid(path)
        back = read_ome_zarr(path, ReadOptions(as_mask=True, may_stay=True))
        n = back.data.ndim  # one less where a volume has a single slice
        ours, theirs = geometry.spacing and geometry.spacing[-n:], back.geometry.spacing
        same_steps = ours is theirs if ours is None or theirs is None else np.allclose(ours, theirs, rtol=0, atol=1e-6)
        same_place = (
            n == 2
            or geometry.affine is None
            or (
                back.geometry.affine is not None
                and np.allclose(back.geometry.affine, geometry.affine, rtol=0, atol=1e-6)
            )
        )
        ours_again = labels.reshape(back.data.shape)
        # A mask may be larger than the memory: in layers of chunks.
        layer = _LONGEST_CHUNK[n]
        same_values = all(
            np.array_equal(np.asarray(back.data[start : start + layer]), ours_again[start : start + layer])
            for start in range(0, len(ours_again), layer)
        )
        return bool(same_steps and same_place and same_values)

    return MaskFile(write, is_sound)


def refuse_foreign_folder(path: Path) -> None:
    """Refuse to replace a folder that is no mask of this program: much more than a mask may be in it.

    Raises
    ------
    ExportError
        There is such a folder.
    """
    import zarr

    if not path.is_dir() or not any(path.iterdir()):
        return
    try:
        is_ours = OWN_KEY in zarr.open_group(str(path), mode="r", use_consolidated=False).attrs
    except Exception:  # whatever it is, it is not ours
        is_ours = False
    if not is_ours:
        raise ExportError(f"{path.name} is a folder that is no mask of this program: choose another name or folder.")


def _multiscale(names: str, spacing: tuple[float, ...] | None, affine: NDArray[np.float64] | None) -> dict[str, Any]:
    codes = None if affine is None else orientation_codes(affine)
    axes: list[dict[str, Any]] = [{"name": name, "type": "space"} for name in names]
    transforms: list[dict[str, Any]] = [{"type": "scale", "scale": list(spacing or (1.0,) * len(names))}]
    for number, axis in enumerate(axes):
        if spacing is not None:
            axis["unit"] = "millimeter"
        if codes is not None:
            axis["orientation"] = {"type": "anatomical", "value": WORD_OF_CODE[codes[number]]}
    if affine is not None and codes is not None:
        rows = [AXIS_OF_CODE[code] for code in codes]
        transforms.append({"type": "translation", "translation": [sign * float(affine[row, 3]) for row, sign in rows]})
    return {"axes": axes, "transforms": transforms}


def _image(
    multiscale: dict[str, Any], path: str, own: dict[str, Any], schema: LabelSchema | None = None
) -> dict[str, Any]:
    dataset = {"path": path, "coordinateTransformations": multiscale["transforms"]}
    ome: dict[str, Any] = {
        "version": "0.5",
        "multiscales": [{"name": _NAME, "axes": multiscale["axes"], "datasets": [dataset]}],
    }
    if schema is not None:
        ome["image-label"] = {
            "colors": [
                {"label-value": one.id, "rgba": [*(round(255 * part) for part in one.colour), 255]}
                for one in schema.classes
            ],
            "properties": [{"label-value": one.id, "name": one.name} for one in schema.classes],
        }
    return {"ome": ome, OWN_KEY: own}


def _refuse_invalid(path: Path) -> None:
    """Let the models of the specification look at what was written; raises whatever they raise."""
    import zarr
    from ome_zarr_models.v05 import Image, Labels

    root = zarr.open_group(str(path), mode="r")
    Image.from_zarr(root)
    Labels.from_zarr(zarr.open_group(str(path / "labels"), mode="r"))
