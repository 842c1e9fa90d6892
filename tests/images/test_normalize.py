from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.errors import DataRefused, PlanFault
from autoseg.images.normalize import NORMALIZATIONS

STATISTICS = SimpleNamespace(mean=20.0, std=10.0, percentile_00_5=0.0, percentile_99_5=50.0)


def example(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (3, 4, 5)).astype(np.float32)


@pytest.mark.parametrize("name", NORMALIZATIONS)
@given(st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_every_normalization_gives_a_new_finite_float32_array_and_keeps_the_order(name, seed):
    image = example(seed)
    before = image.copy()
    result = NORMALIZATIONS[name](image, None, STATISTICS)
    assert result.dtype == np.float32
    assert np.isfinite(result).all()
    assert np.array_equal(image, before)
    assert not np.shares_memory(image, result)
    order = image.ravel().argsort()
    assert (np.diff(result.ravel()[order]) >= 0).all()


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_a_constant_image_stays_finite(name):
    result = NORMALIZATIONS[name](np.full((2, 2, 2), 7, np.float32), None, STATISTICS)
    assert np.isfinite(result).all()


def test_zscore_has_mean_zero_and_deviation_one():
    result = NORMALIZATIONS["zscore"](example(0), None, None)
    assert result.mean() == pytest.approx(0, abs=1e-5)
    assert result.std() == pytest.approx(1, abs=1e-5)


def test_zscore_with_a_mask_leaves_voxels_outside_alone():
    image = example(1)
    mask = np.zeros(image.shape, bool)
    mask[:2] = True
    result = NORMALIZATIONS["zscore"](image, mask, None)
    assert np.array_equal(result[2], image[2])
    assert result[:2].mean() == pytest.approx(0, abs=1e-5)
    assert np.array_equal(NORMALIZATIONS["zscore"](image, np.zeros_like(mask), None), image)


def test_ct_clips_and_scales_with_the_statistics_of_the_dataset():
    image = np.array([[[-100, 0, 30, 50, 1000]]], np.float32)
    np.testing.assert_allclose(NORMALIZATIONS["ct"](image, None, STATISTICS), [[[-2, -2, 1, 3, 3]]])


def test_ct_without_statistics_is_refused():
    with pytest.raises(PlanFault):
        NORMALIZATIONS["ct"](example(0), None, None)


def test_rescaling_reaches_from_zero_to_one():
    result = NORMALIZATIONS["rescale_0_1"](example(3), None, None)
    assert (result.min(), result.max()) == (0, 1)


def test_colors_are_divided_by_255():
    np.testing.assert_allclose(NORMALIZATIONS["rgb_0_1"](example(3), None, None), example(3) / 255, rtol=1e-6)


@pytest.mark.parametrize("wrong", [-1, 256])
def test_intensities_that_are_no_colors_are_refused(wrong):
    image = example(3)
    image[0, 0, 0] = wrong
    with pytest.raises(DataRefused):
        NORMALIZATIONS["rgb_0_1"](image, None, None)
