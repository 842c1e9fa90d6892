"""What callbacks are given, and what keeps them from costing time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from autoseg.core.workspace import RunFolder


@dataclass(frozen=True, slots=True)
class RunContext:
    """The run that a callback belongs to.

    Attributes:
        title: configuration and fold, for people.
        folder: of the run.
        classes: names of the foreground classes, in the order of the scores.
        seconds: gives the wall time of the run so far, earlier work intervals included.
        save_status: writes the run's state.json.
        costs: of a step in each stage of a growing patch / cost in the last one.
        readers: threads that make batches; None where it is not known.
    """

    title: str
    folder: RunFolder
    classes: tuple[str, ...]
    seconds: Callable[[], float]
    save_status: Callable[[], None]
    costs: tuple[float, ...] = (1.0,)
    readers: int | None = None


@dataclass(slots=True)
class Throttle:
    """Lets repeated work take a certain share of the time at most.

    Attributes:
        share: of the time, in (0, 1].
        cost: seconds that the work took last time.
        last: `time.monotonic()` at its end; -inf before the first.
    """

    share: float
    cost: float = 0.0
    last: float = -math.inf

    def is_due(self) -> bool:
        """Whether enough time has passed since the work was done last."""
        return time.monotonic() - self.last >= self.cost / self.share

    def run(self, work: Callable[[], object]) -> None:
        """Does the work and notes how long it took."""
        begin = time.monotonic()
        work()
        self.last = time.monotonic()
        self.cost = self.last - begin
