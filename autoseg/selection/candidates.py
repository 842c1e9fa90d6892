"""Ensembles as whole-number weights of configurations, and what predicting with them costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, combinations_with_replacement
from typing import Literal

from autoseg.selection.record import SelectedMember

MOST_MEMBERS = 4
"""Members of a greedy ensemble, repetitions counted (assumption: later ones change little and cost as much)."""

EnsembleWeights = tuple[int, ...]
"""Weight of each configuration compared; without a common divisor, so that equal ensembles are equal."""


def single(index: int, count: int) -> EnsembleWeights:
    """One configuration of `count` by itself."""
    return tuple(int(other == index) for other in range(count))


def singles_and_pairs(count: int) -> tuple[EnsembleWeights, ...]:
    """What nnU-Net compares: every configuration, then every pair.

    Source: nnU-Net v2 evaluation/find_best_configuration.py.
    """
    singles = [single(index, count) for index in range(count)]
    pairs = [tuple(a + b for a, b in zip(one, other, strict=True)) for one, other in combinations(singles, 2)]
    return (*singles, *pairs)


def all_ensembles(count: int) -> tuple[EnsembleWeights, ...]:
    """Every ensemble of up to `MOST_MEMBERS` members, which may repeat; singles and pairs come first."""
    found = dict.fromkeys(singles_and_pairs(count))
    for size in range(1, MOST_MEMBERS + 1):
        for members in combinations_with_replacement(range(count), size):
            found.setdefault(reduced([members.count(index) for index in range(count)]))
    return tuple(found)


def reduced(weights: Sequence[int]) -> EnsembleWeights:
    """The weights without their common divisor."""
    divisor = math.gcd(*weights)
    return tuple(weight // divisor for weight in weights)


def kind_of(weights: EnsembleWeights) -> Literal["single", "pair", "greedy"]:
    """What sort of candidate an ensemble is; only greedy selection weights its members or takes three."""
    kinds: Mapping[tuple[int, ...], Literal["single", "pair"]] = {(1,): "single", (1, 1): "pair"}
    return kinds.get(tuple(weight for weight in weights if weight), "greedy")


def members_of(weights: EnsembleWeights, names: Sequence[str]) -> tuple[SelectedMember, ...]:
    """The configurations that count, with their weights."""
    return tuple(SelectedMember(name, weight) for name, weight in zip(names, weights, strict=True) if weight)


def title_of(members: Sequence[SelectedMember]) -> str:
    """Name of an ensemble: "2d + 2 x 3d_fullres"."""
    return " + ".join(
        member.configuration if member.weight == 1 else f"{member.weight} x {member.configuration}"
        for member in members
    )


@dataclass(frozen=True, slots=True)
class Costs:
    """What predicting a case takes, by configuration.

    Attributes:
        seconds: of a case with all networks of the configuration, first stages of cascades not included.
        memory_gib: estimate for a case of median size.
        first_stage: first stage of each cascade.
    """

    seconds: Mapping[str, float | None]
    memory_gib: Mapping[str, float]
    first_stage: Mapping[str, str] = field(default_factory=dict)

    def with_stages(self, members: Sequence[SelectedMember]) -> tuple[str, ...]:
        """Every configuration that has to run: the members and what their cascades start from."""
        names: dict[str, None] = {}
        for member in members:
            own: str | None = member.configuration
            while own is not None and own not in names:
                names[own] = None
                own = self.first_stage.get(own)
        return tuple(names)

    def seconds_of(self, members: Sequence[SelectedMember]) -> float | None:
        """Seconds of an ensemble, in which every configuration runs once; None if any is unknown."""
        known = [self.seconds.get(name) for name in self.with_stages(members)]
        return None if None in known else sum(value for value in known if value is not None)

    def memory_of(self, members: Sequence[SelectedMember]) -> float | None:
        """Memory of an ensemble, whose configurations run one after the other; None if any is unknown."""
        known = [self.memory_gib.get(name) for name in self.with_stages(members)]
        return None if None in known else max(value for value in known if value is not None)

    def rank(self, members: Sequence[SelectedMember]) -> tuple[float, int, float]:
        """Sorts ensembles by their cost: seconds, else number of configurations to run, then memory."""
        seconds = self.seconds_of(members)
        return seconds or 0.0, len(self.with_stages(members)), self.memory_of(members) or 0.0
