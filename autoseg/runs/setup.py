"""Setting up a training run, or picking it up where it stopped: every decision is made once and written down."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from autoseg.core.errors import MissingInput, UsageError
from autoseg.core.files import sha256_of_file
from autoseg.core.progress import Progress, silent
from autoseg.core.records import save_sealed
from autoseg.launch.numerics import SHARE_FOR_MEASURING, check_training
from autoseg.launch.precision import compile_if_faster, compiled
from autoseg.launch.side_by_side import side_by_side
from autoseg.launch.step_graph import step_graph
from autoseg.preprocessing.first_stage import open_with_first_stage
from autoseg.preprocessing.store import StoredCase
from autoseg.runs.queue import RunTask
from autoseg.runs.run import RECORD_VERSION, RunRecord, check_same_plan, differing
from autoseg.runs.validation import LARGEST_VALIDATION_SHARE, Forecast, case_size, expected_pace, make_predictor
from autoseg.training.callbacks.time_budget import fit_epochs
from autoseg.training.checkpoint import has_checkpoint
from autoseg.training.optimization import mean_cost
from autoseg.training.recipe import Recipe, relative_costs
from autoseg.training.step import Compute, TrainingState, start_state

ENDING_SECONDS = 1.5
"""Of a budget, kept for the last checkpoint, the curves and the end of the process (assumption)."""

MOST_READERS = 4
"""Threads that cut batches, per run (assumption: more only wait for each other)."""

OPEN_CASES = 200
"""Cases kept open; each holds three file handles, in a cascade four, of which a process has 1024."""

_WEIGHTS_STREAM = 3

_drawing_weights = threading.Lock()

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ActiveRun:
    """A task with everything needed to go on with it in this process.

    Attributes:
        task: what was asked for.
        record: what was decided, as in recipe.json.
        state: before its first step; not restored yet.
        compute: device, precision, memory format.
        open_case: gives a stored case; keeps the last ones open.
        forecast: of the time that validation takes; None without a budget.
        check_stop: raises Interrupted when the user wants to stop.
        progress: called with the steps done.
    """

    task: RunTask
    record: RunRecord
    state: TrainingState
    compute: Compute
    open_case: Callable[[str], StoredCase]
    forecast: Forecast | None
    check_stop: Callable[[], None]
    progress: Progress = silent

    @property
    def readers(self) -> int:
        """Threads that cut batches."""
        return min(MOST_READERS, self.task.options.jobs)

    @property
    def seconds_left(self) -> float | None:
        """Of a budget, less what the end of a run takes; None without one."""
        left = self.task.seconds_left
        return None if left is None else max(0.0, left - ENDING_SECONDS)


def set_up(
    task: RunTask, device: torch.device, check_stop: Callable[[], None], progress: Progress = silent
) -> ActiveRun:
    """Everything for a new run, or for one that was started before.

    Raises:
        PlanFault: the run was started with another plan.
        UsageError: the run was started with another recipe, seed or budget, or with other cases.
    """
    assert (task.first_stage is None) == (task.configuration.cascade_from is None), "a cascade needs its first stage"
    is_new = _is_new(task) or _starts_over(task)
    network = _fresh_network(task)
    record = _decide(task, network, device) if is_new else _checked_record(task, device)
    compute = Compute(device, record.precision, record.memory_format)
    network = compute.place_network(network, task.configuration.dimensions)
    opened = lru_cache(maxsize=OPEN_CASES)(lambda name: open_with_first_stage(task.store, task.first_stage, name))
    forecast = None
    if task.seconds_left is not None:
        forecast, left = _forecast(task, network, compute, opened)
        if is_new:
            average = forecast.step_seconds * mean_cost(0.0, relative_costs(task.stages))
            record = _with_fitting_epochs(record, left, average)
    record, forward = (_compile_if_faster if is_new else _compile_again)(record, task, network, compute)
    if is_new:
        save_sealed(task.plan, task.run.folder.plan)
        save_sealed(record, task.run.folder.recipe)
    for sentence in record.decisions:
        _log.info("%s: %s", task.run.title, sentence)
    state = start_state(network, record.recipe, compute, task.configuration.dimensions)
    state.started_with = sha256_of_file(task.run.folder.recipe)
    state.forward = forward
    state.graph = step_graph(state)
    if forward is network:
        state.gradient = side_by_side(network, compute, task.stages[-1].batch_size)
    return ActiveRun(task, record, state, compute, opened, forecast, check_stop, progress)


def _compile_if_faster(
    record: RunRecord, task: RunTask, network: nn.Module, compute: Compute
) -> tuple[RunRecord, Callable[..., Any]]:
    """What runs the network, and the record with what was decided about compiling it, which a resumed run follows."""
    if not record.recipe.compile:
        return record, network
    if len(task.stages) > 1:
        forward, because = None, "not compiled: each size of the patch would have to be compiled for itself"
    else:
        steps = record.recipe.epochs * record.recipe.steps_per_epoch
        forward, because = compile_if_faster(network, _batch_shape(task), compute, steps)
    recipe = replace(record.recipe, compile=forward is not None)
    return replace(record, recipe=recipe, decisions=(*record.decisions, because)), forward or network


def _compile_again(
    record: RunRecord, task: RunTask, network: nn.Module, compute: Compute
) -> tuple[RunRecord, Callable[..., Any]]:
    """What runs the network of a run that was begun before."""
    if not record.recipe.compile:
        return record, network
    forward, because = compiled(network, _batch_shape(task), compute)
    _log.info("%s: %s", task.run.title, because)
    return record, forward or network


def _batch_shape(task: RunTask) -> tuple[int, ...]:
    own = task.stages[-1]
    return (own.batch_size, task.input_channels, *own.patch_size)


def _is_new(task: RunTask) -> bool:
    """Whether a run has not begun; an error if it has, and what it was started with is gone."""
    folder = task.run.folder
    if folder.recipe.exists():
        return False
    if has_checkpoint(folder.checkpoint):
        raise MissingInput(
            "recipe.json is missing, and the run has a checkpoint",
            where=str(folder.root),
            why="without it nobody knows what the checkpoint was trained with",
            do="restore the file, or train with --fresh to discard the run",
        )
    return True


def _starts_over(task: RunTask) -> bool:
    """Whether a run without a checkpoint is asked for with another recipe: there is nothing to lose then."""
    if has_checkpoint(task.run.folder.checkpoint):
        return False
    check_same_plan(task.run, task.plan, task.contents)
    return task.run.record().asked != task.recipe


def _checked_record(task: RunTask, device: torch.device) -> RunRecord:
    check_same_plan(task.run, task.plan, task.contents)
    record = task.run.record()
    if found := _differences(task, record):
        raise UsageError(
            f"this run was started differently: {'; '.join(found)}",
            where=str(task.run.folder.root),
            do="give the options of the start to resume it, or --fresh to discard it",
        )
    if record.device != device.type:
        _log.warning("%s: begun on %s, goes on with %s; not bit-exact", task.run.title, record.device, device.type)
        compute, because = _choice(task, _fresh_network(task), _wanted(record.recipe), device)
        return replace(
            record,
            device=device.type,
            precision=compute.precision,
            memory_format=compute.memory_format,
            decisions=(*record.decisions, because),
        )
    if device.type == "cpu" and torch.get_num_threads() != record.threads:
        torch.set_num_threads(record.threads)
    # libraries may be others by now, or the device another of its kind
    _choice(task, _fresh_network(task), (record.precision, record.memory_format), device)
    return record


def _differences(task: RunTask, record: RunRecord) -> list[str]:
    """In what the task differs from how its run was started, for people."""
    options = task.options
    found = differing(task.recipe, options.seed, record)
    if (record.budget_seconds is None) != (options.budget_seconds is None):
        found.append(f"budget: {_seconds(record.budget_seconds)} at the start, {_seconds(options.budget_seconds)} now")
    if (record.train, record.val) != (task.cases.train, task.cases.val):
        found.append("other cases in this fold")
    if record.previous != _first_stage_name(task):
        found.append(f"{task.configuration.cascade_from} was trained again since")
    return found


def _seconds(budget: float | None) -> str:
    return "none" if budget is None else f"{budget:g} s"


def _first_stage_name(task: RunTask) -> str | None:
    """Name of the folder of the first stage's label maps, which changes whenever one of them does."""
    return None if task.first_stage is None else task.first_stage.name


