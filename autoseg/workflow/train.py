"""Training what the plan holds: a queue of configurations x folds, each resumed, run, or found done."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from autoseg.core.errors import (
    AutoSegError,
    DataRefused,
    Interrupted,
    NotEnoughResources,
)
from autoseg.core.progress import Progress, silent
from autoseg.core.records import load
from autoseg.core.workspace import RunFolder, Workspace
from autoseg.launch.devices import choose_device, use_cores
from autoseg.preprocessing.fill import fill_store
from autoseg.training.record import RunRecord, RunStatus, differing
from autoseg.training.splits import Fold, save_folds
from autoseg.workflow.run_guards import Busy, lease, with_clear_errors
from autoseg.workflow.run_queue import Queue, QueuedRun, TrainOptions, make_queue, run_status
from autoseg.workflow.run_setup import Job, check_same_plan, discard
from autoseg.workflow.training_run import run_job

__all__ = ["Queue", "QueuedRun", "RunReport", "TrainOptions", "TrainReport", "make_queue", "train"]

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


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What the command did.

    Attributes:
        runs: those that were come to, in the order of the queue.
        device: a sentence.
        failures: cases that could not be preprocessed -> why.
        stop: the error that the command ends with, or None.
    """

    runs: tuple[RunReport, ...]
    device: str
    failures: dict[str, str]
    stop: AutoSegError | None = None

    @property
    def exit_code(self) -> int:
        """0; 4 if a run or a case failed; or that of what stopped the command."""
        if self.stop is not None:
            return self.stop.exit_code
        return 4 if self.failures or any(run.state == "failed" for run in self.runs) else 0


def train(
    workspace: Workspace,
    options: TrainOptions,
    check_stop: Callable[[], None],
    *,
    store_progress: Progress = silent,
    step_progress: Progress = silent,
) -> TrainReport:
    """Preprocesses what is missing and trains the queue.

    An interruption or a lack of resources ends the queue; a run that fails by itself does not.

    Args:
        workspace: with a plan.
        options: what the user asked for.
        check_stop: raises Interrupted when the user wants to stop.
        store_progress: told about preprocessed cases.
        step_progress: told about steps of the present run.
    """
    queue = make_queue(workspace, options)
    save_folds(queue.folds, workspace.splits)
    threads = use_cores()
    device, because = choose_device(options.device)
    _log.info("%s; %d threads", because, threads)
    trainer = _Trainer(queue, workspace, options, device, check_stop, store_progress, step_progress)
    reports, stop = trainer.work_through()
    return TrainReport(tuple(reports), because, trainer.failures, stop)


@dataclass(slots=True)
class _Trainer:
    """Works through a queue."""

    queue: Queue
    workspace: Workspace
    options: TrainOptions
    device: torch.device
    check_stop: Callable[[], None]
    store_progress: Progress
    step_progress: Progress
    failures: dict[str, str] = field(default_factory=dict)
    stores: dict[str, Path] = field(default_factory=dict)
    deadline: float | None = None

    def work_through(self) -> tuple[list[RunReport], AutoSegError | None]:
        """A report for each run come to, and what stops the command."""
        if self.options.budget_seconds is not None:
            spent = sum(_seconds_spent(run.folder) for run in self.queue.runs if run.state == "started")
            self.deadline = self.options.started + self.options.budget_seconds - spent
        reports: list[RunReport] = []
        try:
            for name in dict.fromkeys(run.configuration.name for run in self.queue.runs):
                self._fill_store(name)
            left = sum(run.state != "done" for run in self.queue.runs)
            for run in self.queue.runs:
                reports.append(self._do(run, left))
                left -= run.state != "done"
                if isinstance(reports[-1].error, Interrupted | NotEnoughResources) and reports[-1].state != "busy":
                    return reports, reports[-1].error
        except (Interrupted, NotEnoughResources) as error:
            return reports, error
        errors = [report.error for report in reports if report.error is not None]
        busy = [report.error for report in reports if report.state == "busy"]
        return reports, errors[0] if len(reports) == 1 and errors else busy[0] if busy else None

    def _fill_store(self, name: str) -> None:
        runs = self.queue.open_runs(name)
        if not runs:
            return

        def progress(done: int, total: int) -> None:
            self.store_progress(done, total)
            self.check_stop()

        result = fill_store(
            self.queue.dataset,
            self.queue.plan,
            runs[0].configuration,
            self.queue.fingerprint,
            self.workspace,
            jobs=self.options.jobs,
            progress=progress,
        )
        self.stores[name] = result.folder
        self.failures.update(result.failures)

    def _do(self, run: QueuedRun, left: int) -> RunReport:
        """Does one run; every error that concerns it alone ends up in its report."""
        report = RunReport(run.configuration.name, run.number, str(run.folder.root), "done")
        try:
            if run.state == "done":
                return replace(report, status=self._finished(run))
            with lease(run.folder):
                if self.options.is_fresh:
                    discard(run.folder)
                return replace(report, status=with_clear_errors(run_job, self._job(run, left)))
        except Busy as error:
            return replace(report, state="busy", error=error)
        except Interrupted as error:
            return replace(report, state="interrupted", status=run_status(run.folder), error=error)
        except AutoSegError as error:
            _log.error("%s fold %d failed: %s", run.configuration.name, run.number, error)
            return replace(report, state="failed", status=run_status(run.folder), error=error)

    def _finished(self, run: QueuedRun) -> RunStatus | None:
        check_same_plan(self.queue.plan, run.configuration, run.folder)
        changes = differing(self.queue.recipe, load(RunRecord, run.folder.recipe).asked)
        if changes:
            _log.warning(
                "%s fold %d is done, with another recipe (%s); --fresh trains it again",
                run.configuration.name,
                run.number,
                "; ".join(changes),
            )
        return run_status(run.folder)

    def _job(self, run: QueuedRun, left: int) -> Job:
        fold = Fold(*(tuple(n for n in side if n not in self.failures) for side in (run.fold.train, run.fold.val)))
        if not fold.train:
            raise DataRefused("no case is left to train on", where=str(run.folder.root), do="see the failed cases")
        now = time.monotonic()
        return Job(
            plan=self.queue.plan,
            configuration=run.configuration,
            dataset=self.queue.dataset,
            number=run.number,
            fold=fold,
            folder=run.folder,
            store=self.stores[run.configuration.name],
            recipe=self.queue.recipe,
            seed=self.options.seed,
            device=self.device,
            budget_seconds=self.options.budget_seconds,
            deadline=None if self.deadline is None else now + (self.deadline - now) / left,
            readers=min(MOST_READERS, self.options.jobs),
            check_stop=self.check_stop,
            progress=self.step_progress,
        )


def _seconds_spent(folder: RunFolder) -> float:
    status = run_status(folder)
    return status.seconds if status is not None else 0.0
