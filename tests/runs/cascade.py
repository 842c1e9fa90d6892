"""A planned cascade so small that both of its stages train in a second."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from autoseg.core.records import from_data, save, to_data
from autoseg.core.workspace import Workspace
from autoseg.networks.kinds.unet import ResidualUNet
from autoseg.planning.plan import Configuration
from autoseg.preprocessing.fill import fill_store
from autoseg.preprocessing.store import store_recipe
from autoseg.runs.cascade import fill_first_stage
from autoseg.runs.queue import Queue, RunTask, TrainOptions
from autoseg.runs.run import Run, RunStatus
from autoseg.runs.training import train_and_validate
from autoseg.training.recipe import Recipe
from autoseg.training.splits import Fold
from tests.preprocessing.tiny_dataset import Planned, planned_tiny_dataset
from tests.runs.trained import never

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
        own = self.planned
        queue = Queue(own.plan, own.dataset, own.fingerprint, RECIPE, folds, (), {})
        return fill_first_stage(self.workspace, queue, SECOND, self.store(SECOND), CPU, **options)

    def task(self, name: str, fold: int, first_stage: Path | None = None, **changes) -> RunTask:
        task = RunTask(
            run=Run(name, fold, self.workspace.run(name, fold)),
            plan=self.planned.plan,
            dataset=self.planned.dataset,
            cases=FOLDS[fold],
            recipe=RECIPE,
            options=TrainOptions(jobs=1),
            store=self.store(name),
            first_stage=first_stage,
            begin=0.0,
            deadline=None,
        )
        return replace(task, **changes)

    def train(self, name: str, fold: int, first_stage: Path | None = None, **changes) -> RunStatus:
        return train_and_validate(self.task(name, fold, first_stage, **changes), CPU, never)


def planned_cascade(folder: Path) -> Cascade:
    """Four cases of differing slice distances; a network of each kind of stage."""
    planned = planned_tiny_dataset(folder)
    full = planned.plan.configurations["3d_fullres"]
    low = replace(full, name=FIRST, spacing_mm=tuple(1.5 * step for step in full.spacing_mm))
    residual = from_data(ResidualUNet, {**to_data(full.network), "kind": "residual_unet"}, "test")
    second = replace(full, name=SECOND, cascade_from=FIRST, network=residual, batch_size=2)
    small = replace(planned.plan, configurations={FIRST: replace(low, batch_size=2), SECOND: second})
    save(small, planned.workspace.plan)
    return Cascade(replace(planned, plan=small))
