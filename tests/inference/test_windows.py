"""Tiles cover every voxel, lie where nnU-Net puts them, and their weights sum to one."""

from __future__ import annotations

import json
from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.errors import UsageError
from autoseg.inference.windows import Tiling, axis_weights, centered_padding, window_origins
from tests.inference.examples import gaussian_weights

LENGTHS = st.tuples(st.integers(1, 40), st.integers(1, 40)).map(lambda pair: (max(pair), min(pair)))
OVERLAPS = st.sampled_from([0.0, 0.25, 0.5, 0.75])


def test_origins_equal_the_reference(golden_vectors):
    for entry in json.loads((golden_vectors / "windows.json").read_text()):
        axes = zip(entry["image"], entry["tile"], strict=True)
        assert [list(window_origins(*axis, overlap=1 - entry["step"])) for axis in axes] == entry["origins"]


def test_gaussian_weights_equal_the_reference_bit_for_bit(golden_vectors):
    with np.load(golden_vectors / "gaussian.npz") as reference:
        for name in reference.files:
            assert np.array_equal(gaussian_weights(tuple(map(int, name.split("x")))), reference[name])


@given(LENGTHS, OVERLAPS)
@settings(max_examples=200, deadline=None)
def test_windows_cover_every_voxel_and_touch_both_borders(lengths, overlap):
    length, patch = lengths
    origins = window_origins(length, patch, overlap)
    assert (origins[0], origins[-1]) == (0, length - patch)
    assert {voxel for origin in origins for voxel in range(origin, origin + patch)} == set(range(length))
    assert all(after - before > 0 for before, after in pairwise(origins))


@given(LENGTHS, st.sampled_from([0.5, 0.75]))
@settings(max_examples=100, deadline=None)
def test_neighboring_windows_share_at_least_the_overlap(lengths, overlap):
    length, patch = lengths
    origins = window_origins(length, patch, overlap)
    steps = [after - before for before, after in pairwise(origins)]
    assert all(step <= ceil(patch * (1 - overlap)) for step in steps)


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 7])
def test_an_overlap_that_never_advances_is_refused(overlap):
    with pytest.raises(UsageError, match="overlap"):
        window_origins(20, 10, overlap)


def test_windows_are_the_product_of_the_axes():
    windows = Tiling((1, 4, 3), (1, 2, 2)).windows
    assert sorted(windows) == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1)]


@given(st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_weights_are_positive_and_largest_in_the_middle(patch):
    weights = axis_weights(patch)
    assert (weights > 0).all()
    assert weights[patch // 2] == weights.max() == 1


@given(st.tuples(LENGTHS, LENGTHS, LENGTHS), OVERLAPS)
@settings(max_examples=40, deadline=None)
def test_weights_of_all_tiles_sum_to_one_at_every_voxel(lengths, overlap):
    lengths = [(min(length, 2 * patch + 3), patch) for length, patch in lengths]
    tiling = Tiling(tuple(length for length, _ in lengths), tuple(patch for _, patch in lengths), overlap)
    total = np.zeros(tiling.padded_shape)
    for window in tiling.windows:
        cut = tuple(slice(o, o + p) for o, p in zip(window, tiling.patch_size, strict=True))
        total[cut] += tiling.weights(window).numpy()
    assert np.allclose(total, 1, rtol=0, atol=1e-6)


@given(st.tuples(*[st.integers(1, 30)] * 3), st.tuples(*[st.integers(1, 30)] * 3))
@settings(max_examples=60, deadline=None)
def test_padding_is_centered_and_just_enough(shape, patch_size):
    padding = centered_padding(shape, patch_size)
    for length, patch, (before, after) in zip(shape, patch_size, padding, strict=True):
        assert length + before + after == max(length, patch)
        assert after - before in (0, 1)
