from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autoseg.images.components import components, keep_components

MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)))


@given(MASKS)
@settings(max_examples=60, deadline=None)
def test_components_partition_the_mask(mask) -> None:
    found = components(mask)
    assert found.sizes.sum() == mask.sum()
    whole = np.zeros(mask.shape, np.int32)
    whole[found.box] = found.numbers
    assert ((whole > 0) == mask).all()


@given(MASKS, st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_filters_only_remove_whole_components(mask, least) -> None:
    found = components(mask)
    kept = keep_components(mask, found, found.sizes >= least)
    assert not (kept & ~mask).any()
    assert kept.sum() == found.sizes[found.sizes >= least].sum()


def test_voxels_that_touch_by_a_corner_belong_together() -> None:
    mask = np.zeros((3, 3, 3), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert len(components(mask).sizes) == 1
    mask[2, 2, 2] = True
    mask[1, 1, 1] = False
    assert len(components(mask).sizes) == 2


def test_an_empty_mask_stays_empty() -> None:
    mask = np.zeros((2, 3, 4), bool)
    found = components(mask)
    assert found.sizes.size == 0
    assert not keep_components(mask, found, found.sizes > 0).any()
