"""Setting up a training run, or picking it up where it stopped: every decision is made once and written down."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from autoseg.core.errors import PlanFault, UsageError
from autoseg.core.files import temporary_beside
from autoseg.core.progress import Progress, silent
from autoseg.core.records import load, save
from autoseg.core.workspace import RunFolder
from autoseg.data.model import Dataset
from autoseg.launch.precision import choose_compute, compiled, step_seconds
from autoseg.networks.build import build_network
from autoseg.planning.plan import Configuration, Plan
from autoseg.preprocessing.first_stage import open_with_first_stage
from autoseg.preprocessing.store import StoredCase
from autoseg.runs.records import RECORD_VERSION, RunRecord, differing
from autoseg.runs.validation import (
    LARGEST_VALIDATION_SHARE,
    PROBABILITIES_GIB,
    Forecast,
    case_size,
    make_predictor,
    measure_pace,
)
from autoseg.training.callbacks.time_budget import fit_epochs
from autoseg.training.recipe import Recipe
from autoseg.training.splits import Fold
from autoseg.training.step import Compute, TrainingState, start_state

ENDING_SECONDS = 1.5
"""Of a budget, kept for the last checkpoint, the curves and the end of the process (assumption)."""

OPEN_CASES = 200
"""Cases kept open; each holds three file handles, in a cascade four, of which a process has 1024."""

_WEIGHTS_STREAM = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One run to do.

    Attributes:
        plan: of the dataset.
        configuration: to train.
        dataset: knows the label files.
        number: of the fold.
        fold: its cases.
        folder: of the run.
        store: folder of the prepared cases.
        recipe: asked for.
        seed: of everything random.
        device: to compute on.
        budget_seconds: the user's `--budget` for all runs together, or None.
        deadline: `time.monotonic()` at which this run must be over, or None.
        readers: threads that cut batches.
        check_stop: raises Interrupted when the user wants to stop.
        progress: told about the steps done.
        previous: folder of the first stage's label maps, as `fill_previous` returns it; None without a cascade.
        probabilities_gib: disk for the kept out-of-fold probabilities of all runs together.
    """

    plan: Plan
    configuration: Configuration
    dataset: Dataset
    number: int
    fold: Fold
    folder: RunFolder
    store: Path
    recipe: Recipe
    seed: int
    device: torch.device
    budget_seconds: float | None
    deadline: float | None
    readers: int
    check_stop: Callable[[], None]
    progress: Progress = silent
    previous: Path | None = None
    probabilities_gib: float = PROBABILITIES_GIB

    @property
    def title(self) -> str:
        """Configuration and fold, for people."""
        return f"{self.configuration.name} fold {self.number}"

    @property
    def heads(self) -> int:
        """Output channels of the network."""
        return self.plan.labels.head_count

    @property
    def previous_name(self) -> str | None:
        """Name of the first stage's label maps, which changes whenever one of them does."""
        return None if self.previous is None else self.previous.name

    @property
    def previous_values(self) -> tuple[int, ...]:
        """Label values of the first stage that become channels; empty without one."""
        return () if self.previous is None else self.plan.labels.foreground_values

    @property
    def input_channels(self) -> int:
        """Input channels of the network."""
        return self.plan.input_channels(self.configuration.name)


@dataclass(frozen=True, slots=True)
class Run:
    """A job with everything needed to go on.

    Attributes:
        job: what was asked for.
        record: what was decided, as in recipe.json.
        state: before its first step; not restored yet.
        compute: device, precision, memory format.
        open_case: gives a stored case; keeps the last ones open.
        forecast: of the time that validation takes; None without a budget or without validation cases.
    """

    job: Job
    record: RunRecord
    state: TrainingState
    compute: Compute
    open_case: Callable[[str], StoredCase]
    forecast: Forecast | None


def set_up(job: Job) -> Run:
    """Everything for a new run, or for one that was started before.

    Raises:
        PlanFault: the run was started with another plan.
        UsageError: the run was started with another recipe, seed or budget, or with other cases.
    """
    assert (job.previous is None) == (job.configuration.cascade_from is None), "a cascade needs its first stage"
    network = _fresh_network(job)
    opened = lru_cache(maxsize=OPEN_CASES)(lambda name: open_with_first_stage(job.store, job.previous, name))
    is_new = not job.folder.recipe.exists()
    record = _decide(job, network) if is_new else _checked_record(job)
    compute = Compute(job.device, record.precision, record.memory_format)
    network = compute.place_network(network, job.configuration.dimensions)
    forecast = None
    if job.deadline is not None:
        seconds = _step_seconds(job, network, compute)
        left = max(0.0, job.deadline - time.monotonic() - ENDING_SECONDS)
        forecast = _forecast(job, network, compute, opened, (seconds, left)) if job.fold.val else None
        if is_new:
            left -= forecast.reserve(seconds) if forecast else 0.0
            record = _with_fitting_epochs(record, left, seconds)
    if is_new:
        save(job.plan, job.folder.plan)
        save(record, job.folder.recipe)
    for sentence in record.decisions:
        _log.info("%s: %s", job.title, sentence)
    state = start_state(network, record.recipe, compute, job.configuration.dimensions)
    if record.recipe.compile:
        shape = (job.configuration.batch_size, job.input_channels, *job.configuration.patch_size)
        forward, told = compiled(network, shape, compute)
        _log.info("%s: %s", job.title, told)
        state.forward = forward or network
    return Run(job, record, state, compute, opened, forecast)


