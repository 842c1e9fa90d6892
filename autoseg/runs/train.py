"""Training what the plan holds: a queue of configurations x folds, each resumed, run, or found done."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from autoseg.core.errors import AutoSegError, Interrupted, NotEnoughResources
from autoseg.core.progress import Progress, silent
from autoseg.core.workspace import Workspace
from autoseg.launch.devices import choose_devices, use_cores
from autoseg.preprocessing.fill import fill_store
from autoseg.preprocessing.store import store_recipe
from autoseg.runs.cascade import fill_previous
from autoseg.runs.execute import Assignment, Materials, RunReport, budget_deadline, look_at_done, run_deadline
from autoseg.runs.executors.processes import Alone, Crew, Team
from autoseg.runs.guards import Busy
from autoseg.runs.progress import Outlook, clock_time, outlook
from autoseg.runs.queue import Queue, QueuedRun, TrainOptions, make_queue
from autoseg.runs.schedule import Schedule
from autoseg.runs.work_intervals import sitting
from autoseg.training.splits import save_folds

__all__ = ["Outlook", "Queue", "QueuedRun", "RunReport", "TrainOptions", "TrainReport", "make_queue", "train"]

TELL_SECONDS = 1.0
"""Between two looks at where every run stands."""

_log = logging.getLogger(__name__)


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
    tell: Callable[[Outlook], None] | None = None,
) -> TrainReport:
    """Preprocesses what is missing and trains the queue.

    An interruption or a lack of resources ends the queue; a run that fails by itself does not. With several devices,
    as many runs are trained at the same time, each in a process of its own.

    Args:
        workspace: with a plan.
        options: what the user asked for.
        check_stop: raises Interrupted when the user wants to stop.
        store_progress: told about preprocessed cases.
        step_progress: told about steps of the present run.
        tell: told now and then where every run stands and when the whole will end.

    Raises:
        MissingInput: there is no plan yet, or the dataset is not where it was planned.
        PlanFault: the plan was made from another fingerprint.
        UsageError: no such configuration, fold, recipe or device; or the budget was used up before.
    """
    queue = make_queue(workspace, options)
    save_folds(queue.folds, workspace.splits)
    threads = use_cores()
    devices, because = choose_devices(options.device)
    _log.info("%s; %d threads", because, threads)
    deadline = budget_deadline(workspace, queue, options)
    trainer = _Trainer(queue, workspace, options, devices, check_stop, (store_progress, step_progress, tell), deadline)
    reports, stop = trainer.work_through()
    return TrainReport(reports, because, trainer.materials.failures, stop)


@dataclass(slots=True)
class _Trainer:
    """Works through a queue."""

    queue: Queue
    workspace: Workspace
    options: TrainOptions
    devices: tuple[torch.device, ...]
    check_stop: Callable[[], None]
    listeners: tuple[Progress, Progress, Callable[[Outlook], None] | None]
    deadline: float | None
    materials: Materials = field(default_factory=Materials)
    schedule: Schedule = field(init=False)
    board: _Board = field(init=False)
    idle_since: float = 0.0

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.queue.runs)
        open_runs = sum(run.state != "done" for run in self.queue.runs)
        self.devices = self.devices[: max(1, open_runs)]
        self.board = _Board(self.queue, self.schedule, self.deadline, len(self.devices), self.listeners[2])
        self.idle_since = time.time() - (time.monotonic() - self.options.started)

    def work_through(self) -> tuple[tuple[RunReport, ...], AutoSegError | None]:
        """A report for each run come to, and what stops the command."""
        for run in self.queue.runs:
            if run.state == "done":
                self.schedule.settle(look_at_done(run, self.queue))
        try:
            for name in dict.fromkeys(run.configuration.name for run in self.schedule.open_runs):
                self._fill_store(name)
        except (Interrupted, NotEnoughResources) as error:
            self.schedule.stop = error
            return self.schedule.outcome()
        with self._crew() as crew:
            while self._hand_out(crew) or crew.is_working:
                for report in crew.wait():
                    self.schedule.settle(report)
                    self.board.settle(report)
        return self.schedule.outcome()

    def _crew(self) -> Crew:
        if len(self.devices) == 1:
            return Alone(self.queue, self.options, self.devices[0], self.check_stop, self._on_step)
        return Team(self.queue, self.options, self.devices, self._on_step)

    def _on_step(self, run: QueuedRun, done: int, total: int) -> None:
        self.listeners[1](done, total)
        self.board.step(run, done, total)

    def _hand_out(self, crew: Crew) -> bool:
        """Gives runs to whoever is free; whether any was given."""
        has_given = False
        try:
            self.check_stop()
            while crew.has_room and (run := self.schedule.next_run()) is not None:
                if not self._is_prepared(run):
                    continue
                open_runs, now = self.schedule.open_runs, time.monotonic()
                until = run_deadline(self.deadline, run, open_runs, len(self.devices), now)
                self.schedule.start(run)
                crew.start(Assignment(run, self.idle_since, until), self.materials)
                self.idle_since = time.time()
                has_given = True
        except (Interrupted, NotEnoughResources) as error:
            self.schedule.stop = self.schedule.stop or error
            crew.stop()
        return has_given

    def _is_prepared(self, run: QueuedRun) -> bool:
        """Whether a cascade has its first stage's label maps; they are made now if they are missing."""
        own = run.configuration
        if own.cascade_from is None or own.name in self.materials.previous:
            return True
        try:
            if busy := self.schedule.is_busy_elsewhere(own.cascade_from):
                raise busy
            with self._noted(own.name) as progress:
                self.materials.previous[own.name] = fill_previous(
                    self.workspace,
                    self.queue.plan,
                    own,
                    self.queue.folds,
                    self.materials.stores[own.name],
                    self.devices[0],
                    progress,
                )
        except Busy as error:
            self.schedule.give_up(own.name, error)
        except (Interrupted, NotEnoughResources):
            raise
        except AutoSegError as error:
            _log.error("%s cannot be trained: %s", own.name, error)
            self.schedule.give_up(own.name, error)
        return own.name in self.materials.previous

    def _fill_store(self, name: str) -> None:
        with self._noted(name) as progress:
            result = fill_store(
                self.queue.dataset,
                self.queue.fingerprint,
                store_recipe(self.queue.plan, self.queue.plan.configurations[name], self.queue.fingerprint),
                self.workspace.store,
                jobs=self.options.jobs,
                progress=progress,
            )
        self.materials.stores[name] = result.folder
        self.materials.failures.update(result.failures)

    @contextmanager
    def _noted(self, configuration: str) -> Iterator[Progress]:
        """Progress of work that all runs of a configuration share; it counts for the budget and can be stopped."""

        def progress(done: int, total: int) -> None:
            self.listeners[0](done, total)
            self.check_stop()

        folder = self.workspace.run(configuration, 0).root.parent
        is_noted = self.options.budget_seconds is not None
        with sitting(folder, self.idle_since) if is_noted else nullcontext():
            yield progress
        self.idle_since = time.time()


