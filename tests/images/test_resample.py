from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from autoseg.images.resample import (
    axis_matrix,
    coarse_axis,
    resample_image,
    resample_labels,
    resampled_shape,
)

VECTORS = Path(__file__).parents[1] / "data" / "golden" / "vectors"
CASES = json.loads((VECTORS / "resampling.json").read_text())
IMAGES = [case for case in CASES if not case["is_seg"]]
LABELS = [case for case in CASES if case["is_seg"]]

spacings = st.tuples(*[st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0])] * 3)
shapes = st.tuples(*[st.integers(1, 9)] * 3)
seeds = st.integers(0, 2**31)


@pytest.fixture(scope="module")
def vectors():
    return np.load(VECTORS / "resampling.npz")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_shape_equals_the_reference(case, vectors):
    shape = vectors[f"{case['key']}.in"].shape[1:]
    assert resampled_shape(shape, case["current_spacing"], case["new_spacing"]) == tuple(case["new_shape"])


@pytest.mark.parametrize("case", IMAGES, ids=lambda case: case["key"])
def test_images_and_probabilities_equal_the_reference(case, vectors):
    image, expected = vectors[f"{case['key']}.in"], vectors[f"{case['key']}.out"]
    result = resample_image(image, case["new_shape"], case["current_spacing"], case["new_spacing"], case["order"])
    assert result.dtype == np.float32
    assert np.abs(result - expected).max() <= 1e-6 * np.ptp(image)  # the reference computes in float64


@pytest.mark.parametrize("case", LABELS, ids=lambda case: case["key"])
def test_labels_equal_the_reference_voxel_by_voxel(case, vectors):
    labels, expected = vectors[f"{case['key']}.in"][0], vectors[f"{case['key']}.out"][0]
    result = resample_labels(labels, case["new_shape"], case["current_spacing"], case["new_spacing"])
    assert result.dtype == labels.dtype
    assert np.array_equal(result, expected)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0, 1, 3]))
@settings(max_examples=40, deadline=None)
def test_axis_matrix_is_scipy_zoom(n_in, n_out, order):
    line = np.random.default_rng(n_in * 100 + n_out).normal(size=n_in)
    expected = ndimage.zoom(line, n_out / n_in, order=order, mode="nearest", grid_mode=True)
    matrix = axis_matrix(n_in, n_out, order)
    np.testing.assert_allclose(matrix @ line, expected, atol=1e-12)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)


def axis_weights(shape, new_shape, spacing, target):
    """The matrix of each axis for probabilities: linear, nearest along a coarse axis."""
    coarse = coarse_axis(spacing, target)
    sizes = zip(shape, new_shape, strict=True)
    return tuple(axis_matrix(*own, 0 if axis == coarse else 1) for axis, own in enumerate(sizes))


@given(shapes, spacings, spacings, seeds)
@settings(max_examples=40, deadline=None)
def test_resampled_labels_hold_no_new_value_and_follow_the_interpolated_indicators(shape, spacing, target, seed):
    labels = np.random.default_rng(seed).integers(-1, 3, shape).astype(np.int8)
    new_shape = resampled_shape(shape, spacing, target)
    result = resample_labels(labels, new_shape, spacing, target)
    assert result.shape == new_shape
    values = np.unique(labels)
    assert set(np.unique(result)) <= set(values)
    weights = axis_weights(shape, new_shape, spacing, target)
    scores = {value: np.einsum("ai,bj,ck,ijk->abc", *weights, (labels == value).astype(float)) for value in values}
    best = np.max(list(scores.values()), axis=0)
    for value in values:
        assert (scores[value][result == value] >= best[result == value] - 1e-9).all()


@given(shapes, spacings, spacings, seeds, st.sampled_from([1, 3]))
@settings(max_examples=40, deadline=None)
def test_resampled_images_stay_within_the_range_of_the_input(shape, spacing, target, seed, order):
    image = np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)
    result = resample_image(image, resampled_shape(shape, spacing, target), spacing, target, order)
    for before, after in zip(image, result, strict=True):
        assert before.min() <= after.min()
        assert after.max() <= before.max()


@given(shapes, seeds)
@settings(max_examples=20, deadline=None)
def test_voxels_whose_centers_coincide_keep_their_labels(shape, seed):
    labels = np.random.default_rng(seed).integers(0, 3, shape).astype(np.int16)
    tripled = resample_labels(labels, tuple(3 * voxels for voxels in shape), (3, 3, 3), (1, 1, 1))
    assert np.array_equal(tripled[1::3, 1::3, 1::3], labels)


@given(spacings, spacings)
def test_weights_of_a_coarse_axis_choose_one_slice_each(spacing, target):
    coarse = coarse_axis(spacing, target)
    shape = (5, 6, 7)
    weights = axis_weights(shape, resampled_shape(shape, spacing, target), spacing, target)
    if coarse is not None:
        assert set(np.unique(weights[coarse])) <= {0.0, 1.0}
        assert max(max(spacing) / min(spacing), max(target) / min(target)) > 3


def test_two_equally_coarse_axes_are_not_resampled_apart():
    assert coarse_axis((5, 5, 1), (1, 1, 1)) is None
    assert coarse_axis((5, 1, 1), (1, 1, 1)) == 0
    assert coarse_axis((1, 1, 1), (1, 1, 3.1)) == 2
    assert coarse_axis((1, 1, 1), (1, 1, 3.0)) is None
    assert coarse_axis((5, 5, 1), (9, 1, 1)) is None  # the present spacing decides first


def test_an_unchanged_shape_returns_the_very_array():
    image, labels = np.zeros((1, 3, 4, 5), np.float32), np.zeros((3, 4, 5), np.int8)
    assert resample_image(image, (3, 4, 5), (1, 1, 1), (1, 1, 1)) is image
    assert resample_labels(labels, (3, 4, 5), (1, 1, 1), (1, 1, 1)) is labels


def test_a_long_axis_is_computed_in_bands_without_a_seam():
    image = np.random.default_rng(0).normal(size=(1, 2, 300, 3)).astype(np.float32)
    result = resample_image(image, (2, 411, 3), (1, 411 / 300, 1), (1, 1, 1))
    expected = np.clip(np.einsum("ai,bij->baj", axis_matrix(300, 411, 3), image[0]), image.min(), image.max())
    np.testing.assert_allclose(result[0], expected, atol=1e-5)


def test_a_tiny_volume_keeps_one_voxel():
    assert resampled_shape((1, 1, 10), (0.1, 1, 1), (10, 1, 1)) == (1, 1, 10)
