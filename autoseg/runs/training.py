"""One training run from its first step to the validation of its fold."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoseg.augmentation.kinds import AUGMENTATIONS
from autoseg.augmentation.spec import AugmentationSpec, augmentation_spec
from autoseg.core.errors import Interrupted
from autoseg.core.files import remove_leftovers
from autoseg.core.records import save
from autoseg.core.registry import choose
from autoseg.inference.predictor import Predictor
from autoseg.planning.lateral import lateral_swap
from autoseg.runs.records import RunStatus
from autoseg.runs.setup import ENDING_SECONDS, Job, Run, set_up
from autoseg.runs.validation import FoldScores, ValidationPlan, make_predictor, measure_pace, validate_fold
from autoseg.training.batches import Prefetcher
from autoseg.training.callbacks.curves import draw_curves
from autoseg.training.callbacks.history import append_history, read_history, truncate_history
from autoseg.training.checkpoint import has_checkpoint, restore, save_best, save_checkpoint
from autoseg.training.loop import EpochResult, Watcher, fit
from autoseg.training.losses import LOSSES, supervised_loss
from autoseg.training.sampling import AUGMENTATION_STREAM, TRAINING_STREAM, VALIDATION_STREAM, Batch, Sampling
from autoseg.training.step import Loss, TrainingState, train_step
from autoseg.training.time_budget import Pacer, no_reserve, validation_steps
from autoseg.training.validation import OnlineScores, class_dice, score_patches

SAVING_SHARE = 0.02
"""Largest share of the time spent on checkpoints; a run that is killed loses about 50 times the cost of one."""

DRAWING_SHARE = 0.01
"""Largest share of the time spent on drawing the curves."""

_log = logging.getLogger(__name__)

Placed = tuple[Tensor, Tensor, tuple[str, ...]]  # image, labels, cases of a batch


def run_job(job: Job) -> RunStatus:
    """Trains and validates one run; what was done before is not done again.

    Raises:
        Interrupted: after a checkpoint was written.
        TrainingStopped: the loss stayed non-finite, or the store cannot be read.
    """
    begin = time.monotonic()
    remove_leftovers(job.folder.root)
    run = set_up(job)
    state = run.state
    if has_checkpoint(job.folder.checkpoint):
        generation = restore(state, job.folder.checkpoint)
        _log.info("%s: resumes at step %d of %d (%s)", job.title, state.step, state.horizon.end, generation.name)
    truncate_history(job.folder.history, state.history_lines)
    clock = _RunClock(begin, state.seconds)
    if not state.is_finished:
        _train(run, clock)
    return _validate(run, clock)


@dataclass(frozen=True, slots=True)
class _RunClock:
    begin: float
    seconds_before: float

    def seconds(self) -> float:
        """Wall time of the run, all sittings."""
        return self.seconds_before + time.monotonic() - self.begin


def _train(run: Run, clock: _RunClock) -> None:
    job, state, recipe = run.job, run.state, run.record.recipe
    loss = make_loss(run)
    pacer = _pacer(run)

    def take_step(now: TrainingState, batch: Placed) -> tuple[float, Sequence[str]]:
        image, labels, cases = batch
        return train_step(now, run.compute.place_image(image), labels, loss, recipe, run.compute), cases

    def after_step(now: TrainingState) -> None:
        if pacer:
            pacer.after_step(now)
        job.progress(now.step, now.horizon.end)
        job.check_stop()

    def validate(now: TrainingState) -> OnlineScores | None:
        return score_patches(now, _validation_batches(run), loss, run.compute, job.plan.labels)

    watchers: list[Watcher] = [_Diary(run, clock), _Curves(run)]
    if pacer:
        watchers.append(pacer.after_epoch)
    try:
        with Prefetcher(training_batches(run), state.step, job.readers) as batches:
            fit(state, batches, take_step, validate, watchers, after_step)
    except Interrupted as stop:
        state.seconds = clock.seconds()
        save_checkpoint(state, job.folder.checkpoint)
        save(_status(run, "training", clock), job.folder.state)
        raise Interrupted(
            f"{job.title} stopped at step {state.step} of {state.horizon.end}, checkpoint written",
            where=str(job.folder.root),
            do="run the same command again to go on from there",
        ) from stop


def _pacer(run: Run) -> Pacer | None:
    job = run.job
    if job.deadline is None:
        return None
    reserve = run.forecast.reserve if run.forecast else no_reserve
    return Pacer(job.deadline - ENDING_SECONDS, time.monotonic, run.record.asked.steps_per_epoch, reserve)


def make_loss(run: Run) -> Loss:
    """The recipe's loss with the dataset's classes."""
    kind = choose(run.record.recipe.loss, LOSSES, "loss")
    labels, batch_dice = run.job.plan.labels, run.job.configuration.batch_dice

    def loss(outputs: Any, target: Tensor) -> Tensor:
        return supervised_loss(kind, outputs, target, labels, batch_dice)

    return loss


def training_batches(run: Run) -> Callable[[int], Placed]:
    """Augmented batches on the device by number: cut in the thread that asks, a function of seed, fold and number."""
    job = run.job
    spec = augmentation_spec(job.configuration, job.previous_values, lateral_swap(job.plan, job.configuration))
    augment = choose(run.record.recipe.augmentation, AUGMENTATIONS, "augmentation")
    sampling = _sampling(run, spec, TRAINING_STREAM)

    def make(index: int) -> Placed:
        batch = sampling(index)
        seeds = np.random.SeedSequence([job.seed, job.number, AUGMENTATION_STREAM, index])
        generator = torch.Generator().manual_seed(int(seeds.generate_state(1)[0]))
        image, labels, previous = _tensors(batch, job.device)
        image, labels = augment(image, labels, spec, generator, previous)
        return image, labels, batch.cases

    return make


def _validation_batches(run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    """This epoch's validation patches, not augmented."""
    job = run.job
    count = validation_steps(run.record.asked, run.state.steps_per_epoch)
    if not job.fold.val or not count:
        return
    spec = augmentation_spec(job.configuration, job.previous_values)
    sampling = _sampling(run, spec, VALIDATION_STREAM)
    plain = AUGMENTATIONS["none"]
    first = run.state.epoch * run.record.asked.validation_steps
    with Prefetcher(sampling, first, min(job.readers, count)) as batches:
        for _ in range(count):
            job.check_stop()
            image, labels, previous = _tensors(next(batches), job.device)
            image, labels = plain(image, labels, spec, torch.Generator(), previous)
            yield run.compute.place_image(image), labels


