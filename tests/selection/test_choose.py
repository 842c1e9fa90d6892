from __future__ import annotations

import itertools

import numpy as np
import pytest

from autoseg.evaluation.statistics import foreground_mean
from autoseg.selection.candidates import Costs, all_ensembles, kind_of
from autoseg.selection.choose import (
    MOST_GIVEN_UP,
    OBJECTIVES,
    best_as_nnunet,
    candidate_scores,
    candidates_of,
    cheapest,
    cheapest_within_noise,
    greedy_ensemble,
    highest_dice,
    nested_choices,
    nested_groups,
)
from tests.selection.examples import simulated_table, table_of

NAMES = ("c0", "c1", "c2")
COSTS = Costs({"c0": 1.0, "c1": 4.0, "c2": 9.0}, {"c0": 1.0, "c1": 2.0, "c2": 3.0})
ENSEMBLES = all_ensembles(3)
EVERY = np.arange(40)


def truth_of(**special) -> list[float]:
    """0.80 everywhere but for the named ensembles: `b011=0.9`."""
    named = {tuple(map(int, name[1:])): value for name, value in special.items()}
    return [named.get(weights, 0.80) for weights in ENSEMBLES]


def chosen(objective, truth, **options):
    table = simulated_table(np.random.default_rng(0), truth, noise=0.002)
    return objective(table, EVERY, COSTS, 0)[0]


def test_a_clear_winner_is_chosen_by_dice_and_by_default() -> None:
    truth = truth_of(b001=0.85)
    assert chosen(highest_dice, truth) == chosen(cheapest_within_noise, truth) == (0, 0, 1)


def test_the_default_takes_the_cheapest_of_equally_good_ones() -> None:
    truth = truth_of(b001=0.9000, b010=0.9001, b011=0.9001)
    table = simulated_table(np.random.default_rng(0), truth, noise=0.01)
    weights, because = cheapest_within_noise(table, EVERY, COSTS, 0)
    assert weights == (0, 1, 0)
    assert "cheapest" in because or "highest" in because


def test_the_default_gives_up_little_however_much_noise_there_is() -> None:
    rng = np.random.default_rng(3)
    dice = np.full((len(ENSEMBLES), 4, 1), 0.5)
    dice[ENSEMBLES.index((0, 0, 1))] = rng.normal(0.8, 0.2, (4, 1))
    dice[ENSEMBLES.index((1, 0, 0))] = dice[ENSEMBLES.index((0, 0, 1))] - np.array([[0.3], [-0.1], [0.2], [-0.1]])
    table = table_of(dice, NAMES)
    assert cheapest_within_noise(table, np.arange(4), COSTS, 0)[0] == (0, 0, 1)
    assert MOST_GIVEN_UP < 0.3 / 4


def test_cost_takes_the_cheapest_whatever_it_scores() -> None:
    assert chosen(cheapest, truth_of(b001=0.99)) == (1, 0, 0)


def test_nnunet_knows_singles_and_pairs_only() -> None:
    truth = truth_of(b112=0.95, b011=0.9)
    assert chosen(best_as_nnunet, truth) == (0, 1, 1)


def test_of_equal_scores_nnunet_prefers_the_single() -> None:
    table = table_of(np.full((len(ENSEMBLES), 5, 2), 0.7), NAMES)
    assert best_as_nnunet(table, np.arange(5), COSTS, 0)[0] == (1, 0, 0)


def test_greedy_adds_what_helps_most_and_stops_at_the_best() -> None:
    truth = truth_of(b100=0.81, b110=0.82, b210=0.83, b211=0.84)
    table = simulated_table(np.random.default_rng(0), truth, noise=0.0)
    assert greedy_ensemble(table, EVERY) == (2, 1, 1)
    kinds = {table.title(weights): kind_of(weights) for weights in candidates_of(table, EVERY)}
    assert kinds["2 x c0 + c1 + c2"] == "greedy"
    assert len(kinds) == 7
    worse = simulated_table(np.random.default_rng(0), truth_of(b010=0.9), noise=0.0)
    assert greedy_ensemble(worse, EVERY) == (0, 1, 0)
    assert len(candidates_of(worse, EVERY)) == 6


