"""The queue: which runs a plan and the user's options ask for, and in which order."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autoseg.core.errors import MissingInput, RecordFault, UsageError
from autoseg.core.limits import BUDGET_S, DISK_GIB, EPOCHS, JOBS, SEED, STEPS
from autoseg.core.registry import choose
from autoseg.core.workspace import Workspace
from autoseg.data.fingerprint import CaseStatistics, Fingerprint
from autoseg.data.model import Dataset, LabelSet
from autoseg.planning.plan import Configuration, Plan, load_planned
from autoseg.runs.run import Run, Stage, check_same_cases
from autoseg.training.grouping import SplitFacts, case_groups
from autoseg.training.recipe import Recipe, load_recipe, stage_configurations, usual_recipes
from autoseg.training.splits import FOLD_OPTIONS, Fold, holds_folds, settle_folds

PROBABILITIES_GIB = 10.0
"""Disk that the kept probabilities of all runs of a dataset may take by default (assumption: little beside a store)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What the user asked for; None and empty mean the default. Numbers out of bounds are a UsageError.

    Attributes:
        configurations: names; default: all of the plan.
        folds: numbers; default: all.
        recipe: name or file; default: one of `usual_recipes`.
        epochs: instead of the recipe's.
        steps: per epoch, instead of the recipe's.
        budget_seconds: wall time of all runs of the queue together, interruptions left out.
        started: `time.monotonic()` at which the command started; the budget counts from there.
        is_fresh: whether runs that exist are discarded.
        seed: of everything random.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps", or several of them with commas; "auto" means all GPUs.
        executor: a key of `executors.EXECUTORS`, or "auto": in this process on one device, else a process per device.
        jobs: worker processes for preprocessing, and threads that cut batches.
        group_by: regular expression or CSV file that says which cases belong together, or None.
        is_stratified: whether cases with rare classes are spread over the folds.
        on_all_cases: whether every case is trained on and none kept back, so that there is one fold without scores.
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
    executor: str = "auto"
    jobs: int = 1
    group_by: str | None = None
    is_stratified: bool = False
    on_all_cases: bool = False
    probabilities_gib: float = PROBABILITIES_GIB

    def __post_init__(self) -> None:
        EPOCHS.check("--epochs", self.epochs)
        STEPS.check("--steps", self.steps)
        SEED.check("--seed", self.seed)
        JOBS.check("--jobs", self.jobs)
        BUDGET_S.check("--budget", self.budget_seconds)
        DISK_GIB.check("--probabilities-disk", self.probabilities_gib)
        if self.on_all_cases and (self.group_by is not None or self.is_stratified):
            raise UsageError(
                "--all-cases keeps no case back, so there is nothing to group or to spread",
                where="--all-cases",
                do="leave out --group-by and --stratify, or --all-cases",
            )


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
        stages: of each run when the queue was made; with `--fresh` all are new, and one that is done but has lost
            something is started.
    """

    plan: Plan
    dataset: Dataset
    fingerprint: Fingerprint
    recipe: Recipe
    folds: tuple[Fold, ...]
    runs: tuple[Run, ...]
    stages: dict[Run, Stage]

    @property
    def contents(self) -> dict[str, str]:
        """Case -> hash of its files."""
        return {case.identifier: case.content for case in self.fingerprint.cases}

    @property
    def open_runs(self) -> list[Run]:
        """Those that were not done when the queue was made, in order."""
        return [run for run in self.runs if self.stages[run] != "done"]

    def configuration_of(self, run: Run) -> Configuration:
        """What the run trains."""
        return self.plan.configurations[run.configuration]

    def first_stage_of(self, run: Run) -> str | None:
        """Configuration that must be trained before, in all folds; None if the run is no cascade."""
        return self.configuration_of(run).cascade_from


@dataclass(frozen=True, slots=True)
class RunTask:
    """A run with everything that training it needs, whichever process or machine does it.

    Attributes:
        run: to do.
        plan: of the dataset.
        dataset: knows the label files.
        cases: trained on and kept back, those that could not be prepared left out.
        recipe: asked for.
        options: of the command.
        store: folder of the prepared cases.
        first_stage: folder of the first stage's label maps, as `fill_first_stage` returns it; None without a cascade.
        begin: of the work on it, in seconds since the epoch.
        deadline: `time.monotonic()` at which it must be over, or None.
        contents: case -> hash of its files; empty where it is not known.
        step_seconds: that a step of the training is expected to take; known where there is a deadline.
        most_steps: of the training, however much time is left of the deadline.
    """

    run: Run
    plan: Plan
    dataset: Dataset
    cases: Fold
    recipe: Recipe
    options: TrainOptions
    store: Path
    first_stage: Path | None
    begin: float
    deadline: float | None
    contents: Mapping[str, str] = field(default_factory=dict)
    step_seconds: float | None = None
    most_steps: float = math.inf

    @property
    def configuration(self) -> Configuration:
        """To train."""
        return self.plan.configurations[self.run.configuration]

    @property
    def stages(self) -> tuple[Configuration, ...]:
        """What is trained in each stage of the recipe; the last has the planned patch."""
        return stage_configurations(self.configuration, self.recipe)

    @property
    def input_channels(self) -> int:
        """Input channels of the network."""
        return self.plan.input_channels(self.run.configuration)

    @property
    def first_stage_values(self) -> tuple[int, ...]:
        """Label values of the first stage that become channels; empty without one."""
        return () if self.first_stage is None else self.plan.labels.foreground_values

    @property
    def seconds_left(self) -> float | None:
        """Until the deadline, at least 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


