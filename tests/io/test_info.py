import json
from dataclasses import replace

import numpy as np
from PIL import Image

from napari_unet.domain.scan import SeriesInfo
from napari_unet.io.info import describe, describe_choice
from napari_unet.io.registry import read_scan
from tests.io.nifti_files import placed_affine, random_array, save_nifti

KEYS = {"axes", "shape", "spacing_mm", "orientation", "affine", "dtype", "modality", "series", "warnings"}


def test_a_volume(tmp_path):
    scan = read_scan(save_nifti(tmp_path / "a.nii", random_array((5, 6, 7)), placed_affine(codes="LAS")))
    info = json.loads(json.dumps(describe(scan), allow_nan=False))
    assert info.keys() == KEYS
    assert (info["axes"], info["shape"], info["orientation"], info["dtype"]) == ("zyx", [7, 6, 5], "LAS", "int16")
    np.testing.assert_allclose(info["spacing_mm"], [2.5, 1.1, 0.9], rtol=1e-6)
    np.testing.assert_allclose(info["affine"], scan.geometry.affine)
    assert (info["modality"], info["series"], info["warnings"]) == (None, [], [])


def test_a_picture(tmp_path):
    Image.fromarray(random_array((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    scan = read_scan(tmp_path / "a.png")
    info = describe(scan)
    assert (info["axes"], info["shape"], info["dtype"]) == ("yxc", [20, 30, 3], "uint8")
    assert info["spacing_mm"] is info["affine"] is info["orientation"] is None
    several = replace(scan, series=(SeriesInfo("1.2", "T1", (20, 30), True),))
    assert describe(several)["series"] == [{"uid": "1.2", "description": "T1", "shape": [20, 30], "chosen": True}]


def test_several_series_and_none_chosen():
    info = describe_choice([SeriesInfo("1.2", "T1", (20, 30)), SeriesInfo("1.3", "T2", (5, 20, 30))])
    assert info.keys() == KEYS
    assert [s["uid"] for s in info["series"]] == ["1.2", "1.3"]
    assert not any(s["chosen"] for s in info["series"])
    assert info["warnings"] == []
    assert all(info[key] is None for key in KEYS - {"series", "warnings"})
