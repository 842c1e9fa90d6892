"""What the second stage of a cascade is trained with: for every case the prediction of a network that never saw it.

Source: nnU-Net v2 nnUNetTrainer.perform_actual_validation, which leaves the validation cases of all folds of the first
stage to the second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from autoseg.core.errors import IntegrityRefusal, MissingInput, PlanFault, RecordFault, UsageError
from autoseg.core.files import sha256_of_file
from autoseg.core.progress import Progress, silent
from autoseg.core.records import load
from autoseg.core.workspace import RunFolder, Workspace
from autoseg.data.fingerprint import Fingerprint
from autoseg.data.labels import to_file_values, to_training_values
from autoseg.images.readers import read_labels
from autoseg.images.writers import write_labels
from autoseg.inference.restore import predict_case
from autoseg.networks.build import build_network
from autoseg.networks.weights import newest_weights, weights_hash
from autoseg.planning.plan import Configuration, Plan
from autoseg.preprocessing.fill import hold_store
from autoseg.preprocessing.first_stage import (
    FIRST_STAGE_VERSION,
    RECIPE,
    FirstStageRecipe,
    FirstStageRecord,
    FirstStageSource,
    is_first_stage_intact,
    network_input,
    prepare_first_stage,
    start_extra,
    write_first_stage,
)
from autoseg.preprocessing.store import RECORD, CaseRecord, open_case, store_folder
from autoseg.runs.records import RunRecord, RunStatus
from autoseg.runs.setup import check_same_plan
from autoseg.runs.validation import SCORES_FILE, FoldScores, make_predictor
from autoseg.training.splits import Fold
from autoseg.training.step import Compute

LATE_FOLDER = "out_of_fold"
"""In a run of the first stage: predictions of validation cases that its own validation had no time for."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _FirstStage:
    """One finished run of the first stage.

    Attributes:
        fold: number.
        folder: of the run.
        record: what it was started with.
        weights: hash of its weights.
        validated: cases that it kept back and predicted.
        mirror_axes: that these were averaged over.
    """

    fold: int
    folder: RunFolder
    record: RunRecord
    weights: str
    validated: frozenset[str]
    mirror_axes: tuple[int, ...]


def fill_previous(
    workspace: Workspace,
    plan: Plan,
    configuration: Configuration,
    folds: Sequence[Fold],
    store: Path,
    device: torch.device,
    progress: Progress = silent,
) -> Path:
    """Prepares the first stage's out-of-fold label map of every case; what is there already is only verified.

    Cases that the first stage's validation left out are predicted now. May be stopped at any moment and run again.

    Args:
        workspace: whose runs and store are used.
        plan: of the dataset.
        configuration: the second stage.
        folds: of the dataset; those of the first stage must all be trained.
        store: folder of the second stage's prepared cases; cases that it lacks are passed over.
        device: to predict on what the first stage's validation left out.
        progress: told about every case.

    Returns:
        The folder of the extra, for `open_with_first_stage`.

    Raises:
        MissingInput: folds of the first stage are not trained yet.
        UsageError: no fold keeps a case back, so no network can predict it that never saw it.
        IntegrityRefusal: a run of the first stage was trained on a case that it kept back.
        PlanFault: the first stage was trained with another plan.
    """
    first = plan.configurations[str(configuration.cascade_from)]
    named = {name for fold in folds for name in (*fold.train, *fold.val)}
    cases = sorted(name for name in named if (store / name / RECORD).exists())
    kept_back = assign_cases(cases, _finished_runs(workspace, plan, configuration, len(folds)), configuration)
    predict = _late_predictor(workspace, plan, first, device)
    sources = {}
    for count, (name, run) in enumerate(kept_back.items()):
        progress(count, 2 * len(cases))
        sources[name] = _source(workspace, plan, run, name, predict)
    recipe = FirstStageRecipe(FIRST_STAGE_VERSION, first.name, store.name, sources)
    with hold_store(store):
        folder = start_extra(store, recipe)
        for count, name in enumerate(cases, start=len(cases) + 1):
            _fill_case(workspace, plan, store / name, folder, recipe)
            progress(count, 2 * len(cases))
    _log.info("%s: %d label maps of %s, each out of fold, in %s", configuration.name, len(cases), first.name, folder)
    return folder


def assign_cases(
    cases: Sequence[str], runs: Sequence[_FirstStage], configuration: Configuration
) -> dict[str, _FirstStage]:
    """For each case the first run that kept it back.

    Raises:
        UsageError: no run kept a case back.
        IntegrityRefusal: a run was trained on a case that it lists as kept back.
    """
    assigned: dict[str, _FirstStage] = {}
    for run in runs:
        seen = sorted(set(run.record.train) & set(run.record.val))
        if seen:
            raise IntegrityRefusal(
                f"{run.record.configuration} fold {run.fold} was trained on {seen[0]}, which it lists as kept back",
                where=str(run.folder.recipe),
                why="its predictions would be too good to train a second stage with",
                do="correct the folds, and train it again with --fresh",
            )
        for name in run.record.val:
            assigned.setdefault(name, run)
    without = [name for name in cases if name not in assigned]
    if without:
        raise UsageError(
            f"{configuration.name} cannot be trained: no fold of {configuration.cascade_from} keeps {without[0]} back"
            + (f", nor {len(without) - 1} more cases" if len(without) > 1 else ""),
            why="every case has to be predicted by a first stage that was not trained on it",
            do="use folds that keep every case back once, or leave the cascade out with --configuration",
        )
    return {name: assigned[name] for name in cases}


