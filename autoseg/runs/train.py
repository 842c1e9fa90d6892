"""Training what the plan holds: a queue of configurations x folds, each resumed, run, or found done."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from autoseg.core.errors import AutoSegError, Busy, Interrupted, NotEnoughResources, PlanFault
from autoseg.core.files import remove_leftovers
from autoseg.core.progress import Progress, silent
from autoseg.core.workspace import Workspace
from autoseg.launch.devices import choose_devices, use_cores
from autoseg.launch.numerics import SHARE_FOR_MEASURING
from autoseg.planning.plan import load_plan
from autoseg.preprocessing.fill import fill_store
from autoseg.preprocessing.store import store_recipe
from autoseg.runs.budget import BudgetChoice, budget_deadline, choose_runs, heartbeat, run_deadline
from autoseg.runs.cascade import fill_first_stage
from autoseg.runs.execute import result_of_done
from autoseg.runs.executors.executor import Executor, check_executor, make_executor
from autoseg.runs.forecast import RunNeeds
from autoseg.runs.progress import ProgressReporter, QueueProgress
from autoseg.runs.queue import Queue, RunTask, TrainOptions, make_queue
from autoseg.runs.run import Run, RunResult
from autoseg.training.recipe import load_recipe
from autoseg.training.splits import Fold, save_folds

TICK_SECONDS = 0.2
"""Longest wait for a run to end; then it is asked whether the user wants to stop."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What the command did.

    Attributes:
        results: of the runs that were tried, in the order of the queue.
        device: a sentence.
        failures: cases that could not be preprocessed -> why.
        stop: the error that the command ends with, or None.
        left_out: runs that the budget had no time for.
        note: about these, and the budget that would be enough; empty if there are none.
    """

    results: tuple[RunResult, ...]
    device: str
    failures: dict[str, str]
    stop: AutoSegError | None = None
    left_out: tuple[Run, ...] = ()
    note: str = ""

    @property
    def exit_code(self) -> int:
        """0; 4 if a run or a case failed; or that of what stopped the command."""
        if self.stop is not None:
            return self.stop.exit_code
        return 4 if self.failures or any(own.state == "failed" for own in self.results) else 0

    @property
    def errors(self) -> list[AutoSegError]:
        """What stopped the command, or else what stopped single runs."""
        if self.stop is not None:
            return [self.stop]
        return [own.error for own in self.results if own.error is not None]


@dataclass(frozen=True, slots=True)
class TrainListeners:
    """Who hears of the training while it goes on; all are optional.

    Attributes:
        on_cases: called with preprocessed cases.
        on_steps: called with the steps of the present run.
        on_progress: called now and then with where every run stands and when the whole will end.
    """

    on_cases: Progress = silent
    on_steps: Progress = silent
    on_progress: Callable[[QueueProgress], None] | None = None


def train_queue(
    workspace: Workspace,
    options: TrainOptions,
    check_stop: Callable[[], None],
    listeners: TrainListeners = TrainListeners(),
) -> TrainReport:
    """Preprocesses what is missing and trains the queue.

    An interruption or a lack of resources ends the queue; a run that fails by itself does not. With several devices,
    as many runs are trained at the same time.

    Args:
        workspace: with a plan.
        options: what the user asked for.
        check_stop: raises Interrupted when the user wants to stop.
        listeners: of the progress.

    Raises:
        MissingInput: there is no plan yet, or the dataset is not where it was planned.
        PlanFault: the plan was made from another fingerprint.
        UsageError: no such configuration, fold, recipe, executor or device; or the budget was used up before.
    """
    check_executor(options.executor)
    queue = make_queue(workspace, options)
    threads = use_cores()
    devices, because = choose_devices(options.device)
    _log.info("%s; %d threads", because, threads)
    if devices[0].type == "cpu" and options.budget_seconds is None and queue.recipe == load_recipe("default"):
        _log.warning(
            "%d epochs of %d steps are meant for a GPU and take days to weeks on a CPU; to train in less, stop with "
            "Ctrl-C and run `%s --preset cpu`, or give a --budget",
            *(queue.recipe.epochs, queue.recipe.steps_per_epoch, workspace.command("plan")),
        )
    trainer = _Trainer(queue, workspace, options, devices[: max(1, len(queue.open_runs))], check_stop, listeners)
    for folder in (workspace.root, *(run.folder.validation for run in queue.runs)):
        remove_leftovers(folder)  # of runs that are done, too: what could not be removed then is nobody's now
    save_folds(queue.folds, workspace.splits)  # once nothing is left that would refuse the command
    results, stop = trainer.work_through()
    return TrainReport(results, because, trainer.failures, stop, trainer.choice.left_out, trainer.note)


@dataclass(slots=True)
class Schedule:
    """The runs of a command: those that wait, those at work, and what became of the others.

    Attributes:
        queue: of the runs.
        results: of those that are through.
        stop: what ends the whole command, once something does.
        chosen: that may begin, in the order in which they do; by default all.
    """

    queue: Queue
    results: dict[Run, RunResult] = field(default_factory=dict)
    stop: AutoSegError | None = None
    chosen: Sequence[Run] = ()
    _waiting: list[Run] = field(default_factory=list)
    _working: list[Run] = field(default_factory=list)
    _was_busy: set[Run] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._waiting = list(self.queue.runs)
        self.chosen = self.chosen or self.queue.runs

    @property
    def open_runs(self) -> list[Run]:
        """Those that wait or are at work, in the order of the queue."""
        return [run for run in self.queue.runs if run in self._waiting or run in self._working]

    @property
    def tried(self) -> list[Run]:
        """Those at work, and those of which something has become."""
        return [*self._working, *self.results]

    def next_run(self) -> Run | None:
        """The first chosen run that waits and may begin; None if none may, or none may any more."""
        if self.stop is not None:
            return None
        unfinished = {run.configuration for run in self.open_runs}
        waiting = [run for run in self._waiting if run in self.chosen]
        waiting.sort(key=lambda run: (run in self._was_busy, self.chosen.index(run)))
        return next((run for run in waiting if self.queue.first_stage_of(run) not in unfinished), None)

    def start(self, run: Run) -> None:
        """Notes that a run is at work."""
        self._waiting.remove(run)
        self._working.append(run)

    def settle(self, result: RunResult) -> None:
        """Notes what became of a run. One that another process trains is tried once more, after all the others."""
        run = result.run
        for runs in (self._working, self._waiting):
            if run in runs:
                runs.remove(run)
        if result.state == "busy" and run not in self._was_busy:
            self._was_busy.add(run)
            self._waiting.append(run)
            return
        self.results[run] = result
        if isinstance(result.error, Interrupted | NotEnoughResources) and result.state != "busy":
            self.stop = self.stop or result.error

    def give_up(self, configuration: str, error: AutoSegError) -> None:
        """Ends every run of a configuration that cannot be begun."""
        for run in [run for run in self.open_runs if run.configuration == configuration]:
            self._was_busy.add(run)
            self.settle(RunResult(run, "busy" if isinstance(error, Busy) else "failed", error))

    def is_busy_elsewhere(self, configuration: str | None) -> Busy | None:
        """The error of a run of a configuration that another process trains."""
        errors = (own.error for own in self.results.values() if own.run.configuration == configuration)
        return next((error for error in errors if isinstance(error, Busy)), None)

    def outcome(self) -> tuple[tuple[RunResult, ...], AutoSegError | None]:
        """All results in the order of the queue, and the error that the command ends with.

        That is what stopped it; or the error of the only run; or that another process trains a run.
        """
        results = tuple(self.results[run] for run in self.queue.runs if run in self.results)
        if self.stop is not None:
            return results, self.stop
        if len(results) == 1:
            return results, results[0].error
        return results, next((own.error for own in results if own.state == "busy"), None)


@dataclass(slots=True)
class _Trainer:
    """Works through a queue; prepares for each configuration what its runs share."""

    queue: Queue
    workspace: Workspace
    options: TrainOptions
    devices: tuple[torch.device, ...]
    check_stop: Callable[[], None]
    listeners: TrainListeners
    schedule: Schedule = field(init=False)
    reporter: ProgressReporter = field(init=False)
    stores: dict[str, Path] = field(default_factory=dict)
    first_stages: dict[str, Path] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    idle_since: float = 0.0
    needs: RunNeeds = field(init=False)
    choice: BudgetChoice = field(init=False)
    note: str = ""

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.queue)
        deadline = budget_deadline(self.queue, self.options)
        on_progress, results = self.listeners.on_progress, self.schedule.results
        self.reporter = ProgressReporter(self.queue, deadline, len(self.devices), on_progress, results)
        self.idle_since = time.time() - (time.monotonic() - self.options.started)
        self.needs = RunNeeds(self.queue, self.devices[0], SHARE_FOR_MEASURING * (self.options.budget_seconds or 0.0))
        self.choice = BudgetChoice(self.queue.runs)

    def work_through(self) -> tuple[tuple[RunResult, ...], AutoSegError | None]:
        """A result for each run that was tried, and what stops the command."""
        for run in self.queue.runs:
            if self.queue.stages[run] == "done":
                self.schedule.settle(result_of_done(run, self.queue, self.options.seed))
        handles: set[Future[RunResult]] = set()
        with make_executor(self.options.executor, self.devices, self.check_stop, self._on_step) as executor:
            while self._hand_out(executor, handles) or handles:
                done, handles = wait(handles, TICK_SECONDS, FIRST_COMPLETED)
                for handle in done:
                    self.schedule.settle(handle.result())
                    self.reporter.run_ended(handle.result().run)
                    if self.options.budget_seconds is not None:
                        self.needs.note(handle.result().run)
        return self.schedule.outcome()

    def _on_step(self, run: Run, done: int, total: int) -> None:
        self.listeners.on_steps(done, total)
        self.reporter.step(run, done, total)

    def _hand_out(self, executor: Executor, handles: set[Future[RunResult]]) -> bool:
        """Submits runs while the executor has room; whether any was."""
        before = len(handles)
        try:
            self.check_stop()
            if len(handles) < executor.slots:
                self._choose_and_prepare(executor.slots)
            while len(handles) < executor.slots and (run := self.schedule.next_run()) is not None:
                self._refuse_another_plan()
                if self._is_prepared(run):
                    task = self._task(run, executor.slots)
                    self.schedule.start(run)
                    handles.add(executor.submit(task))
                    self.idle_since = time.time()
        except (Interrupted, NotEnoughResources, PlanFault) as error:
            self.schedule.stop = self.schedule.stop or error
            executor.stop()
        return len(handles) > before

    def _choose_and_prepare(self, slots: int) -> None:
        """Decides which runs are trained, and fills the store for them; what that takes may change the decision."""
        while self.schedule.stop is None:
            self._choose(slots)
            chosen = (run.configuration for run in self.schedule.open_runs if run in self.schedule.chosen)
            name = next((own for own in chosen if own not in self.stores), None)
            if name is None:
                break
            self._fill_store(name)

    def _choose(self, slots: int) -> None:
        """Decides by the time that is left which of the open runs are trained."""
        deadline, budget = self.reporter.deadline, self.options.budget_seconds
        if deadline is None or budget is None:
            return
        tried = self.schedule.tried
        groups = self.needs.groups(self.schedule.open_runs, slots * (deadline - time.monotonic()), tried)
        self.choice = choose_runs(groups, deadline - time.monotonic(), slots, must_train=not tried)
        self.schedule.chosen = self.choice.runs
        before, self.note = self.note, self.choice.sentence(budget)
        if self.note.partition(";")[0] != before.partition(";")[0]:
            _log.warning("%s", self.note or "time is left for the runs that were left out")

    def _refuse_another_plan(self) -> None:
        """Raises PlanFault if the plan was replaced while runs were trained: what is left would not belong to them."""
        if load_plan(self.workspace) != self.queue.plan:
            raise PlanFault(
                "the plan was replaced while this command was training",
                where=str(self.workspace.plan),
                why="the runs of a queue must go by one plan to be compared",
                do="plan again with the former options and train again to go on, or train with --fresh by the new plan",
            )

    def _task(self, run: Run, slots: int) -> RunTask:
        fold = self.queue.folds[run.fold]
        train, val = (tuple(name for name in side if name not in self.failures) for side in (fold.train, fold.val))
        task = RunTask(
            run=run,
            plan=self.queue.plan,
            dataset=self.queue.dataset,
            cases=Fold(train, val),
            recipe=self.queue.recipe,
            options=self.options,
            store=self.stores[run.configuration],
            first_stage=self.first_stages.get(run.configuration),
            begin=self.idle_since,
            deadline=self._deadline_of(run, slots),
            contents=self.queue.contents,
        )
        if task.seconds_left is None:
            return task
        name = run.configuration
        seconds = self.needs.spent_seconds(run, self.schedule.tried) + task.seconds_left
        most = self.needs.most_steps(name, seconds) if self.choice.left_out else math.inf
        return replace(task, step_seconds=self.needs.step_seconds(name), most_steps=most)

    def _deadline_of(self, run: Run, slots: int) -> float | None:
        """When a run must be over, so that those at work and those chosen have their shares of what is left."""
        if (deadline := self.reporter.deadline) is None:
            return None
        shared = [own for own in self.schedule.open_runs if own in self.schedule.tried or own in self.choice.runs]
        weights = {own: self.needs.fewest_seconds(own.configuration) for own in shared}
        spent = {own: self.needs.spent_seconds(own, self.schedule.tried) for own in shared}
        return run_deadline(deadline, run, weights, spent, slots, time.monotonic())

    def _is_prepared(self, run: Run) -> bool:
        """Whether a cascade has its first stage's label maps; they are made now if they are missing."""
        name, first_stage = run.configuration, self.queue.first_stage_of(run)
        if first_stage is None or name in self.first_stages:
            return True
        try:
            if busy := self.schedule.is_busy_elsewhere(first_stage):
                raise busy
            with self._noted(name) as progress:
                store, device = self.stores[name], self.devices[0]
                self.first_stages[name] = fill_first_stage(self.workspace, self.queue, name, store, device, progress)
        except Busy as error:
            self.schedule.give_up(name, error)
        except (Interrupted, NotEnoughResources):
            raise
        except AutoSegError as error:
            _log.error("%s cannot be trained: %s", name, error)
            self.schedule.give_up(name, error)
        return name in self.first_stages

    def _fill_store(self, name: str) -> None:
        queue = self.queue
        with self._noted(name) as progress:
            result = fill_store(
                queue.dataset,
                queue.fingerprint,
                store_recipe(queue.plan, queue.plan.configurations[name], queue.fingerprint),
                self.workspace.store,
                jobs=self.options.jobs,
                progress=progress,
            )
        self.stores[name] = result.folder
        self.failures.update(result.failures)

    @contextmanager
    def _noted(self, configuration: str) -> Iterator[Progress]:
        """Progress of work that all runs of a configuration share; it counts for the budget and can be stopped."""

        def progress(done: int, total: int) -> None:
            self.listeners.on_cases(done, total)
            self.check_stop()

        folder = self.workspace.run(configuration, 0).configuration
        is_noted = self.options.budget_seconds is not None
        with heartbeat(folder, self.idle_since) if is_noted else nullcontext():
            yield progress
        self.idle_since = time.time()