def test_candidates_are_listed_best_first_with_differences_and_costs() -> None:
    table = simulated_table(np.random.default_rng(0), truth_of(b011=0.9), noise=0.01)
    found = candidate_scores(table, COSTS, 0)
    assert found[0].name == "c1 + c2"
    assert (found[0].difference, found[0].difference_interval) == (0.0, (0.0, 0.0))
    assert (found[0].seconds_per_case, found[0].memory_gib) == (13.0, 3.0)
    assert all(one.dice >= other.dice for one, other in itertools.pairwise(found))
    single = next(own for own in found if own.name == "c0")
    assert single.interval[0] < single.dice < single.interval[1]
    assert single.difference_interval[0] < single.difference == pytest.approx(0.1, abs=0.02)
    assert set(single.class_dice) == {"class_0"}


def test_a_single_case_has_no_interval_and_no_nested_score() -> None:
    table = table_of(np.linspace(0.5, 0.8, len(ENSEMBLES))[:, None, None], NAMES)
    assert all(own.interval is None and own.difference_interval is None for own in candidate_scores(table, COSTS, 0))
    assert nested_choices(table, highest_dice, COSTS, 0) is None


def test_undefined_scores_are_left_out() -> None:
    dice = np.full((len(ENSEMBLES), 4, 2), 0.5)
    dice[:, :, 1] = np.nan
    found = candidate_scores(table_of(dice, NAMES), COSTS, 0)
    assert found[0].class_dice == {"class_0": 0.5, "class_1": None}
    nothing = candidate_scores(table_of(np.full((len(ENSEMBLES), 4, 1), np.nan), NAMES), COSTS, 0)
    assert nothing[0].dice is None
    assert nothing[0].interval is None


def test_the_cases_of_a_single_fold_are_divided() -> None:
    assert nested_groups(np.array([3, 3, 3, 3, 3, 3])).tolist() == [0, 1, 2, 3, 4, 0]
    assert nested_groups(np.array([0, 2, 2])).tolist() == [0, 1, 1]


def test_nested_choices_do_not_see_the_cases_they_are_scored_on() -> None:
    dice = np.full((len(ENSEMBLES), 10, 1), 0.5)
    first, second = ENSEMBLES.index((1, 0, 0)), ENSEMBLES.index((0, 1, 0))
    dice[first, :5], dice[first, 5:] = 0.9, 0.1  # each looks good on the cases of one fold only
    dice[second, :5], dice[second, 5:] = 0.1, 0.9
    table = table_of(dice, NAMES, folds=1)
    table.groups[:5], table.groups[5:] = 0, 1
    dice, choices = nested_choices(table, highest_dice, COSTS, 0)
    assert choices == ((0, 1, 0), (1, 0, 0))
    assert foreground_mean(dice) == pytest.approx(0.1)


def test_the_nested_score_is_unbiased_and_the_naive_one_optimistic() -> None:
    rng = np.random.default_rng(2026)
    truth = truth_of(b010=0.804, b001=0.805, b011=0.806, b111=0.805)
    nested_bias, naive_bias = [], []
    for _ in range(200):
        table = simulated_table(rng, truth, cases=40, between_cases=0.02, noise=0.03)
        weights = highest_dice(table, EVERY, COSTS, 0)[0]
        true = truth[ENSEMBLES.index(weights)]
        naive_bias.append(table.mean(weights, EVERY) - true)
        nested_bias.append(foreground_mean(nested_choices(table, highest_dice, COSTS, 0)[0]) - true)
    assert abs(np.mean(nested_bias)) <= 0.002
    assert np.mean(naive_bias) > 0.004


def test_the_right_candidate_is_picked_within_noise() -> None:
    rng = np.random.default_rng(7)
    truth = truth_of(b001=0.83, b011=0.832)
    for _ in range(10):
        table = simulated_table(rng, truth, cases=40, noise=0.02)
        for objective in OBJECTIVES.values():
            if objective is not cheapest:
                weights = objective(table, EVERY, COSTS, 0)[0]
                assert truth[ENSEMBLES.index(weights)] >= 0.83
        assert cheapest_within_noise(table, EVERY, COSTS, 0)[0] in {(0, 0, 1), (0, 1, 1)}
