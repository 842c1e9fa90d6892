"""`autoseg train` for notebooks and the command line: train what the plan holds, then choose and report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoseg.core.errors import MissingInput, UsageError, for_users
from autoseg.core.progress import Progress, silent
from autoseg.core.records import load
from autoseg.core.workspace import Workspace, workspace_of
from autoseg.launch.interrupts import stoppable
from autoseg.planning.plan import load_planned
from autoseg.report.collect import write_report
from autoseg.report.written import writing
from autoseg.runs.executors.executor import check_executor
from autoseg.runs.forecast import QueueForecast, forecast_queue
from autoseg.runs.queue import Queue, TrainOptions, make_queue
from autoseg.runs.run import Run
from autoseg.runs.train import TrainListeners, TrainReport, train_queue
from autoseg.selection.record import Selection
from autoseg.selection.select import SelectionOptions, select_model
from autoseg.selection.trained import TrainedMatrix, trained_matrix

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trained:
    """What `train` did.

    Attributes:
        report: every run with its state and scores, failed cases, and what stopped the command.
        selection: what now predicts; None while runs of the plan are missing or failed.
    """

    report: TrainReport
    selection: Selection | None


@for_users()
def train(
    dataset: str | Path, *, work: str | Path | None = None, progress: Progress = silent, **options: Any
) -> Trained:
    """Trains what the plan holds; the same call again resumes, or finds everything done.

    Once the last run of the plan is done, the configuration or ensemble that predicts is selected, and report.html
    written.

    Args:
        dataset: folder of the dataset, or its work folder.
        work: work folder; by default `autoseg` inside the dataset's.
        progress: called with the steps of each run.
        options: fields of `TrainOptions`: configurations, folds, recipe, epochs, steps, budget_seconds, is_fresh, seed,
            device, executor, jobs, group_by, is_stratified, on_all_cases, probabilities_gib.

    Raises:
        MissingInput: there is no plan yet.
        UsageError: no such configuration, fold, recipe or device.
        Interrupted: by Ctrl-C or SIGTERM; the same call resumes.
        AutoSegError: whatever else stopped the queue, or the first run that failed, after the others were done.
    """
    workspace = workspace_of(Path(dataset), None if work is None else Path(work))
    named: dict[str, Any] = {name: tuple(own) if isinstance(own, list) else own for name, own in options.items()}
    chosen = TrainOptions(**named)
    report = train_runs(workspace, chosen, TrainListeners(on_steps=progress))
    for error in report.errors:
        raise error
    return finish(workspace, report, chosen)


@for_users()
def train_runs(
    workspace: Workspace,
    options: TrainOptions,
    listeners: TrainListeners = TrainListeners(),  # noqa: B008 - frozen
) -> TrainReport:
    """The training alone; a run that fails and what stops the queue stand in the report instead of being raised.

    Args:
        workspace: with a plan.
        options: what the user asked for.
        listeners: of the progress.
    """
    with stoppable() as check_stop:
        return train_queue(workspace, options, check_stop, listeners)


@for_users()
def finish(workspace: Workspace, report: TrainReport, options: TrainOptions, progress: Progress = silent) -> Trained:
    """What follows the training: the choice and the report, if everything went well and no run is missing.

    Args:
        workspace: trained in.
        report: of the training.
        options: it was done with.
        progress: called with compared cases.
    """
    if report.exit_code:
        return Trained(report, None)
    selecting = SelectionOptions(seed=options.seed)
    return Trained(report, select_and_report(workspace, selecting, report.left_out, options.jobs, progress))


@for_users()
def forecast_training(workspace: Workspace, options: TrainOptions) -> tuple[Queue, QueueForecast]:
    """The runs that `train` would do, with their hours and disk (`--dry-run`); writes nothing."""
    check_executor(options.executor)
    queue = make_queue(workspace, options)
    return queue, forecast_queue(workspace, queue, options)


def select_and_report(
    workspace: Workspace,
    options: SelectionOptions = SelectionOptions(),  # noqa: B008 - frozen
    left_out: Sequence[Run] = (),
    jobs: int = 1,
    progress: Progress = silent,
) -> Selection | None:
    """Selects and reports if every configuration and fold of the plan is trained or left out for lack of time.

    Else there is nothing to do yet. A choice that was made from these very runs is kept, whatever its objective.

    Args:
        workspace: in which something was trained.
        options: of the selection.
        left_out: runs that a budget had no time for.
        jobs: threads.
        progress: called with compared cases.

    Returns:
        The choice that now predicts, or None if runs are missing or no case was kept back to choose by.
    """
    matrix = trained_matrix(workspace, load_planned(workspace), allow_missing=True)
    if set(matrix.missing) - {run.title for run in left_out}:
        return None
    if left_out:
        options = trained_candidates(matrix.compared, left_out, options)
        matrix = trained_matrix(workspace, load_planned(workspace), options.configurations, allow_missing=True)
    selection = _selection_of(workspace, matrix)
    if selection is None:
        try:
            selection = select_model(workspace, options, jobs=jobs, progress=progress)
        except MissingInput as error:
            _log.warning("nothing is selected: %s", error)
    try:
        with writing(workspace.report, overwrite=False, takes_unknown=True):
            write_report(workspace, jobs=jobs)
    except UsageError as error:  # a report that was changed by hand; what was chosen is worth more
        _log.warning("%s", error)
    return selection


def trained_candidates(names: Sequence[str], left_out: Sequence[Run], options: SelectionOptions) -> SelectionOptions:
    """The options with the configurations that are complete; if none is, with what there is of all.

    Args:
        names: configurations of which something is trained.
        left_out: runs that a budget had no time for.
        options: without candidates.
    """
    incomplete = {run.configuration for run in left_out}
    complete = tuple(name for name in names if name not in incomplete)
    return replace(options, configurations=complete, allow_missing=not complete)


def _selection_of(workspace: Workspace, matrix: TrainedMatrix) -> Selection | None:
    """The selection in the work folder if it was made from the runs that are there now."""
    if not workspace.selection.exists():
        return None
    selection = load(Selection, workspace.selection)
    return selection if selection.is_of(matrix.plan) and selection.runs == matrix.weight_hashes() else None
