"""What scripts call: plan, train and select with paths and keywords, as the command line does.

The examples of this module are run by its tests, with `dataset` naming a small folder of synthetic cases:

>>> import autoseg
>>> import numpy as np
>>> plan = autoseg.plan(dataset, preset="cpu", configurations=["2d"])
>>> plan.labels.foreground
('organ', 'lesion', 'vessel')
>>> trained = autoseg.train(dataset, folds=[0], epochs=1, steps=1, device="cpu")
>>> [(result.run.title, result.state) for result in trained.report.results]
[('2d fold 0', 'done')]
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

from autoseg.api.plan import plan_dataset
from autoseg.core.progress import Progress, silent
from autoseg.core.workspace import workspace_of
from autoseg.planning.plan import Plan
from autoseg.planning.planner import PlanOptions


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
