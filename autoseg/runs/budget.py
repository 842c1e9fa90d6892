"""A time budget for a whole queue: what was spent on it, and until when the next run may work.

A killed process cannot say how long it lived. So a run that is worked on notes every second that it still is, in a
file beside it; what a kill hides is shorter than that. Several processes work at once on several devices: the wall time
spent on a queue is the length of the union of all their work intervals.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, Field

from autoseg.core.errors import MissingInput, RecordFault, UsageError
from autoseg.core.records import load, record, save
from autoseg.runs.queue import Queue, TrainOptions
from autoseg.runs.run import Run

HEARTBEAT_SECONDS = 1.0
"""Between two notes that work goes on (assumption: far above the milliseconds that a note takes)."""

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
        UsageError: earlier work has used it up, and there is work left.
    """
    if options.budget_seconds is None:
        return None
    started = time.time() - (time.monotonic() - options.started)
    spent = 0.0 if options.is_fresh else wall_seconds(_all_intervals(queue.runs), started)
    if spent >= options.budget_seconds and queue.open_runs:
        raise UsageError(
            f"the budget of {options.budget_seconds:g} s is used up: {spent:.0f} s were spent on this queue before",
            where="--budget",
            do="give a larger --budget for the whole; what is done stays done",
        )
    if spent:
        _log.info("%.0f of the budget's %g s were spent on this queue before", spent, options.budget_seconds)
    return options.started + options.budget_seconds - spent


def run_deadline(deadline: float | None, run: Run, open_runs: Sequence[Run], devices: int, now: float) -> float | None:
    """`time.monotonic()` at which a run must be over, so that every open run gets its share of what is left.

    Args:
        deadline: of the whole queue, or None.
        run: one of `open_runs`, about to begin.
        open_runs: those neither done nor given up, the ones at work included.
        devices: that work at the same time.
        now: `time.monotonic()`.
    """
    if deadline is None:
        return None
    left = max(0.0, deadline - now)
    rounds = -(-len(open_runs) // devices)
    spent = [wall_seconds(read_intervals(own.folder.root), float("inf")) for own in open_runs]
    share = fair_shares(left * len(open_runs) / rounds, spent)[open_runs.index(run)]
    return now + min(left, share)


def fair_shares(seconds: float, spent: Sequence[float]) -> tuple[float, ...]:
    """Seconds that each run still gets of a common budget, so that all come as near to the same total as possible.

    A run that had more than its share already gets nothing more; the others share what is left.

    Args:
        seconds: left to share out.
        spent: seconds that each run had before.
    """
    level, remaining = 0.0, max(0.0, seconds)
    ordered = sorted(spent)
    for count, own in enumerate(ordered, start=1):
        following = ordered[count] if count < len(ordered) else float("inf")
        level = own + remaining / count
        if level <= following:
            break
        remaining -= count * (following - own)
    return tuple(max(0.0, level - own) for own in spent)


def _all_intervals(runs: Sequence[Run]) -> Iterator[WorkInterval]:
    """Of the runs, and of what their configurations share (preparing cases)."""
    for folder in dict.fromkeys(folder for run in runs for folder in (run.folder.configuration, run.folder.root)):
        yield from read_intervals(folder)
