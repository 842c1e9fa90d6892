from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autoseg.core.errors import GeometryMismatch
from autoseg.core.geometry import Geometry
from autoseg.data.model import LabelSet
from autoseg.images.volume import Volume
from autoseg.preprocessing.first_stage import network_input, one_hot, prepare_first_stage
from autoseg.preprocessing.prepare import Preparation, prepare
from autoseg.preprocessing.store import StoredCase
from tests.images.examples import CODES

LABELS = LabelSet({"background": (0,), "liver": (1,), "tumor": (2,)})
REGIONS = LabelSet({"background": (0,), "whole": (1, 2, 4), "core": (4,)}, ignore=5, regions_class_order=(1, 2, 4))


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.int8, st.tuples(*[st.integers(2, 9)] * 3), elements=st.integers(0, 2)),
    st.permutations([0, 1, 2]),
    st.tuples(*[st.sampled_from([0.7, 1.0, 2.5])] * 3),
    st.sampled_from([None, *CODES]),
)
def test_a_first_stage_that_predicts_the_labels_is_prepared_exactly_as_the_labels(labels, order, spacing_mm, codes):
    image = np.zeros((1, *labels.shape), np.float32)
    image[0, : (labels.shape[0] + 1) // 2, 1:, 1:] = 1.0  # so that there is something to crop
    volume = Volume(image, Geometry(labels.shape, spacing_mm))
    preparation = Preparation(tuple(order), (1.0, 1.2, 0.9), ("zscore",), (False,), (None,), codes)
    inside = np.where(image[0] > 0, labels, 0)
    prepared = prepare(volume, inside, preparation)
    previous = prepare_first_stage(inside, prepared.placement)
    assert previous.dtype == np.int8
    known = prepared.labels >= 0
    np.testing.assert_array_equal(previous[known], prepared.labels[known])


def test_values_beyond_127_are_kept():
    placement = prepare(
        Volume(np.ones((1, 3, 3, 3), np.float32), Geometry((3, 3, 3), (1.0, 1.0, 1.0))),
        None,
        Preparation((0, 1, 2), (1.0, 1.0, 1.0), ("none",), (False,), (None,)),
    ).placement
    labels = np.full((3, 3, 3), 200, np.uint8)
    assert prepare_first_stage(labels, placement).dtype == np.int16
    np.testing.assert_array_equal(prepare_first_stage(labels, placement), labels)
    with pytest.raises(GeometryMismatch, match="first stage"):
        prepare_first_stage(labels[:2], placement)


def test_every_foreground_value_has_a_channel_of_its_own():
    previous = np.array([[[0, 1, 2, 4, -1]]], np.int8)
    np.testing.assert_array_equal(one_hot(previous, LABELS)[:, 0, 0], [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0]])
    assert REGIONS.foreground_values == (1, 2, 4)
    assert one_hot(previous, REGIONS).shape == (3, 1, 1, 5)
    assert one_hot(previous, REGIONS).dtype == np.float32


def test_the_network_gets_the_first_stage_behind_the_image():
    image = np.random.default_rng(0).random((2, 2, 3, 4), np.float32)
    previous = np.ones((2, 3, 4), np.int8)
    stored = StoredCase("a", image, previous, {}, None)
    assert network_input(stored, LABELS) is image
    both = network_input(replace(stored, first_stage=previous), LABELS)
    assert both.shape == (4, 2, 3, 4)
    np.testing.assert_array_equal(both[:2], image)
    np.testing.assert_array_equal(both[2:].sum((1, 2, 3)), [24, 0])
