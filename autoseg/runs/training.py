"""One training run from its first step to the validation of its fold."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from autoseg.core.errors import Interrupted
from autoseg.core.files import remove_leftovers
from autoseg.core.records import save
from autoseg.inference.predictor import Predictor
from autoseg.planning.lateral import lateral_swap
from autoseg.runs.records import RunStatus
from autoseg.runs.setup import ENDING_SECONDS, Job, Run, set_up
from autoseg.runs.validation import FoldScores, ValidationPlan, make_predictor, measure_pace, validate_fold
from autoseg.training.batches import BatchSource, Placed, Prefetcher
from autoseg.training.callbacks.base import RunContext
from autoseg.training.callbacks.history import truncate_history
from autoseg.training.callbacks.kinds import CALLBACKS, make_callbacks
from autoseg.training.callbacks.time_budget import TimeBudget, no_reserve, validation_steps
from autoseg.training.checkpoint import has_checkpoint, restore
from autoseg.training.loop import Callback, fit
from autoseg.training.losses import make_objective
from autoseg.training.step import TrainingState, train_step
from autoseg.training.validation import OnlineScores, score_patches

_log = logging.getLogger(__name__)


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
        _log.info("%s: resumes at step %d of %d (%s)", job.title, state.step, state.segment.end, generation.name)
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
        """Wall time of the run, all work intervals."""
        return self.seconds_before + time.monotonic() - self.begin


def _train(run: Run, clock: _RunClock) -> None:
    job, state, recipe = run.job, run.state, run.record.recipe
    objective = make_objective(recipe.loss, job.plan.labels, job.configuration.batch_dice)
    source = batch_source(run)

    def take_step(now: TrainingState, batch: Placed) -> tuple[float, Sequence[str]]:
        image, labels, cases = batch
        return train_step(now, run.compute.place_image(image), labels, objective, recipe, run.compute), cases

    def validate(now: TrainingState) -> OnlineScores | None:
        return score_patches(now, _validation_batches(run, source), objective, run.compute, job.plan.labels)

    context = RunContext(
        title=job.title,
        folder=job.folder,
        classes=job.plan.labels.foreground,
        seconds=clock.seconds,
        save_status=lambda: save(_status(run, "training", clock), job.folder.state),
    )
    callbacks = [*make_callbacks(CALLBACKS, context), *_time_budget(run), _StepReport(job)]
    try:
        with Prefetcher(source.training, state.step, job.readers) as batches:
            fit(state, batches, take_step, validate, callbacks)
    except Interrupted as stop:
        raise Interrupted(
            f"{job.title} stopped at step {state.step} of {state.segment.end}, checkpoint written",
            where=str(job.folder.root),
            do="run the same command again to go on from there",
        ) from stop


class _StepReport(Callback):
    """Reports every step, and stops when the user wants to."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def after_step(self, state: TrainingState) -> None:
        self._job.progress(state.step, state.segment.end)
        self._job.check_stop()


def _time_budget(run: Run) -> list[Callback]:
    job = run.job
    if job.deadline is None:
        return []
    reserve = run.forecast.reserve if run.forecast else no_reserve
    return [TimeBudget(job.deadline - ENDING_SECONDS, run.record.asked.steps_per_epoch, reserve)]


def batch_source(run: Run) -> BatchSource:
    """What makes the batches of a run."""
    job = run.job
    return BatchSource(
        configuration=job.configuration,
        recipe=run.record.recipe,
        fold=job.fold,
        open_case=run.open_case,
        seed=(job.seed, job.number),
        device=job.device,
        previous_values=job.previous_values,
        swap=lateral_swap(job.plan, job.configuration),
    )


def _validation_batches(run: Run, source: BatchSource) -> Iterator[tuple[Tensor, Tensor]]:
    """This epoch's validation patches, not augmented."""
    asked, state = run.record.asked, run.state
    count = validation_steps(asked, state.steps_per_epoch) if run.job.fold.val else 0
    with Prefetcher(source.validation, state.epoch * asked.validation_steps, min(run.job.readers, count)) as batches:
        for _ in range(count):
            run.job.check_stop()
            image, labels, _cases = next(batches)
            yield run.compute.place_image(image), labels


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
