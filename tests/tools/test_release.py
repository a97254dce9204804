"""What is released, as a person gets it: the wheel in an empty environment, far from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from check_release import ROOT, problems_of

_WINDOW = """
import napari
from qtpy import API_NAME
from napari_unet.io.samples import ct_phantom

viewer = napari.Viewer()
_, dock = viewer.window.add_plugin_dock_widget("napari-unet", "Annotate")
dock.session.add_scan(ct_phantom(1, "thick")[0])
assert len(viewer.layers) >= 2
dock.shut_down()
viewer.close()
print(API_NAME)
"""


def run(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # What would lead back to the checkout, or choose a binding, is the developer's.
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHONPATH", "QT_API", "PYTEST"))
    }
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Only what git would commit: what lies about in a working tree is not released.
    folder = tmp_path_factory.mktemp("release")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.split("\n")
    for name in filter(None, listed):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "benchmarks/")):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    built = run(sys.executable, "-m", "build", "--outdir", folder / "dist", ".", cwd=folder / "source")
    assert built.returncode == 0, built.stderr
    return folder / "dist"


@pytest.mark.slow
def test_a_release_holds_the_package_and_nothing_else(release: Path) -> None:
    assert problems_of(release) == []


@pytest.mark.slow
@pytest.mark.gui
def test_the_wheel_works_without_qt_and_opens_a_window_with_either_binding(release: Path, tmp_path: Path) -> None:
    import nibabel
    import numpy as np

    (wheel,) = release.glob("*.whl")
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    scripts = environment / ("Scripts" if sys.platform == "win32" else "bin")

    def install(what: object) -> None:
        words = ("pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", what)
        installed = run(scripts / "python", "-m", *words, cwd=tmp_path)
        assert installed.returncode == 0, installed.stderr

    def program(*words: object) -> subprocess.CompletedProcess[str]:
        return run(scripts / "napari-unet", *words, cwd=tmp_path)

    install(wheel)
    assert "predict" in program("--help").stdout
    assert "starter" in program("models", "list").stdout
    noise = np.random.default_rng(0).normal(100, 20, (32, 32, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(noise, np.diag([1, 1, 5, 1])), tmp_path / "scan.nii.gz")
    assert '"zyx"' in program("info", "scan.nii.gz").stdout
    predicted = program("predict", "scan.nii.gz", "--model", "hippocampus-mr", "--out", "masks")
    assert (tmp_path / "masks" / "scan.nii.gz").exists(), predicted.stderr
    refused = program("open")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: The window needs Qt")
    assert len(refused.stderr.splitlines()) == 1

    for binding in ("PyQt5", "PyQt6"):
        install(f"{wheel}[{binding.lower()}]")
        opened = run(scripts / "python", "-c", _WINDOW, cwd=tmp_path, QT_API=binding.lower())
        assert opened.stdout.split()[-1:] == [binding], opened.stderr
    demonstrated = program("demo", "--headless", "--out", "demo")
    assert (tmp_path / "demo" / "report.html").exists(), demonstrated.stderr
