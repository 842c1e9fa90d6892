"""The training loop: epochs of steps, each followed by a quick validation and by the callbacks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoseg.core.errors import Interrupted
from autoseg.training.step import TrainingState, note_loss
from autoseg.training.validation import OnlineScores, smoothed

if TYPE_CHECKING:
    from autoseg.training.batches import Prefetcher

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EpochResult:
    """What an epoch gave.

    Attributes:
        epoch: its number, from 0.
        loss: mean over its steps; None if every step was skipped.
        scores: of the validation patches; None without validation cases.
        seconds: wall time of steps and validation.
        data_wait_share: share of it spent waiting for training batches.
        lr: learning rate of its last step.
        events: sentences about what was not as usual.
    """

    epoch: int
    loss: float | None
    scores: OnlineScores | None
    seconds: float
    data_wait_share: float
    lr: float
    events: tuple[str, ...] = ()


class Callback:
    """What happens between the steps of a training; a callback overrides the moments that it needs."""

    def after_step(self, state: TrainingState) -> None:
        """After each step; may move the end of the training, or raise to stop it."""

    def after_epoch(self, result: EpochResult, state: TrainingState) -> None:
        """After each epoch and its validation; `state.is_finished` says whether it was the last."""

    def on_interrupt(self, state: TrainingState) -> None:
        """When the training was interrupted, before `fit` passes the interruption on."""


def fit(
    state: TrainingState,
    batches: Prefetcher[Any],
    take_step: Callable[[TrainingState, Any], tuple[float, Sequence[str]]],
    validate: Callable[[TrainingState], OnlineScores | None],
    callbacks: Sequence[Callback] = (),
) -> None:
    """Trains to the end of the state's schedule.

    Args:
        state: where to go on from; changed in place.
        batches: from number `state.step` on.
        take_step: updates the state with one batch; gives the loss and the batch's cases.
        validate: scores the network after each epoch.
        callbacks: called in order.

    Raises:
        Interrupted: by `validate` or a callback, after `on_interrupt` of every callback.
        TrainingStopped: the loss stayed non-finite, or a batch could not be made.
    """
    try:
        while not state.is_finished:
            result = _epoch(state, batches, take_step, validate, callbacks)
            state.epoch += 1
            state.epoch_begin = state.step
            # Emptied before the callbacks: a checkpoint made by one of them must not hold what was recorded already.
            state.losses, state.events = [], []
            state.ema_dice = smoothed(state.ema_dice, result.scores.mean_dice if result.scores else None)
            for callback in callbacks:
                callback.after_epoch(result, state)
    except Interrupted:
        for callback in callbacks:
            callback.on_interrupt(state)
        raise


def _epoch(
    state: TrainingState,
    batches: Prefetcher[Any],
    take_step: Callable[[TrainingState, Any], tuple[float, Sequence[str]]],
    validate: Callable[[TrainingState], OnlineScores | None],
    callbacks: Sequence[Callback],
) -> EpochResult:
    begin, waited_before = time.perf_counter(), batches.waited_seconds
    while state.step < state.end_of_epoch:
        message = note_loss(state, *take_step(state, next(batches)))
        if message:
            _log.warning(message)
            state.events.append(message)
        for callback in callbacks:
            callback.after_step(state)
    scores = validate(state)
    seconds = time.perf_counter() - begin
    return EpochResult(
        epoch=state.epoch,
        loss=sum(state.losses) / len(state.losses) if state.losses else None,
        scores=scores,
        seconds=seconds,
        data_wait_share=(batches.waited_seconds - waited_before) / max(seconds, 1e-9),
        lr=float(state.optimizer.param_groups[0]["lr"]),
        events=tuple(state.events),
    )