def _sampling(run: Run, spec: AugmentationSpec, stream: int) -> Sampling:
    job, is_training = run.job, stream == TRAINING_STREAM
    return Sampling(
        cases=job.fold.train if is_training else job.fold.val,
        open_case=run.open_case,
        initial_patch=spec.initial_patch_size if is_training else spec.patch_size,
        patch=spec.patch_size,
        batch_size=job.configuration.batch_size,
        oversample_foreground=run.record.recipe.oversample_foreground,
        seed=(job.seed, job.number, stream),
    )


def _tensors(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    previous = None if batch.previous is None else torch.from_numpy(batch.previous).to(device)
    return torch.from_numpy(batch.image).to(device), torch.from_numpy(batch.labels).to(device), previous


@dataclass(slots=True)
class _Due:
    """Whether it is time again for something that may take a share of the time only."""

    share: float
    cost: float = 0.0
    last: float = -math.inf

    def is_due(self) -> bool:
        return time.monotonic() - self.last >= self.cost / self.share

    def time(self, work: Callable[[], object]) -> None:
        begin = time.monotonic()
        work()
        self.last = time.monotonic()
        self.cost = self.last - begin


@dataclass(slots=True)
class _Diary:
    """After each epoch: a line for people, a line in the history, and checkpoints as often as they are cheap."""

    run: Run
    clock: _RunClock
    checkpoints: _Due = field(default_factory=lambda: _Due(SAVING_SHARE / 2))
    best: _Due = field(default_factory=lambda: _Due(SAVING_SHARE / 2))

    def __call__(self, result: EpochResult, state: TrainingState) -> None:
        job = self.run.job
        state.seconds = self.clock.seconds()
        append_history(job.folder.history, _entry(result, state, job.plan.labels.foreground))
        state.history_lines += 1
        state.events = []
        _log.info("%s", _line(job, result, state))
        is_better = state.ema_dice is not None and state.ema_dice > (state.best_dice or 0.0)
        if is_better and (state.is_finished or self.best.is_due()):
            state.best_dice = state.ema_dice
            self.best.time(lambda: save_best(state, job.folder.checkpoint))
        if state.is_finished or self.checkpoints.is_due():
            self.checkpoints.time(lambda: save_checkpoint(state, job.folder.checkpoint))
            save(_status(self.run, "training", self.clock), job.folder.state)


@dataclass(slots=True)
class _Curves:
    """Draws the learning curves now and then, and at the end."""

    run: Run
    due: _Due = field(default_factory=lambda: _Due(DRAWING_SHARE, cost=0.1, last=time.monotonic()))

    def __call__(self, _result: EpochResult, state: TrainingState) -> None:
        if state.is_finished or self.due.is_due():
            folder = self.run.job.folder
            self.due.time(lambda: draw_curves(folder.curves, read_history(folder.history)))


def _entry(result: EpochResult, state: TrainingState, names: Sequence[str]) -> dict[str, Any]:
    scores = result.scores
    return {
        "epoch": result.epoch,
        "step": state.step,
        "lr": result.lr,
        "loss": result.loss,
        "validation_loss": scores.loss if scores and math.isfinite(scores.loss) else None,
        "dice": class_dice(names, scores),
        "mean_dice": scores.mean_dice if scores else None,
        "ema_dice": state.ema_dice,
        "seconds": round(result.seconds, 3),
        "data_wait_share": round(result.data_wait_share, 4),
        "total_seconds": round(state.seconds, 1),
        "events": list(state.events),
    }


def _line(job: Job, result: EpochResult, state: TrainingState) -> str:
    parts = [f"{job.title}: epoch {result.epoch + 1}/{state.epochs}"]
    parts.append("no finite loss" if result.loss is None else f"loss {result.loss:.3f}")
    if result.scores and result.scores.mean_dice is not None:
        dice = class_dice(job.plan.labels.foreground, result.scores)
        classes = ", ".join(f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in dice.items())
        parts.append(f"Dice {result.scores.mean_dice:.3f} ({classes}), smoothed {state.ema_dice:.3f}")
    parts.append(f"{result.seconds:.1f} s, {100 * result.data_wait_share:.0f} % waiting for data")
    left = timedelta(seconds=result.seconds * max(0, state.horizon.end - state.step) / state.steps_per_epoch)
    end = datetime.now() + left
    parts.append(f"ends {end:%H:%M}" if left < timedelta(hours=12) else f"ends {end:%Y-%m-%d %H:%M}")
    return " | ".join(parts)


def _status(
    run: Run, state: str, clock: _RunClock, scores: FoldScores | None = None, notes: Sequence[str] = ()
) -> RunStatus:
    now = run.state
    return RunStatus(
        state=state,
        epochs=now.epoch,
        epochs_planned=now.epochs,
        seconds=round(clock.seconds(), 1),
        ema_dice=now.ema_dice,
        validation={name: mean["dice"] for name, mean in scores.mean.items()} if scores else None,
        foreground_dice=scores.foreground_mean["dice"] if scores else None,
        validated_cases=len(scores.cases) if scores else 0,
        notes=tuple(notes),
    )


def _validate(run: Run, clock: _RunClock) -> RunStatus:
    job = run.job
    if not job.fold.val:
        status = _status(run, "done", clock, notes=["no case was kept back, so no validation is possible"])
    else:
        save(_status(run, "validating", clock), job.folder.state)
        network = run.state.final_network
        predictor = make_predictor(network, job.plan, job.configuration, run.compute.device, run.compute.precision)
        planned = _plan_validation(run, predictor)
        scores = validate_fold(
            predictor,
            job.plan,
            job.dataset,
            run.open_case,
            job.folder.validation,
            planned,
            may_start=_CaseClock(job, planned),
            probabilities_gib=job.probabilities_gib,
        )
        late = len(scores.left_out) - len(planned.left_out)
        more = [f"{late} more cases were not validated, for lack of time"] if late else []
        status = _status(run, "done", clock, scores, [*planned.notes, *more])
    save(status, job.folder.state)
    for note in status.notes:
        _log.warning("%s: %s", job.title, note)
    if status.foreground_dice is not None:
        _log.info("%s: mean Dice %.4f over %d cases", job.title, status.foreground_dice, status.validated_cases)
    return status


def _plan_validation(run: Run, predictor: Predictor) -> ValidationPlan:
    """All cases; under a budget, what fits into the time that is left, at the pace of now."""
    job = run.job
    if job.deadline is None or run.forecast is None:
        return ValidationPlan(job.fold.val, (), job.configuration.mirror_axes, {})
    pace = measure_pace(predictor, job.input_channels)
    return run.forecast.plan(pace, max(0.0, job.deadline - ENDING_SECONDS - time.monotonic()))


class _CaseClock:
    """Says before each case whether there is time for it, by the pace expected and the pace kept so far.

    The first case is predicted in any case: without a single score nothing can be chosen from cross-validation.
    """

    def __init__(self, job: Job, planned: ValidationPlan) -> None:
        self._job = job
        self._planned = planned
        self._begin = time.monotonic()
        self._expected_so_far = 0.0

    def __call__(self, name: str) -> bool:
        self._job.check_stop()
        if self._job.deadline is None:
            return True
        now = time.monotonic()
        expected = self._planned.expected_seconds[name]
        if self._expected_so_far:
            slowness = (now - self._begin) / self._expected_so_far
            if now + slowness * expected > self._job.deadline - ENDING_SECONDS:
                return False
        self._expected_so_far += expected
        return True