@dataclass(slots=True)
class _Board:
    """Tells now and then where every run stands, and after each run when the whole will end."""

    queue: Queue
    schedule: Schedule
    deadline: float | None
    devices: int
    tell: Callable[[Outlook], None] | None
    at_work: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    told_at: float = 0.0

    def step(self, run: QueuedRun, done: int, total: int) -> None:
        """Notes the steps of a run at work."""
        self.at_work[run.configuration.name, run.number] = (done, total)
        if self.tell is not None and time.monotonic() - self.told_at >= TELL_SECONDS:
            self.told_at = time.monotonic()
            self.tell(self._outlook())

    def settle(self, report: RunReport) -> None:
        """Says how many runs are done and when the last will be."""
        self.at_work.pop((report.configuration, report.fold), None)
        now = self._outlook()
        done = sum(own.state == "done" for own in self.schedule.reports.values())
        end = f"; the whole ends about {clock_time(now.ends_at)}" if now.ends_at else ""
        if len(self.queue.runs) > 1:
            _log.info("%d of %d runs done%s", done, len(self.queue.runs), end)
        if self.tell is not None:
            self.tell(now)

    def _outlook(self) -> Outlook:
        settled = {(own.configuration, own.fold): own.state for own in self.schedule.reports.values()}
        return outlook(self.queue, settled, self.at_work, self.deadline, self.devices)
