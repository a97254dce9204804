"""The walls of the house: which room may know which."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WINDOW = {"qtpy", "napari", "magicgui", "PyQt5", "PyQt6"}


def test_imports_go_down_the_floors() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    answer = subprocess.run(
        [linter, "--config", "setup.cfg", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_only_the_top_floor_knows_the_window() -> None:
    found = []
    for path in sorted((ROOT / "napari_unet").rglob("*.py")):
        if "qt" in path.relative_to(ROOT).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            if any(name.split(".")[0] in WINDOW for name in names):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    # The start of either face imports the window inside a function, after it knows that one is wanted.
    assert found == []


def test_the_window_does_not_wait_for_torch_or_scipy() -> None:
    # The one takes seconds, in which the window would not open, and only the computing process needs it; the other a
    # fifth of one, but for what napari brings itself.
    code = """
import sys, napari.components, napari.layers, napari._qt.qt_viewer
before = set(sys.modules)
import napari_unet.qt.annotate
print({name.split(".")[0] for name in set(sys.modules) - before} & {"torch", "scipy", "matplotlib"} or "none")
"""
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "none"
