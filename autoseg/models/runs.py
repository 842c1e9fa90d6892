"""Models made of the runs in a work folder: what was selected, what was asked for, or the likely best."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg.core.errors import MissingInput, PlanFault, RecordFault, UsageError
from autoseg.core.records import content_hash, load, to_data
from autoseg.core.workspace import WORK_FOLDER_NAME, RunFolder, Workspace
from autoseg.data.changes import Changes, changed_data, find_changes, load_dataset
from autoseg.data.fingerprint import Fingerprint
from autoseg.data.model import Dataset
from autoseg.data.outliers import TrainingRange, properties, training_ranges
from autoseg.inference.postprocessing import PostprocessingStep
from autoseg.models.record import Member, ModelFiles, ModelRecord, Provenance, Scores
from autoseg.networks.weights import newest_weights
from autoseg.planning.plan import Plan
from autoseg.runs.run import Run, RunRecord, Runs, damaged_run, trained_runs
from autoseg.selection.record import SelectedMember, Selection, plan_hash
from autoseg.training.recipe import PAST_TRAINING

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)

PREFERRED_CONFIGURATION = "3d_fullres"
"""Used unless another one is asked for: nnU-Net's usual best single configuration (Isensee et al. 2021)."""


@dataclass(frozen=True, slots=True)
class _Choice:
    """What shall predict: configurations with weights, the folds of each and of first stages, and why."""

    members: tuple[SelectedMember, ...]
    folds: dict[str, tuple[int, ...]]
    because: str
    postprocessing: tuple[PostprocessingStep, ...] = ()
    scores: Scores | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Of the averaged probabilities, by configuration."""
        total = sum(member.weight for member in self.members)
        return {member.configuration: member.weight / total for member in self.members}


def workspace_of_model(path: Path) -> Workspace:
    """The work folder that `path` is, that the run `path` is in, or that the dataset's folder `path` has inside."""
    if RunFolder(path).checkpoint.is_dir():
        return RunFolder(path).workspace
    inside = path / WORK_FOLDER_NAME
    return Workspace(inside if inside.is_dir() else path)


def has_runs(path: Path) -> bool:
    """Whether a path is a run, or leads to a work folder with runs."""
    return path.is_dir() and workspace_of_model(path).runs.is_dir()


def find_run_model(path: Path, configuration: str | None = None, folds: Sequence[int] = ()) -> ModelFiles:
    """The model that a dataset's folder, its work folder or one of its runs stands for.

    Args:
        path: the folder. Of a work folder with a selection, what was selected predicts.
        configuration: this one alone instead, without postprocessing.
        folds: of every configuration, first stages of cascades included; by default those selected, or all.

    Raises:
        MissingInput: there is no trained run.
        UsageError: the configuration or a fold was not trained, or the selection is out of date.
        PlanFault: the runs were trained with plans that do not fit together.
    """
    workspace = workspace_of_model(path)
    trained = trained_runs(workspace)
    if RunFolder(path).checkpoint.is_dir():
        return _assemble(workspace, *_single_run(path, trained, configuration, folds))
    if not trained:
        raise MissingInput("there is no trained model", where=str(path), do=f"run `{workspace.command('train')}` first")
    if configuration is None and workspace.selection.exists():
        return _assemble(workspace, trained, _selected(workspace, trained, folds))
    name, because = _choose_configuration(trained, configuration)
    choice = _Choice((SelectedMember(name, 1),), _folds_of(trained, (name,), folds), because)
    return _assemble(workspace, trained, choice)


def typical_cases(workspace: Workspace, plan: Plan) -> dict[str, TrainingRange]:
    """What is usual for the cases of the dataset, by property; empty if the work folder knows nothing of them."""
    if not workspace.fingerprint.exists():
        return {}
    cases = load(Fingerprint, workspace.fingerprint).cases
    return training_ranges(properties(case, plan.channels, plan.labels) for case in cases)