def _fresh_network(task: RunTask) -> nn.Module:
    seed = np.random.SeedSequence([task.options.seed, task.run.fold, _WEIGHTS_STREAM]).generate_state(1)[0]
    with _drawing_weights:  # torch's layers draw from one generator of the whole process
        torch.manual_seed(int(seed))
        return task.plan.build_network(task.configuration.name)


def _wanted(recipe: Recipe) -> tuple[str, str]:
    return recipe.precision, recipe.memory_format


def _choice(task: RunTask, network: nn.Module, wanted: tuple[str, str], device: torch.device) -> tuple[Compute, str]:
    budget = task.options.budget_seconds
    allowed = math.inf if budget is None else SHARE_FOR_MEASURING * budget / len(task.plan.configurations)
    found = check_training(network, task.stages, task.input_channels, device, wanted, allowed)
    return found.compute(device), found.because


def _decide(task: RunTask, network: nn.Module, device: torch.device) -> RunRecord:
    compute, because = _choice(task, network, _wanted(task.recipe), device)
    return RunRecord(
        version=RECORD_VERSION,
        configuration=task.run.configuration,
        fold=task.run.fold,
        seed=task.options.seed,
        asked=task.recipe,
        recipe=task.recipe,
        budget_seconds=task.options.budget_seconds,
        device=device.type,
        precision=compute.precision,
        memory_format=compute.memory_format,
        threads=torch.get_num_threads(),
        train=task.cases.train,
        val=task.cases.val,
        decisions=(because,),
        previous=_first_stage_name(task),
        contents={name: own for name, own in task.contents.items() if name in {*task.cases.train, *task.cases.val}},
    )


def _forecast(
    task: RunTask, network: nn.Module, compute: Compute, opened: Callable[[str], StoredCase]
) -> tuple[Forecast, float]:
    """How long validation will take, and the seconds that are left for training beside it."""
    seconds = task.step_seconds
    assert seconds is not None, "known where there is a deadline"
    left = max(0.0, (task.seconds_left or 0.0) - ENDING_SECONDS)
    predictor = make_predictor(network, task.plan, task.configuration, compute.device, compute.precision)
    forecast = Forecast(
        sizes={name: case_size(opened(name), predictor) for name in task.cases.val},
        mirror_axes=task.configuration.mirror_axes,
        pace=expected_pace(predictor, seconds / task.stages[-1].batch_size),
        step_seconds=seconds,
        most_seconds=LARGEST_VALIDATION_SHARE * left,
    )
    return forecast, left - forecast.reserve(seconds)


def _with_fitting_epochs(record: RunRecord, left: float, seconds: float) -> RunRecord:
    recipe = fit_epochs(record.recipe, left, seconds)
    room = f"{left:.0f} s are left for training" if left > 0 else "no time is left for training"
    because = (
        f"{recipe.epochs} epochs of {recipe.steps_per_epoch} steps to begin with: a step takes {seconds:.2f} s, {room}"
    )
    return replace(record, recipe=recipe, decisions=(*record.decisions, because))
