from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autoseg.core.errors import RecordFault
from autoseg.core.records import from_data
from autoseg.data.model import LabelSet
from autoseg.inference.postprocessing import (
    PostprocessingStep,
    components,
    keep_components,
    postprocess,
    voxel_volume,
)

TWO = LabelSet({"background": (0,), "one": (1,), "two": (2,)})
REGIONS = LabelSet({"background": (0,), "whole": (1, 2), "core": (2,)}, regions_class_order=(1, 2))
MAPS = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)), elements=st.integers(0, 2)
)
STEPS = st.lists(
    st.sampled_from(
        [
            PostprocessingStep("largest_component", ("one", "two")),
            PostprocessingStep("largest_component", ("two",)),
            PostprocessingStep("minimum_volume", ("one",), 3.0),
        ]
    ),
    max_size=3,
)
MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)))


@given(MAPS, STEPS)
@settings(max_examples=60, deadline=None)
def test_steps_only_turn_foreground_into_background_and_keep_the_argument(labels, steps) -> None:
    before = labels.copy()
    after = postprocess(labels, steps, TWO, (1.0, 1.0, 1.0))
    assert (labels == before).all()
    assert ((after == labels) | (after == 0)).all()
    assert after.dtype == labels.dtype
    assert (postprocess(after, steps[-1:], TWO, (1.0, 1.0, 1.0)) == after).all()


def test_the_largest_component_of_merged_classes_keeps_its_smaller_classes() -> None:
    labels = np.array([[[1, 1, 2, 0, 2, 2]]], np.uint8)
    merged = postprocess(labels, [PostprocessingStep("largest_component", ("one", "two"))], TWO, (1, 1, 1))
    assert merged.tolist() == [[[1, 1, 2, 0, 0, 0]]]
    only_two = postprocess(labels, [PostprocessingStep("largest_component", ("two",))], TWO, (1, 1, 1))
    assert only_two.tolist() == [[[1, 1, 0, 0, 2, 2]]]


def test_equally_large_components_are_all_kept() -> None:
    labels = np.array([[[1, 1, 0, 1, 1, 0, 1]]], np.uint8)
    largest = postprocess(labels, [PostprocessingStep("largest_component", ("one",))], TWO, (1, 1, 1))
    assert largest.tolist() == [[[1, 1, 0, 1, 1, 0, 0]]]


def test_unknown_kinds_are_refused_where_they_are_read() -> None:
    with pytest.raises(RecordFault, match="largest_component, minimum_volume"):
        from_data(PostprocessingStep, {"kind": "closing", "classes": ["one"]}, "selection.json")


def test_a_region_is_removed_with_everything_inside() -> None:
    labels = np.array([[[1, 2, 1, 0, 1, 2]]], np.uint8)
    after = postprocess(labels, [PostprocessingStep("largest_component", ("whole",))], REGIONS, (1, 1, 1))
    assert after.tolist() == [[[1, 2, 1, 0, 0, 0]]]


def test_the_minimum_volume_is_in_cubic_millimeters() -> None:
    labels = np.array([[[1, 1, 0, 1]]], np.uint8)
    step = PostprocessingStep("minimum_volume", ("one",), 10.0)
    assert postprocess(labels, [step], TWO, (2.0, 2.0, 2.0)).tolist() == [[[1, 1, 0, 0]]]
    assert postprocess(labels, [step], TWO, (3.0, 2.0, 2.0)).tolist() == labels.tolist()


def test_a_picture_has_an_area_and_no_volume() -> None:
    assert voxel_volume((1, 5, 5), (999.0, 0.5, 1.0)) == pytest.approx(0.5)
    assert voxel_volume((3, 5, 5), (4.0, 0.5, 1.0)) == pytest.approx(2.0)


def test_steps_describe_themselves() -> None:
    assert PostprocessingStep("largest_component", ("one", "two")).title == "keep the largest component of one and two"
    assert "below 2.5 mm3" in PostprocessingStep("minimum_volume", ("one",), 2.5).title


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("labels", "classes", "theirs"),
    [
        (TWO, ("one", "two"), [1, 2]),
        (TWO, ("two",), 2),
        (REGIONS, ("whole", "core"), [(1, 2), 2]),
        (REGIONS, ("whole",), (1, 2)),
    ],
)
def test_largest_components_are_those_of_nnunet(labels, classes, theirs) -> None:
    nnunet = pytest.importorskip("nnunetv2.postprocessing.remove_connected_components")
    for seed in range(50):
        noise = np.random.default_rng(seed).choice([0, 0, 0, 0, 1, 2], (5, 9, 8)).astype(np.uint8)
        ours = postprocess(noise, [PostprocessingStep("largest_component", classes)], labels, (1.0, 1.0, 1.0))
        assert (ours == nnunet.remove_all_but_largest_component_from_segmentation(noise, theirs, 0)).all()


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
