"""Models made of the runs in a work folder: what was selected, what was asked for, or the likely best."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from autoseg.core.errors import MissingInput, PlanFault, UsageError
from autoseg.core.records import content_hash, load, to_data
from autoseg.core.workspace import WORK_FOLDER_NAME, RunFolder, Workspace
from autoseg.data.fingerprint import Fingerprint
from autoseg.data.outliers import Typical, properties, typical_of
from autoseg.inference.postprocessing import PostprocessingStep
from autoseg.models.files import Member, ModelFiles, Weights
from autoseg.networks.weights import generations, newest_weights, weights_hash
from autoseg.planning.plan import Plan
from autoseg.runs.records import RunRecord, RunStatus
from autoseg.selection.record import SelectedMember, Selection, plan_hash

_log = logging.getLogger(__name__)

PREFERRED_CONFIGURATION = "3d_fullres"
"""Used when nobody says otherwise: nnU-Net's usual best single configuration (Isensee et al. 2021)."""

Runs = dict[str, dict[int, RunFolder]]  # configuration -> fold -> run


@dataclass(frozen=True, slots=True)
class _Choice:
    """What shall predict: configurations with weights, the folds of each and of first stages, and why."""

    members: tuple[SelectedMember, ...]
    folds: dict[str, tuple[int, ...]]
    because: str
    postprocessing: tuple[PostprocessingStep, ...] = ()


def work_folder_of(path: Path) -> Workspace:
    """The work folder that `path` is, or that the dataset's folder `path` has inside."""
    inside = path / WORK_FOLDER_NAME
    return Workspace(inside if inside.is_dir() else path)


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
    if RunFolder(path).checkpoint.is_dir():
        return _single_run(path, configuration, folds)
    workspace = work_folder_of(path)
    trained = _trained_runs(workspace)
    if not trained:
        raise MissingInput("there is no trained model", where=str(path), do="run autoseg train DATASET first")
    if configuration is None and workspace.selection.exists():
        choice = _selected(workspace, trained, folds)
    else:
        name, because = _choose_configuration(trained, configuration)
        choice = _Choice((SelectedMember(name, 1),), _folds_of(trained, (name,), folds), because)
    files = _assemble(trained, choice)
    return replace(files, typical=typical_cases(workspace, files.plan))


def typical_cases(workspace: Workspace, plan: Plan) -> dict[str, Typical]:
    """What is usual for the cases of the dataset, by property; empty if the work folder knows nothing of them."""
    if not workspace.fingerprint.exists():
        return {}
    cases = load(Fingerprint, workspace.fingerprint).cases
    return typical_of(properties(case, plan.channels, plan.labels) for case in cases)


def _single_run(path: Path, configuration: str | None, folds: Sequence[int]) -> ModelFiles:
    """The model of one run; of a cascade with the first stage of the same fold, which saw the same cases."""
    record = load(RunRecord, RunFolder(path).recipe)
    name, fold = record.configuration, record.fold
    if configuration not in (None, name) or (folds and set(folds) != {fold}):
        raise UsageError(f"this run is {name} fold {fold}, nothing else", where=str(path), do="name the work folder")
    runs: Runs = {name: {fold: RunFolder(path)}}
    workspace = Workspace(path.resolve().parent.parent.parent)
    stage = load(Plan, RunFolder(path).plan).configurations[name].cascade_from
    if stage is not None:
        own = _trained_runs(workspace).get(stage, {})
        runs[stage] = {fold: own[fold]} if fold in own else own
    choice = _Choice((SelectedMember(name, 1),), _folds_of(runs, (name,), ()), f"{name}, the run that was named")
    files = _assemble(runs, choice)
    return replace(files, typical=typical_cases(workspace, files.plan))


def _trained_runs(workspace: Workspace) -> Runs:
    """All runs of a work folder that have a checkpoint."""
    trained: Runs = {}
    for folder in sorted((workspace.root / "runs").glob("*/fold_*")):
        number = folder.name.removeprefix("fold_")
        run = RunFolder(folder)
        if number.isdigit() and generations(run.checkpoint):
            trained.setdefault(folder.parent.name, {})[int(number)] = run
    return trained


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
    best = max(trained, key=lambda name: dice[name])
    measured = ", ".join(f"{name} {value:.3f}" for name, value in dice.items())
    return best, f"{best}, the best by Dice ({measured})"


def _mean_dice(runs: Mapping[int, RunFolder]) -> float:
    """Mean over the folds of the Dice of whole validation cases, or of patches where that is not known yet."""
    values = []
    for run in runs.values():
        status = load(RunStatus, run.state)
        value = status.foreground_dice if status.foreground_dice is not None else status.ema_dice
        values.append(value or 0.0)
    return sum(values) / len(values)


