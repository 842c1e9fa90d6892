from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.geometry import Geometry
from autoseg.core.records import content_hash, from_data, to_data
from autoseg.data.fingerprint import (
    MOST_VALUES_SORTED,
    QUANTILE_LEVELS,
    CaseStatistics,
    Fingerprint,
    Foreground,
    case_statistics,
    combine,
    fingerprint_hash,
    left_right_axis,
)
from autoseg.images.volume import Volume

Extracted = tuple[CaseStatistics, Foreground]


def a_case(seed: int, identifier: str = "a", size: int = 10, scale: float = 1.0) -> tuple[Extracted, np.ndarray]:
    """A case with two channels, and the foreground intensities of its first one."""
    rng = np.random.default_rng(seed)
    image = (rng.normal(size=(2, size, size + 1, size + 2)) * scale + 5).astype(np.float32)
    labels = rng.integers(0, 3, image.shape[1:]).astype(np.int8)
    volume = Volume(image, Geometry(image.shape[1:], (3.0, 1.0, 0.5)))
    return case_statistics(identifier, volume, labels, "hash"), image[0][labels > 0]


def test_the_facts_of_a_case():
    image = np.zeros((1, 6, 6, 6), np.float32)
    image[0, 1:4, 2:4, :] = 2
    labels = np.zeros((6, 6, 6), np.int8)
    labels[1, 2, :2] = 2
    labels[5, 5, 5] = 1  # lies where the image is zero: it is counted, but cropped away
    facts = case_statistics("a", Volume(image, Geometry((6, 6, 6))), labels)[0]
    assert facts.shape == (6, 6, 6)
    assert facts.shape_after_crop == (3, 2, 6)
    assert facts.relative_size == pytest.approx(36 / 216)
    assert facts.class_voxels == {"0": 213, "1": 1, "2": 2}
    assert facts.quantiles == ((2.0,) * len(QUANTILE_LEVELS),)


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=4, unique=True))
@settings(max_examples=20, deadline=None)
def test_statistics_are_those_of_the_pooled_foreground_when_cases_have_equal_size(seeds):
    made = [a_case(seed, str(index), size=20) for index, seed in enumerate(seeds)]
    found = combine([case for case, _ in made], 2).intensities[0]
    pooled = np.concatenate([values for _, values in made])
    weights = np.concatenate([np.full(values.size, 1 / values.size) for _, values in made])  # each weighs the same
    mean = np.average(pooled, weights=weights)
    spread = float(np.sqrt(np.average((pooled - mean) ** 2, weights=weights)))
    order = np.argsort(pooled)
    reached = np.cumsum(weights[order]) / len(made)
    low, median, high = pooled[order][np.searchsorted(reached, (0.005, 0.5, 0.995))]
    assert found.mean == pytest.approx(mean, abs=1e-4 * spread)
    assert found.std == pytest.approx(spread, rel=1e-3)
    assert found.median == pytest.approx(median, abs=0.02 * spread)
    assert found.percentile_00_5 == pytest.approx(low, abs=0.1 * spread)
    assert found.percentile_99_5 == pytest.approx(high, abs=0.1 * spread)
    assert found.min == min(values.min() for _, values in made)
    assert found.max == max(values.max() for _, values in made)


def test_a_large_case_weighs_no_more_than_a_small_one():
    small, _ = a_case(0, "a", size=6)
    (statistics, (first, second)), _ = a_case(1, "b", size=20)
    shifted = dataclasses.replace(first, mean=first.mean + 10)
    mean = combine([small, (statistics, (shifted, second))], 2).intensities[0].mean
    assert mean == pytest.approx((small[1][0].mean + shifted.mean) / 2)


def test_the_order_of_the_cases_does_not_matter():
    cases = [a_case(seed, identifier)[0] for seed, identifier in enumerate("cab")]
    forward, backward = combine(cases, 2), combine(cases[::-1], 2)
    assert forward == backward
    assert [case.identifier for case in forward.cases] == ["a", "b", "c"]


def test_integer_intensities_have_integer_quantiles():
    image = np.random.default_rng(0).integers(0, 256, (1, 9, 40, 40)).astype(np.float32)
    case = case_statistics("a", Volume(image, Geometry(image.shape[1:])), np.ones(image.shape[1:], np.int8))
    found = combine([case], 1).intensities[0]
    assert all(value == int(value) for value in (found.median, found.percentile_00_5, found.percentile_99_5))
    assert found.percentile_99_5 == pytest.approx(np.percentile(image, 99.5), abs=1)


def test_quantiles_of_large_images_come_from_a_fixed_draw_with_exact_extremes():
    image = np.random.default_rng(0).normal(size=(1, 1, 1, MOST_VALUES_SORTED + 7)).astype(np.float32)
    volume, labels = Volume(image, Geometry(image.shape[1:])), np.ones(image.shape[1:], np.int8)
    first, again = case_statistics("a", volume, labels), case_statistics("a", volume, labels)
    assert first == again
    (quantiles,) = first[0].quantiles
    assert (quantiles[0], quantiles[-1]) == (image.min(), image.max())
    assert quantiles[4] == pytest.approx(0, abs=0.01)


def test_a_dataset_without_foreground_has_zeros_for_intensities():
    image = np.ones((1, 3, 3, 3), np.float32)
    case = case_statistics("a", Volume(image, Geometry((3, 3, 3))), np.zeros((3, 3, 3), np.int8))
    assert case[1] == ()
    assert combine([case], 1).intensities[0].std == 0
    assert combine([], 1).cases == ()


TURN = math.cos(math.radians(40)), math.sin(math.radians(40))


@pytest.mark.parametrize(
    ("direction", "axis"),
    [
        ((0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0), 2),
        ((-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0), 0),
        ((0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0), 1),
        ((0.0, 0.0, 1.0, TURN[1], TURN[0], 0.0, TURN[0], -TURN[1], 0.0), None),
    ],
)
def test_the_axis_from_left_to_right_is_known_unless_the_image_is_oblique(direction, axis):
    geometry = Geometry((2, 2, 2), direction=direction)
    assert left_right_axis(geometry) == axis
    case = case_statistics("a", Volume(np.ones((1, 2, 2, 2), np.float32), geometry), np.ones((2, 2, 2), np.int8))
    assert case[0].left_right_axis == axis


def test_fingerprints_from_before_the_axis_was_kept_have_the_same_hash():
    new = combine([a_case(1)[0]], 2)
    assert new.cases[0].left_right_axis == 2
    old = to_data(new)
    assert (new.orientation, new.cases[0].orientation, new.cases[0].turned_to) == ("LPS", "LPS", None)
    for name in ("left_right_axis", "orientation", "turned_to", "direction"):
        del old["cases"][0][name]
    del old["orientation"], old["direction"]
    assert from_data(Fingerprint, old, "old").cases[0].left_right_axis is None
    assert fingerprint_hash(from_data(Fingerprint, old, "old")) == fingerprint_hash(new) == content_hash(old)
    assert fingerprint_hash(dataclasses.replace(new, relative_size=0.5)) != fingerprint_hash(new)
