"""`autoseg select` for notebooks and the command line: which configuration or ensemble predicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autoseg.core.errors import for_users
from autoseg.core.progress import Progress, silent
from autoseg.core.workspace import workspace_of
from autoseg.selection.record import Selection
from autoseg.selection.select import SelectionOptions, select_model


@for_users()
def select(
    dataset: str | Path,
    *,
    work: str | Path | None = None,
    objective: str = "default",
    configurations: Sequence[str] = (),
    allow_missing: bool = False,
    seed: int = 0,
    jobs: int = 1,
    progress: Progress = silent,
) -> Selection:
    """Chooses the configuration or ensemble that predicts, and its postprocessing, by cross-validation.

    Writes selection.json and the choice's out-of-fold label maps into the work folder.

    Args:
        dataset: folder of the dataset, or its work folder.
        work: work folder; by default `autoseg` inside the dataset's.
        objective: "default" (cheapest that is not worse than the best by more than noise), "dice", "nnunet" or "cost".
        configurations: candidates; by default all of the plan.
        allow_missing: whether unfinished runs are left out.
        seed: of the bootstrap.
        jobs: threads.
        progress: called with finished cases.

    Raises:
        MissingInput: nothing is planned or trained, or no case was predicted by all configurations.
        UsageError: no such objective or configuration, or runs are missing.
        PlanFault: a run was trained with another plan.
        IntegrityRefusal: a checkpoint or kept probabilities are damaged.
    """
    workspace = workspace_of(Path(dataset), None if work is None else Path(work))
    return select_model(
        workspace,
        SelectionOptions(objective, tuple(configurations), allow_missing, seed),
        jobs=jobs,
        progress=progress,
    )
