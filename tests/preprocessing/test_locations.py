from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.data.model import LabelSet
from autoseg.preprocessing.locations import ANNOTATED, class_locations, location_groups

PLAIN = LabelSet({"background": (0,), "b": (2,), "a": (1,)})
REGIONS = LabelSet({"background": (0,), "whole": (1, 2), "core": (2,)}, regions_class_order=(1, 2))
IGNORING = LabelSet({"background": (0,), "a": (1,)}, ignore=2)


def test_groups_are_classes_regions_and_what_is_annotated():
    assert location_groups(PLAIN) == {1: (1,), 2: (2,)}
    assert location_groups(REGIONS) == {1: (1, 2), 2: (2,)}
    assert location_groups(IGNORING) == {1: (1,), ANNOTATED: (-1, 0, 1)}


@given(st.tuples(*[st.integers(1, 6)] * 3), st.sampled_from([PLAIN, REGIONS, IGNORING]), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_locations_are_all_voxels_of_a_small_class_each_once(shape, label_set, seed):
    labels = np.random.default_rng(seed).integers(-1, 3, shape).astype(np.int8)
    locations = class_locations(labels, label_set)
    for key, values in location_groups(label_set).items():
        expected = np.argwhere(np.isin(labels, values))
        if not len(expected):
            assert key not in locations
            continue
        assert sorted(map(tuple, locations[key])) == sorted(map(tuple, expected))


def test_of_a_large_class_ten_thousand_or_one_percent_are_drawn_without_repetition():
    labels = np.ones((12, 100, 100), np.int8)
    drawn = class_locations(labels, PLAIN)[1]
    assert len(drawn) == 10_000
    assert len(np.unique(drawn, axis=0)) == 10_000
    assert drawn.dtype == np.int16
    assert np.array_equal(drawn, class_locations(labels, PLAIN)[1])
    assert len(class_locations(np.ones((1, 2000, 1000), np.int8), PLAIN)[1]) == 20_000


def test_very_long_axes_need_larger_integers():
    labels = np.zeros((1, 1, 40_000), np.int8)
    labels[0, 0, -1] = 1
    assert class_locations(labels, PLAIN)[1].tolist() == [[0, 0, 39_999]]
