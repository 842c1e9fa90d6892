"""The training loop: epochs of steps, each followed by a quick validation and by whoever watches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from autoseg.training.step import TrainingState, note_loss
from autoseg.training.validation import OnlineScores, smoothed

T_co = TypeVar("T_co", covariant=True)

_log = logging.getLogger(__name__)


class Batches(Protocol[T_co]):
    """An endless iterator that knows how long its user waited."""

    waited_seconds: float

    def __next__(self) -> T_co:
        """The next batch."""

    def __iter__(self) -> Iterator[T_co]:
        """Itself."""


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
    """

    epoch: int
    loss: float | None
    scores: OnlineScores | None
    seconds: float
    data_wait_share: float
    lr: float


Watcher = Callable[[EpochResult, TrainingState], None]


def fit(
    state: TrainingState,
    batches: Batches[Any],
    take_step: Callable[[TrainingState, Any], tuple[float, Sequence[str]]],
    validate: Callable[[TrainingState], OnlineScores | None],
    watchers: Sequence[Watcher],
    after_step: Callable[[TrainingState], None],
) -> None:
    """Trains until the state's horizon is reached.

    Args:
        state: where to go on from; changed in place.
        batches: from number `state.step` on.
        take_step: updates the state with one batch; gives the loss and the batch's cases.
        validate: scores the network after each epoch.
        watchers: called after each epoch, in order, with its result and the state.
        after_step: called after each step; may move the horizon, or raise to stop.
    """
    while not state.is_finished:
        result = _epoch(state, batches, take_step, validate, after_step)
        state.epoch += 1
        state.epoch_begin = state.step
        state.losses = []
        state.ema_dice = smoothed(state.ema_dice, result.scores.mean_dice if result.scores else None)
        for watcher in watchers:
            watcher(result, state)


def _epoch(
    state: TrainingState,
    batches: Batches[Any],
    take_step: Callable[[TrainingState, Any], tuple[float, Sequence[str]]],
    validate: Callable[[TrainingState], OnlineScores | None],
    after_step: Callable[[TrainingState], None],
) -> EpochResult:
    begin, waited_before = time.perf_counter(), batches.waited_seconds
    while state.step < state.end_of_epoch:
        told = note_loss(state, *take_step(state, next(batches)))
        if told:
            _log.warning(told)
            state.events.append(told)
        after_step(state)
    scores = validate(state)
    seconds = time.perf_counter() - begin
    return EpochResult(
        epoch=state.epoch,
        loss=sum(state.losses) / len(state.losses) if state.losses else None,
        scores=scores,
        seconds=seconds,
        data_wait_share=(batches.waited_seconds - waited_before) / max(seconds, 1e-9),
        lr=float(state.optimizer.param_groups[0]["lr"]),
    )
