"""The reports: of a dataset at whatever stage it is, and of a prediction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from autoseg.core.errors import AutoSegError, MissingInput, RecordFault
from autoseg.core.files import write_atomic
from autoseg.core.progress import Progress, silent
from autoseg.core.records import load
from autoseg.core.workers import map_supervised
from autoseg.core.workspace import Workspace
from autoseg.data.changes import find_changes, load_dataset
from autoseg.data.fingerprint import Fingerprint, fingerprint_hash
from autoseg.data.model import Case, Dataset
from autoseg.data.outliers import TrainingRange, find_outliers
from autoseg.data.survey import Survey
from autoseg.evaluation.scores import ClassScores
from autoseg.images.formats.files import is_as_written
from autoseg.inference.manifest import REPORT_NAME, PredictionManifest
from autoseg.planning.plan import Plan, load_plan
from autoseg.report.cases import (
    PICTURES,
    CaseFiles,
    ReportedCase,
    compared_with,
    examine_cases,
    mean_dice,
    picture_bytes,
    without_folders,
    worst_first,
)
from autoseg.report.pages import prediction_page
from autoseg.report.sections import DatasetReport, ReportedRun, dataset_page
from autoseg.runs.run import Run, RunRecord, check_same_cases, check_same_plan
from autoseg.selection.record import Selection
from autoseg.selection.trained import other_networks
from autoseg.training.callbacks.history import read_history
from autoseg.training.splits import Fold, make_folds

T = TypeVar("T")

Examine = Callable[[Sequence[CaseFiles]], dict[str, ReportedCase]]
"""What the files of cases show, by case."""

_log = logging.getLogger(__name__)


def write_report(
    workspace: Workspace,
    *,
    out: Path | None = None,
    references: Path | None = None,
    pictures: int = PICTURES,
    jobs: int = 0,
    progress: Progress = silent,
) -> Path:
    """Writes the report of a dataset: one HTML file that needs no other; returns its path.

    Works at any stage from the plan on; what does not exist yet is said to be missing.

    Args:
        workspace: work folder of the dataset.
        out: the file; None for report.html in the work folder.
        references: folder of label maps named by case to compare with instead of the dataset's own: complete ones
            where training used scribbles. Cases without one are compared with their own.
        pictures: cases that get pictures, worst first.
        jobs: worker processes; 0 to do everything here.
        progress: called with the finished cases and their total.

    Raises:
        MissingInput: the dataset is not planned yet.
    """
    plan = load_plan(workspace)
    dataset, survey = load_dataset(workspace), load(Survey, workspace.check)
    folds = _loaded(list[Fold], workspace.splits) or make_folds([case.identifier for case in survey.fingerprint.cases])
    runs, selection = _runs(workspace, plan, survey.fingerprint, folds), _loaded(Selection, workspace.selection)
    if selection is None:
        source, predicted = _best_cases(plan, runs)
    else:
        source, predicted = _selected_cases(workspace, plan, selection, folds)
    cases = worst_first(predicted)
    files = _files(cases, dataset, pictures)
    if references is not None:
        files = compared_with(references, files)
    examined = _completed(cases, examine_cases(files, plan, partial(map_supervised, jobs=jobs), progress))
    report = DatasetReport(
        plan=plan,
        dataset=dataset,
        survey=survey,
        runs=tuple(runs),
        selection=selection,
        source=source,
        cases=examined,
        references="" if references is None else "/".join(references.resolve().parts[-2:]),
        own_dice=mean_dice(cases),
        stale=tuple(_stale(workspace, dataset, plan, survey, selection)),
    )
    for sentence in report.stale:
        _log.warning("%s", sentence)
    path = out or workspace.report
    write_atomic(path, dataset_page(report))
    return path


def write_prediction_report(
    output: Path,
    manifest: PredictionManifest,
    cases: Sequence[Case],
    typical: Mapping[str, TrainingRange],
    examine: Examine,
    *,
    pictures: int = PICTURES,
) -> Path:
    """Writes report.html beside predicted label maps: pictures, volumes, cases unlike the training data.

    Args:
        output: folder of the label maps.
        manifest: what became of each case.
        cases: the images, as they were found.
        typical: what is usual for the model's training cases (`ModelFiles.typical`); empty if that is not known.
        examine: what the files of cases show (`examine_cases`).
        pictures: cases that get pictures, those unlike the training data first.
    """
    files = {name: outcome.output for name, outcome in manifest.cases.items() if outcome.status == "done"}
    done = [
        CaseFiles(replace(case, labels=None), "", str(output / str(files[case.identifier])), 0, bool(typical))
        for case in cases
        if files.get(case.identifier)
    ]
    path = output / REPORT_NAME
    examined = _examined(done, examine, typical, min(pictures, len(done)))
    write_atomic(path, prediction_page(manifest, examined, bool(typical)))
    return path


def _examined(
    files: Sequence[CaseFiles], examine: Examine, typical: Mapping[str, TrainingRange], pictures: int
) -> list[ReportedCase]:
    """The cases, those most unlike the training cases first; these get the pictures if not all do."""
    share = picture_bytes(pictures) if pictures else 0
    all_drawn = pictures == len(files)
    first = [replace(own, picture_bytes=share) for own in files] if all_drawn else files
    found = examine(first).values()
    cases = [replace(case, outliers=find_outliers(case.properties, typical)) for case in found]
    cases.sort(key=lambda case: (-len(case.outliers), case.identifier))
    if all_drawn:
        return cases
    # which cases get pictures is known only after all were compared, so these few are read a second time
    chosen = {case.identifier for case in cases[:pictures]}
    again = [replace(own, picture_bytes=share) for own in files if own.case.identifier in chosen]
    drawn = examine(again)
    return [replace(case, picture=drawn[case.identifier].picture) for case in cases[:pictures]] + cases[pictures:]


def _loaded(kind: type[T], path: Path) -> T | None:
    """A record, or None if it is not there; a damaged one is reported, and the report goes on without it."""
    try:
        return load(kind, path)
    except MissingInput:
        return None
    except RecordFault as fault:
        _log.warning("%s", fault)
        return None


def _stale(
    workspace: Workspace, dataset: Dataset, plan: Plan, survey: Survey, selection: Selection | None
) -> Iterator[str]:
    """What of a work folder is not of the files, runs and plan of now."""
    if plan.fingerprint != fingerprint_hash(survey.fingerprint):
        yield "The data was examined again since the plan was made; run `autoseg plan` again."
    if changes := find_changes(workspace, dataset, survey.fingerprint).sentence:
        yield f"The dataset changed since it was planned: {without_folders(changes)}. Run `autoseg plan` again."
    if selection is not None:
        yield from _stale_choice(workspace, selection)


def _stale_choice(workspace: Workspace, selection: Selection) -> Iterator[str]:
    if gone := other_networks(workspace, selection):
        yield f"The choice was made of other networks ({', '.join(gone)}); run `autoseg select` again."
    if changed := [name for name, own in selection.maps.items() if not is_as_written(workspace.selected / name, own)]:
        yield f"Label maps of the choice were changed ({', '.join(changed)}); run `autoseg select` again."


def _runs(workspace: Workspace, plan: Plan, fingerprint: Fingerprint, folds: Sequence[Fold]) -> list[ReportedRun]:
    """Every configuration and fold, whether it was started or not, and folds of earlier splits that were started."""
    numbers = range(len(folds))
    expected = {Run(name, fold, workspace.run(name, fold)) for name in plan.configurations for fold in numbers}
    started = {Run(*own) for own in workspace.run_folders() if own[0] in plan.configurations}
    order = list(plan.configurations)
    return [
        _run(run, plan, fingerprint, folds)
        for run in sorted(expected | started, key=lambda run: (order.index(run.configuration), run))
    ]


def _run(run: Run, plan: Plan, fingerprint: Fingerprint, folds: Sequence[Fold]) -> ReportedRun:
    status, record = run.status, _loaded(RunRecord, run.folder.recipe)
    if status is None or record is None:
        return ReportedRun(run, remark="its state.json or recipe.json is damaged" if run.folder.state.exists() else "")
    remark = run.fault or ""
    if status.history and not is_as_written(run.folder.history, status.history):
        remark = "has another history.jsonl than its training wrote"
    try:
        check_same_plan(run, plan, {case.identifier: case.content for case in fingerprint.cases})
        if run.fold < len(folds):
            check_same_cases(run, folds[run.fold])
    except AutoSegError as error:
        remark = error.what
    return ReportedRun(run, status, read_history(run.folder.history), record.device, remark)


def _selected_cases(
    workspace: Workspace, plan: Plan, selection: Selection, folds: Sequence[Fold]
) -> tuple[str, list[ReportedCase]]:
    """What predicted, in words, and what the selected model gave for cases it was not trained on."""
    kept_back = {name: number for number, fold in enumerate(folds) for name in fold.val}
    cases = []
    for case, dice in selection.case_dice.items():
        scores: dict[str, ClassScores] = {name: {"dice": value} for name, value in dice.items()}
        file = workspace.selected / f"{case}{plan.file_ending}"
        cases.append(ReportedCase(case, kept_back.get(case), file, scores))
    return "the selected model's networks, each case by those that never saw it", cases


def _best_cases(plan: Plan, runs: Sequence[ReportedRun]) -> tuple[str, list[ReportedCase]]:
    """What predicted, in words, and the validation cases of the configuration with the best Dice."""
    found: dict[str, list[ReportedCase]] = {}
    for run in (own.run for own in runs if own.status is not None):
        scores = run.scores
        for case, classes in (scores.cases if scores is not None else {}).items():
            file = run.folder.validation / f"{case}{plan.file_ending}"
            found.setdefault(run.configuration, []).append(ReportedCase(case, run.fold, file, classes))
    if not found:
        return "", []
    best = max(found, key=lambda name: mean_dice(found[name]) or 0.0)
    return f"{best}, each case by the network that never saw it", found[best]


def _files(cases: Sequence[ReportedCase], dataset: Dataset, pictures: int) -> list[CaseFiles]:
    known = {case.identifier: case for case in dataset.cases}
    share = picture_bytes(min(pictures, len(cases)))
    return [
        CaseFiles(known[own.identifier], dataset.root, str(own.prediction), share if index < pictures else 0)
        for index, own in enumerate(cases)
        if own.identifier in known
    ]


def _completed(cases: Sequence[ReportedCase], examined: Mapping[str, ReportedCase]) -> tuple[ReportedCase, ...]:
    """What the files show, with what is recorded of each case; worst first by the scores that the files give."""
    made = []
    for case in cases:
        gone = ReportedCase(case.identifier, remark="the case is no longer part of the dataset")
        found = examined.get(case.identifier, gone)
        scores = found.scores or case.scores
        made.append(replace(found, fold=case.fold, scores=scores))
    return worst_first(made)
