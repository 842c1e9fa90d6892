"""What follows once the last run of a plan is done: the choice among all of them, and the report."""

from __future__ import annotations

import logging

from autoseg.core.errors import MissingInput
from autoseg.core.progress import Progress, silent
from autoseg.core.records import load
from autoseg.core.workspace import Workspace
from autoseg.planning.planned import load_planned
from autoseg.report.collect import write_report
from autoseg.selection.record import Selection
from autoseg.selection.select import SelectionOptions, select_model
from autoseg.selection.trained import TrainedMatrix, trained_matrix

_log = logging.getLogger(__name__)


def conclude(workspace: Workspace, *, seed: int = 0, jobs: int = 1, progress: Progress = silent) -> Selection | None:
    """Selects and reports if every configuration and fold of the plan is trained; else there is nothing to do yet.

    A choice that was made from these very runs is kept, whatever its objective.

    Args:
        workspace: in which something was trained.
        seed: of the bootstrap.
        jobs: threads.
        progress: told about compared cases.

    Returns:
        The choice that now predicts, or None if runs are missing or no case was kept back to choose by.
    """
    matrix = trained_matrix(workspace, load_planned(workspace), allow_missing=True)
    if matrix.missing:
        return None
    selection = _choice_of(workspace, matrix)
    if selection is None:
        try:
            selection = select_model(workspace, SelectionOptions(seed=seed), jobs=jobs, progress=progress)
        except MissingInput as error:
            _log.warning("nothing is selected: %s", error)
            return None
    write_report(workspace, jobs=jobs)
    return selection


def _choice_of(workspace: Workspace, matrix: TrainedMatrix) -> Selection | None:
    """The selection in the work folder if it was made from the runs that are there now."""
    if not workspace.selection.exists():
        return None
    selection = load(Selection, workspace.selection)
    return selection if selection.is_of(matrix.plan) and selection.runs == matrix.weight_hashes() else None
