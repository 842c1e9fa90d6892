"""Cases unlike the others: found where they are, not made up where they are not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.data.fingerprint import QUANTILE_LEVELS, CaseStatistics
from autoseg.data.model import LabelSet
from autoseg.data.outliers import find_outliers, outliers_among, properties, training_ranges

LABELS = LabelSet({"background": (0,), "organ": (1, 2), "lesion": (2,)})


def _case(name="a", spacing=(3.0, 1.0, 1.0), shape=(20, 100, 90), level=100.0, voxels=(5000, 200)):
    quantiles = tuple(level * (1 + quantile) for quantile in QUANTILE_LEVELS)
    counts = {"0": 170_000, "1": voxels[0], "2": voxels[1]}
    return CaseStatistics(name, shape, shape, spacing, 1.0, (quantiles,), counts)


def _cohort(count=40, seed=0):
    draw = np.random.default_rng(seed)
    return [
        _case(f"case_{i}", level=float(draw.normal(100, 5)), voxels=(int(draw.integers(4000, 6000)), 200 * (i % 2)))
        for i in range(count)
    ]


def _ranges(cases):
    return training_ranges(properties(case, ("CT",), LABELS) for case in cases)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"spacing": (6.0, 1.0, 1.0)}, "spacing along z"),
        ({"shape": (20, 300, 90)}, "extent along y"),
        ({"level": 400.0}, "0.5 quantile of CT"),
        ({"voxels": (90_000, 200)}, "volume of organ"),
        ({"voxels": (0, 0)}, "volume of organ"),
    ],
)
def test_a_case_that_differs_is_named_with_the_property(changed, what):
    found = find_outliers(properties(_case(**changed), ("CT",), LABELS), _ranges(_cohort()))
    assert what in [remark.what for remark in found]


def test_a_usual_case_is_like_the_others():
    assert find_outliers(properties(_case(), ("CT",), LABELS), _ranges(_cohort())) == ()


def test_a_class_may_be_absent_where_some_training_cases_lack_it_too():
    found = find_outliers(properties(_case(voxels=(5000, 0)), ("CT",), LABELS), _ranges(_cohort()))
    assert found == ()


def test_few_cases_say_nothing_about_what_is_usual():
    assert find_outliers(properties(_case(level=9e9), ("CT",)), _ranges(_cohort(4))) == ()


def test_hardly_any_case_of_one_population_is_taken_for_unlike_the_others():
    cases = {case.identifier: properties(case, ("CT",), LABELS) for case in _cohort(200)}
    assert len(outliers_among(cases)) <= 2


def test_the_odd_one_of_a_dataset_is_found_among_the_others():
    cases = {case.identifier: properties(case, ("CT",), LABELS) for case in _cohort()}
    cases["odd"] = properties(_case(spacing=(3.0, 2.0, 2.0)), ("CT",), LABELS)
    assert "odd" in outliers_among(cases)
    assert "case_1" not in outliers_among(cases)


@given(st.lists(st.floats(-1e4, 1e4), min_size=5, max_size=30), st.floats(-1e6, 1e6))
@settings(max_examples=50, deadline=None)
def test_whatever_was_seen_is_usual_and_what_is_unusual_was_not_seen(seen, value):
    ranges = training_ranges({"level": (own, "")} for own in seen)
    assert all(ranges["level"].holds(own) for own in seen)
    if not ranges["level"].holds(value):
        assert value < min(seen) or value > max(seen)


@given(st.floats(0.1, 10), st.floats(0.5, 2))
@settings(max_examples=50, deadline=None)
def test_lengths_are_compared_as_ratios(scale, factor):
    cohort = [{"spacing": (1 + 0.01 * i, "mm")} for i in range(20)]
    scaled = [{"spacing": (scale * own["spacing"][0], "mm")} for own in cohort]
    one = training_ranges(cohort)["spacing"].holds(1.1 * factor)
    other = training_ranges(scaled)["spacing"].holds(scale * 1.1 * factor)
    assert one == other or abs(factor - 1) < 0.5


def test_a_picture_has_no_thickness_to_compare():
    case = _case(shape=(1, 50, 60), spacing=(999.0, 1.0, 1.0))
    assert not [name for name in properties(case, ("gray",)) if name.endswith("along z")]


def test_sentences_say_the_value_and_what_is_known():
    cohort = _ranges(_cohort())
    (remark,) = [
        r for r in find_outliers(properties(_case(spacing=(6.0, 1, 1)), ("CT",)), cohort) if "spacing" in r.what
    ]
    assert remark.sentence == "spacing along z is 6 mm; 40 training cases have 3 mm"
    absent = find_outliers(properties(_case(voxels=(0, 0)), ("CT",), LABELS), cohort)
    assert absent[0].sentence.startswith("volume of organ is 0; all 40 training cases have it")


def test_sparse_labels_have_no_volumes_to_compare():
    sparse = LabelSet(LABELS.classes, ignore=3)
    assert any(name.startswith("volume") for name in properties(_case(), ("CT",), LABELS))
    assert not any(name.startswith("volume") for name in properties(_case(), ("CT",), sparse))
