"""Names with blanks, accents and other scripts, and very long ones, work for every format (fault 59)."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from napari_unet.domain.labels import LabelSchema
from napari_unet.io.masks import read_mask
from napari_unet.io.registry import read_scan, source_stem
from napari_unet.io.sidecar import write_sidecar
from napari_unet.io.writers import mask_suffix, write_mask
from tests.io import test_fuzz

NAMES = ["Müller é 患者 1", "x" * 200, "with 'quotes' & more"]


@pytest.mark.parametrize("name", NAMES, ids=["accents and other scripts", "very long", "quotes"])
@pytest.mark.parametrize("kind", test_fuzz.SOURCES)
def test_scans_are_read_and_masks_written(kind: str, name: str, tmp_path: Path) -> None:
    sound = tmp_path / "sound"
    sound.mkdir()
    for source in test_fuzz.SOURCES[kind](sound):
        suffix = source.name[len(source_stem(source)) :]
        place = tmp_path / f"in {source.name}" / name / (name + suffix)
        place.parent.mkdir(parents=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, place)
        scan, plain = read_scan(place), read_scan(source)
        np.testing.assert_array_equal(scan.data, plain.data)
        assert source_stem(place) == name
        labels = np.zeros(scan.spatial_shape, np.uint8)
        labels[..., :2] = 1
        formats = ["nifti", "seg-nrrd", "tiff", "ome-zarr"] + (["dicom-seg"] if kind == "dicom" else [])
        for format_name in formats:
            mask = tmp_path / f"out {source.name}" / format_name / (name + mask_suffix(format_name, scan))
            write_mask(labels, scan, mask, LabelSchema.of("one"))
            assert write_sidecar(mask, scan, LabelSchema.of("one")).name == f"{name}.json"
            if format_name in ("nifti", "tiff"):
                np.testing.assert_array_equal(np.squeeze(read_mask(mask).data), np.squeeze(labels))
