"""A time budget for a whole queue: what was spent on it, which runs it is enough for, and how long the next one has.

A killed process cannot say how long it lived. So a run that is worked on notes every second that it still is, in a
file beside it; what a kill hides is shorter than that. Several processes work at once on several devices: the wall time
spent on a queue is the length of the union of all their work intervals.
"""

from __future__ import annotations

import heapq
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, Field

from autoseg.core.errors import MissingInput, RecordFault, UsageError
from autoseg.core.records import load, record, save
from autoseg.runs.queue import Queue, TrainOptions
from autoseg.runs.run import Run

HEARTBEAT_SECONDS = 1.0
"""Between two notes that work goes on (assumption: far above the milliseconds that a note takes)."""

SHARE_OF_BEGUN = 0.5
"""Of the time that makes a run useful, what is enough to go on with a configuration that has begun (assumption)."""

INTERVALS_FILE = "work_intervals.json"
FORMER_FILE = "sittings.json"  # former name, of version 0.1.0: a budget begun then goes on to be counted

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkInterval:
    """A time span of work, in seconds since the epoch."""

    begin: float
    end: float


@record
class WorkIntervals:
    """work_intervals.json: every time span in which a run was worked on under a budget."""

    intervals: Annotated[
        tuple[WorkInterval, ...],
        Field(validation_alias=AliasChoices("intervals", "sittings")),  # former name
    ] = ()


def read_intervals(folder: Path) -> tuple[WorkInterval, ...]:
    """The work intervals noted in a folder; none if there is no such note, or a damaged one."""
    for name in (INTERVALS_FILE, FORMER_FILE):
        with suppress(MissingInput, RecordFault):
            return load(WorkIntervals, folder / name).intervals
    return ()


def wall_seconds(intervals: Iterable[WorkInterval], until: float) -> float:
    """Length of the union of work intervals, as far as they lie before `until` (seconds since the epoch)."""
    total, reached = 0.0, float("-inf")
    for own in sorted(intervals, key=lambda own: own.begin):
        begin, end = max(own.begin, reached), min(own.end, until)
        total += max(0.0, end - begin)
        reached = max(reached, end)
    return total


