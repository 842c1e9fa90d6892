"""The queue: which runs a plan and the user's options ask for, in which order, and where each of them stands."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autoseg.core.errors import MissingInput, RecordFault, UsageError
from autoseg.core.records import load
from autoseg.core.registry import choose
from autoseg.core.workspace import RunFolder, Workspace
from autoseg.data.fingerprint import Fingerprint
from autoseg.data.model import Dataset
from autoseg.planning.plan import Configuration, Plan
from autoseg.planning.planned import load_planned
from autoseg.runs.records import RunStatus
from autoseg.runs.validation import PROBABILITIES_GIB
from autoseg.training.grouping import SplitFacts, case_groups
from autoseg.training.recipe import Recipe, load_recipe
from autoseg.training.splits import Fold, settle_folds

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What the user asked for; None and empty mean the default.

    Attributes:
        configurations: names; default: all of the plan.
        folds: numbers; default: all.
        recipe: name or file; default: "cpu" for the preset of that name, else "default".
        epochs: instead of the recipe's.
        steps: per epoch, instead of the recipe's.
        budget_seconds: wall time of all runs of the queue together, over all sittings.
        started: `time.monotonic()` at which the command started; the budget counts from there.
        is_fresh: whether runs that exist are discarded.
        seed: of everything random.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps", or several of them with commas; "auto" means all GPUs.
        jobs: worker processes for preprocessing, and threads that cut batches.
        group_by: regular expression or CSV file that says which cases belong together, or None.
        is_stratified: whether cases with rare classes are spread over the folds.
        probabilities_gib: disk for the kept out-of-fold probabilities of all runs together.
    """

    configurations: tuple[str, ...] = ()
    folds: tuple[int, ...] = ()
    recipe: str | None = None
    epochs: int | None = None
    steps: int | None = None
    budget_seconds: float | None = None
    started: float = field(default_factory=time.monotonic)
    is_fresh: bool = False
    seed: int = 0
    device: str = "auto"
    jobs: int = 1
    group_by: str | None = None
    is_stratified: bool = False
    probabilities_gib: float = PROBABILITIES_GIB


@dataclass(frozen=True, slots=True)
class QueuedRun:
    """A run of the queue.

    Attributes:
        configuration: to train.
        number: of the fold.
        fold: its cases.
        folder: of the run.
        state: "new", "started" or "done", before this command.
    """

    configuration: Configuration
    number: int
    fold: Fold
    folder: RunFolder
    state: str

    @property
    def title(self) -> str:
        """Configuration and fold, for people."""
        return f"{self.configuration.name} fold {self.number}"


@dataclass(frozen=True, slots=True)
class Queue:
    """What is to be trained.

    Attributes:
        plan: of the dataset.
        dataset: where the files are.
        fingerprint: its cases are trained on.
        recipe: asked for.
        folds: of the dataset.
        runs: in order; all folds of a cascade's first stage come before the cascade.
    """

    plan: Plan
    dataset: Dataset
    fingerprint: Fingerprint
    recipe: Recipe
    folds: tuple[Fold, ...]
    runs: tuple[QueuedRun, ...]

    def open_runs(self, configuration: str) -> list[QueuedRun]:
        """Runs of a configuration that are not done."""
        return [run for run in self.runs if run.configuration.name == configuration and run.state != "done"]


