"""One run of the queue, attempted: whatever concerns it alone ends up in its report, not in the caller's way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from autoseg.core.errors import AutoSegError, DataRefused, Interrupted, UsageError
from autoseg.core.progress import Progress
from autoseg.core.records import load
from autoseg.core.workspace import Workspace
from autoseg.runs.cascade import check_first_stage
from autoseg.runs.guards import Busy, lease, with_clear_errors
from autoseg.runs.queue import Queue, QueuedRun, TrainOptions, run_status
from autoseg.runs.records import RunRecord, RunStatus, differing
from autoseg.runs.setup import Job, check_same_plan, discard
from autoseg.runs.training import run_job
from autoseg.runs.work_intervals import Sitting, read_sittings, sitting, wall_seconds
from autoseg.training.callbacks.time_budget import fair_shares
from autoseg.training.splits import Fold

MOST_READERS = 4
"""Threads that cut batches, per run (assumption: more only wait for each other)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunReport:
    """What became of a run.

    Attributes:
        configuration: name.
        fold: number.
        folder: of the run.
        state: "done", "failed", "interrupted" or "busy" (another process has it).
        status: where it stands; None if it did not get so far.
        error: what stopped it.
    """

    configuration: str
    fold: int
    folder: str
    state: str
    status: RunStatus | None = None
    error: AutoSegError | None = None


@dataclass(slots=True)
class Materials:
    """What the runs of a command are made from; grows while the command prepares it.

    Attributes:
        stores: folder of the prepared cases, by configuration.
        previous: folder of the first stage's label maps, by cascade.
        failures: cases that could not be prepared -> why.
    """

    stores: dict[str, Path] = field(default_factory=dict)
    previous: dict[str, Path] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Assignment:
    """A run to do now.

    Attributes:
        run: of the queue.
        begin: of the work on it, in seconds since the epoch.
        deadline: `time.monotonic()` at which it must be over, or None.
    """

    run: QueuedRun
    begin: float
    deadline: float | None


def report_of(run: QueuedRun, state: str, error: AutoSegError | None = None) -> RunReport:
    """The report of a run that stands as its folder says."""
    return RunReport(run.configuration.name, run.number, str(run.folder.root), state, run_status(run.folder), error)


def attempt(
    assignment: Assignment,
    queue: Queue,
    options: TrainOptions,
    materials: Materials,
    device: torch.device,
    check_stop: Callable[[], None],
    progress: Progress,
) -> RunReport:
    """Trains and validates one run, unless another process is at it.

    Args:
        assignment: the run, and until when.
        queue: it belongs to.
        options: of the command.
        materials: everything prepared for its configuration.
        device: to compute on.
        check_stop: raises Interrupted when the user wants to stop.
        progress: told about the steps done.
    """
    run = assignment.run
    try:
        with lease(run.folder):
            if options.is_fresh:
                discard(run.folder)
            job = _job(assignment, queue, options, materials, device, check_stop, progress)
            is_noted = options.budget_seconds is not None
            with sitting(run.folder.root, assignment.begin) if is_noted else nullcontext():
                with_clear_errors(run_job, job)
            return report_of(run, "done")
    except Busy as error:
        return report_of(run, "busy", error)
    except Interrupted as error:
        return report_of(run, "interrupted", error)
    except AutoSegError as error:
        _log.error("%s failed: %s", run.title, error)
        return report_of(run, "failed", error)


def look_at_done(run: QueuedRun, queue: Queue) -> RunReport:
    """The report of a run that was done before, if it is what the command would make of it."""
    try:
        check_same_plan(queue.plan, run.configuration, run.folder)
        record = load(RunRecord, run.folder.recipe)
        _refuse_other_cases(run, record)
        check_first_stage(run.folder)
    except AutoSegError as error:
        return report_of(run, "failed", error)
    if changes := differing(queue.recipe, record.asked):
        _log.warning("%s is done, with another recipe (%s); --fresh trains it again", run.title, "; ".join(changes))
    return report_of(run, "done")


def budget_deadline(workspace: Workspace, queue: Queue, options: TrainOptions) -> float | None:
    """`time.monotonic()` at which the budget of the queue is used up, earlier sittings counted; None without one.

    Raises:
        UsageError: earlier sittings have used it up, and there is work left.
    """
    if options.budget_seconds is None:
        return None
    started = time.time() - (time.monotonic() - options.started)
    runs = () if options.is_fresh else queue.runs
    spent = wall_seconds(_all_sittings(workspace, runs), started)
    is_open = any(run.state != "done" for run in queue.runs)
    if spent >= options.budget_seconds and is_open:
        raise UsageError(
            f"the budget of {options.budget_seconds:g} s is used up: {spent:.0f} s were spent on this queue before",
            where="--budget",
            do="give a larger --budget for the whole; what is done stays done",
        )
    if spent:
        _log.info("%.0f of the budget's %g s were spent on this queue before", spent, options.budget_seconds)
    return options.started + options.budget_seconds - spent


def run_deadline(
    deadline: float | None, run: QueuedRun, open_runs: Sequence[QueuedRun], devices: int, now: float
) -> float | None:
    """`time.monotonic()` at which a run must be over, so that every open run gets its share of what is left.

    Args:
        deadline: of the whole queue, or None.
        run: one of `open_runs`, about to begin.
        open_runs: those neither done nor given up, the ones at work included.
        devices: that work at the same time.
        now: `time.monotonic()`.
    """
    if deadline is None:
        return None
    left = max(0.0, deadline - now)
    rounds = -(-len(open_runs) // devices)
    spent = [wall_seconds(read_sittings(own.folder.root), float("inf")) for own in open_runs]
    share = fair_shares(left * len(open_runs) / rounds, spent)[open_runs.index(run)]
    return now + min(left, share)


def _all_sittings(workspace: Workspace, runs: Sequence[QueuedRun]) -> Iterable[Sitting]:
    for folder in dict.fromkeys(workspace.run(run.configuration.name, 0).root.parent for run in runs):
        yield from read_sittings(folder)
    for run in runs:
        yield from read_sittings(run.folder.root)


def _refuse_other_cases(run: QueuedRun, record: RunRecord) -> None:
    """An error if a run was trained with other folds; cases that could not be prepared may be missing in it."""
    if not (set(record.train) <= set(run.fold.train) and set(record.val) <= set(run.fold.val)):
        raise UsageError(
            f"{run.title} is done, with other cases in this fold",
            where=str(run.folder.root),
            why="the dataset or its folds changed since",
            do="restore the former folds, or train with --fresh to discard the run",
        )


def _job(
    assignment: Assignment,
    queue: Queue,
    options: TrainOptions,
    materials: Materials,
    device: torch.device,
    check_stop: Callable[[], None],
    progress: Progress,
) -> Job:
    run, failures = assignment.run, materials.failures
    fold = Fold(*(tuple(n for n in side if n not in failures) for side in (run.fold.train, run.fold.val)))
    if not fold.train:
        raise DataRefused("no case is left to train on", where=str(run.folder.root), do="see the failed cases")
    return Job(
        plan=queue.plan,
        configuration=run.configuration,
        dataset=queue.dataset,
        number=run.number,
        fold=fold,
        folder=run.folder,
        store=materials.stores[run.configuration.name],
        recipe=queue.recipe,
        seed=options.seed,
        device=device,
        budget_seconds=options.budget_seconds,
        deadline=assignment.deadline,
        readers=min(MOST_READERS, options.jobs),
        check_stop=check_stop,
        progress=progress,
        previous=materials.previous.get(run.configuration.name),
        probabilities_gib=options.probabilities_gib,
    )