def check_first_stage(folder: RunFolder) -> None:
    """Refuses a run of a second stage whose first stage was trained again since: together they were never validated.

    Args:
        folder: of the run, in a work folder. Runs without a first stage pass, and so do those whose extra of the store
            was deleted.

    Raises:
        PlanFault: weights of the first stage are not those that predicted the run's inputs.
    """
    workspace = Workspace(folder.root.parents[2])
    record = load(RunRecord, folder.recipe)
    path = workspace.store / str(record.previous) / RECIPE
    if record.previous is None or not path.exists():
        return
    recipe = load(FirstStageRecipe, path)
    used = {source.fold: source.weights for source in recipe.sources.values()}
    for fold, weights in sorted(used.items()):
        run = workspace.run(recipe.configuration, fold)
        if not _is_done(run) or weights_hash(run.checkpoint) != weights:
            raise PlanFault(
                f"{record.configuration} fold {record.fold} was trained with predictions of another "
                f"{recipe.configuration}, whose fold {fold} was trained again since",
                where=str(folder.root),
                why="the two stages were never validated together",
                do=f"run autoseg train with --fresh --configuration {record.configuration}",
            )


def _finished_runs(workspace: Workspace, plan: Plan, configuration: Configuration, folds: int) -> list[_FirstStage]:
    first = plan.configurations[str(configuration.cascade_from)]
    runs, unfinished = [], []
    for number in range(folds):
        folder = workspace.run(first.name, number)
        if not _is_done(folder):
            unfinished.append(number)
            continue
        check_same_plan(plan, first, folder)
        runs.append(_finished_run(number, folder))
    if unfinished:
        listed = ", ".join(map(str, unfinished))
        raise MissingInput(
            f"{configuration.name} needs every fold of {first.name}; not trained yet: {listed}",
            where=str(workspace.root),
            why="each case has to be predicted by the fold that kept it back",
            do=f"run autoseg train with --configuration {first.name} for these folds first, or without --configuration",
        )
    return runs


def _finished_run(number: int, folder: RunFolder) -> _FirstStage:
    record, weights = load(RunRecord, folder.recipe), weights_hash(folder.checkpoint)
    if not record.val:
        return _FirstStage(number, folder, record, weights, frozenset(), ())
    scores = load(FoldScores, folder.validation / SCORES_FILE)
    return _FirstStage(number, folder, record, weights, frozenset(scores.cases), scores.mirror_axes)


def _is_done(folder: RunFolder) -> bool:
    try:
        return load(RunStatus, folder.state).state == "done"
    except (MissingInput, RecordFault):
        return False


def _source(
    workspace: Workspace, plan: Plan, run: _FirstStage, name: str, predict: Callable[[_FirstStage, str, Path], None]
) -> FirstStageSource:
    """The label map of a case, predicted now if the validation left it out."""
    file = run.folder.validation / f"{name}{plan.file_ending}"
    if not file.exists() or name not in run.validated:
        file = run.folder.root / LATE_FOLDER / run.weights / f"{name}{plan.file_ending}"
        if not file.exists():
            predict(run, name, file)
    relative = file.relative_to(workspace.root).as_posix()
    return FirstStageSource(run.fold, run.weights, relative, sha256_of_file(file))


def _fill_case(workspace: Workspace, plan: Plan, stored: Path, folder: Path, recipe: FirstStageRecipe) -> None:
    case = load(CaseRecord, stored / RECORD)
    source = recipe.sources[case.identifier]
    record = FirstStageRecord(FIRST_STAGE_VERSION, case.identifier, recipe.configuration, case.content, source)
    if is_first_stage_intact(folder, record):
        return
    labels = to_training_values(read_labels(workspace.root / source.file).array, plan.labels)
    write_first_stage(folder, record, prepare_first_stage(labels, case.placement))


def _late_predictor(
    workspace: Workspace, plan: Plan, first: Configuration, device: torch.device
) -> Callable[[_FirstStage, str, Path], None]:
    """Predicts a case with the run that kept it back, and writes its label map."""
    store = store_folder(workspace.store, plan, first, load(Fingerprint, workspace.fingerprint))
    networks: dict[int, torch.nn.Module] = {}

    def predict(run: _FirstStage, name: str, file: Path) -> None:
        if not (store / name / RECORD).exists():
            raise MissingInput(
                f"{name} is not prepared for {first.name}, whose validation left it out",
                where=str(store),
                do=f"run autoseg preprocess with --configuration {first.name}, then the same command again",
            )
        _log.info("%s fold %d: predicts %s, which its validation left out", first.name, run.fold, name)
        if run.fold not in networks:
            networks.clear()
            networks[run.fold] = _network(plan, first, run, device)
        precision = run.record.precision if run.record.device == device.type else "fp32"
        predictor = make_predictor(networks[run.fold], plan, first, device, precision)
        predictor = replace(predictor, mirror_axes=run.mirror_axes)
        stored = open_case(store / name)
        labels = predict_case(predictor, network_input(stored, plan.labels), stored.placement, plan.labels)
        write_labels(file, to_file_values(labels, plan.labels), stored.placement.geometry)

    return predict


def _network(plan: Plan, first: Configuration, run: _FirstStage, device: torch.device) -> torch.nn.Module:
    network = build_network(first.network, plan.input_channels(first.name), plan.labels.head_count)
    network.load_state_dict(newest_weights(run.folder.checkpoint))
    layout = run.record.memory_format if run.record.device == device.type else "contiguous"
    return Compute(device, "fp32", layout).place_network(network, first.dimensions)