def _single_run(path: Path, trained: Runs, configuration: str | None, folds: Sequence[int]) -> tuple[Runs, _Choice]:
    """The model of one run; of a cascade with the first stage of the same fold, which saw the same cases."""
    record = load(RunRecord, RunFolder(path).recipe, PAST_TRAINING)
    name, fold = record.configuration, record.fold
    if configuration not in (None, name) or (folds and set(folds) != {fold}):
        raise UsageError(f"this run is {name} fold {fold}, nothing else", where=str(path), do="name the work folder")
    run = Run(name, fold, RunFolder(path))
    runs: Runs = {name: {fold: run}}
    stage = run.plan().configurations[name].cascade_from
    if stage is not None:
        own = trained.get(stage, {})
        runs[stage] = {fold: own[fold]} if fold in own else own
    return runs, _Choice((SelectedMember(name, 1),), _folds_of(runs, (name,), ()), f"{name}, the run that was named")


def _choose_configuration(trained: Runs, wanted: str | None) -> tuple[str, str]:
    if wanted is not None:
        if wanted not in trained:
            raise UsageError(f"{wanted} is not trained", do=f"choose from {_listed(trained)}")
        return wanted, f"{wanted}, as asked for"
    if len(trained) == 1:
        name = next(iter(trained))
        return name, f"{name}, the only configuration that is trained"
    if PREFERRED_CONFIGURATION in trained:
        return PREFERRED_CONFIGURATION, (
            f"{PREFERRED_CONFIGURATION}, the default of {_listed(trained)} (autoseg select compares them)"
        )
    dice = {name: _mean_dice(runs) for name, runs in trained.items()}
    if not any(dice.values()):
        raise UsageError(
            f"{_listed(trained)} are trained, and no score says which is better",
            do="choose one with --configuration",
        )
    best = max(trained, key=lambda name: dice[name])
    measured = ", ".join(f"{name} {value:.3f}" for name, value in dice.items())
    return best, f"{best}, the best by Dice ({measured})"


def _mean_dice(runs: Mapping[int, Run]) -> float:
    """Mean over the folds of the Dice of whole validation cases, or of patches where that is not known yet."""
    states = [run.status for run in runs.values()]
    return sum((state.dice if state else None) or 0.0 for state in states) / len(states)


