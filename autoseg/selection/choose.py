"""Choosing among ensembles by their scores on cases, and how well such a choice does on cases not used for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.evaluation.statistics import bootstrap_interval, foreground_mean, paired_difference
from autoseg.selection.candidates import (
    MOST_MEMBERS,
    Costs,
    EnsembleWeights,
    kind_of,
    members_of,
    reduced,
    single,
    singles_and_pairs,
    title_of,
)
from autoseg.selection.record import CandidateScore, SelectedMember

MOST_GIVEN_UP = 0.005
"""Dice that the default gives up at most for a cheaper candidate (assumption). With few cases noise alone would let it
give up much more."""

PARTS_OF_ONE_FOLD = 5
"""Parts that the cases of a single fold are divided into for the nested score (as many as folds usually are)."""

Indices = NDArray[np.integer[Any]]
Dice = NDArray[np.float64]  # (cases, classes), NaN where undefined


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTable:
    """Dice of every ensemble on every case.

    Attributes:
        configurations: names, in the order of the weights.
        ensembles: all that greedy selection may come to.
        classes: names.
        cases: identifiers.
        groups: (cases,) index of the group that each case is left out with, as `nested_groups` gives it.
        dice: (ensembles, cases, classes), NaN where undefined.
    """

    configurations: tuple[str, ...]
    ensembles: tuple[EnsembleWeights, ...]
    classes: tuple[str, ...]
    cases: tuple[str, ...]
    groups: Indices
    dice: Dice

    @property
    def every_case(self) -> Indices:
        """Indices of all cases."""
        return np.arange(len(self.cases))

    def members(self, weights: EnsembleWeights) -> tuple[SelectedMember, ...]:
        """What an ensemble is made of."""
        return members_of(weights, self.configurations)

    def title(self, weights: EnsembleWeights) -> str:
        """Name of an ensemble."""
        return title_of(self.members(weights))

    def values(self, weights: EnsembleWeights, cases: Indices) -> Dice:
        """Dice (cases, classes) of an ensemble."""
        own: Dice = self.dice[self.ensembles.index(weights), cases]
        return own

    def mean(self, weights: EnsembleWeights, cases: Indices) -> float:
        """Mean Dice of an ensemble; minus infinity where no score is defined."""
        value = foreground_mean(self.values(weights, cases))
        return value if np.isfinite(value) else -np.inf

    def best(self, ensembles: Sequence[EnsembleWeights], cases: Indices) -> EnsembleWeights:
        """The highest mean; of equal ones the first."""
        return ensembles[int(np.argmax([self.mean(weights, cases) for weights in ensembles]))]


def greedy_ensemble(table: ScoreTable, cases: Indices) -> EnsembleWeights:
    """The best ensemble on the way of adding, again and again, the configuration that helps most.

    Members may repeat. Of equally good ensembles the one with fewer members is kept.

    Source: Caruana et al. 2004, "Ensemble selection from libraries of models" (selection with replacement).
    """
    count = len(table.configurations)
    weights, best, best_mean = (0,) * count, single(0, count), -np.inf
    for _ in range(MOST_MEMBERS):
        ways = [tuple(w + (other == index) for other, w in enumerate(weights)) for index in range(count)]
        means = [table.mean(reduced(way), cases) for way in ways]
        chosen = int(np.argmax(means))
        weights = ways[chosen]
        if means[chosen] > best_mean:
            best, best_mean = reduced(weights), means[chosen]
    return best


def candidates_of(table: ScoreTable, cases: Indices) -> tuple[EnsembleWeights, ...]:
    """Every single, every pair, and the greedy ensemble if it is none of these."""
    return tuple(dict.fromkeys([*singles_and_pairs(len(table.configurations)), greedy_ensemble(table, cases)]))


Objective = Callable[[ScoreTable, Indices, Costs, int], tuple[EnsembleWeights, str]]
"""From scores, the cases that count, costs and the seed of the bootstrap: the choice, and why in a sentence or two."""


def highest_dice(table: ScoreTable, cases: Indices, _costs: Costs, _seed: int) -> tuple[EnsembleWeights, str]:
    """The highest mean Dice, whatever it costs."""
    best = table.best(candidates_of(table, cases), cases)
    return best, f"{table.title(best)} has the highest mean Dice, {table.mean(best, cases):.4f}"


def best_as_nnunet(table: ScoreTable, cases: Indices, _costs: Costs, _seed: int) -> tuple[EnsembleWeights, str]:
    """The highest mean Dice of all singles and pairs; of equal ones the single.

    Source: nnU-Net v2 evaluation/find_best_configuration.py.
    """
    best = table.best(singles_and_pairs(len(table.configurations)), cases)
    claim = f"has the highest mean Dice of all configurations and pairs, {table.mean(best, cases):.4f}"
    return best, f"{table.title(best)} {claim}, as nnU-Net would choose"


def cheapest(table: ScoreTable, cases: Indices, costs: Costs, _seed: int) -> tuple[EnsembleWeights, str]:
    """The cheapest candidate, whatever it scores."""
    found = min(candidates_of(table, cases), key=lambda weights: costs.rank(table.members(weights)))
    return found, f"{table.title(found)} costs least, with a mean Dice of {table.mean(found, cases):.4f}"


def cheapest_within_noise(table: ScoreTable, cases: Indices, costs: Costs, seed: int) -> tuple[EnsembleWeights, str]:
    """The cheapest candidate that is not worse than the best by more than noise, nor by more than `MOST_GIVEN_UP`.

    Noise: the 95 % bootstrap interval of the difference, cases paired, reaches zero.
    """
    candidates = candidates_of(table, cases)
    best = table.best(candidates, cases)
    for weights in sorted(candidates, key=lambda own: costs.rank(table.members(own))):
        mean, low, _ = paired_difference(table.values(best, cases), table.values(weights, cases), seed)
        if weights == best or (mean <= MOST_GIVEN_UP and low <= 0):
            break
    if len(candidates) == 1:
        return best, f"{table.title(best)} is the only candidate"
    if weights == best:
        claim = "has the highest mean Dice, and nothing cheaper is as good within noise"
        return best, f"{table.title(best)} {claim}"
    because = (
        f"{table.title(weights)} is the cheapest that is as good as the best within noise: {table.title(best)} has a "
        f"mean Dice higher by {mean:.4f} only (95 % interval from {low:.4f})"
    )
    return weights, because


OBJECTIVES: Mapping[str, Objective] = {
    "default": cheapest_within_noise,
    "dice": highest_dice,
    "nnunet": best_as_nnunet,
    "cost": cheapest,
}
"""What a choice aims at."""


def nested_groups(folds: Indices) -> Indices:
    """Index of the group that each case is left out with: its fold, or a part of the only fold there is."""
    _, indices = np.unique(folds, return_inverse=True)
    if indices.max(initial=0) > 0:
        return indices
    return np.arange(len(folds)) % PARTS_OF_ONE_FOLD


def nested_choices(
    table: ScoreTable, objective: Objective, costs: Costs, seed: int
) -> tuple[Dice, tuple[EnsembleWeights, ...]] | None:
    """Nested cross-validation: the scores of every case under what is chosen without its group, and these choices.

    None if there are no two groups of cases.
    """
    count = int(table.groups.max(initial=0)) + 1
    if count < 2:
        return None
    dice = np.full(table.dice.shape[1:], np.nan)
    choices = []
    for group in range(count):
        own, others = np.flatnonzero(table.groups == group), np.flatnonzero(table.groups != group)
        weights, _ = objective(table, others, costs, seed)
        dice[own] = table.values(weights, own)
        choices.append(weights)
    return dice, tuple(choices)


def candidate_scores(table: ScoreTable, costs: Costs, seed: int) -> tuple[CandidateScore, ...]:
    """What every candidate is worth and costs, best first."""
    candidates = candidates_of(table, table.every_case)
    best = table.best(candidates, table.every_case)
    scored = [_candidate_score(table, weights, best, costs, seed) for weights in candidates]
    return tuple(sorted(scored, key=lambda candidate: -1.0 if candidate.dice is None else -candidate.dice))


def _candidate_score(
    table: ScoreTable, weights: EnsembleWeights, best: EnsembleWeights, costs: Costs, seed: int
) -> CandidateScore:
    values, members = table.values(weights, table.every_case), table.members(weights)
    mean, low, high = paired_difference(table.values(best, table.every_case), values, seed)
    is_many = len(values) > 1  # a single case has no interval
    return CandidateScore(
        name=title_of(members),
        kind=kind_of(weights),
        members=members,
        dice=_known(foreground_mean(values)),
        interval=_known_ends(bootstrap_interval(values, seed)) if is_many else None,
        class_dice={
            name: _known(foreground_mean(column)) for name, column in zip(table.classes, values.T, strict=True)
        },
        difference=_known(mean),
        difference_interval=_known_ends((low, high)) if is_many else None,
        seconds_per_case=costs.seconds_of(members),
        memory_gib=costs.memory_of(members),
    )


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _known_ends(ends: tuple[float, float]) -> tuple[float, float] | None:
    return ends if np.isfinite(ends).all() else None