def discard(folder: RunFolder) -> None:
    """Deletes a run (`--fresh`), and nothing else."""
    if folder.root.exists():
        doomed = temporary_beside(folder.root)
        folder.root.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def check_same_plan(plan: Plan, configuration: Configuration, folder: RunFolder) -> None:
    """Raises PlanFault if a run was started with another plan, as far as it concerns the run."""
    before = load(Plan, folder.plan)
    own = before.configurations.get(configuration.name)
    now = replace(plan, configurations={}, decisions=(), memory_gib=0.0, preset="")
    then = replace(before, configurations={}, decisions=(), memory_gib=0.0, preset="")
    if own != configuration or now != then:
        raise PlanFault(
            f"this run was started with another plan ({_changes(then, now, own, configuration)})",
            where=str(folder.root),
            why="the plan or the data changed since",
            do="train with --fresh to discard the run, or plan again with the former options",
        )


def _changes(then: Plan, now: Plan, own: Configuration | None, configuration: Configuration) -> str:
    pairs: list[tuple[object, object]] = [(then, now), (own, configuration)]
    names = [
        name
        for old, new in pairs
        for name in type(new).__dataclass_fields__  # type: ignore[attr-defined]
        if getattr(old, name, None) != getattr(new, name)
    ]
    return f"different: {', '.join(names)}"


def _checked_record(job: Job) -> RunRecord:
    check_same_plan(job.plan, job.configuration, job.folder)
    record = load(RunRecord, job.folder.recipe)
    found = differing(job.recipe, record.asked)
    found += [f"seed: {record.seed} at the start, {job.seed} now"] if record.seed != job.seed else []
    if (record.budget_seconds is None) != (job.budget_seconds is None):
        found.append(f"budget: {_seconds(record.budget_seconds)} at the start, {_seconds(job.budget_seconds)} now")
    if (record.train, record.val) != (job.fold.train, job.fold.val):
        found.append("other cases in this fold")
    if record.previous != job.previous_name:
        found.append(f"{job.configuration.cascade_from} was trained again since")
    if found:
        raise UsageError(
            f"this run was started differently: {'; '.join(found)}",
            where=str(job.folder.root),
            do="give the options of the start to resume it, or --fresh to discard it",
        )
    if record.device != job.device.type:
        _log.warning("%s: begun on %s, goes on with %s; not bit-exact", job.title, record.device, job.device.type)
        choice = _choice(job, _fresh_network(job), record.recipe)
        return replace(
            record,
            device=job.device.type,
            precision=choice[0].precision,
            memory_format=choice[0].memory_format,
            decisions=(*record.decisions, choice[1]),
        )
    if job.device.type == "cpu" and torch.get_num_threads() != record.threads:
        torch.set_num_threads(record.threads)
    return record


def _seconds(budget: float | None) -> str:
    return "none" if budget is None else f"{budget:g} s"


def _fresh_network(job: Job) -> nn.Module:
    seed = np.random.SeedSequence([job.seed, job.number, _WEIGHTS_STREAM]).generate_state(1)[0]
    torch.manual_seed(int(seed))
    return build_network(job.configuration.network, job.input_channels, job.heads)


def _choice(job: Job, network: nn.Module, recipe: Recipe) -> tuple[Compute, str]:
    wanted = (recipe.precision, recipe.memory_format)
    choice = choose_compute(network, job.configuration, job.input_channels, job.device, wanted)
    return choice.compute, choice.because


def _decide(job: Job, network: nn.Module) -> RunRecord:
    compute, because = _choice(job, network, job.recipe)
    return RunRecord(
        version=RECORD_VERSION,
        configuration=job.configuration.name,
        fold=job.number,
        seed=job.seed,
        asked=job.recipe,
        recipe=job.recipe,
        budget_seconds=job.budget_seconds,
        device=job.device.type,
        precision=compute.precision,
        memory_format=compute.memory_format,
        threads=torch.get_num_threads(),
        train=job.fold.train,
        val=job.fold.val,
        decisions=(because,),
        previous=job.previous_name,
    )


def _step_seconds(job: Job, network: nn.Module, compute: Compute) -> float:
    shape = (job.configuration.batch_size, job.input_channels, *job.configuration.patch_size)
    return step_seconds(network, shape, compute)


def _forecast(
    job: Job,
    network: nn.Module,
    compute: Compute,
    opened: Callable[[str], StoredCase],
    step_and_left_seconds: tuple[float, float],
) -> Forecast:
    step, left = step_and_left_seconds
    predictor = make_predictor(network, job.plan, job.configuration, compute.device, compute.precision)
    return Forecast(
        sizes={name: case_size(opened(name), predictor) for name in job.fold.val},
        mirror_axes=job.configuration.mirror_axes,
        pace=measure_pace(predictor, job.input_channels),
        step_seconds=step,
        most_seconds=LARGEST_VALIDATION_SHARE * left,
    )


def _with_fitting_epochs(record: RunRecord, left: float, seconds: float) -> RunRecord:
    recipe = fit_epochs(record.recipe, left, seconds)
    because = (
        f"{recipe.epochs} epochs of {recipe.steps_per_epoch} steps to begin with: "
        f"a step takes {seconds:.2f} s, {left:.0f} s are left for training"
    )
    return replace(record, recipe=recipe, decisions=(*record.decisions, because))
