from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from autoseg.images.crop import crop_to_nonzero, nonzero_box, nonzero_mask, slices

VECTORS = Path(__file__).parents[1] / "data" / "golden" / "vectors"


def test_crop_equals_the_reference():
    vectors = np.load(VECTORS / "cropping.npz")
    image, labels, box = crop_to_nonzero(vectors["image"], vectors["labels"][0])
    assert np.array_equal(np.array(box), vectors["box"])
    assert np.array_equal(image, vectors["image_out"])
    assert np.array_equal(labels, vectors["labels_out"][0])


@given(st.tuples(*[st.integers(1, 8)] * 3), st.integers(1, 2), st.sampled_from([0.02, 0.3, 0.8]), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_the_mask_is_the_filled_nonzero_region_in_its_tightest_box(shape, channels, density, seed):
    rng = np.random.default_rng(seed)
    image = (rng.random((channels, *shape)) < density).astype(np.float32)
    mask, box = nonzero_mask(image)
    assert nonzero_box(image) == box
    whole = np.zeros(shape, bool)
    whole[slices(box)] = mask
    assert np.array_equal(whole, ndimage.binary_fill_holes(image.any(axis=0)))
    if mask.any():
        for axis in range(3):
            assert mask.take(0, axis).any()
            assert mask.take(-1, axis).any()


def test_labels_outside_the_mask_keep_their_value_and_background_becomes_minus_one():
    image = np.zeros((1, 4, 4, 4), np.float32)
    image[0, 0, 0, 0] = image[0, 3, 3, 3] = 1
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[1, 1, 1] = 200
    _, cropped, _ = crop_to_nonzero(image, labels)
    assert cropped[1, 1, 1] == 200
    assert cropped[0, 0, 0] == 0
    assert cropped[2, 2, 2] == -1
    assert labels.min() == 0


def test_small_values_are_stored_in_one_byte():
    image = np.ones((1, 2, 2, 2), np.float32)
    assert crop_to_nonzero(image, np.full((2, 2, 2), 127, np.int64))[1].dtype == np.int8
    assert crop_to_nonzero(image, np.full((2, 2, 2), 128, np.int64))[1].dtype == np.int16


def test_an_image_of_zeros_keeps_its_whole_volume_outside_the_mask():
    image, labels, box = crop_to_nonzero(np.zeros((1, 3, 4, 5), np.float32), None)
    assert image.shape[1:] == labels.shape == (3, 4, 5)
    assert box == ((0, 3), (0, 4), (0, 5))
    assert (labels == -1).all()
