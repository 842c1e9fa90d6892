"""Choosing among ensembles by their scores on cases, and how good such a choice really is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autoseg.evaluation.statistics import bootstrap_interval, foreground_mean, paired_difference
from autoseg.selection.candidates import (
    MOST_MEMBERS,
    Blend,
    Costs,
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


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTable:
    """Dice of every ensemble on every case.

    Attributes:
        configurations: names, in the order of a blend's weights.
        blends: ensembles; all that greedy selection may come to.
        classes: names.
        cases: identifiers.
        groups: (cases,) number of the fold that kept each case back.
        dice: (blends, cases, classes), NaN where undefined.
    """

    configurations: tuple[str, ...]
    blends: tuple[Blend, ...]
    classes: tuple[str, ...]
    cases: tuple[str, ...]
    groups: NDArray[np.integer[Any]]
    dice: NDArray[np.float64]

    def members(self, blend: Blend) -> tuple[SelectedMember, ...]:
        """What an ensemble is made of."""
        return members_of(blend, self.configurations)

    def title(self, blend: Blend) -> str:
        """Name of an ensemble."""
        return title_of(self.members(blend))

    def values(self, blend: Blend, cases: Indices | None = None) -> NDArray[np.float64]:
        """Dice (cases, classes) of an ensemble, of some cases or of all."""
        own: NDArray[np.float64] = self.dice[self.blends.index(blend)]
        return own if cases is None else own[cases]

    def mean(self, blend: Blend, cases: Indices | None = None) -> float:
        """Mean Dice of an ensemble; minus infinity where no score is defined."""
        value = foreground_mean(self.values(blend, cases))
        return value if np.isfinite(value) else -np.inf


@dataclass(frozen=True, slots=True)
class Candidate:
    """An ensemble that may be chosen."""

    blend: Blend
    kind: Literal["single", "pair", "greedy"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen from some cases.

    Attributes:
        blend: the ensemble.
        because: why, in a sentence or two.
    """

    blend: Blend
    because: str


@dataclass(frozen=True, slots=True, eq=False)
class Nested:
    """Scores of cases under what is chosen without them.

    Attributes:
        dice: (cases, classes).
        blends: what was chosen without each group, in the order of the groups.
        groups: (cases,) index of each case's group.
    """

    dice: NDArray[np.float64]
    blends: tuple[Blend, ...]
    groups: NDArray[np.integer[Any]]


def greedy_blend(table: ScoreTable, cases: Indices) -> Blend:
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


def candidates_of(table: ScoreTable, cases: Indices) -> list[Candidate]:
    """Every single, every pair, and the greedy ensemble if it is none of these."""
    count = len(table.configurations)
    found = [Candidate(blend, "single" if sum(blend) == 1 else "pair") for blend in singles_and_pairs(count)]
    greedy = greedy_blend(table, cases)
    if greedy not in {candidate.blend for candidate in found}:
        found.append(Candidate(greedy, "greedy"))
    return found


Objective = Callable[[ScoreTable, Indices, Costs, int], Choice]


def choose_by_dice(table: ScoreTable, cases: Indices, _costs: Costs, _seed: int) -> Choice:
    """The highest mean Dice, whatever it costs."""
    best = _best(table, cases, [candidate.blend for candidate in candidates_of(table, cases)])
    return Choice(best, f"{table.title(best)} has the highest mean Dice, {table.mean(best, cases):.4f}")


def choose_like_nnunet(table: ScoreTable, cases: Indices, _costs: Costs, _seed: int) -> Choice:
    """The highest mean Dice of all singles and pairs; of equal ones the single.

    Source: nnU-Net v2 evaluation/find_best_configuration.py.
    """
    best = _best(table, cases, singles_and_pairs(len(table.configurations)))
    told = "has the highest mean Dice of all configurations and pairs"
    return Choice(best, f"{table.title(best)} {told}, {table.mean(best, cases):.4f}, as nnU-Net would choose")


def choose_by_cost(table: ScoreTable, cases: Indices, costs: Costs, _seed: int) -> Choice:
    """The cheapest candidate, whatever it scores."""
    blends = [candidate.blend for candidate in candidates_of(table, cases)]
    cheapest = min(blends, key=lambda blend: costs.rank(table.members(blend)))
    return Choice(
        cheapest, f"{table.title(cheapest)} costs least, with a mean Dice of {table.mean(cheapest, cases):.4f}"
    )


