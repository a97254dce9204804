"""Where real scans lie, when they are there: beside the checkout, never inside it."""

from pathlib import Path

import pytest

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

needs_real_data = pytest.mark.skipif(
    not REAL_DATA.is_dir(), reason="no real scans beside the checkout (../shared/data)"
)
