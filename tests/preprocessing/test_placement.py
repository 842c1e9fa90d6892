from __future__ import annotations

from itertools import permutations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.geometry import Geometry
from autoseg.core.records import from_json, to_json
from autoseg.images.volume import Volume
from autoseg.preprocessing.placement import Placement
from autoseg.preprocessing.prepare import Preparation, prepare

orders = st.sampled_from(list(permutations(range(3))))
shapes = st.tuples(*[st.integers(1, 7)] * 3)


def a_volume(shape: tuple[int, int, int], seed: int) -> tuple[Volume, np.ndarray]:
    """A volume with a zero margin on some sides, and labels that lie where it is not zero."""
    rng = np.random.default_rng(seed)
    image = rng.uniform(1, 2, (1, *shape)).astype(np.float32)
    labels = rng.integers(0, 3, shape).astype(np.int8)
    for axis in range(3):
        cut = [slice(None)] * 3
        cut[axis] = slice(0, int(rng.integers(0, shape[axis])))
        image[(0, *cut)] = 0
        labels[tuple(cut)] = 0
    spacing = tuple(float(value) for value in rng.choice([0.5, 1.0, 3.0], 3))
    return Volume(image, Geometry(shape, spacing)), labels


@given(shapes, orders, st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_restoring_what_was_prepared_without_resampling_returns_the_labels(shape, order, seed):
    volume, labels = a_volume(shape, seed)
    spacing = tuple(volume.geometry.spacing_mm[axis] for axis in order)
    prepared = prepare(volume, labels, Preparation(order, spacing, ("zscore",), (False,), (None,)))
    restored = prepared.placement.restore_labels(np.maximum(prepared.labels, 0))
    assert np.array_equal(restored, labels)
    assert restored.flags.c_contiguous


@given(shapes, orders, st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_shapes_agree_and_the_way_back_has_the_shape_of_the_file(shape, order, seed):
    volume, labels = a_volume(shape, seed)
    placement = prepare(volume, labels, Preparation(order, (None, 1.5, 0.7), ("none",), (True,), (None,))).placement
    restored = placement.restore_labels(np.ones(placement.cropped_shape, np.uint8), background=9)
    assert restored.shape == shape
    assert (restored == 1).sum() == np.prod(placement.cropped_shape)
    assert placement.prepared_spacing_mm[0] == placement.cropped_spacing_mm[0]
    assert placement.prepared_shape[0] == placement.cropped_shape[0]
    assert from_json(Placement, to_json(placement), "case.json") == placement
