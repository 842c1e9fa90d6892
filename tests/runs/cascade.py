"""A planned cascade so small that both of its stages train in a second."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from autoseg.core.records import save
from autoseg.core.workspace import Workspace
from autoseg.planning.plan import Configuration
from autoseg.preprocessing.fill import fill_store
from autoseg.preprocessing.store import store_recipe
from autoseg.runs.cascade import fill_previous
from autoseg.runs.records import RunStatus
from autoseg.runs.setup import Job
from autoseg.runs.training import run_job
from autoseg.training.recipe import Recipe
from autoseg.training.splits import Fold
from tests.preprocessing.tiny_dataset import Planned, planned_tiny_dataset

CPU = torch.device("cpu")
FIRST, SECOND = "3d_lowres", "3d_cascade_fullres"
FOLDS = (Fold(("case_0", "case_1"), ("case_2", "case_3")), Fold(("case_2", "case_3"), ("case_0", "case_1")))
RECIPE = Recipe(
    epochs=2, steps_per_epoch=2, validation_steps=1, ema_decay=0.9, precision="fp32", memory_format="contiguous"
)


@dataclass(frozen=True)
class Cascade:
    """A planned dataset whose plan holds a cascade.

    Attributes:
        planned: the dataset.
    """

    planned: Planned

    @property
    def workspace(self) -> Workspace:
        return self.planned.workspace

    def configuration(self, name: str) -> Configuration:
        return self.planned.plan.configurations[name]

    def store(self, name: str) -> Path:
        own = self.planned
        recipe = store_recipe(own.plan, self.configuration(name), own.fingerprint)
        return fill_store(own.dataset, own.fingerprint, recipe, own.workspace.store).folder

    def fill(self, folds=FOLDS, **options) -> Path:
        store = self.store(SECOND)
        own = self.configuration(SECOND)
        return fill_previous(self.workspace, self.planned.plan, own, folds, store, CPU, **options)

    def job(self, name: str, fold: int, previous: Path | None = None, **changes) -> Job:
        job = Job(
            plan=self.planned.plan,
            configuration=self.configuration(name),
            dataset=self.planned.dataset,
            number=fold,
            fold=FOLDS[fold],
            folder=self.workspace.run(name, fold),
            store=self.store(name),
            recipe=RECIPE,
            seed=0,
            device=CPU,
            budget_seconds=None,
            deadline=None,
            readers=0,
            check_stop=lambda: None,
            previous=previous,
        )
        return replace(job, **changes)

    def train(self, name: str, fold: int, previous: Path | None = None, **changes) -> RunStatus:
        return run_job(self.job(name, fold, previous, **changes))


def planned_cascade(folder: Path) -> Cascade:
    """Four cases of differing slice distances; a network of each kind of stage."""
    planned = planned_tiny_dataset(folder)
    full = planned.plan.configurations["3d_fullres"]
    low = replace(full, name=FIRST, spacing_mm=tuple(1.5 * step for step in full.spacing_mm))
    residual = replace(full.network, kind="residual_unet")
    second = replace(full, name=SECOND, cascade_from=FIRST, network=residual, batch_size=2)
    small = replace(planned.plan, configurations={FIRST: replace(low, batch_size=2), SECOND: second})
    save(small, planned.workspace.plan)
    return Cascade(replace(planned, plan=small))
