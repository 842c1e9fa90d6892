"""One optimizer step: forward, loss, backward, clip, update; a non-finite one is skipped.

On a GPU nothing here waits for the device: whether a step was finite is decided there, and the host reads the loss when
the next step is under way.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import AliasChoices, Field
from torch import Tensor, nn

from autoseg.core.errors import TrainingStopped
from autoseg.training.losses import Objective
from autoseg.training.optimization import (
    SCHEDULES,
    ScheduleSegment,
    make_optimizer,
    set_learning_rate,
    skips_on_device,
    stage_at,
    warmup,
)

if TYPE_CHECKING:
    from autoseg.training.recipe import Recipe  # whose callbacks need what stands here

_log = logging.getLogger(__name__)

MOST_SKIPPED_IN_A_ROW = 10
"""Non-finite steps after which training is not going to recover (assumption; single ones do occur)."""

DeviceStep = Callable[[Tensor, Tensor], Tensor]
"""(image, labels) -> loss: gradient, clipping and update; without a look at the device, the same for every batch."""

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Compute:
    """Where and how numbers are crunched; decided once at the start of a run.

    Attributes:
        device: of network and batches.
        precision: "fp32", "bf16" or "fp16" (of the forward pass; weights stay fp32).
        memory_format: "contiguous" or "channels_last".
    """

    device: torch.device
    precision: str = "fp32"
    memory_format: str = "contiguous"

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of a forward pass."""
        if self.precision not in AUTOCAST_TYPES:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=AUTOCAST_TYPES[self.precision])

    def place_network(self, network: nn.Module, dimensions: int) -> nn.Module:
        """The network on the device, its weights in the memory format."""
        return network.to(self.device).to(memory_format=self._format(dimensions))  # type: ignore[call-overload,no-any-return]

    def place_image(self, image: Tensor) -> Tensor:
        """An image batch (b, c, *patch) on the device in the memory format."""
        return image.to(self.device).contiguous(memory_format=self._format(image.ndim - 2))

    def _format(self, dimensions: int) -> torch.memory_format:
        if self.memory_format != "channels_last":
            return torch.contiguous_format
        return torch.channels_last_3d if dimensions == 3 else torch.channels_last