def _folds_of(trained: Runs, names: Iterable[str], wanted: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Folds of the configurations and of the first stages of those that are cascades.

    Raises:
        UsageError: one of them is not trained.
    """
    folds: dict[str, tuple[int, ...]] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
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
        stage = load(Plan, runs[folds[name][0]].plan).configurations
        if name in stage and stage[name].cascade_from is not None:
            waiting.append(str(stage[name].cascade_from))
    return folds


def _selected(workspace: Workspace, trained: Runs, wanted: Sequence[int]) -> _Choice:
    """What selection.json says, if the runs are still those that it is about."""
    selection = load(Selection, workspace.selection)
    names = [member.configuration for member in selection.members]
    folds = {name: selection.folds[name] for name in _with_stages(trained, names) if name in selection.folds}
    for name, own in folds.items():
        for fold in own:
            _check_selected(selection, trained, name, fold)
        newer = [fold for fold in trained[name] if fold not in own]
        if newer and not wanted:
            _log.warning("fold %s of %s came after the selection: autoseg select would use it", _listed(newer), name)
    _warn_about_plan(workspace, selection)
    folds = _folds_of(trained, names, wanted) if wanted else folds
    return _Choice(selection.members, folds, f"{selection.name}, selected: {selection.because}", selection.steps)


def _check_selected(selection: Selection, trained: Runs, name: str, fold: int) -> None:
    """Raises UsageError if a run of the selection is gone or was trained again."""
    run = trained.get(name, {}).get(fold)
    if run is not None and weights_hash(run.checkpoint) == selection.runs.get(f"{name}/fold_{fold}"):
        return
    found = "is not there any more" if run is None else "was trained again since"
    raise UsageError(
        f"the selection is out of date: {name} fold {fold} {found}",
        where="selection.json",
        why="its scores and postprocessing are those of other networks",
        do="run autoseg select DATASET again, or choose one with --configuration",
    )


def _with_stages(trained: Runs, names: Sequence[str]) -> list[str]:
    """The configurations and the first stages that they need, each once."""
    found = list(dict.fromkeys(names))
    for name in found:
        runs = trained.get(name, {})
        own = load(Plan, next(iter(runs.values())).plan).configurations.get(name) if runs else None
        if own is not None and own.cascade_from is not None and own.cascade_from not in found:
            found.append(own.cascade_from)
    return found


def _warn_about_plan(workspace: Workspace, selection: Selection) -> None:
    if workspace.plan.exists() and not selection.is_of(load(Plan, workspace.plan)):
        _log.warning("the plan changed after the selection; the networks selected go by the plan of their own training")


def _assemble(trained: Runs, choice: _Choice) -> ModelFiles:
    runs = {name: {fold: trained[name][fold] for fold in folds} for name, folds in choice.folds.items()}
    plan = _common_plan(runs)
    total = sum(member.weight for member in choice.members)
    members = tuple(
        _member(plan, entry.configuration, runs[entry.configuration], entry.weight / total) for entry in choice.members
    )
    first = dict.fromkeys(str(one.configuration.cascade_from) for one in members if one.configuration.cascade_from)
    stages = {name: _member(plan, name, runs[name], 1.0) for name in first}
    for name, own in runs.items():
        _warn_of_unfinished(name, own)
    identity = content_hash(
        plan_hash(plan, runs),
        {name: [weights_hash(run.checkpoint) for run in own.values()] for name, own in runs.items()},
        [[member.configuration.name, member.share] for member in members],
        [to_data(step) for step in choice.postprocessing],
    )
    title = f"{plan.dataset}/{_titled(choice.members)}/folds {','.join(map(str, members[0].folds))}/{identity}"
    return ModelFiles(title, _sentence(choice, members), members, stages, choice.postprocessing)


def _titled(members: Sequence[SelectedMember]) -> str:
    parts = [f"{one.weight} x {one.configuration}" if one.weight > 1 else one.configuration for one in members]
    return " + ".join(parts)


def _sentence(choice: _Choice, members: Sequence[Member]) -> str:
    folds = members[0].folds
    parts = [choice.because, f"{'fold' if len(folds) == 1 else 'mean of folds'} {_listed(folds)}"]
    return "; ".join([*parts, *(step.title for step in choice.postprocessing)])


def _member(plan: Plan, name: str, runs: Mapping[int, RunFolder], share: float) -> Member:
    """A configuration with the precision of its first run, as training measured it."""
    record = load(RunRecord, next(iter(runs.values())).recipe)
    return Member(
        plan=plan,
        configuration=plan.configurations[name],
        weights=tuple(
            Weights(fold, str(run.checkpoint), partial(newest_weights, run.checkpoint)) for fold, run in runs.items()
        ),
        precision=record.precision,
        memory_format=record.memory_format,
        device=record.device,
        share=share,
    )


def _common_plan(runs: Runs) -> Plan:
    """The plan of the first run, with the configuration of every other one as it was trained.

    Raises:
        PlanFault: two runs do not agree on what they segment and how images are prepared.
    """
    plans = {(name, fold): load(Plan, run.plan) for name, own in runs.items() for fold, run in own.items()}
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


def _shared(plan: Plan) -> Plan:
    """What of a plan all networks of a model must agree on."""
    return replace(plan, preset="", memory_gib=0.0, file_ending="", configurations={}, decisions=(), fingerprint="")


def _warn_of_unfinished(name: str, runs: Mapping[int, RunFolder]) -> None:
    states = {fold: load(RunStatus, run.state).state for fold, run in runs.items() if run.state.exists()}
    unfinished = [fold for fold, state in states.items() if state == "training"]
    if unfinished:
        _log.warning("%s fold %s is still in training; its latest checkpoint is used", name, _listed(unfinished))


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names))
