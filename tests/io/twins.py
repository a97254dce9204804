"""One scan in several formats, written by other people's libraries, for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import nrrd
import numpy as np
import SimpleITK
import zarr
from numpy.typing import NDArray

from tests.io.nifti_files import LPS_FROM_RAS, save_nifti

SPACES = {
    "left-posterior-superior": np.diag([1.0, 1, 1, 1]),
    "right-anterior-superior": np.diag([-1.0, -1, 1, 1]),
    "left-anterior-superior": np.diag([1.0, -1, 1, 1]),
}


def itk_image(array: NDArray, ras: NDArray) -> SimpleITK.Image:
    """Return an ITK image of an ``[x, y, z]`` array; the affine must not be sheared."""
    lps = LPS_FROM_RAS @ ras
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose()))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def save_itk(path: Path, array: NDArray, ras: NDArray, compressed: bool = True) -> Path:
    """Write .mha, .mhd, .nrrd or .nhdr with SimpleITK."""
    SimpleITK.WriteImage(itk_image(array, ras), str(path), useCompression=compressed)
    return path


def save_nrrd(
    path: Path, array: NDArray, ras: NDArray, space: str = "left-posterior-superior", **fields: object
) -> Path:
    """Write with pynrrd, in any named space; underscores in ``fields`` are blanks, and None leaves a field out."""
    own = SPACES.get(space, np.eye(4)) @ LPS_FROM_RAS @ ras
    header = {
        "space": space,
        "space directions": own[:3, :3].T,
        "space origin": own[:3, 3],
        "kinds": ["domain"] * 3,
        "encoding": "gzip",
        **{name if name[0].isupper() else name.replace("_", " "): value for name, value in fields.items()},
    }
    nrrd.write(str(path), array, {name: value for name, value in header.items() if value is not None})
    return path


def save_twins(folder: Path, array: NDArray, ras: NDArray) -> dict[str, Path]:
    """Write one scan as NIfTI (nibabel), NRRD (pynrrd) and MetaImage (SimpleITK)."""
    return {
        "nifti": save_nifti(folder / "twin.nii.gz", array, ras),
        "nrrd": save_nrrd(folder / "twin.nrrd", array, ras),
        "mha": save_itk(folder / "twin.mha", array, ras),
    }


def save_ome_zarr(
    path: Path,
    array: NDArray,
    axes: str = "zyx",
    scale: tuple[float, ...] | None = None,
    translation: tuple[float, ...] | None = None,
    unit: str | None = "millimeter",
    version: str = "0.5",
    chunks: tuple[int, ...] | None = None,
    **axis_fields: dict[str, object],
) -> Path:
    """Write one level; ``axis_fields`` are further fields of single axes, such as ``z={"orientation": ...}``."""
    kinds = {"t": "time", "c": "channel"}
    described = [
        {
            "name": axis,
            "type": kinds.get(axis, "space"),
            **({"unit": unit} if unit and axis in "zyx" else {}),
            **axis_fields.get(axis, {}),
        }
        for axis in axes
    ]
    transforms = [{"type": "scale", "scale": list(scale or (1.0,) * len(axes))}]
    if translation is not None:
        transforms.append({"type": "translation", "translation": list(translation)})
    multiscale = {"axes": described, "datasets": [{"path": "0", "coordinateTransformations": transforms}]}
    is_old = version != "0.5"
    root = zarr.open_group(str(path), mode="w", zarr_format=2 if is_old else 3)
    if is_old:
        root.attrs["multiscales"] = [{"version": version, **multiscale}]
    else:
        root.attrs["ome"] = {"version": version, "multiscales": [multiscale]}
    names = {} if is_old else {"dimension_names": list(axes)}
    level = root.create_array("0", shape=array.shape, chunks=chunks or array.shape, dtype=array.dtype, **names)
    level[...] = array
    return path
