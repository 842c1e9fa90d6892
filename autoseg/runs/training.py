"""One training run from its first step to the validation of its fold."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from autoseg.core.errors import Interrupted
from autoseg.core.files import remove_leftovers, sha256_of_file
from autoseg.core.progress import Progress, silent
from autoseg.core.records import save_sealed
from autoseg.inference.predictor import Predictor
from autoseg.planning.lateral import lateral_swap
from autoseg.planning.plan import Configuration
from autoseg.runs.queue import RunTask
from autoseg.runs.run import FoldScores, RunStatus
from autoseg.runs.setup import ENDING_SECONDS, ActiveRun, set_up
from autoseg.runs.validation import ValidationPlan, make_predictor, measure_pace, validate_fold
from autoseg.training.batches import BatchSource, Placed, Prefetcher
from autoseg.training.callbacks.base import RunContext
from autoseg.training.callbacks.history import truncate_history
from autoseg.training.callbacks.kinds import make_callbacks
from autoseg.training.callbacks.time_budget import TimeBudget, no_reserve, validation_steps
from autoseg.training.checkpoint import has_checkpoint, restore
from autoseg.training.loop import Callback, fit
from autoseg.training.losses import make_objective
from autoseg.training.recipe import relative_costs
from autoseg.training.step import TrainingState, train_step
from autoseg.training.validation import OnlineScores, score_patches

_log = logging.getLogger(__name__)


def train_and_validate(
    task: RunTask, device: torch.device, check_stop: Callable[[], None], progress: Progress = silent
) -> RunStatus:
    """Trains and validates one run; what was done before is not done again.

    Args:
        task: the run with everything prepared for it.
        device: to compute on.
        check_stop: raises Interrupted when the user wants to stop.
        progress: called with the steps done.

    Raises:
        Interrupted: after a checkpoint was written.
        TrainingStopped: the loss stayed non-finite, or the store cannot be read.
    """
    begin = time.monotonic()
    folder = task.run.folder
    for place in (folder.root, folder.checkpoint):  # also where no first checkpoint was finished
        remove_leftovers(place)
    active = set_up(task, device, check_stop, progress)
    state = active.state
    if has_checkpoint(folder.checkpoint):
        generation = restore(state, folder.checkpoint)
        _log.info("%s: resumes at step %d of %d (%s)", task.run.title, state.step, state.segment.end, generation.name)
    # The history may be ahead of the checkpoint: epochs after it will be trained, and written, once more.
    truncate_history(folder.history, state.history_lines)
    before = state.seconds  # wall time of the run, interruptions left out

    def seconds() -> float:
        return before + time.monotonic() - begin

    if not state.is_finished:
        _train(active, seconds)
    return _validate(active, seconds)


def _train(active: ActiveRun, seconds: Callable[[], float]) -> None:
    task, state, recipe, compute = active.task, active.state, active.record.recipe, active.compute
    run = task.run
    objective = make_objective(recipe.loss, task.plan.labels, task.configuration.batch_dice)
    stages = task.stages

    def take_step(now: TrainingState, batch: Placed) -> tuple[Tensor, Sequence[str]]:
        image, labels = batch.tensors()
        return train_step(now, compute.place_image(image), labels, objective, recipe, compute), batch.cases

    def validate(now: TrainingState) -> OnlineScores | None:
        patches = _validation_batches(active, batch_source(active, stages[now.stage]))
        return score_patches(now, patches, objective, compute, task.plan.labels)

    context = RunContext(
        title=run.title,
        folder=run.folder,
        classes=task.plan.labels.foreground,
        seconds=seconds,
        save_status=lambda: save_sealed(_status(active, "training", seconds), run.folder.state),
        costs=relative_costs(stages),
        readers=active.readers,
    )
    callbacks = [*make_callbacks(recipe.callbacks, context), *_time_budget(active), _StepReport(active)]
    try:
        while not state.is_finished:
            state.stage = state.due_stage
            source = batch_source(active, stages[state.stage])
            with Prefetcher(source.training, state.step, active.readers) as batches:
                fit(state, batches, take_step, validate, callbacks)
    except Interrupted as stop:
        raise Interrupted(
            f"{run.title} stopped at step {state.step} of {state.segment.end}, checkpoint written",
            where=str(run.folder.root),
            do="run the same command again"
            + (" without --fresh, which would discard it," if active.task.options.is_fresh else "")
            + " to go on from there",
        ) from stop
    finally:
        state.graph = state.gradient = None  # their memory and threads are the validation's now


class _StepReport(Callback):
    """Reports every step, and stops when the user wants to."""

    def __init__(self, active: ActiveRun) -> None:
        self._active = active

    def after_step(self, state: TrainingState) -> None:
        self._active.progress(state.step, state.segment.end)
        self._active.check_stop()


def _time_budget(active: ActiveRun) -> list[Callback]:
    deadline = active.task.deadline
    if deadline is None:
        return []
    reserve = active.forecast.reserve if active.forecast else no_reserve
    costs = relative_costs(active.task.stages)
    end, longest_epoch = deadline - ENDING_SECONDS, active.record.asked.steps_per_epoch
    return [TimeBudget(end, longest_epoch, reserve, costs=costs, most_steps=active.task.most_steps)]


def batch_source(active: ActiveRun, stage: Configuration) -> BatchSource:
    """What makes the batches of a run in one of its stages."""
    task = active.task
    return BatchSource(
        configuration=stage,
        recipe=active.record.recipe,
        fold=task.cases,
        open_case=active.open_case,
        seed=(task.options.seed, task.run.fold),
        device=active.compute.device,
        first_stage_values=task.first_stage_values,
        swap=lateral_swap(task.plan, task.configuration),
    )


def _validation_batches(active: ActiveRun, source: BatchSource) -> Iterator[tuple[Tensor, Tensor]]:
    """This epoch's validation patches, not augmented."""
    asked, state = active.record.asked, active.state
    count = validation_steps(asked, state.steps_per_epoch) if active.task.cases.val else 0
    with Prefetcher(source.validation, state.epoch * asked.validation_steps, min(active.readers, count)) as batches:
        for _ in range(count):
            active.check_stop()
            image, labels = next(batches).tensors()
            yield active.compute.place_image(image), labels