def make_queue(workspace: Workspace, options: TrainOptions) -> Queue:
    """Reads the plan and lists the runs; writes nothing.

    Raises:
        MissingInput: there is no plan yet, or the dataset is not where it was planned.
        PlanFault: the plan was made from another fingerprint.
        UsageError: no such configuration, fold or recipe, or a cascade without its first stage.
    """
    dataset, fingerprint, plan = load_planned(workspace)
    folds = _folds(workspace, dataset, fingerprint, options)
    numbers = _chosen_folds(options.folds, len(folds))
    names = [own.name for own in _chosen(plan, options.configurations)]
    runs = [Run(name, number, workspace.run(name, number)) for name in names for number in numbers]
    missing = _missing_first_stages(workspace, plan, runs, folds)
    _refuse_named(missing, options.configurations)
    kept = tuple(run for run in runs if run.configuration not in missing)
    stay = _staying_runs(workspace, kept if options.is_fresh else ())
    _refuse_mixed_folds(workspace, folds, stay)
    recipe = _recipe(plan, options, stay)
    return Queue(plan, dataset, fingerprint, recipe, folds, kept, _stages(kept, is_fresh=options.is_fresh))


def _staying_runs(workspace: Workspace, discarded: Collection[Run]) -> list[Run]:
    """Runs of the dataset that have begun and are not discarded, in the queue or not."""
    found = [Run(*own) for own in workspace.run_folders()]
    return [run for run in found if run.stage != "new" and run not in discarded]


def _recipe(plan: Plan, options: TrainOptions, begun: Sequence[Run]) -> Recipe:
    """The one that was named; else the usual one of those that runs were begun with, so that folds are alike.

    However long these runs are: epochs and steps may be named for each.
    """

    def load(name: str) -> Recipe:
        return load_recipe(name, epochs=options.epochs, steps=options.steps)

    if options.recipe is not None:
        return load(options.recipe)
    usual = usual_recipes(plan.preset, has_budget=options.budget_seconds is not None)
    before = [_without_length(own) for own in map(_asked, begun) if own is not None]
    name = next((own for own in usual if _without_length(load(own)) in before), usual[0])
    _log.info("recipe %s%s", name, ", as in the runs before" if name != usual[0] else "")
    return load(name)


def _without_length(recipe: Recipe) -> Recipe:
    return replace(recipe, epochs=1, steps_per_epoch=1)


def _asked(run: Run) -> Recipe | None:
    """What a run was begun with; None where its record is damaged, which training it says."""
    try:
        return run.record().asked
    except (MissingInput, RecordFault):
        return None


