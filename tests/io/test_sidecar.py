import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from napari_unet.domain.checkpoint import ModelCard
from napari_unet.domain.errors import ExportError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.settings import ModelSettings
from napari_unet.io.registry import read_scan
from napari_unet.io.sidecar import provenance, sidecar_path, write_sidecar
from tests.io.nifti_files import placed_affine, random_array, save_nifti

SCHEMA = LabelSchema.of("Läsion", "liver")


@pytest.fixture
def scan(tmp_path):
    (tmp_path / "DOE JANE").mkdir()
    path = tmp_path / "DOE JANE" / "secret.nii.gz"
    return read_scan(save_nifti(path, random_array((5, 6, 7)), placed_affine(), descrip=b"DOE^JANE"))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".seg.nrrd", ".ome.zarr", ".tif", ".png"])
def test_it_lies_beside_the_mask(tmp_path, suffix):
    assert sidecar_path(tmp_path / f"case 1.2{suffix}") == tmp_path / "case 1.2.json"


def test_what_it_says(tmp_path, scan):
    card = ModelCard(name="liver-ct", settings=ModelSettings(), label_schema=SCHEMA, created="2026-11-01")
    path = write_sidecar(tmp_path / "out" / "mask.seg.nrrd", scan, SCHEMA, model=card, model_id="abc123")

    assert path == tmp_path / "out" / "mask.json"
    assert list(path.parent.iterdir()) == [path]
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["program"] == "napari-unet"
    assert record["version"]
    assert record["format"] == "seg-nrrd"
    assert record["source"] == {"hash": scan.fingerprint, "modality": None}
    assert record["grid"]["shape"] == [7, 6, 5]
    np.testing.assert_allclose(record["grid"]["spacing_mm"], (2.5, 1.1, 0.9), rtol=1e-6)
    np.testing.assert_array_equal(record["grid"]["affine_lps_mm"], scan.geometry.affine)
    assert [(one["id"], one["name"]) for one in record["labels"]] == [(1, "Läsion"), (2, "liver")]
    assert record["model"] == {"name": "liver-ct", "id": "abc123", "created": "2026-11-01"}
    written = datetime.fromisoformat(record["written"])
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=5)


def test_neither_paths_nor_patients(tmp_path, scan):
    text = write_sidecar(tmp_path / "mask.nii.gz", scan, SCHEMA).read_text()
    assert "DOE" not in text
    assert "secret" not in text
    assert str(tmp_path) not in text


def test_without_a_model_and_a_position(tmp_path):
    scan = read_scan(save_nifti(tmp_path / "a.nii", random_array((5, 6, 1)), sform_code=0, qform_code=0))
    record = provenance(tmp_path / "mask.png", scan, SCHEMA)
    assert record["model"] is None
    assert record["grid"]["affine_lps_mm"] is None
    assert record["grid"]["axes"] == "yx"
    json.dumps(record, allow_nan=False)


def test_an_older_record_is_replaced_and_anything_else_is_not(tmp_path, scan):
    for _ in range(2):
        write_sidecar(tmp_path / "mask.nii.gz", scan, SCHEMA)
    for text in ('{"RepetitionTime": 2}', "[]", "not JSON"):
        (tmp_path / "bids.json").write_text(text)
        with pytest.raises(ExportError, match="no record of this program"):
            write_sidecar(tmp_path / "bids.nii.gz", scan, SCHEMA)
        assert (tmp_path / "bids.json").read_text() == text
