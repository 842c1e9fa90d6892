"""How far a queue is and when it will end: one row per run, read from what the runs write."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median

from autoseg.planning.plan import Configuration
from autoseg.runs.queue import Queue
from autoseg.runs.run import Run, RunResult, RunStatus
from autoseg.training.callbacks.epoch_logger import RECENT_EPOCHS
from autoseg.training.callbacks.history import last_history, recent_history

REPORT_SECONDS = 1.0
"""Between two looks at where every run stands."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunProgress:
    """Where a run stands.

    Attributes:
        run: of the queue.
        state: "waiting", "training", "validating", "done", or what its result says.
        epochs: done.
        epochs_planned: in all.
        dice: mean over the classes: of the whole validation cases, before that the smoothed one of patches.
    """

    run: Run
    state: str
    epochs: int
    epochs_planned: int
    dice: float | None


@dataclass(frozen=True, slots=True)
class QueueProgress:
    """Where a queue stands.

    Attributes:
        runs: in the order of the queue.
        ends_at: seconds since the epoch at which everything will be done; None if nothing says.
    """

    runs: tuple[RunProgress, ...]
    ends_at: float | None


@dataclass(slots=True)
class ProgressReporter:
    """Reports now and then where every run stands, and after each run when the whole will end.

    Attributes:
        queue: to report on.
        deadline: `time.monotonic()` at which the budget is used up, or None.
        devices: that work at the same time.
        on_progress: called with every report, or None.
        results: of the runs that are through; shared with the schedule that fills it.
        steps: done and in all, of the runs at work.
    """

    queue: Queue
    deadline: float | None
    devices: int
    on_progress: Callable[[QueueProgress], None] | None
    results: dict[Run, RunResult]
    steps: dict[Run, tuple[int, int]] = field(default_factory=dict)
    _reported_at: float = 0.0

    def step(self, run: Run, done: int, total: int) -> None:
        """Notes the steps of a run at work."""
        self.steps[run] = (done, total)
        if self.on_progress is not None and time.monotonic() - self._reported_at >= REPORT_SECONDS:
            self._reported_at = time.monotonic()
            self.on_progress(self.now())

    def run_ended(self, run: Run) -> None:
        """Says how many runs are done and when the last will be."""
        self.steps.pop(run, None)
        now = self.now()
        done = sum(own.state == "done" for own in self.results.values())
        end = f"; the whole ends about {clock_time(now.ends_at)}" if now.ends_at else ""
        if len(self.queue.runs) > 1:
            _log.info("%d of %d runs done%s", done, len(self.queue.runs), end)
        if self.on_progress is not None:
            self.on_progress(now)

    def now(self) -> QueueProgress:
        """Where every run stands now, and when the last will end."""
        runs = tuple(self._progress_of(run) for run in self.queue.runs)
        left = [own for own in runs if own.run not in self.results]
        return QueueProgress(runs, self._end_of(left) if left else None)

    def _end_of(self, left: list[RunProgress]) -> float | None:
        if self.deadline is not None:
            return time.time() + max(0.0, self.deadline - time.monotonic())
        pace = epoch_seconds(self.queue)
        if any(own.run.configuration not in pace for own in left):
            return None
        seconds = sum(pace[own.run.configuration] * max(0, own.epochs_planned - own.epochs) for own in left)
        return time.time() + seconds / min(self.devices, len(left))

    def _progress_of(self, run: Run) -> RunProgress:
        is_at_work = run in self.steps
        is_begun = run in self.results or self.queue.stages[run] == "started" or is_at_work
        status = run.status if is_begun else None
        epochs, planned, dice = 0, self.queue.recipe.epochs, None
        if status is not None:
            epochs, planned, dice = status.epochs, status.epochs_planned, status.dice
        if is_at_work and (entry := last_history(run.folder.history)) is not None:
            epochs, dice = int(entry["epoch"]) + 1, entry["ema_dice"]
            planned = max(epochs, round(epochs * self.steps[run][1] / max(1, int(entry["step"]))))
        return RunProgress(run, self._state_of(run, status), epochs, planned, dice)

    def _state_of(self, run: Run, status: RunStatus | None) -> str:
        if run in self.results:
            return self.results[run].state
        if run not in self.steps:
            return "waiting"
        done, total = self.steps[run]
        # state.json of a run that trains again after an interruption may still say that it was validating
        is_validating = status is not None and status.state == "validating" and done >= total
        return "validating" if is_validating else "training"


def epoch_seconds(queue: Queue) -> dict[str, float]:
    """Seconds per epoch by configuration, the median of the newest epochs of its runs.

    Where a configuration has none yet, that of another one counts, scaled by what its network computes. Empty before
    the first epoch of all.
    """
    measured: dict[str, list[float]] = {}
    for run in queue.runs:
        is_begun = queue.stages[run] != "new" or run.folder.recipe.exists()
        recent = recent_history(run.folder.history, RECENT_EPOCHS) if is_begun else []
        measured.setdefault(run.configuration, []).extend(float(entry["seconds"]) for entry in recent)
    known = {name: median(values) for name, values in measured.items() if values}
    if not known:
        return {}
    own = {run.configuration: queue.configuration_of(run) for run in queue.runs}
    reference, seconds = next(iter(known.items()))
    scale = seconds / step_work(own[reference])
    return {name: known.get(name, scale * step_work(configuration)) for name, configuration in own.items()}


def recent_step_seconds(run: Run) -> float | None:
    """Seconds per step of a run, scoring included: the median of its newest epochs; None before the second."""
    recent = recent_history(run.folder.history, RECENT_EPOCHS + 1)
    spans = [(own["seconds"], own["step"] - before["step"]) for own, before in pairwise(recent)]
    return median(seconds / steps for seconds, steps in spans if steps > 0) if spans else None


def clock_time(seconds: float) -> str:
    """A moment (seconds since the epoch) for people: the local time, with the date if it is far."""
    moment = datetime.fromtimestamp(seconds)
    is_soon = moment - datetime.now() < timedelta(hours=12)
    return f"{moment:%H:%M}" if is_soon else f"{moment:%Y-%m-%d %H:%M}"


def step_work(configuration: Configuration) -> float:
    """Of a training step, in elements of feature maps."""
    return float(configuration.estimated_feature_map_elements * configuration.batch_size)
