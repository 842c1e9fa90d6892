"""Training that ends in time: how many steps fit, asked again as the speed becomes known."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from autoseg.training.loop import Callback, EpochResult
from autoseg.training.optimization import mean_cost
from autoseg.training.step import TrainingState

if TYPE_CHECKING:
    from autoseg.training.recipe import Recipe

FEWEST_EPOCHS = 10
"""Epochs are shortened until this many fit (assumption: enough for a smoothed Dice and for checkpoints)."""

VALIDATION_COST = 0.4
"""Seconds of scoring a batch / seconds of a training step (assumption: the forward pass is a third, plus reading)."""

SAFETY = 0.01
"""Share of the remaining time that is not planned with."""

REPLAN_SHARE = 0.02
"""The end is planned again whenever this share of the training time has passed."""

WORTH_RECORDING = 0.05
"""A move of the end by less than this share of the steps is not written into the history."""

EPOCH_TOLERANCE = 0.25
"""Epochs keep their length while the fitting one differs by less than this share."""

_SETTLING_STEPS = 2  # not counted: caches fill, kernels are chosen

FEWEST_STEPS = 2 * _SETTLING_STEPS + 1
"""Planned to begin with, however slow steps seem to be: after these the plan is made again with what they took."""

_LEAST_GAIN = 0.005  # a later end that gains less than this share of the steps changes nothing


def fit_epochs(recipe: Recipe, seconds: float, step_seconds: float) -> Recipe:
    """The recipe with as many epochs as fit into `seconds`, shorter ones if fewer than ten would fit.

    Args:
        recipe: its number of epochs does not matter.
        seconds: for training and the validation after each epoch.
        step_seconds: of one training step, on average.
    """
    scoring = VALIDATION_COST * recipe.validation_steps / recipe.steps_per_epoch
    steps = max(FEWEST_STEPS, int(seconds / (step_seconds * (1 + scoring))))
    per_epoch = max(1, min(recipe.steps_per_epoch, steps // FEWEST_EPOCHS))
    warmup_steps = min(recipe.warmup_steps, steps // FEWEST_EPOCHS)
    return replace(
        recipe,
        epochs=-(-steps // per_epoch),
        steps_per_epoch=per_epoch,
        validation_steps=validation_steps(recipe, per_epoch),
        warmup_steps=warmup_steps,
    )


def no_reserve(_step_seconds: float) -> float:
    """Nothing comes after the training."""
    return 0.0


class TimeBudget(Callback):
    """Keeps the end of the training at a deadline by moving the end of the schedule; the last of the callbacks.

    The pace is measured over the steps since the last plan and half of those before, so that it follows a machine that
    becomes slower or faster. Steps that end up behind the moved end are not taken; the learning rate goes on from where
    it stands (`ScheduleSegment`). Where patches grow, the steps to come are planned with what they will cost, so that
    every stage gets its share of the steps left.
    """

    def __init__(
        self,
        deadline: float,
        longest_epoch: int,
        reserve: Callable[[float], float] = no_reserve,
        clock: Callable[[], float] = time.monotonic,
        costs: Sequence[float] = (1.0,),
        most_steps: float = math.inf,
    ) -> None:
        """Starts the clock.

        Args:
            deadline: clock time at which everything must be over.
            longest_epoch: steps that an epoch has if time allows.
            reserve: seconds to keep for what comes after the training, as a function of the seconds per step.
            clock: gives the time in seconds.
            costs: of a step in each stage of a growing patch / cost in the last one.
            most_steps: of the whole training, however much time is left.
        """
        self._deadline, self._longest_epoch, self._reserve, self._clock = deadline, longest_epoch, reserve, clock
        self._costs, self._most_steps = costs, most_steps
        self._begin = self._mark = self._planned_at = clock()
        self._taken = 0  # steps since the clock started
        self._step_seconds = self._steps = 0.0  # of the measured steps, in full ones; older ones with less weight
        self._between_seconds = 0.0  # from the last step of an epoch to the first of the next

    def after_step(self, state: TrainingState) -> None:
        """Notes the time of a step; plans again when enough time has passed."""
        now = self._clock()
        self._taken += 1
        if self._taken > _SETTLING_STEPS:
            self._step_seconds += now - self._mark
            self._steps += self._costs[state.stage]
        self._mark = now
        is_first = self._taken == 2 * _SETTLING_STEPS
        is_last = state.step >= state.segment.end  # unless a pause of the machine was taken for its speed
        if is_first or is_last or now - self._planned_at > REPLAN_SHARE * (self._deadline - self._begin):
            self.plan(state)

    def after_epoch(self, _result: EpochResult, state: TrainingState) -> None:
        """Notes the time of the validation and of the callbacks before this one."""
        now = self._clock()
        passed = now - self._mark
        self._between_seconds = passed if not self._between_seconds else 0.5 * (passed + self._between_seconds)
        self._mark = now
        self.plan(state)

    def plan(self, state: TrainingState) -> None:
        """Moves the end of the training to where the deadline is, with the pace measured lately."""
        now = self._clock()
        self._planned_at = now
        if not self._steps:
            if now >= self._deadline:
                state.segment = state.segment.moved(state.step, state.step)
            return
        own = self._step_seconds / self._steps
        left = (self._deadline - now - self._reserve(own)) * (1 - SAFETY) - self._between_seconds
        own *= mean_cost(state.segment.at(state.step), self._costs)
        per_step = own + (self._between_seconds or VALIDATION_COST * own) / state.steps_per_epoch
        end = state.step + max(0, int(min(left / per_step, self._most_steps - state.step)))
        self._step_seconds, self._steps = 0.5 * self._step_seconds, 0.5 * self._steps
        before = state.segment.end
        if end < before or end > before * (1 + _LEAST_GAIN):
            state.segment = state.segment.moved(state.step, end)
            if abs(end - before) > WORTH_RECORDING * before:
                state.events.append(f"step {state.step}: the training now ends at step {end} instead of {before}")
        fitting = max(1, min(self._longest_epoch, end // FEWEST_EPOCHS))
        if abs(fitting - state.steps_per_epoch) > EPOCH_TOLERANCE * state.steps_per_epoch:
            # An epoch is never cut to fewer steps than it already has; it then ends now.
            state.steps_per_epoch = max(fitting, state.step - state.epoch_begin)


def validation_steps(recipe: Recipe, steps_per_epoch: int) -> int:
    """Batches to score after an epoch that has other steps than the recipe's: in proportion, rounded up."""
    return -(-recipe.validation_steps * steps_per_epoch // recipe.steps_per_epoch)
