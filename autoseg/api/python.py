"""What scripts call: plan, train and select with paths and keywords, as the command line does.

The examples of this module are run by its tests, with `dataset` naming a small folder of synthetic cases:

>>> import autoseg
>>> import numpy as np
>>> plan = autoseg.plan(dataset, preset="cpu", configurations=["2d"])
>>> plan.labels.foreground
('organ', 'lesion', 'vessel')
>>> report = autoseg.train(dataset, folds=[0], epochs=1, steps=1, device="cpu")
>>> [(run.configuration, run.fold, run.state) for run in report.runs]
[('2d', 0, 'done')]
>>> selection = autoseg.select(dataset, allow_missing=True)
>>> selection.name
'2d'
>>> model = autoseg.load_model(dataset, device="cpu")
>>> model.classes
{'background': (0,), 'organ': (1,), 'lesion': (2,), 'vessel': (3,)}
>>> labels = model.predict(np.ones((2, 5, 40, 40)), spacing_mm=(3.0, 1.2, 1.2))
>>> labels.shape
(5, 40, 40)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from autoseg.api.plan import plan_dataset
from autoseg.core.progress import Progress, silent
from autoseg.core.workspace import workspace_of
from autoseg.launch.interrupts import stoppable
from autoseg.planning.decide import PlanOptions
from autoseg.planning.plan import Plan
from autoseg.runs.train import TrainOptions, TrainReport
from autoseg.runs.train import train as train_queue
from autoseg.selection.record import Selection
from autoseg.selection.select import SelectionOptions, select_model


class TrainChoices(TypedDict, total=False):
    """Keywords of `train`; all but `budget_seconds` mean what the options of `autoseg train` mean."""

    recipe: str
    epochs: int
    steps: int
    budget_seconds: float
    is_fresh: bool
    seed: int
    device: str
    jobs: int
    group_by: str
    is_stratified: bool
    probabilities_gib: float


def plan(
    dataset: str | Path,
    *,
    work: str | Path | None = None,
    preset: str = "reference",
    memory_gib: float | None = None,
    configurations: Sequence[str] = (),
    pins: str | Path | None = None,
    jobs: int = 1,
    progress: Progress = silent,
) -> Plan:
    """Checks a dataset, decides how to segment it, and writes the plan into the work folder.

    Args:
        dataset: folder in any layout that `autoseg plan` knows.
        work: work folder; by default `autoseg` inside the dataset's.
        preset: "reference", "resenc-m", "resenc-l", "resenc-xl", "cpu", or a YAML file.
        memory_gib: memory target of the patch and batch sizes; None for the preset's own.
        configurations: the only ones to keep; by default all.
        pins: YAML file of decisions that are yours.
        jobs: worker processes.
        progress: told about examined cases.

    Raises:
        MissingInput: there is no such dataset.
        DataRefused: none of its cases can be used.
    """
    folder = Path(dataset)
    workspace = workspace_of(folder, None if work is None else Path(work))
    options = PlanOptions(preset, memory_gib, tuple(configurations), None if pins is None else Path(pins))
    return plan_dataset(folder, workspace, options, jobs=jobs, progress=progress).plan


def train(
    dataset: str | Path,
    *,
    work: str | Path | None = None,
    configurations: Sequence[str] = (),
    folds: Sequence[int] = (),
    progress: Progress = silent,
    **choices: Unpack[TrainChoices],
) -> TrainReport:
    """Trains what the plan holds; the same call again resumes, or finds everything done.

    Args:
        dataset: folder of the dataset, or its work folder.
        work: work folder; by default `autoseg` inside the dataset's.
        configurations: names; by default all of the plan.
        folds: numbers; by default all.
        progress: told about the steps of each run.
        choices: see `TrainChoices`.

    Returns:
        Every run with its scores.

    Raises:
        MissingInput: there is no plan yet.
        UsageError: no such configuration, fold, recipe or device.
        Interrupted: by Ctrl-C or SIGTERM; the same call resumes.
        AutoSegError: whatever else stopped the queue, or the first run that failed, after the others were done.
    """
    workspace = workspace_of(Path(dataset), None if work is None else Path(work))
    options = TrainOptions(tuple(configurations), tuple(folds), **choices)
    with stoppable() as check:
        report = train_queue(workspace, options, check, step_progress=progress)
    errors = [report.stop, *(run.error for run in report.runs)]
    for error in errors:
        if error is not None:
            raise error
    return report


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

    Args:
        dataset: folder of the dataset, or its work folder.
        work: work folder; by default `autoseg` inside the dataset's.
        objective: "default" (cheapest that is not worse than the best by more than noise), "dice", "nnunet" or "cost".
        configurations: candidates; by default all of the plan.
        allow_missing: whether unfinished runs are left out.
        seed: of the bootstrap.
        jobs: threads.
        progress: told about finished cases.

    Raises:
        MissingInput: nothing is planned or trained.
        UsageError: no such objective or configuration, or runs are missing.
    """
    workspace = workspace_of(Path(dataset), None if work is None else Path(work))
    return select_model(
        workspace,
        SelectionOptions(objective, tuple(configurations), allow_missing, seed),
        jobs=jobs,
        progress=progress,
    )