@dataclass(slots=True)
class TrainingProgress:
    """The numbers among all that changes while a network is trained, as a checkpoint's state.json holds them.

    Attributes:
        segment: where the schedule stands and ends.
        steps_per_epoch: steps between two validations; the last epoch may be shorter, and a time budget may change it.
        step: steps done.
        epoch: epochs done and recorded.
        epoch_begin: step at which the current epoch began.
        stage: of a growing patch, of the current epoch; 0 is the smallest patch.
        losses: of this epoch's steps so far, the finite ones.
        skipped_in_row: non-finite steps since the last good one.
        parts: that a batch is computed in, one after the other; more than 1 once the device ran out of memory.
        seconds: wall time of the run so far, all work intervals together.
        ema_dice: smoothed online Dice.
        history_lines: epochs written to the history.
        events: sentences to be written with the next epoch.
    """

    segment: Annotated[
        ScheduleSegment,
        Field(validation_alias=AliasChoices("segment", "horizon")),  # former name, in checkpoints until 2026-11
    ]
    steps_per_epoch: int
    step: int = 0
    epoch: int = 0
    epoch_begin: int = 0
    stage: int = 0
    losses: list[float] = field(default_factory=list)
    skipped_in_row: int = 0
    parts: int = 1
    seconds: float = 0.0
    ema_dice: float | None = None
    history_lines: int = 0
    events: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class TrainingState(TrainingProgress):
    """All that changes while a network is trained; a checkpoint holds all of it but how steps are run.

    Attributes:
        network: being trained.
        optimizer: with its momentum.
        scaler: loss scale, with fp16.
        averaged: moving average of the network, if the recipe wants one.
        stages: of the recipe's growing patch; 1 without growth.
        forward: what runs the network; differs from `network` when it is compiled.
        graph: what runs the part of a step that is the device's, in its own way; None where it is simply called.
        gradient: what computes loss and gradient of a batch, in its own way; None for all of it at once.
        started_with: SHA-256 of the record that the training was started with; empty where there is none.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None = None
    averaged: nn.Module | None = None
    stages: int = 1
    forward: Callable[..., Any] | None = None
    graph: Callable[[DeviceStep, Tensor, Tensor], Tensor] | None = None
    gradient: Callable[[Tensor, Tensor, Objective, Compute], Tensor] | None = None
    started_with: str = ""

    @property
    def epochs(self) -> int:
        """Epochs of the whole training, a shorter last one included."""
        return self.epoch + math.ceil((self.segment.end - self.epoch_begin) / self.steps_per_epoch)

    @property
    def is_finished(self) -> bool:
        """Whether every step is done and every epoch recorded."""
        return self.step >= self.segment.end and self.step == self.epoch_begin

    @property
    def end_of_epoch(self) -> int:
        """Step at which the current epoch ends."""
        return min(self.segment.end, self.epoch_begin + self.steps_per_epoch)

    @property
    def due_stage(self) -> int:
        """Stage of the next step: that of the middle of its epoch, as it changes between epochs only; never back."""
        if self.step > self.epoch_begin:
            return self.stage
        return max(self.stage, stage_at(self.segment.at(self.step + self.steps_per_epoch // 2), self.stages))

    @property
    def final_network(self) -> nn.Module:
        """The network that is validated and used for prediction."""
        return self.network if self.averaged is None else self.averaged


def start_state(network: nn.Module, recipe: Recipe, compute: Compute, dimensions: int) -> TrainingState:
    """The state before the first step.

    Args:
        network: with fresh weights; moved to the device.
        recipe: optimizer, length, average.
        compute: device, precision and memory format.
        dimensions: 2 or 3.
    """
    network = compute.place_network(network, dimensions)
    averaged = copy.deepcopy(network).requires_grad_(False) if recipe.ema_decay > 0 else None
    uses_scaler = compute.precision == "fp16" and compute.device.type == "cuda"
    return TrainingState(
        network=network,
        optimizer=make_optimizer(network.parameters(), recipe, compute.precision),
        segment=ScheduleSegment(0, 0.0, recipe.epochs * recipe.steps_per_epoch),
        steps_per_epoch=recipe.steps_per_epoch,
        scaler=torch.amp.GradScaler("cuda") if uses_scaler else None,
        averaged=averaged,
        stages=len(recipe.patch_growth) + 1,
        forward=network,
    )


def learning_rate(state: TrainingState, recipe: Recipe) -> float:
    """The learning rate of the next step."""
    step = state.step
    if recipe.lr_update == "epoch":
        step = max(state.segment.step, state.epoch_begin)
    return recipe.lr * SCHEDULES[recipe.schedule](state.segment.at(step)) * warmup(state.step, recipe.warmup_steps)


def train_step(
    state: TrainingState, image: Tensor, labels: Tensor, objective: Objective, recipe: Recipe, compute: Compute
) -> Tensor:
    """Updates the network with one batch and returns the loss: a number on the device.

    A step whose loss or gradient is not finite changes nothing but the number of steps, and its loss is not-a-number.

    Args:
        state: changed: network, optimizer, average, `step`.
        image: (b, c, *patch) on the device.
        labels: (b, *patch) on the device, without -1.
        objective: the loss of all levels' logits.
        recipe: learning rate, clipping, average.
        compute: precision.
    """
    state.network.train()
    set_learning_rate(state.optimizer, learning_rate(state, recipe))

    def on_device(image: Tensor, labels: Tensor) -> Tensor:
        value = _gradient_in_parts(state, image, labels, objective, compute)
        return value.where(_update(state, value, recipe), math.nan)

    loss = on_device(image, labels) if state.graph is None else state.graph(on_device, image, labels)
    state.step += 1
    # On the device the average takes the weights of a skipped step, which are those of the step before, once more.
    if state.averaged is not None and (skips_on_device(state.optimizer) or not math.isnan(loss)):
        update_average(state.averaged, state.network, min(recipe.ema_decay, state.step / (state.step + 9)))
    return loss


def _gradient_in_parts(
    state: TrainingState, image: Tensor, labels: Tensor, objective: Objective, compute: Compute
) -> Tensor:
    """The loss of a batch, whose gradient it puts into the parameters; in parts of half the size if memory runs out.

    Gradients of the parts are added up, weighted by their patches. That is the batch's gradient, but for Dice pooled
    over the batch and for cross-entropy with an ignore label: each part then has its own.

    Raises:
        torch.OutOfMemoryError: a single patch does not fit either.
    """
    while True:
        try:
            return _gradient(state, image, labels, objective, compute)
        except torch.OutOfMemoryError:
            is_recording = image.is_cuda and torch.cuda.is_current_stream_capturing()
            if is_recording or state.parts >= len(image):  # recording takes more memory than the steps that fit
                raise
        # only here, where the error's traceback holds no tensors any more, is their memory free
        state.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        state.parts = min(2 * state.parts, len(image))
        message = (
            f"step {state.step + 1}: {compute.device} ran out of memory; batches of {len(image)} patches are computed "
            f"in {state.parts} parts from here on, and their gradients added up"
        )
        _log.warning(message)
        state.events.append(message)


def _gradient(state: TrainingState, image: Tensor, labels: Tensor, objective: Objective, compute: Compute) -> Tensor:
    state.optimizer.zero_grad(set_to_none=True)
    if state.gradient is not None:
        return state.gradient(image, labels, objective, compute)
    values = []
    for own, target in zip(image.chunk(state.parts), labels.chunk(state.parts), strict=True):
        with compute.autocast():
            value = objective((state.forward or state.network)(own, deep_supervision=True), target)
        if len(own) < len(image):
            value = value * (len(own) / len(image))
        (value if state.scaler is None else state.scaler.scale(value)).backward()  # type: ignore[no-untyped-call]
        values.append(value.detach())
    return values[0] if len(values) == 1 else torch.stack(values).sum()


def _update(state: TrainingState, value: Tensor, recipe: Recipe) -> Tensor:
    """Clipping and optimizer step, which changes nothing unless loss and gradient are finite: that is returned.

    A loss scaler deals with overflows of the gradient itself; they are part of how it works.
    """
    scaler, optimizer = state.scaler, state.optimizer
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), recipe.gradient_clip)
    is_finite = torch.isfinite(value)
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
        return is_finite
    is_finite = is_finite & torch.isfinite(norm)
    if skips_on_device(optimizer):
        optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]  # what a GradScaler would set
        optimizer.step()
    elif bool(is_finite):
        optimizer.step()
    return is_finite


@torch.no_grad()
def update_average(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """Moves the averaged weights toward the network's: `decay` of the old, the rest of the new."""
    torch._foreach_lerp_(list(averaged.parameters()), list(network.parameters()), 1.0 - decay)


def note_loss(state: TrainingState, loss: float, step: int, cases: Sequence[str]) -> str | None:
    """Keeps a finite loss; for a non-finite one returns a sentence about it, or stops when they repeat.

    Args:
        state: changed: `losses`, `skipped_in_row`.
        loss: read from the device.
        step: its number, from 1.
        cases: of its batch.

    Raises:
        TrainingStopped: `MOST_SKIPPED_IN_A_ROW` steps in a row were not finite.
    """
    if math.isfinite(loss):
        state.losses.append(loss)
        state.skipped_in_row = 0
        return None
    state.skipped_in_row += 1
    named = ", ".join(sorted(set(cases)))
    if state.skipped_in_row >= MOST_SKIPPED_IN_A_ROW:
        raise TrainingStopped(
            f"the loss was not finite in {state.skipped_in_row} steps in a row",
            where=f"last cases: {named}",
            why="the learning rate is too high, half precision overflows, or these cases hold extreme intensities",
            do="look at the cases; or lower `lr` or set `precision: fp32` in a recipe, and train with --fresh",
        )
    return f"step {step}: the loss or its gradient is not finite, step skipped (cases {named})"
