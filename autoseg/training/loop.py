"""The training loop: epochs of steps, each followed by a quick validation and by the callbacks."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from autoseg.core.errors import Interrupted
from autoseg.training.step import TrainingState, note_loss
from autoseg.training.validation import OnlineScores, smoothed

if TYPE_CHECKING:
    from autoseg.training.batches import Prefetcher

_log = logging.getLogger(__name__)

TakeStep = Callable[[TrainingState, Any], tuple[Tensor, Sequence[str]]]
"""Updates a state with one batch; gives its loss, a number on the device, and its cases."""


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
        busy_share: share of the steps' time in which a GPU worked on them; None on a CPU, which computes all the time.
    """

    epoch: int
    loss: float | None
    scores: OnlineScores | None
    seconds: float
    data_wait_share: float
    lr: float
    events: tuple[str, ...] = ()
    busy_share: float | None = None


class Unread(NamedTuple):
    """A loss on its way to the host, where it is once the second mark has come; without marks it is there already."""

    step: int
    loss: Tensor
    cases: Sequence[str]
    marks: tuple[torch.cuda.Event, torch.cuda.Event] | None


@dataclass(slots=True)
class Losses:
    """Losses of an epoch's steps on their way from the device into the state.

    On a GPU they are read a step late: the copy to the host stands in the queue right behind its step, and while the
    host waits for it, the device works on the next one. So the device never runs out of work, and the host is never
    more than a step ahead of it.

    Attributes:
        state: that notes them.
        unread: oldest first.
        busy_seconds: that a GPU spent on steps.
    """

    state: TrainingState
    unread: deque[Unread] = field(default_factory=deque)
    busy_seconds: float = 0.0

    def take(self, take_step: TakeStep, batch: Any) -> None:
        """Queues a step and notes the loss of the one before; on a CPU takes the step and notes its loss."""
        device = next(self.state.network.parameters()).device
        if device.type != "cuda":
            loss, cases = take_step(self.state, batch)
            self.unread.append(Unread(self.state.step, loss.cpu(), cases, None))
            self.note()
            return
        stream = torch.cuda.current_stream(device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record(stream)
        loss, cases = take_step(self.state, batch)
        self.unread.append(Unread(self.state.step, loss.to("cpu", non_blocking=True), cases, (begin, end)))
        end.record(stream)
        self.note(late=1)

    def note(self, late: int = 0) -> None:
        """Notes all but the last `late` losses.

        Raises:
            TrainingStopped: too many in a row were not finite.
        """
        while len(self.unread) > late:
            step, loss, cases, marks = self.unread.popleft()
            if marks is not None:
                begin, end = marks
                end.synchronize()
                self.busy_seconds += begin.elapsed_time(end) / 1000
            message = note_loss(self.state, float(loss), step, cases)
            if message:
                _log.warning(message)
                self.state.events.append(message)


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
    take_step: TakeStep,
    validate: Callable[[TrainingState], OnlineScores | None],
    callbacks: Sequence[Callback] = (),
) -> None:
    """Trains to the end of the state's schedule, or until a larger patch is due.

    Args:
        state: where to go on from; changed in place.
        batches: from number `state.step` on.
        take_step: updates the state with one batch.
        validate: scores the network after each epoch.
        callbacks: called in order.

    Raises:
        Interrupted: by `validate` or a callback, after `on_interrupt` of every callback.
        TrainingStopped: the loss stayed non-finite, or a batch could not be made.
    """
    try:
        while not state.is_finished and state.due_stage == state.stage:
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
    take_step: TakeStep,
    validate: Callable[[TrainingState], OnlineScores | None],
    callbacks: Sequence[Callback],
) -> EpochResult:
    begin, waited_before = time.perf_counter(), batches.waited_seconds
    losses = Losses(state)
    try:
        while state.step < state.end_of_epoch:
            losses.take(take_step, next(batches))
            for callback in callbacks:
                callback.after_step(state)
    finally:
        losses.note()  # an interruption's checkpoint holds those of all steps done
    own_seconds = time.perf_counter() - begin
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
        busy_share=losses.busy_seconds / max(own_seconds, 1e-9) if losses.busy_seconds else None,
    )
