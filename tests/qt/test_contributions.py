"""What the manifest offers to napari: the reader, the writer, the samples."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.gui

SAMPLES = {
    "phantom_thin": ("zyx", (64, 112, 128)),
    "phantom_thick": ("zyx", (32, 112, 128)),
    "retina": ("yx", None),
    "ihc": ("yx", None),
    "cell": ("yx", None),
}
