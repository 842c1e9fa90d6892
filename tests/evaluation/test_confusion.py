"""Which class a voxel was given: every annotated voxel is counted once, in the row of what it is."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autoseg.data.model import LabelSet
from autoseg.evaluation.confusion import confusion, shares, value_names

PLAIN = LabelSet({"background": (0,), "left": (1,), "right": (2,)})
SCRIBBLES = LabelSet({"background": (0,), "left": (1,), "right": (2,)}, ignore=3)
REGIONS = LabelSet({"background": (0,), "whole": (1, 2), "core": (2,)}, regions_class_order=(1, 2))

maps = arrays(np.int8, st.tuples(*[st.integers(1, 5)] * 3), elements=st.integers(0, 2))


@given(maps, st.randoms())
@settings(max_examples=25, deadline=None)
def test_rows_hold_the_voxels_of_the_reference_and_columns_those_of_the_prediction(reference, random):
    predicted = np.array([random.randint(0, 2) for _ in range(reference.size)], np.int16).reshape(reference.shape)
    counts = confusion(predicted, reference, PLAIN)
    assert counts.sum(1).tolist() == [int((reference == value).sum()) for value in range(3)]
    assert counts.sum(0).tolist() == [int((predicted == value).sum()) for value in range(3)]
    assert np.trace(counts) == (predicted == reference).sum()


def test_confusing_left_with_right_shows_off_the_diagonal():
    reference = np.array([1, 1, 1, 2, 2, 0])
    counts = confusion(np.array([1, 2, 2, 2, 1, 0]), reference, PLAIN)
    assert counts[1].tolist() == [0, 1, 2]
    assert counts[2].tolist() == [0, 1, 1]
    assert shares(counts)[2].tolist() == [0.0, 0.5, 0.5]


def test_voxels_that_are_not_annotated_are_not_counted():
    counts = confusion(np.array([0, 1, 2, 1]), np.array([3, 3, 2, 1]), SCRIBBLES)
    assert counts.sum() == 2
    assert counts[3].sum() == 0


def test_a_class_that_never_occurs_has_shares_of_zero():
    assert shares(confusion(np.zeros(4, int), np.zeros(4, int), PLAIN))[1].tolist() == [0, 0, 0]


def test_values_are_named_after_their_own_class_or_all_their_regions():
    assert value_names(PLAIN) == ("background", "left", "right")
    assert value_names(SCRIBBLES)[3] == "not annotated"
    assert value_names(REGIONS) == ("background", "whole only", "core")
    unnamed = LabelSet({"background": (0,), "all": (1, 2, 4), "few": (2, 4)})
    assert value_names(unnamed) == ("background", "all only", "all and few only", "value 3", "all and few only")