def _folds_of(trained: Runs, names: Iterable[str], wanted: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Folds of the configurations and of the first stages of those that are cascades.

    Raises:
        UsageError: one of them is not trained.
    """
    folds: dict[str, tuple[int, ...]] = {}
    for name in _with_stages(trained, names):
        runs = trained.get(name)
        if not runs:
            raise UsageError(
                f"{name}, the first stage of a cascade, is not trained",
                do=f"train it first, with autoseg train --configuration {name}",
            )
        missing = [fold for fold in wanted if fold not in runs]
        if missing:
            raise UsageError(f"fold {missing[0]} of {name} is not trained", do=f"choose from {_listed(runs)}")
        folds[name] = tuple(sorted(wanted or runs))
    return folds


def _selected(workspace: Workspace, trained: Runs, wanted: Sequence[int]) -> _Choice:
    """What selection.json says, if the runs are still those that it is about."""
    selection = load(Selection, workspace.selection)
    names = [member.configuration for member in selection.members]
    folds = _selected_folds(selection, _with_stages(trained, names))
    for name, own in folds.items():
        _check_selected(selection, trained, name, own)
    because = f"{selection.name}, selected: {selection.because}"
    if workspace.plan.exists() and not selection.is_of(load(Plan, workspace.plan)):
        _log.warning("the plan changed after the selection; the networks selected go by the plan of their own training")
    if wanted:
        return _Choice(selection.members, _folds_of(trained, names, wanted), because, selection.steps)
    for name, own in folds.items():
        newer = sorted(set(trained[name]) - set(own))
        if newer:
            _log.warning("fold %s of %s came after the selection: autoseg select would use it", _listed(newer), name)
    scores = Scores(selection.name, selection.because, selection.candidates, selection.nested)
    return _Choice(selection.members, folds, because, selection.steps, scores)


def _selected_folds(selection: Selection, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The folds that a selection names of each configuration; raises UsageError if it names none of one."""
    if lacking := [name for name in names if name not in selection.folds]:
        raise UsageError(
            f"the selection names no folds of {_listed(lacking)}",
            where="selection.json",
            why="it was changed by hand, or what it is about was trained again as a cascade",
            do="run autoseg select DATASET again, or choose a configuration with --configuration",
        )
    return {name: selection.folds[name] for name in names}


def _check_selected(selection: Selection, trained: Runs, name: str, folds: Sequence[int]) -> None:
    """Raises UsageError if a run of the selection is gone or was trained again."""
    for fold in folds:
        run = trained.get(name, {}).get(fold)
        _refuse_damaged([] if run is None else [run])
        if run is not None and run.weights_hash == selection.runs.get(run.key):
            continue
        found = "is not there any more" if run is None else "was trained again since"
        raise UsageError(
            f"the selection is out of date: {name} fold {fold} {found}",
            where="selection.json",
            why="its scores and postprocessing are those of other networks",
            do="run autoseg select DATASET again, or choose one with --configuration",
        )


def _with_stages(trained: Runs, names: Iterable[str]) -> list[str]:
    """The configurations and the first stages that they need, each once."""
    found = list(dict.fromkeys(names))
    for name in found:
        runs = trained.get(name, {})
        own = next(iter(runs.values())).plan().configurations.get(name) if runs else None
        if own is not None and own.cascade_from is not None and own.cascade_from not in found:
            found.append(own.cascade_from)
    return found


def _assemble(workspace: Workspace, trained: Runs, choice: _Choice) -> ModelFiles:
    runs = {name: {fold: trained[name][fold] for fold in folds} for name, folds in choice.folds.items()}
    for name, own in runs.items():
        _refuse_damaged(own.values())
        _warn_of_unfinished(name, own)
    _warn_of_changed_data(workspace, runs)
    plan = _common_plan(workspace, runs)
    hashes = _hashes(runs)
    members = tuple(_member(plan, name, runs[name], share) for name, share in choice.shares.items())
    first = dict.fromkeys(one.configuration.cascade_from for one in members)
    record = ModelRecord(
        name=_name(plan, hashes, choice),
        because="; ".join([choice.because, members[0].folds_title, *(step.title for step in choice.postprocessing)]),
        members=members,
        stages=tuple(_member(plan, name, runs[name], 1.0) for name in first if name is not None),
        postprocessing=choice.postprocessing,
        typical=typical_cases(workspace, plan),
        provenance=Provenance(plan.dataset, "autoseg", _count_cases(workspace)),
        scores=choice.scores,
    )

    def read(configuration: str, fold: int) -> dict[str, Tensor]:
        return newest_weights(runs[configuration][fold].folder.checkpoint, hashes[configuration][fold])

    return ModelFiles(record, read, report=workspace.report if workspace.report.exists() else None)


def _hashes(runs: Runs) -> dict[str, dict[int, str]]:
    return {name: {fold: run.weights_hash for fold, run in own.items()} for name, own in runs.items()}


def _name(plan: Plan, hashes: Mapping[str, Mapping[int, str]], choice: _Choice) -> str:
    """Dataset, configurations, folds, and a hash of all that predictions depend on, weights among it."""
    identity = content_hash(
        plan_hash(plan, hashes),
        {name: list(own.values()) for name, own in hashes.items()},
        [[name, share] for name, share in choice.shares.items()],
        [to_data(step) for step in choice.postprocessing],
        *([plan.orientation, plan.direction] if plan.orientation else []),
    )
    titles = [f"{one.weight} x {one.configuration}" if one.weight > 1 else one.configuration for one in choice.members]
    folds = ",".join(map(str, choice.folds[choice.members[0].configuration]))
    return f"{plan.dataset}/{' + '.join(titles)}/folds {folds}/{identity}"


def _count_cases(workspace: Workspace) -> int | None:
    return len(load(Dataset, workspace.dataset).cases) if workspace.dataset.exists() else None


def _member(plan: Plan, name: str, runs: Mapping[int, Run], share: float) -> Member:
    """A configuration with the precision of its first run, as training measured it."""
    run = next(iter(runs.values())).record()
    return Member(
        plan=replace(plan, configurations={name: plan.configurations[name]}),
        folds=tuple(runs),
        precision=run.precision,
        memory_format=run.memory_format,
        device=run.device,
        share=share,
    )


def _common_plan(workspace: Workspace, runs: Runs) -> Plan:
    """The plan of the first run, with the configuration of every other one as it was trained.

    Plans made before orientations were recorded get that of the present plan if it was made from the same cases, none
    of them turned: then the networks have seen no other.

    Raises:
        PlanFault: two runs do not agree on what they segment and how images are prepared.
    """
    plans = {(name, fold): _oriented(run.plan(), workspace) for name, own in runs.items() for fold, run in own.items()}
    (first_name, first_fold), first = next(iter(plans.items()))
    configurations = dict(first.configurations)
    for (name, fold), plan in plans.items():
        if name not in plan.configurations:
            raise PlanFault(f"the plan of the run has no configuration {name}", do="train it again with --fresh")
        reference = plans[name, next(iter(runs[name]))].configurations[name]
        if plan.configurations[name] != reference or _shared(plan) != _shared(first):
            raise PlanFault(
                f"{name} fold {fold} was trained with another plan than {first_name} fold {first_fold}, "
                "so they cannot be averaged",
                do="choose one with --configuration and --fold, or train the others again with --fresh",
            )
        configurations[name] = reference
    return replace(first, configurations=configurations)


def _oriented(plan: Plan, workspace: Workspace) -> Plan:
    """The plan of a run, with the orientation of the present plan if it knows of none, but of the same cases."""
    if plan.orientation is not None or not workspace.plan.exists():
        return plan
    present = load(Plan, workspace.plan)
    is_of_same_cases = present.fingerprint == plan.fingerprint
    return replace(plan, orientation=present.orientation, direction=present.direction) if is_of_same_cases else plan


_OF_ONE_NETWORK = ("dataset", "preset", "memory_gib", "file_ending", "configurations", "decisions", "fingerprint")


def _shared(plan: Plan) -> dict[str, Any]:
    """What of a plan all networks of a model must agree on."""
    return {own.name: getattr(plan, own.name) for own in fields(plan) if own.name not in _OF_ONE_NETWORK}


def _refuse_damaged(runs: Iterable[Run]) -> None:
    """Raises IntegrityRefusal if a finished run has lost its last weights: its scores are not those of earlier ones."""
    for run in runs:
        if fault := run.weights_fault:
            raise damaged_run(run, fault)


def _warn_of_changed_data(workspace: Workspace, runs: Runs) -> None:
    """Says which training cases are not what the networks were trained with; the networks are what they are."""
    try:
        dataset, fingerprint = load_dataset(workspace), load(Fingerprint, workspace.fingerprint)
    except (MissingInput, RecordFault):  # a model without its data
        return
    now = {case.identifier: case.content for case in fingerprint.cases}
    known: dict[str, str] = {}
    for run in (run for own in runs.values() for run in own.values()):
        known |= run.record().contents
    is_there = Path(dataset.root).is_dir()
    changes = find_changes(workspace, dataset, fingerprint) if is_there else Changes({})
    changes = replace(changes, cases=changed_data(known, now) | changes.cases)
    if changes.sentence:
        _log.warning("the training data changed after the training: %s", changes.sentence)


def _warn_of_unfinished(name: str, runs: Mapping[int, Run]) -> None:
    states = {fold: run.status for fold, run in runs.items()}  # read once: the run may be discarded meanwhile
    unfinished = [fold for fold, status in states.items() if status is not None and status.state == "training"]
    if unfinished:
        _log.warning("%s fold %s is still in training; its latest checkpoint is used", name, _listed(unfinished))


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names))