def _refuse_mixed_folds(workspace: Workspace, folds: Sequence[Fold], stay: Sequence[Run]) -> None:
    """An error if runs that were trained with other folds would stay, and predict together with new ones.

    Raises:
        UsageError: naming these runs.
    """
    if holds_folds(workspace.splits, folds):
        return
    if mixed := [own.title for own in stay if not _fits(own, folds)]:
        raise UsageError(
            f"other folds than before are asked for, and runs of the former ones are there: {', '.join(mixed)}",
            where=str(workspace.splits),
            why="a case would be validated by one run and trained on by another, so their scores would not compare",
            do=f"leave out {FOLD_OPTIONS} to keep the former folds where the data is the same, or give another work "
            "folder with --work, or delete the folders of these runs",
        )


def _fits(run: Run, folds: Sequence[Fold]) -> bool:
    try:
        check_same_cases(run, folds[run.fold])
    except (UsageError, IndexError):
        return False
    except (MissingInput, RecordFault):
        return True  # nobody can tell; what goes on with it says that its record is damaged
    return True


def _stages(runs: Sequence[Run], *, is_fresh: bool) -> dict[Run, Stage]:
    return {run: "new" if is_fresh else _stage(run) for run in runs}


def _stage(run: Run) -> Stage:
    """How far a run is; one that is done but has lost something goes on from what there is."""
    if run.is_done and (fault := run.fault):
        _log.warning("%s was done and %s; it goes on from what is intact", run.title, fault)
        return "started"
    if run.is_unclear:
        _log.warning("%s: state.json is damaged or was changed; it is written anew", run.title)
    return run.stage


def _folds(workspace: Workspace, dataset: Dataset, fingerprint: Fingerprint, options: TrainOptions) -> tuple[Fold, ...]:
    usable = {case.identifier for case in fingerprint.cases}
    facts = SplitFacts(
        images={case.identifier: case.content[: len(case.content) // 2] for case in fingerprint.cases},
        classes={case.identifier: _classes_in(case, dataset.labels) for case in fingerprint.cases},
        groups=None if options.group_by is None else case_groups(options.group_by, usable),
        is_stratified=options.is_stratified,
        on_all_cases=options.on_all_cases,
    )
    refused = {case.identifier for case in dataset.cases} - usable
    return settle_folds(usable, refused, Path(dataset.root), workspace.splits, facts)


def _classes_in(case: CaseStatistics, labels: LabelSet) -> frozenset[str]:
    voxels = case.class_voxels or {}
    return frozenset(name for name in labels.foreground if any(voxels.get(str(v)) for v in labels.classes[name]))


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


def _missing_first_stages(
    workspace: Workspace, plan: Plan, runs: Sequence[Run], folds: Sequence[Fold]
) -> dict[str, str]:
    """For each cascade that cannot be trained, its name and what it lacks of its first stage."""
    first_of = {run.configuration: plan.configurations[run.configuration].cascade_from for run in runs}
    lacks = {name: _lacks(workspace, first, runs, folds) for name, first in first_of.items() if first is not None}
    return {name: what for name, what in lacks.items() if what is not None}


def _trained_on(folds: Sequence[Fold]) -> set[str]:
    return {name for fold in folds for name in fold.train}


def _lacks(workspace: Workspace, first: str, runs: Sequence[Run], folds: Sequence[Fold]) -> str | None:
    """What of a first stage a cascade would lack; None if it has or gets a prediction of every case out of fold."""
    if never := sorted(_trained_on(folds) - {name for fold in folds for name in fold.val}):
        return f"a {first} that was not trained on {never[0]}, which no fold keeps back"
    needed = [Run(first, number, workspace.run(first, number)) for number in range(len(folds))]
    if absent := [str(run.fold) for run in needed if run not in runs and not run.is_done]:
        return f"{first} fold {', '.join(absent)}, neither trained nor in the queue"
    return None


def _refuse_named(missing: Mapping[str, str], names: Sequence[str]) -> None:
    """An error if the user named a cascade that cannot be trained; a warning if it is merely in the plan."""
    for cascade, absent in missing.items():
        if cascade in names:
            raise UsageError(
                f"{cascade} needs {absent}",
                why="its input is what each fold of the first stage predicts for the cases that it kept back",
                do="train all folds of the first stage first, or name it with --configuration and leave out --fold and "
                "--all-cases",
            )
        _log.warning("%s is left out: it needs %s", cascade, absent)
