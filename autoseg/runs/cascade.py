"""What the second stage of a cascade is trained with: for every case the prediction of a network that never saw it.

Source: nnU-Net v2 nnUNetTrainer.perform_actual_validation, which leaves the validation cases of all folds of the first
stage to the second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from autoseg.core.errors import IntegrityRefusal, MissingInput, PlanFault, UsageError
from autoseg.core.progress import Progress, silent
from autoseg.core.records import load
from autoseg.core.workspace import Workspace
from autoseg.data.fingerprint import Fingerprint
from autoseg.data.labels import to_file_values, to_training_values
from autoseg.images.formats.files import hash_of_written
from autoseg.images.readers import read_labels
from autoseg.images.writers import write_labels
from autoseg.inference.restore import predict_case
from autoseg.networks.weights import newest_weights
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
from autoseg.runs.queue import Queue
from autoseg.runs.run import Run, check_same_plan
from autoseg.runs.validation import make_predictor
from autoseg.training.step import Compute

OUT_OF_FOLD_FOLDER = "out_of_fold"
"""In a run of the first stage: predictions of validation cases that its own validation had no time for."""

_log = logging.getLogger(__name__)


def fill_first_stage(
    workspace: Workspace, queue: Queue, cascade: str, store: Path, device: torch.device, progress: Progress = silent
) -> Path:
    """Prepares the first stage's out-of-fold label map of every case; what is there already is only verified.

    Cases that the first stage's validation left out are predicted now. May be stopped at any moment and run again.

    Args:
        workspace: whose runs and store are used.
        queue: with the plan and the folds; those of the first stage must all be trained.
        cascade: configuration of the second stage.
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
    plan, configuration = queue.plan, queue.plan.configurations[cascade]
    named = {name for fold in queue.folds for name in (*fold.train, *fold.val)}
    cases = sorted(name for name in named if (store / name / RECORD).exists())
    runs = _finished_runs(workspace, queue, configuration)
    predict = _missing_case_predictor(workspace, plan, plan.configurations[runs[0].configuration], device)
    weights = {run: run.weights_hash for run in runs}
    sources: dict[str, FirstStageSource] = {}
    # Sorted by run, so that only one network at a time is in memory.
    for name, run in sorted(assign_cases(cases, runs, configuration).items(), key=lambda own: (own[1], own[0])):
        progress(len(sources), 2 * len(cases))
        sources[name] = _source(run, weights[run], name, plan.file_ending, predict)
    recipe = FirstStageRecipe(FIRST_STAGE_VERSION, runs[0].configuration, store.name, dict(sorted(sources.items())))
    with hold_store(store, lambda: progress(len(cases), 2 * len(cases))):
        folder = start_extra(store, recipe)
        for count, name in enumerate(cases, start=len(cases) + 1):
            _fill_case(workspace, plan, store / name, folder, recipe)
            progress(count, 2 * len(cases))
    _log.info("%s: %d label maps of %s, each out of fold, in %s", cascade, len(cases), runs[0].configuration, folder)
    return folder


def _source(
    run: Run, weights: str, name: str, ending: str, predict: Callable[[Run, str, Path], None]
) -> FirstStageSource:
    """The label map of a case that a run kept back, predicted now if its validation left it out."""
    scores = run.scores
    file = run.folder.validation / f"{name}{ending}"
    if not file.exists() or scores is None or name not in scores.cases:
        # In a folder named by the weights: a run that is trained again predicts these cases anew.
        file = run.folder.root / OUT_OF_FOLD_FOLDER / weights / f"{name}{ending}"
        predict(run, name, file)
    inside = file.relative_to(run.folder.root).as_posix()
    return FirstStageSource(run.fold, weights, f"runs/{run.key}/{inside}", hash_of_written(file))


def assign_cases(cases: Sequence[str], runs: Sequence[Run], configuration: Configuration) -> dict[str, Run]:
    """For each case the first run that kept it back.

    Raises:
        UsageError: no run kept a case back.
        IntegrityRefusal: a run was trained on a case that it lists as kept back.
    """
    assigned: dict[str, Run] = {}
    for run in runs:
        record = run.record()
        seen = sorted(set(record.train) & set(record.val))
        if seen:
            raise IntegrityRefusal(
                f"{run.title} was trained on {seen[0]}, which it lists as kept back",
                where=str(run.folder.recipe),
                why="its predictions would be too good to train a second stage with",
                do="correct the folds, and train it again with --fresh",
            )
        for name in record.val:
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


