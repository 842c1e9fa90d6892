"""When a run was worked on: kept beside it, so that a time budget holds over interruptions of every kind.

A killed process cannot say how long it lived. So whoever works on a run says every few seconds that it still does;
what a kill hides is shorter than that. Several processes work at once on several devices: the wall time spent on a
queue is the length of the union of all their sittings.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from autoseg.core.errors import MissingInput, RecordFault
from autoseg.core.records import load, save

BEAT_SECONDS = 1.0
"""Between two notes that work goes on (assumption: far above the milliseconds that a note takes)."""

SITTINGS_FILE = "sittings.json"


@dataclass(frozen=True, slots=True)
class Sitting:
    """A time span of work, in seconds since the epoch."""

    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Sittings:
    """sittings.json: every time span in which a run was worked on under a budget."""

    sittings: tuple[Sitting, ...] = ()


def read_sittings(folder: Path) -> tuple[Sitting, ...]:
    """The sittings noted in a folder; none if there is no such note, or a damaged one."""
    try:
        return load(Sittings, folder / SITTINGS_FILE).sittings
    except (MissingInput, RecordFault):
        return ()


def wall_seconds(sittings: Iterable[Sitting], until: float) -> float:
    """Length of the union of sittings, as far as they lie before `until` (seconds since the epoch)."""
    total, reached = 0.0, float("-inf")
    for sitting in sorted(sittings, key=lambda own: own.begin):
        begin, end = max(sitting.begin, reached), min(sitting.end, until)
        total += max(0.0, end - begin)
        reached = max(reached, end)
    return total


@contextmanager
def sitting(folder: Path, begin: float, beat_seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """Notes work on a run from `begin` to the end of the block, and in between, now and then, that it goes on.

    Args:
        folder: where the note is kept.
        begin: of the work, which may have been prepared before; seconds since the epoch.
        beat_seconds: between two notes.
    """
    before = read_sittings(folder)
    is_over = threading.Event()

    def note() -> None:
        save(Sittings((*before, Sitting(begin, time.time()))), folder / SITTINGS_FILE)

    def beat() -> None:
        while not is_over.wait(beat_seconds):
            with suppress(OSError):  # a note is not worth stopping for; the next one, or the work itself, will tell
                note()

    note()
    beater = threading.Thread(target=beat, name="sitting", daemon=True)
    beater.start()
    try:
        yield
    finally:
        is_over.set()
        beater.join()
        note()
