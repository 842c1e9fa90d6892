"""Who wins a race, with simulated clocks: no time passes here."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.launch.race import HOPELESS, SMALLEST_GAIN, judge, race

SECONDS = st.floats(0.01, 10.0)
ROUNDS = st.lists(
    st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=5),
    min_size=1,
    max_size=5,
)


class LoadedMachine:
    """A clock of wall and processor time that runs of ways put on; other programs add wall time to some of them."""

    def __init__(self, seed: int, load: float) -> None:
        self.random, self.load = random.Random(seed), load
        self.wall = self.processor = 0.0
        self.runs: dict[float, int] = {}

    def read(self) -> tuple[float, ...]:
        return self.wall, self.processor

    def way(self, seconds: float):
        def run() -> None:
            self.runs[seconds] = self.runs.get(seconds, 0) + 1
            own = seconds * self.random.uniform(1.0, 1.0 + SMALLEST_GAIN / 2)
            self.processor += own
            self.wall += own * (1 + self.random.expovariate(1 / self.load) if self.load else 1)

        return run


def outcome(times: list[float], seed: int = 0, load: float = 0.0, allowed: float = 1e9, preferred: int = 0):
    machine = LoadedMachine(seed, load)
    return race([machine.way(seconds) for seconds in times], preferred, allowed, machine.read), machine


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("load", [0.0, 1.0, 5.0])
def test_load_does_not_change_the_winner(seed: int, load: float) -> None:
    assert outcome([1.0, 0.999, 0.3, 2.0], seed, load)[0].winner == 2
    assert outcome([1.0, 0.999, 1.01], seed, load)[0].winner == 0


def test_a_quiet_race_is_short_and_a_hopeless_way_runs_once() -> None:
    found, machine = outcome([1.0, 0.5, 2 * HOPELESS])
    assert found.winner == 1
    assert found.is_clear
    assert machine.runs == {1.0: 3, 0.5: 3, 2 * HOPELESS: 1}


def test_a_slow_way_is_not_kept_because_it_is_preferred() -> None:
    found, machine = outcome([27.0, 1.0])
    assert found.winner == 1
    assert machine.runs[27.0] == 1


def test_the_time_ends_a_race_after_a_round() -> None:
    found, machine = outcome([1.0, 0.9], allowed=0.0)
    assert machine.runs == {1.0: 1, 0.9: 1}
    assert (found.winner, found.is_clear) == (0, False)


def test_processor_time_decides_and_wall_time_has_a_veto() -> None:
    assert judge([[(1.0, 1.0)] * 3, [(0.5, 1.1)] * 3], 0).winner == 0
    assert judge([[(1.0, 1.0)] * 3, [(1.1, 0.5)] * 3], 0).winner == 0
    assert judge([[(1.0, 1.0)] * 3, [(0.99, 0.9)] * 3], 0).winner == 1


def test_one_good_round_is_not_enough_unless_it_is_good_by_far() -> None:
    assert judge([[(1.0,)] * 3, [(0.8,), (1.2,), (1.3,)]], 0).winner == 0
    assert not judge([[(1.0,)] * 3, [(0.8,), (1.2,), (1.3,)]], 0).is_clear
    assert judge([[(1.0,)], [(0.3,)]], 0).winner == 1


@settings(max_examples=50)
@given(ROUNDS, st.randoms(use_true_random=False))
def test_the_order_of_the_others_matters_in_ties_alone(rounds, chance) -> None:
    order = [0, *chance.sample(range(1, len(rounds)), len(rounds) - 1)]
    one, other = judge(rounds, 0), judge([rounds[index] for index in order], 0)
    best = [min(processor for _, processor in own) for own in rounds]
    first, second = best[one.winner], best[order[other.winner]]
    assert max(first, second) * (1 - SMALLEST_GAIN) <= min(first, second) + 1e-12


@given(ROUNDS)
@settings(max_examples=50)
def test_the_winner_is_the_preferred_or_faster_by_every_clock(rounds) -> None:
    winner = judge(rounds, 0).winner
    fastest = tuple(map(min, zip(*rounds[winner], strict=True)))
    preferred = tuple(map(min, zip(*rounds[0], strict=True)))
    assert winner == 0 or (fastest[0] < preferred[0] and fastest[1] < preferred[1] * (1 - SMALLEST_GAIN))