def check_first_stage(run: Run) -> None:
    """Refuses a run of a second stage whose first stage was trained again since: together they were never validated.

    Args:
        run: in a work folder. Runs without a first stage pass, and so do those whose extra of the store was deleted.

    Raises:
        PlanFault: weights of the first stage are not those that predicted the run's inputs.
    """
    workspace = run.folder.workspace
    previous = run.record().previous
    path = workspace.store / str(previous) / RECIPE
    if previous is None or not path.exists():
        return
    recipe = load(FirstStageRecipe, path)
    used = {source.fold: source.weights for source in recipe.sources.values()}
    for fold, weights in sorted(used.items()):
        first = Run(recipe.configuration, fold, workspace.run(recipe.configuration, fold))
        if not first.is_done or first.weights_hash != weights:
            raise PlanFault(
                f"{run.title} was trained with predictions of another {first.configuration}, whose fold {fold} was "
                "trained again since",
                where=str(run.folder.root),
                why="the two stages were never validated together",
                do=f"run autoseg train with --fresh --configuration {run.configuration}",
            )


def _finished_runs(workspace: Workspace, queue: Queue, configuration: Configuration) -> list[Run]:
    first = str(configuration.cascade_from)
    runs = [Run(first, number, workspace.run(first, number)) for number in range(len(queue.folds))]
    if unfinished := [str(run.fold) for run in runs if not run.is_done]:
        raise MissingInput(
            f"{configuration.name} needs every fold of {first}; not trained yet: {', '.join(unfinished)}",
            where=str(workspace.root),
            why="each case has to be predicted by the fold that kept it back",
            do=f"run autoseg train with --configuration {first} for these folds first, or without --configuration",
        )
    for run in runs:
        check_same_plan(run, queue.plan, queue.contents)
    return runs


def _fill_case(workspace: Workspace, plan: Plan, stored: Path, folder: Path, recipe: FirstStageRecipe) -> None:
    case = load(CaseRecord, stored / RECORD)
    source = recipe.sources[case.identifier]
    record = FirstStageRecord(FIRST_STAGE_VERSION, case.identifier, recipe.configuration, case.content, source)
    if is_first_stage_intact(folder, record):
        return
    labels = to_training_values(read_labels(workspace.root / source.file).array, plan.labels)
    write_first_stage(folder, record, prepare_first_stage(labels, case.placement))


def _missing_case_predictor(
    workspace: Workspace, plan: Plan, first: Configuration, device: torch.device
) -> Callable[[Run, str, Path], None]:
    """Predicts a case with the run that kept it back, and writes its label map."""
    store = store_folder(workspace.store, plan, first, load(Fingerprint, workspace.fingerprint))
    networks: dict[int, torch.nn.Module] = {}

    def predict(run: Run, name: str, file: Path) -> None:
        if file.exists():
            return
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
        record, scores = run.record(), run.scores
        precision = record.precision if record.device == device.type else "fp32"
        predictor = make_predictor(networks[run.fold], plan, first, device, precision)
        # as the validation did it, so that all label maps of a first stage are of one kind
        predictor = replace(predictor, mirror_axes=scores.mirror_axes if scores else ())
        stored = open_case(store / name)
        labels = predict_case(predictor, network_input(stored, plan.labels), stored.placement, plan.labels)
        write_labels(file, to_file_values(labels, plan.labels), stored.placement.geometry)

    return predict


def _network(plan: Plan, first: Configuration, run: Run, device: torch.device) -> torch.nn.Module:
    network = plan.build_network(first.name)
    network.load_state_dict(newest_weights(run.folder.checkpoint))
    record = run.record()
    layout = record.memory_format if record.device == device.type else "contiguous"
    return Compute(device, "fp32", layout).place_network(network, first.dimensions)