def _status(
    active: ActiveRun,
    state: str,
    seconds: Callable[[], float],
    scores: FoldScores | None = None,
    notes: Sequence[str] = (),
) -> RunStatus:
    now = active.state
    return RunStatus(
        state=state,
        epochs=now.epoch,
        epochs_planned=now.epochs,
        seconds=round(seconds(), 1),
        ema_dice=now.ema_dice,
        validation={name: mean["dice"] for name, mean in scores.mean.items()} if scores else None,
        foreground_dice=scores.foreground_mean["dice"] if scores else None,
        validated_cases=len(scores.cases) if scores else 0,
        notes=tuple(notes),
        weights=active.task.run.weights_hash if state == "done" else "",
        history=sha256_of_file(active.task.run.folder.history) if state == "done" else "",
    )


def _validate(active: ActiveRun, seconds: Callable[[], float]) -> RunStatus:
    task, compute = active.task, active.compute
    title, folder = task.run.title, task.run.folder
    if not task.cases.val:
        notes = [*_notes_on_length(active), "no case was kept back, so no validation is possible"]
        status = _status(active, "done", seconds, notes=notes)
    else:
        save_sealed(_status(active, "validating", seconds), folder.state)
        network = active.state.final_network
        predictor = make_predictor(network, task.plan, task.configuration, compute.device, compute.precision)
        planned = _plan_validation(active, predictor)
        clock = _CaseClock(active, planned)
        scores = validate_fold(predictor, task, active.open_case, planned, clock, task.run.weights_hash)
        late = len(scores.left_out) - len(planned.left_out)
        more = [f"{late} more cases were not validated, for lack of time"] if late else []
        status = _status(active, "done", seconds, scores, [*_notes_on_length(active), *planned.notes, *more])
    save_sealed(status, folder.state)
    for note in status.notes:
        _log.warning("%s: %s", title, note)
    if status.foreground_dice is not None:
        cases = "1 case" if status.validated_cases == 1 else f"{status.validated_cases} cases"
        _log.info("%s: mean Dice %.4f over %s", title, status.foreground_dice, cases)
    return status


def _notes_on_length(active: ActiveRun) -> list[str]:
    """A sentence about a training that its share of the budget ended before the first epoch of its recipe was over."""
    steps, epoch = active.state.step, active.record.asked.steps_per_epoch
    if active.record.budget_seconds is None or steps >= epoch:
        return []
    sentence = (
        f"{steps} {'step was' if steps == 1 else 'steps were'} trained, less than an epoch of the recipe ({epoch}), "
    )
    remedy = "begin again with --fresh and a larger --budget, or with fewer runs (--configuration, --fold)"
    return [f"{sentence}for lack of time: {remedy}"]


def _plan_validation(active: ActiveRun, predictor: Predictor) -> ValidationPlan:
    """All cases; under a budget, what fits into the time that is left, at the pace of now."""
    task, left = active.task, active.seconds_left
    if left is None or active.forecast is None:
        return ValidationPlan(task.cases.val, (), task.configuration.mirror_axes, {})
    return active.forecast.plan(measure_pace(predictor, task.input_channels), left)


class _CaseClock:
    """Says before each case whether there is time for it, by the pace expected and the pace kept so far.

    The first case is predicted in any case: without a single score nothing can be chosen from cross-validation.
    """

    def __init__(self, active: ActiveRun, planned: ValidationPlan) -> None:
        self._active = active
        self._planned = planned
        self._begin = time.monotonic()
        self._expected_so_far = 0.0

    def __call__(self, name: str) -> bool:
        self._active.check_stop()
        left = self._active.seconds_left
        if left is None:
            return True
        expected = self._planned.expected_seconds[name]
        if self._expected_so_far:
            slowness = (time.monotonic() - self._begin) / self._expected_so_far
            if slowness * expected > left:
                return False
        self._expected_so_far += expected
        return True