def make_queue(workspace: Workspace, options: TrainOptions) -> Queue:
    """Reads the plan and lists the runs; writes nothing.

    Raises:
        MissingInput: there is no plan yet, or the dataset is not where it was planned.
        PlanFault: the plan was made from another fingerprint.
        UsageError: no such configuration, fold or recipe, or a cascade without its first stage.
    """
    dataset, fingerprint, plan = load_planned(workspace)
    named = options.recipe or ("cpu" if plan.preset == "cpu" else "default")
    recipe = load_recipe(named, epochs=options.epochs, steps=options.steps)
    folds = _folds(workspace, dataset, fingerprint, options)
    numbers = _chosen_folds(options.folds, len(folds))
    configurations = _chosen(plan, options.configurations)
    runs = [
        QueuedRun(configuration, number, folds[number], folder, _state(folder, options.is_fresh))
        for configuration in configurations
        for number in numbers
        for folder in [workspace.run(configuration.name, number)]
    ]
    missing = _missing_first_stages(workspace, runs, len(folds))
    _refuse_named(missing, options.configurations)
    kept = [run for run in runs if run.configuration.name not in missing]
    return Queue(plan, dataset, fingerprint, recipe, folds, tuple(kept))


def run_status(folder: RunFolder) -> RunStatus | None:
    """Where a run stands; None if it did not get so far."""
    try:
        return load(RunStatus, folder.state)
    except (MissingInput, RecordFault):
        return None


def _folds(workspace: Workspace, dataset: Dataset, fingerprint: Fingerprint, options: TrainOptions) -> tuple[Fold, ...]:
    names = dataset.labels.foreground
    usable = {case.identifier for case in fingerprint.cases}
    facts = SplitFacts(
        images={case.identifier: case.content[: len(case.content) // 2] for case in fingerprint.cases},
        classes={
            case.identifier: frozenset(
                name
                for name in names
                if any((case.class_voxels or {}).get(str(v)) for v in dataset.labels.classes[name])
            )
            for case in fingerprint.cases
        },
        groups=None if options.group_by is None else case_groups(options.group_by, usable),
        is_stratified=options.is_stratified,
    )
    refused = {case.identifier for case in dataset.cases} - usable
    return settle_folds(usable, refused, Path(dataset.root), workspace.splits, facts)


def _chosen_folds(asked: Sequence[int], count: int) -> Sequence[int]:
    if unknown := [number for number in asked if number >= count]:
        raise UsageError(
            f"there is no fold {unknown[0]}: this dataset has {count}",
            where="--fold",
            do=f"choose among 0 to {count - 1}" if count > 1 else "leave out --fold",
        )
    return list(dict.fromkeys(asked)) or range(count)


def _chosen(plan: Plan, names: Sequence[str]) -> list[Configuration]:
    """The configurations asked for; cascades come last, as they build on the others."""
    chosen = [choose(name, plan.configurations, "configuration of this plan") for name in dict.fromkeys(names)]
    return sorted(chosen or plan.configurations.values(), key=lambda own: own.cascade_from is not None)


def _missing_first_stages(workspace: Workspace, runs: Sequence[QueuedRun], folds: int) -> dict[str, str]:
    """For each cascade that cannot be trained, its name and which runs of its first stage neither exist nor come."""
    queued = {(run.configuration.name, run.number) for run in runs}
    missing = {}
    for cascade, first in {run.configuration.name: run.configuration.cascade_from for run in runs}.items():
        if first is None:
            continue
        absent = [
            str(number)
            for number in range(folds)
            if (first, number) not in queued and _state(workspace.run(first, number), False) != "done"
        ]
        if absent:
            missing[cascade] = f"{first} fold {', '.join(absent)}"
    return missing


def _refuse_named(missing: Mapping[str, str], names: Sequence[str]) -> None:
    """An error if the user named a cascade that cannot be trained; a warning if it is merely in the plan."""
    for cascade, absent in missing.items():
        if cascade in names:
            raise UsageError(
                f"{cascade} needs {absent}, neither trained nor in the queue",
                why="its input is what each fold of the first stage predicts for the cases that it kept back",
                do="train all folds of the first stage first, or name it with --configuration and leave out --fold",
            )
        _log.warning("%s is left out: it needs %s, neither trained nor in the queue", cascade, absent)


def _state(folder: RunFolder, is_fresh: bool) -> str:
    if is_fresh or not folder.recipe.exists():
        return "new"
    status = run_status(folder)
    return "done" if status is not None and status.state == "done" else "started"