@contextmanager
def heartbeat(folder: Path, begin: float, seconds: float = HEARTBEAT_SECONDS) -> Iterator[None]:
    """Notes work from `begin` to the end of the block, and every few seconds in between that it goes on.

    Args:
        folder: where the note is kept.
        begin: of the work, which may have been prepared before; seconds since the epoch.
        seconds: between two notes.
    """
    before = read_intervals(folder)
    is_over = threading.Event()

    def note() -> None:
        save(WorkIntervals((*before, WorkInterval(begin, time.time()))), folder / INTERVALS_FILE)

    def keep_noting() -> None:
        while not is_over.wait(seconds):
            with suppress(OSError):  # a note is not worth stopping for; a disk that is full stops the work itself
                note()

    note()
    thread = threading.Thread(target=keep_noting, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        note()


def budget_deadline(queue: Queue, options: TrainOptions) -> float | None:
    """`time.monotonic()` at which the budget of the queue is used up, earlier work counted; None without a budget.

    Raises:
        UsageError: earlier work has used it up, and no run is done.
    """
    if options.budget_seconds is None:
        return None
    started = time.time() - (time.monotonic() - options.started)
    spent = 0.0 if options.is_fresh else wall_seconds(_all_intervals(queue.runs), started)
    if spent >= options.budget_seconds and len(queue.open_runs) == len(queue.runs):
        raise UsageError(
            f"the budget of {options.budget_seconds:g} s is used up: {spent:.0f} s were spent on this queue before",
            where="--budget",
            do="give a larger --budget for the whole; what is done stays done",
        )
    if spent:
        _log.info("%.0f of the budget's %g s were spent on this queue before", spent, options.budget_seconds)
    return options.started + options.budget_seconds - spent


@dataclass(frozen=True, slots=True)
class RunGroup:
    """The open runs of a configuration, which make a candidate for the selection only together.

    Attributes:
        configuration: name.
        needed: seconds that each run still needs to be useful, in the order of the folds.
        work: of training them, in any unit; says which configuration is the cheaper one, however loaded the machine is.
        first_stage: configuration whose runs come before these; None without one.
        is_begun: whether a run of the configuration is done or has begun.
    """

    configuration: str
    needed: Mapping[Run, float]
    work: float
    first_stage: str | None = None
    is_begun: bool = False

    def without(self, runs: Collection[Run]) -> RunGroup:
        """The group of the others."""
        return replace(self, needed={run: own for run, own in self.needed.items() if run not in runs})


@dataclass(frozen=True, slots=True)
class BudgetChoice:
    """Which runs the time that is left is enough for.

    Attributes:
        runs: to be trained, in this order.
        left_out: the others.
        extra_seconds: that the ones left out would need, once the others have had all of the time.
    """

    runs: tuple[Run, ...]
    left_out: tuple[Run, ...] = ()
    extra_seconds: float = 0.0

    def sentence(self, budget_seconds: float) -> str:
        """What is left out, and the budget that would be enough; empty if nothing is."""
        if not self.left_out:
            return ""
        counts = Counter(run.configuration for run in self.left_out)
        names = ", ".join(f"{name} ({count} run{'s' * (count > 1)})" for name, count in counts.items())
        enough = time_span(budget_seconds + self.extra_seconds)
        return f"left out for lack of time: {names}; --budget {enough} would train them too"


def choose_runs(groups: Sequence[RunGroup], seconds: float, devices: int, *, must_train: bool) -> BudgetChoice:
    """Complete configurations that all get useful runs, begun ones first, then the cheapest; else part of one.

    What has begun stays with less time than a new configuration is begun with: it has cost time already, and is worth
    little while runs are missing.

    Args:
        groups: of the runs that are open.
        seconds: left for all of them.
        devices: that work at the same time.
        must_train: whether a run is chosen however little time there is.
    """
    ordered = _in_order(groups)
    fitting = sum(_fit(ordered[:count], seconds, devices) for count in range(1, len(ordered) + 1))
    chosen = ordered[:fitting]
    if ordered and not chosen:
        chosen = [_fitting_part(ordered[0], seconds, devices, at_least=int(must_train))]
    runs = _runs_of(chosen)
    left = [own.without(runs) for own in ordered]
    return BudgetChoice(runs, _runs_of(left), queue_seconds(left, devices))


def _runs_of(groups: Iterable[RunGroup]) -> tuple[Run, ...]:
    return tuple(run for own in groups for run in own.needed)


def _in_order(groups: Sequence[RunGroup]) -> list[RunGroup]:
    """Those that have begun first, then the cheapest, none before its first stage."""
    ordered: list[RunGroup] = []
    waiting = {own.configuration: own for own in groups}
    while waiting:
        ready = (own for own in waiting.values() if own.first_stage not in waiting)
        following = min(ready, key=lambda own: (not own.is_begun, own.work))
        ordered.append(waiting.pop(following.configuration))
    return ordered


def queue_seconds(groups: Sequence[RunGroup], devices: int) -> float:
    """Wall time of runs that begin in order, each as soon as a device is free, a cascade after its first stage."""
    free_at = [0.0] * devices
    begun: set[str] = set()
    for own in groups:
        if own.first_stage in begun:
            free_at = [max(free_at)] * devices
        for needed in own.needed.values():
            heapq.heapreplace(free_at, free_at[0] + needed)
        begun.add(own.configuration)
    return max(free_at)


def _fit(groups: Sequence[RunGroup], seconds: float, devices: int) -> bool:
    share = SHARE_OF_BEGUN if all(own.is_begun for own in groups) else 1.0
    return share * queue_seconds(groups, devices) <= seconds


def _fitting_part(group: RunGroup, seconds: float, devices: int, at_least: int) -> RunGroup:
    """As many runs of a group as fit, in order."""
    counts = range(len(group.needed) + 1)
    parts = [replace(group, needed=dict(islice(group.needed.items(), count))) for count in counts]
    fitting = sum(_fit([part], seconds, devices) for part in parts[1:])
    return parts[max(fitting, at_least)]


def time_span(seconds: float) -> str:
    """A span of time as `--budget` takes it, rounded up: 90s, 12m, 3h20m."""
    unit = next(unit for limit, unit in ((120.0, 10), (7200.0, 60), (math.inf, 600)) if seconds <= limit)
    whole = math.ceil(seconds / unit) * unit
    if unit == 10:
        return f"{whole}s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}h" * (hours > 0) + f"{minutes}m" * (minutes > 0)


def run_deadline(
    deadline: float | None, run: Run, weights: Mapping[Run, float], spent: Mapping[Run, float], devices: int, now: float
) -> float | None:
    """`time.monotonic()` at which a run must be over, so that every run gets its share of what is left.

    Args:
        deadline: of the whole queue, or None.
        run: one of `weights`, about to begin.
        weights: of the runs that share the time, those at work included: what a run needs to be useful.
        spent: seconds that each of them had before.
        devices: that work at the same time.
        now: `time.monotonic()`.
    """
    if deadline is None:
        return None
    left = max(0.0, deadline - now)
    runs = list(weights)
    rounds = -(-len(runs) // devices)
    had = [spent[own] for own in runs]
    share = fair_shares(left * len(runs) / rounds, had, list(weights.values()))[runs.index(run)]
    return now + min(left, share)


def spent_seconds(run: Run) -> float:
    """Wall time of all work on a run."""
    return wall_seconds(read_intervals(run.folder.root), float("inf"))


def fair_shares(seconds: float, spent: Sequence[float], weights: Sequence[float]) -> tuple[float, ...]:
    """Seconds that each run still gets of a common budget, so that totals come as near to the weights as possible.

    A run that had more than its share already gets nothing more; the others share what is left.

    Args:
        seconds: left to share out.
        spent: seconds that each run had before.
        weights: in proportion to which the totals should be.
    """
    level, weight, remaining = 0.0, 0.0, max(0.0, seconds)
    ordered = sorted((had / own, own) for had, own in zip(spent, weights, strict=True))
    for count, (had, own) in enumerate(ordered, start=1):
        weight += own
        following = ordered[count][0] if count < len(ordered) else float("inf")
        level = had + remaining / weight
        if level <= following:
            break
        remaining -= weight * (following - had)
    return tuple(max(0.0, level * own - had) for had, own in zip(spent, weights, strict=True))


def _all_intervals(runs: Sequence[Run]) -> Iterator[WorkInterval]:
    """Of the runs, and of what their configurations share (preparing cases)."""
    for folder in dict.fromkeys(folder for run in runs for folder in (run.folder.configuration, run.folder.root)):
        yield from read_intervals(folder)