def choose_sensibly(table: ScoreTable, cases: Indices, costs: Costs, seed: int) -> Choice:
    """The cheapest candidate that is not worse than the best by more than noise, nor by more than `MOST_GIVEN_UP`.

    Noise: the 95 % bootstrap interval of the difference, cases paired, reaches zero.
    """
    blends = [candidate.blend for candidate in candidates_of(table, cases)]
    best = _best(table, cases, blends)
    for blend in sorted(blends, key=lambda own: costs.rank(table.members(own))):
        mean, low, _ = paired_difference(table.values(best, cases), table.values(blend, cases), seed)
        if blend == best or (mean <= MOST_GIVEN_UP and low <= 0):
            break
    if len(blends) == 1:
        return Choice(best, f"{table.title(best)} is the only candidate")
    if blend == best:
        told = "has the highest mean Dice, and nothing cheaper is as good within noise"
        return Choice(best, f"{table.title(best)} {told}")
    return Choice(
        blend,
        f"{table.title(blend)} is the cheapest that is as good as the best within noise: {table.title(best)} has a "
        f"mean Dice higher by {mean:.4f} only (95 % interval from {low:.4f})",
    )


OBJECTIVES: Mapping[str, Objective] = {
    "default": choose_sensibly,
    "dice": choose_by_dice,
    "nnunet": choose_like_nnunet,
    "cost": choose_by_cost,
}
"""What is chosen by."""


def nested_groups(groups: Indices) -> Indices:
    """Index of the group that each case is left out with: its fold, or a part of the only fold there is."""
    _, indices = np.unique(groups, return_inverse=True)
    if indices.max(initial=0) > 0:
        return indices
    return np.arange(len(groups)) % PARTS_OF_ONE_FOLD


def nested_choice(table: ScoreTable, objective: Objective, costs: Costs, seed: int) -> Nested | None:
    """Scores of every case under what is chosen from the other folds; None if there are no two groups of cases."""
    groups = nested_groups(table.groups)
    count = int(groups.max(initial=0)) + 1
    if count < 2:
        return None
    dice = np.full(table.dice.shape[1:], np.nan)
    blends = []
    for group in range(count):
        own, others = np.flatnonzero(groups == group), np.flatnonzero(groups != group)
        blend = objective(table, others, costs, seed).blend
        dice[own] = table.values(blend, own)
        blends.append(blend)
    return Nested(dice, tuple(blends), groups)


def candidate_scores(table: ScoreTable, costs: Costs, seed: int) -> tuple[CandidateScore, ...]:
    """What every candidate is worth and costs, best first."""
    everything = np.arange(len(table.cases))
    found = candidates_of(table, everything)
    best = _best(table, everything, [candidate.blend for candidate in found])
    scored = [_candidate_score(table, candidate, best, costs, seed) for candidate in found]
    return tuple(sorted(scored, key=lambda candidate: -1.0 if candidate.dice is None else -candidate.dice))


def _candidate_score(table: ScoreTable, candidate: Candidate, best: Blend, costs: Costs, seed: int) -> CandidateScore:
    values, members = table.values(candidate.blend), table.members(candidate.blend)
    is_many = len(values) > 1
    mean, low, high = paired_difference(table.values(best), values, seed)
    interval = bootstrap_interval(values, seed) if is_many else (np.nan, np.nan)
    by_class = {name: _known(foreground_mean(values[:, index])) for index, name in enumerate(table.classes)}
    return CandidateScore(
        name=title_of(members),
        kind=candidate.kind,
        members=members,
        dice=_known(foreground_mean(values)),
        interval=interval if np.isfinite(interval).all() else None,
        class_dice=by_class,
        difference=_known(mean),
        difference_interval=(low, high) if is_many and np.isfinite([low, high]).all() else None,
        seconds_per_case=costs.seconds_of(members),
        memory_gib=costs.memory_of(members),
    )


def _best(table: ScoreTable, cases: Indices, blends: Sequence[Blend]) -> Blend:
    """The highest mean; of equal ones the first."""
    return blends[int(np.argmax([table.mean(blend, cases) for blend in blends]))]


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
