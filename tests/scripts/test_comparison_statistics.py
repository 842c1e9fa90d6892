"""Ranks, corrections and tests against published tables, laws, and contenders whose order is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from autoseg.core.errors import UsageError
from scripts.comparison_statistics import compare, critical_difference, friedman_p, groups, holm, mean_ranks, wilcoxon_p

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)
DEMSAR_0_05 = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}


def _scores(table, classes=("a", "b")):
    """Contender -> case -> class -> score from contender -> list of case values, equal for all classes."""
    return {
        name: {f"case_{index}": dict.fromkeys(classes, value) for index, value in enumerate(values)}
        for name, values in table.items()
    }


@pytest.mark.parametrize(("contenders", "quantile"), DEMSAR_0_05.items())
def test_the_critical_difference_equals_the_published_table(contenders, quantile):
    cases = 14
    expected = quantile * math.sqrt(contenders * (contenders + 1) / (6 * cases))
    assert critical_difference(contenders, cases) == pytest.approx(expected, rel=5e-4)


def test_ranks_and_friedman_test_equal_the_worked_example():
    # Demsar 2006, table 6: C4.5 with and without m and cf on 14 datasets; mean ranks 3.143, 2.000, 2.893, 1.964
    table = np.array(
        [
            [.763, .768, .771, .798], [.599, .591, .590, .569], [.954, .971, .968, .967], [.628, .661, .654, .657],
            [.882, .888, .886, .898], [.936, .931, .916, .931], [.661, .668, .609, .685], [.583, .583, .563, .625],
            [.775, .838, .866, .875], [1.000, 1.000, 1.000, 1.000], [.940, .962, .965, .962], [.619, .666, .614, .669],
            [.972, .981, .9751, .975], [.957, .978, .946, .970],
        ]
    ).T  # fmt: skip
    assert mean_ranks(table) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=1e-3)
    without_ties = 9.28  # chi square as printed; one row of four equal scores and two pairs are tied
    tied = 1 - (1 * (4**3 - 4) + 2 * (2**3 - 2)) / (14 * (4**3 - 4))
    assert friedman_p(table) == pytest.approx(chi2.sf(without_ties / tied, 3), abs=1e-3)


def test_holm_multiplies_the_smallest_by_the_number_of_tests():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


@given(P_VALUES)
@settings(max_examples=60, deadline=None)
def test_corrected_p_values_lie_between_the_raw_ones_and_bonferroni_and_keep_their_order(p_values):
    corrected = holm(p_values)
    for raw, own in zip(p_values, corrected, strict=True):
        assert raw <= own + 1e-12
        assert own <= min(1.0, raw * len(p_values)) + 1e-12 or own in corrected
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


@given(st.lists(st.floats(1, 9), min_size=1, max_size=7), st.floats(0.1, 5))
@settings(max_examples=60, deadline=None)
def test_two_share_a_letter_exactly_if_they_differ_by_at_most_the_critical_difference(ranks, difference):
    ranks = sorted(ranks)
    letters = groups(ranks, difference)
    for i, first in enumerate(ranks):
        for j in range(i + 1, len(ranks)):
            assert bool(set(letters[i]) & set(letters[j])) == (ranks[j] - first <= difference)


def test_a_contender_that_is_always_better_is_told_apart():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.6, 0.9, 30)
    noise = rng.normal(0, 0.01, (3, 30))
    result = compare(_scores({"worse": base + noise[0], "best": base + 0.05 + noise[1], "same": base + noise[2]}))
    assert result.contenders[0].name == "best"
    assert not set(result.contenders[0].group) & (set(result.contenders[1].group) | set(result.contenders[2].group))
    pairs = {(pair.first, pair.second): pair for pair in result.pairs}
    against = [pair for names, pair in pairs.items() if names[0] == "best"]
    assert len(against) == 2
    assert all(pair.is_different and pair.interval[0] > 0.03 for pair in against)
    assert sum(not pair.is_different for pair in result.pairs) == 1
    assert result.friedman_p < 1e-6
    assert result.contenders[0].interval[0] < result.contenders[0].score < result.contenders[0].interval[1]


def test_equal_contenders_share_everything():
    values = [0.5, 0.7, 0.9]
    result = compare(_scores({"one": values, "two": values, "three": values}))
    assert {own.group for own in result.contenders} == {"a"}
    assert {own.mean_rank for own in result.contenders} == {2.0}
    assert all(pair.p_corrected == 1.0 and pair.difference == 0.0 for pair in result.pairs)
    assert result.friedman_p == 1.0


def test_undefined_scores_and_missing_cases_are_left_out_for_all():
    scores = _scores({"one": [0.5, 0.6, 0.7, 0.1], "two": [0.6, 0.7, 0.8]})
    scores["one"]["case_1"] = {"a": None, "b": None}
    scores["two"]["case_0"]["b"] = None
    result = compare(scores)
    assert result.cases == ("case_0", "case_2")
    assert result.left_out == ("case_1", "case_3")
    two = next(own for own in result.contenders if own.name == "two")
    assert two.class_scores == pytest.approx({"a": 0.7, "b": 0.8})
    assert two.score == pytest.approx(0.75)
    assert result.friedman_p is None


def test_a_class_that_no_case_shows_has_no_score():
    scores = _scores({"one": [0.5, 0.6], "two": [0.6, 0.7]}, classes=("a",))
    for cases in scores.values():
        for own in cases.values():
            own["never"] = None
    assert compare(scores).contenders[0].class_scores["never"] is None


@pytest.mark.parametrize("scores", [{}, _scores({"one": [0.5, 0.6]}), _scores({"one": [0.5, 0.6], "two": [0.5]})])
def test_too_little_to_compare_is_refused(scores):
    with pytest.raises(UsageError):
        compare(scores)


def test_the_signed_rank_test_is_symmetric_and_exact_for_few_cases():
    first, second = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), np.zeros(6)
    assert wilcoxon_p(first, second) == wilcoxon_p(second, first) == pytest.approx(2 / 2**6)
