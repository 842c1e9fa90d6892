"""Which of several ways to do the same work is the fastest, also on a machine that others use at the same time.

The ways take turns, forward and backward, so that a moment of load hits none of them alone. Load only adds time: the
best round of each is what counts. What is preferred anyway stays, unless another way was faster twice, or by far; so
noise that cannot be told from a difference never decides. On a CPU processor time decides, to which other programs add
little, and wall time has a veto: a way that leaves threads idle takes longer by it alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SMALLEST_GAIN = 0.03
"""What gains less than this share of the time is as fast (assumption: below what a training notices)."""

ROUNDS = 3
"""Rounds of a quiet race; a noisy one goes on, up to `MOST_ROUNDS`."""

MOST_ROUNDS = 9

PLAIN = 0.75
"""Of the time: what takes less than this share of it is believed after one round (assumption: other programs, which
share the caches, do not change processor time by more)."""

HOPELESS = 3.0
"""Times the best: what takes longer by every clock is not run again."""

Clock = Callable[[], tuple[float, ...]]
"""Seconds by one or more clocks: the last one decides, the others have a veto."""

Rounds = Sequence[Sequence[tuple[float, ...]]]
"""For each way, the seconds of each of its rounds by each clock."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a race.

    Attributes:
        winner: index of the chosen way.
        seconds: of the best round of each way by the clock that decides.
        is_clear: whether nothing was faster by the clock that decides: more rounds are not expected to change it.
    """

    winner: int
    seconds: tuple[float, ...]
    is_clear: bool


def wall_clock() -> tuple[float, ...]:
    """Wall time, for devices that compute beside this process."""
    return (time.perf_counter(),)


def wall_and_processor_clock() -> tuple[float, ...]:
    """Wall time, and that of the processors, which other programs do not add to."""
    return (time.perf_counter(), time.process_time())


def race(ways: Sequence[Callable[[], object]], preferred: int, allowed_seconds: float, clock: Clock) -> Outcome:
    """Runs each way in turn, three times if that makes it clear, and more often, up to nine times, if not.

    Args:
        ways: to do the work, each of which was run before.
        preferred: index of the one that is chosen unless another is clearly faster.
        allowed_seconds: after which no further round begins; the first always takes place.
        clock: read before and after every run.
    """
    rounds: list[list[tuple[float, ...]]] = [[] for _ in ways]
    running = list(range(len(ways)))
    begin = clock()[0]
    outcome = Outcome(preferred, (), False)
    for number in range(1, MOST_ROUNDS + 1):
        for index in running:
            rounds[index].append(_timed(ways[index], clock))
        outcome = judge(rounds, preferred)
        if (number >= ROUNDS and outcome.is_clear) or clock()[0] - begin >= allowed_seconds:
            break
        running = [index for index in reversed(running) if not _is_hopeless(rounds, index)]
        if len(running) == 1:
            break
    return outcome


def _timed(way: Callable[[], object], clock: Clock) -> tuple[float, ...]:
    before = clock()
    way()
    return tuple(after - own for after, own in zip(clock(), before, strict=True))


def judge(rounds: Rounds, preferred: int) -> Outcome:
    """The fastest of what is clearly faster than the preferred way, or that one; the first of equally fast ones."""
    best = [_nth_best(own, 0) for own in rounds]
    share = [own[-1] / best[preferred][-1] for own in best]
    sure = [index for index, own in enumerate(rounds) if _is_faster(own, best[preferred])]
    winner = _first_of_fastest(share, sure) if sure else preferred
    is_clear = min(share) >= share[winner] * (1 - SMALLEST_GAIN)
    return Outcome(winner, tuple(own[-1] for own in best), is_clear)


def _is_faster(rounds: Sequence[tuple[float, ...]], preferred: tuple[float, ...]) -> bool:
    """Whether the clock that decides shows it in two rounds, or in one by far, and no other says the contrary."""
    first, second = _nth_best(rounds, 0), _nth_best(rounds, 1)
    is_sure = second[-1] < preferred[-1] * (1 - SMALLEST_GAIN) or first[-1] < preferred[-1] * PLAIN
    return is_sure and all(own < other for own, other in zip(first, preferred, strict=True))


def _first_of_fastest(share: Sequence[float], among: Sequence[int]) -> int:
    limit = min(share[index] for index in among) / (1 - SMALLEST_GAIN)
    return next(index for index in among if share[index] <= limit)


def _is_hopeless(rounds: Rounds, index: int) -> bool:
    """Whether a way took several times as long as the fastest, by every clock."""
    best = [_nth_best(own, 0) for own in rounds]
    return all(own > HOPELESS * min(every) for own, every in zip(best[index], zip(*best, strict=True), strict=True))


def _nth_best(rounds: Sequence[tuple[float, ...]], number: int) -> tuple[float, ...]:
    """By each clock, the seconds of the best round (0), or of the one after it (1); infinite if there is none."""
    if len(rounds) <= number:
        return tuple(math.inf for _ in rounds[0])
    return tuple(sorted(own)[number] for own in zip(*rounds, strict=True))
