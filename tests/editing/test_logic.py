"""Between masks, and from slice to slice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_unet.domain.errors import MaskError, SettingsError
from napari_unet.editing.logic import combine, copy_slice
from tests.editing.shapes import label_arrays, volumes


@given(label_arrays, st.data())
def test_the_class_is_what_the_operation_says(labels, data):
    other = data.draw(hnp.arrays(bool, labels.shape))
    before, own = labels.copy(), labels == 1
    expected = {"copy": other, "union": own | other, "intersect": own & other, "subtract": own & ~other}
    for operation, mask in expected.items():
        found = combine(labels, 1, other, operation)
        assert found.dtype == labels.dtype
        assert np.array_equal(found == 1, mask)
        # Others lose only what the class takes.
        rest = (labels != 1) & ~mask
        assert np.array_equal(found[rest], labels[rest])
    assert np.array_equal(labels, before)


@given(volumes, st.integers(0, 2), st.data())
def test_a_slice_is_copied(labels, axis, data):
    source, target = (data.draw(st.integers(0, labels.shape[axis] - 1)) for _ in range(2))
    before = labels.copy()
    there, here = labels.take(source, axis), labels.take(target, axis)
    assert np.array_equal(copy_slice(labels, axis, source, target), there)
    found = copy_slice(labels, axis, source, target, [1])
    assert np.array_equal(found == 1, there == 1)
    assert np.array_equal(found[(there != 1) & (here != 1)], here[(there != 1) & (here != 1)])
    assert np.array_equal(labels, before)


def test_what_does_not_exist_is_refused():
    labels = np.zeros((2, 3, 3), np.uint8)
    with pytest.raises(SettingsError, match="slices 0 to 1"):
        copy_slice(labels, 0, -1, 0)
    with pytest.raises(SettingsError, match="operation"):
        combine(labels, 1, labels > 0, "xor")  # type: ignore[arg-type]
    with pytest.raises(MaskError, match="shape"):
        combine(labels, 1, np.zeros((3, 3), bool), "copy")
