from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.evaluation.statistics import bootstrap_interval, foreground_mean, paired_difference


def test_the_mean_is_that_of_classes_over_their_defined_cases() -> None:
    nan = math.nan
    table = np.array([[0.5, nan, nan], [0.7, 0.9, nan]])
    assert foreground_mean(table) == pytest.approx((0.6 + 0.9) / 2)
    assert math.isnan(foreground_mean(np.array([[nan]])))


@given(st.integers(2, 30), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_interval_lies_within_the_data_and_repeats_with_its_seed(cases, classes, seed) -> None:
    values = np.random.default_rng(seed).uniform(size=(cases, classes))
    low, high = bootstrap_interval(values, seed)
    assert values.min() <= low <= high <= values.max()
    assert (low, high) == bootstrap_interval(values, seed)


@given(st.integers(2, 20), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_difference_turns_its_sign_with_its_arguments(cases, seed) -> None:
    a, b = np.random.default_rng(seed).uniform(size=(2, cases, 2))
    mean, low, high = paired_difference(a, b, seed)
    assert paired_difference(b, a, seed) == pytest.approx((-mean, -high, -low))
    assert low <= high


def test_pairing_takes_out_what_cases_share() -> None:
    generator = np.random.default_rng(0)
    hard = generator.uniform(0.2, 0.9, 40)
    a, b = hard + 0.02 + generator.normal(0, 0.002, 40), hard
    mean, low, high = paired_difference(a, b)
    assert 0.015 < low < mean < high < 0.025
    own = bootstrap_interval(a)
    assert own[1] - own[0] > 5 * (high - low)


def test_intervals_cover_the_true_mean_as_often_as_they_promise() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        low, high = bootstrap_interval(generator.normal(0.8, 0.1, 40))
        hits += low <= 0.8 <= high
    assert 0.89 < hits / 300 < 0.99


def test_an_interval_of_nothing_is_undefined() -> None:
    assert all(math.isnan(value) for value in bootstrap_interval(np.full((3, 2), np.nan)))
