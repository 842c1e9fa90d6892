"""How far a queue is and when it will end: one row per run, read from what the runs write."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from autoseg.planning.plan import Configuration
from autoseg.runs.queue import Queue, QueuedRun, run_status
from autoseg.runs.records import RunStatus
from autoseg.training.callbacks.history import last_history

Steps = Mapping[tuple[str, int], tuple[int, int]]
"""(configuration, fold) -> (steps done, steps in all) of the runs at work."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """Where a run stands.

    Attributes:
        configuration: name.
        fold: number.
        state: "waiting", "training", "validating", "done", or what a report says.
        epochs: done.
        epochs_planned: in all.
        dice: mean over the classes: of the whole validation cases, before that the smoothed one of patches.
    """

    configuration: str
    fold: int
    state: str
    epochs: int
    epochs_planned: int
    dice: float | None


@dataclass(frozen=True, slots=True)
class Outlook:
    """Where a queue stands.

    Attributes:
        rows: in the order of the queue.
        ends_at: seconds since the epoch at which everything will be done; None if nothing tells.
    """

    rows: tuple[RunRow, ...]
    ends_at: float | None


def outlook(
    queue: Queue, settled: Mapping[tuple[str, int], str], at_work: Steps, deadline: float | None, devices: int
) -> Outlook:
    """Where every run stands now, and when the last will end.

    Args:
        queue: to look at.
        settled: state of each run that was come to, by configuration and fold.
        at_work: steps of the runs at work.
        deadline: `time.monotonic()` at which the budget is used up, or None.
        devices: that work at the same time.
    """
    rows = tuple(_row(run, settled, at_work, queue) for run in queue.runs)
    left = [
        (run, row)
        for run, row in zip(queue.runs, rows, strict=True)
        if (run.configuration.name, run.number) not in settled
    ]
    if not left:
        return Outlook(rows, None)
    if deadline is not None:
        return Outlook(rows, time.time() + max(0.0, deadline - time.monotonic()))
    pace = epoch_seconds(queue)
    if any(run.configuration.name not in pace for run, _ in left):
        return Outlook(rows, None)
    seconds = sum(pace[run.configuration.name] * max(0, row.epochs_planned - row.epochs) for run, row in left)
    return Outlook(rows, time.time() + seconds / min(devices, len(left)))


def epoch_seconds(queue: Queue) -> dict[str, float]:
    """Seconds per epoch by configuration, from the newest epochs of its runs.

    Where a configuration has none yet, that of another one counts, scaled by the voxels that its network computes.
    Empty before the first epoch of all.
    """
    measured: dict[str, list[float]] = {}
    own = {run.configuration.name: run.configuration for run in queue.runs}
    for run in queue.runs:
        entry = last_history(run.folder.history) if run.state != "new" or run.folder.recipe.exists() else None
        if entry is not None:
            measured.setdefault(run.configuration.name, []).append(float(entry["seconds"]))
    known = {name: sum(values) / len(values) for name, values in measured.items()}
    if not known:
        return {}
    reference, seconds = next(iter(known.items()))
    return {
        name: known.get(name, seconds * _cost(configuration) / _cost(own[reference]))
        for name, configuration in own.items()
    }


def clock_time(seconds: float) -> str:
    """A moment (seconds since the epoch) for people: the local time, with the date if it is far."""
    moment = datetime.fromtimestamp(seconds)
    is_soon = moment - datetime.now() < timedelta(hours=12)
    return f"{moment:%H:%M}" if is_soon else f"{moment:%Y-%m-%d %H:%M}"


def _cost(configuration: Configuration) -> float:
    """What a step costs, in elements of feature maps."""
    return float(configuration.estimated_feature_map_elements * configuration.batch_size)


def _row(run: QueuedRun, settled: Mapping[tuple[str, int], str], at_work: Steps, queue: Queue) -> RunRow:
    key = (run.configuration.name, run.number)
    entry = last_history(run.folder.history) if key in at_work else None
    status = run_status(run.folder) if key in settled or run.state == "started" or key in at_work else None
    state = settled.get(key) or (_working_state(at_work[key], status) if key in at_work else "waiting")
    epochs, planned, dice = 0, queue.recipe.epochs, None
    if status is not None:
        epochs, planned = status.epochs, status.epochs_planned
        dice = status.ema_dice if status.foreground_dice is None else status.foreground_dice
    if entry is not None:
        epochs, dice = int(entry["epoch"]) + 1, entry["ema_dice"]
        planned = max(epochs, round(epochs * at_work[key][1] / max(1, int(entry["step"]))))
    return RunRow(run.configuration.name, run.number, state, epochs, planned, dice)


def _working_state(steps: Sequence[int], status: RunStatus | None) -> str:
    is_validating = status is not None and status.state == "validating" and steps[0] >= steps[1]
    return "validating" if is_validating else "training"
