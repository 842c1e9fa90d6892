"""One line per epoch for people."""

from __future__ import annotations

import logging
from collections import deque
from datetime import datetime, timedelta
from statistics import median

from autoseg.training.callbacks.base import RunContext
from autoseg.training.loop import Callback, EpochResult
from autoseg.training.optimization import mean_cost
from autoseg.training.step import TrainingState
from autoseg.training.validation import class_dice

STARVING = 0.1
"""Share of an epoch spent waiting for batches from which on it is said what helps (assumption)."""

RECENT_EPOCHS = 5
"""Epochs that say how fast a training is: their median, so that a pause of the machine does not count (assumption)."""

_log = logging.getLogger(__name__)


def _pace(result: EpochResult) -> str:
    busy = "" if result.busy_share is None else f", GPU {100 * result.busy_share:.0f} % busy"
    return f"{result.seconds:.1f} s, {100 * result.data_wait_share:.0f} % waiting for data{busy}"


class EpochLogger(Callback):
    """Logs loss, Dice, pace and the expected end after each epoch."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._has_warned = False
        self._paces: deque[float] = deque(maxlen=RECENT_EPOCHS)  # seconds per step with the planned patch

    def after_epoch(self, result: EpochResult, state: TrainingState) -> None:
        """Logs the epoch."""
        parts = [f"{self._run.title}: epoch {result.epoch + 1}/{state.epochs}"]
        parts.append("no finite loss" if result.loss is None else f"loss {result.loss:.3f}")
        if result.scores and result.scores.mean_dice is not None:
            dice = class_dice(self._run.classes, result.scores)
            classes = ", ".join(f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in dice.items())
            parts.append(f"Dice {result.scores.mean_dice:.3f} ({classes}), smoothed {state.ema_dice:.3f}")
        parts.append(_pace(result))
        left = timedelta(seconds=self._seconds_left(result, state))
        end = datetime.now() + left
        parts.append(f"ends {end:%H:%M}" if left < timedelta(hours=12) else f"ends {end:%Y-%m-%d %H:%M}")
        _log.info("%s", " | ".join(parts))
        if result.busy_share is not None and result.data_wait_share > STARVING:
            self._say_what_helps(result)

    def _say_what_helps(self, result: EpochResult) -> None:
        """Once, for a GPU that waits for data."""
        if self._has_warned:
            return
        self._has_warned = True
        readers = self._run.readers
        _log.warning(
            "%s: %.0f %% of the time the GPU waits for data, as %s cut and augment its batches do not keep up; what "
            "helps is more of them (--jobs), a faster disk for the work folder, or fewer transforms (`augmentation` in "
            "a recipe)",
            self._run.title,
            100 * result.data_wait_share,
            "the threads that" if readers is None else f"the {readers} threads that",
        )

    def _seconds_left(self, result: EpochResult, state: TrainingState) -> float:
        """At the median pace of the newest epochs; steps with larger patches take longer."""
        costs = self._run.costs
        self._paces.append(result.seconds / state.steps_per_epoch / costs[state.stage])
        average = mean_cost(state.segment.at(state.step), costs)
        return median(self._paces) * average * max(0, state.segment.end - state.step)
