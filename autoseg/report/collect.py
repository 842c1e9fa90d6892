"""The reports: of a dataset at whatever stage it is, and of a prediction."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from autoseg import __version__
from autoseg.core.errors import MissingInput, RecordFault
from autoseg.core.files import write_atomic
from autoseg.core.progress import Progress, silent
from autoseg.core.records import load
from autoseg.core.workspace import RunFolder, Workspace
from autoseg.data.fingerprint import Fingerprint
from autoseg.data.inputs import image_files
from autoseg.data.model import Case, Dataset
from autoseg.data.outliers import TrainingRange, find_outliers, outliers_among, properties
from autoseg.data.survey import Survey
from autoseg.images.formats.files import stem
from autoseg.inference.manifest import PredictionManifest
from autoseg.planning.plan import Plan
from autoseg.planning.planned import load_plan
from autoseg.report.cases import (
    PICTURES,
    CaseTask,
    Evidence,
    look_at,
    picture_bytes,
    without_folders,
)
from autoseg.report.choice import choice_of
from autoseg.report.content import (
    CaseEntry,
    ClassDice,
    DatasetReport,
    PredictionReport,
    RunEntry,
    mean_dice,
    worst_first,
)
from autoseg.report.dataset_page import dataset_page
from autoseg.report.prediction_page import prediction_page
from autoseg.runs.run import RunRecord, RunStatus
from autoseg.training.callbacks.history import read_history
from autoseg.training.splits import Fold, make_folds

REPORT_NAME = "report.html"

COMMON_SCALE = "ct"
"""Normalization of channels whose intensities mean the same in every case."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Results:
    """Predictions of cases by networks that never saw them.

    Attributes:
        source: what predicted, in words.
        dice: case -> class -> Dice.
        files: case -> predicted label map.
        folds: case -> fold that kept it back.
    """

    source: str
    dice: dict[str, ClassDice]
    files: dict[str, Path]
    folds: dict[str, int]


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
        progress: told about finished cases.

    Raises:
        MissingInput: the dataset is not planned yet.
    """
    plan = load_plan(workspace.plan)
    dataset, found = load(Dataset, workspace.dataset), load(Survey, workspace.check)
    runs = _runs(workspace, plan, found.fingerprint)
    choice, selected = choice_of(workspace, plan)
    results = (
        _selected_results(workspace, plan, selected) if choice is not None else _best_results(workspace, plan, runs)
    )
    kinds = {case.identifier: properties(case, plan.channels, plan.labels) for case in found.fingerprint.cases}
    odd = outliers_among(kinds)
    cases = worst_first([CaseEntry(name, dict(dice), unlike=odd.get(name, ())) for name, dice in results.dice.items()])
    tasks = _tasks(cases, dataset, plan, results, pictures)
    if references is not None:
        tasks = _compared_with(references, tasks)
    seen = _completed(cases, look_at(tasks, jobs, progress), results.folds)
    report = DatasetReport(
        plan=plan,
        dataset=dataset,
        fingerprint=found.fingerprint,
        problems=found.problems,
        unlike=odd,
        runs=runs,
        choice=choice,
        source=results.source,
        cases=seen if references is None else worst_first(seen),
        version=__version__,
        written=_now(),
        references="" if references is None else "/".join(references.resolve().parts[-2:]),
        own_dice=mean_dice(cases),
    )
    path = out or workspace.report
    write_atomic(path, dataset_page(report))
    return path


def write_prediction_report(
    output: Path,
    manifest: PredictionManifest,
    plan: Plan,
    cases: Sequence[Case],
    typical: Mapping[str, TrainingRange],
    *,
    pictures: int = PICTURES,
    jobs: int = 0,
    progress: Progress = silent,
) -> Path:
    """Writes report.html beside predicted label maps: pictures, volumes, cases unlike the training data.

    Args:
        output: folder of the label maps.
        manifest: what became of each case.
        plan: of the model: channels and classes.
        cases: the images, as they were found.
        typical: what is usual for the model's training cases (`ModelFiles.typical`); empty if that is not known.
        pictures: cases that get pictures, those unlike the training data first.
        jobs: worker processes; 0 to do everything here.
        progress: told about finished cases.
    """
    files = {name: outcome.output for name, outcome in manifest.cases.items() if outcome.status == "done"}
    done = [case for case in cases if files.get(case.identifier)]
    plain = [_new_task(case, output / str(files[case.identifier]), plan, is_new=bool(typical)) for case in done]
    entries = _new_entries(plain, typical, min(pictures, len(done)), jobs, progress)
    report = PredictionReport(
        model=manifest.model,
        labels=plan.labels,
        facts={
            "device": manifest.device,
            "mirroring": "yes" if manifest.mirroring else "no",
            "tiles overlap by": f"{manifest.overlap:.0%}",
        },
        cases=entries,
        failed={
            name: without_folders(outcome.error or "no reason is known")
            for name, outcome in manifest.cases.items()
            if outcome.status == "failed"
        },
        is_compared=bool(typical),
        version=__version__,
        written=_now(),
    )
    path = output / REPORT_NAME
    write_atomic(path, prediction_page(report))
    return path


def _new_task(case: Case, prediction: Path, plan: Plan, *, is_new: bool) -> CaseTask:
    """A case without reference, and without pictures."""
    return CaseTask(
        case=replace(case, labels=None),
        root="",
        prediction=str(prediction),
        labels=plan.labels,
        channels=plan.channels,
        four_d=plan.four_d,
        picture_bytes=0,
        windows=_windows(plan),
        is_new=is_new,
    )


def _new_entries(
    tasks: Sequence[CaseTask], typical: Mapping[str, TrainingRange], pictures: int, jobs: int, progress: Progress
) -> tuple[CaseEntry, ...]:
    """The cases, those most unlike the training cases first; these get the pictures if not all do."""
    share = picture_bytes(pictures) if pictures else 0
    are_all_drawn = pictures == len(tasks)
    first = [replace(task, picture_bytes=share) for task in tasks] if are_all_drawn else tasks
    seen = look_at(first, jobs, progress)
    entries = [_with_evidence(CaseEntry(name), own, typical) for name, own in seen.items()]
    entries.sort(key=lambda entry: (-len(entry.unlike), entry.identifier))
    if are_all_drawn:
        return tuple(entries)
    chosen = {entry.identifier for entry in entries[:pictures]}
    again = [replace(task, picture_bytes=share) for task in tasks if task.case.identifier in chosen]
    drawn = look_at(again, jobs, silent)
    return tuple(
        replace(entry, picture=drawn[entry.identifier].picture) if entry.identifier in chosen else entry
        for entry in entries
    )


def _windows(plan: Plan) -> tuple[tuple[float, float] | None, ...]:
    """Where intensities mean the same in every case, the range of the foreground; elsewhere each case has its own."""
    schemes = next(iter(plan.configurations.values())).normalization
    return tuple(
        (own.percentile_00_5, own.percentile_99_5) if scheme == COMMON_SCALE else None
        for scheme, own in zip(schemes, plan.intensities, strict=False)
    )


def _now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")


def _runs(workspace: Workspace, plan: Plan, fingerprint: Fingerprint) -> tuple[RunEntry, ...]:
    """Every configuration and fold, whether it was started or not."""
    folds = _loaded(list[Fold], workspace.splits) or make_folds([case.identifier for case in fingerprint.cases])
    return tuple(
        _run(workspace.run(name, fold), plan, name, fold)
        for name in plan.configurations
        for fold in sorted({*range(len(folds)), *_started(workspace, name)})
    )


def _started(workspace: Workspace, configuration: str) -> list[int]:
    """Numbers of the folds that a configuration has run folders of."""
    folders = workspace.run(configuration, 0).root.parent.glob("fold_*")
    numbers = [folder.name.removeprefix("fold_") for folder in folders if folder.is_dir()]
    return [int(number) for number in numbers if number.isdecimal()]


def _run(folder: RunFolder, plan: Plan, configuration: str, fold: int) -> RunEntry:
    status, record = _loaded(RunStatus, folder.state), _loaded(RunRecord, folder.recipe)
    if status is None or record is None:
        return RunEntry(configuration, fold, remark="its records are damaged" if folder.state.exists() else "")
    own = _loaded(Plan, folder.plan)
    is_current = own is not None and own.configurations.get(configuration) == plan.configurations[configuration]
    remark = "" if is_current else "trained with an earlier plan"
    return RunEntry(configuration, fold, status, tuple(read_history(folder.history)), record.device, remark)


def _loaded(kind: type[T], path: Path) -> T | None:
    """A record, or None if it is not there; a damaged one is reported, and the report goes on without it."""
    try:
        return load(kind, path)
    except MissingInput:
        return None
    except RecordFault as fault:
        _log.warning("%s", fault)
        return None


def _selected_results(workspace: Workspace, plan: Plan, dice: Mapping[str, ClassDice]) -> _Results:
    """What the selected model gave for cases it was not trained on."""
    files = {name: workspace.selected / f"{name}{plan.file_ending}" for name in dice}
    folds = _loaded(list[Fold], workspace.splits) or []
    kept_back = {name: number for number, fold in enumerate(folds) for name in fold.val}
    return _Results("the selected model's networks, each case by those that never saw it", dict(dice), files, kept_back)


def _best_results(workspace: Workspace, plan: Plan, runs: Sequence[RunEntry]) -> _Results:
    """Validation cases of the configuration with the best Dice among those that have any."""
    from autoseg.runs.run import SCORES_FILE, FoldScores

    found: dict[str, _Results] = {}
    for run in runs:
        folder = workspace.run(run.configuration, run.fold).validation
        scores = None if run.status is None else _loaded(FoldScores, folder / SCORES_FILE)
        if scores is None:
            continue
        title = f"{run.configuration}, each case by the network that never saw it"
        own = found.setdefault(run.configuration, _Results(title, {}, {}, {}))
        for name, classes in scores.cases.items():
            own.dice[name] = {label: entry["dice"] for label, entry in classes.items()}
            own.files[name] = folder / f"{name}{plan.file_ending}"
            own.folds[name] = run.fold
    if not found:
        return _Results("", {}, {}, {})
    return max(found.values(), key=lambda results: _mean_dice(results.dice))


def _mean_dice(dice: Mapping[str, ClassDice]) -> float:
    known = [value for classes in dice.values() for value in classes.values() if value is not None]
    return sum(known) / len(known) if known else 0.0


def _tasks(
    cases: Sequence[CaseEntry], dataset: Dataset, plan: Plan, results: _Results, pictures: int
) -> list[CaseTask]:
    known = {case.identifier: case for case in dataset.cases}
    share = picture_bytes(min(pictures, len(cases)))
    return [
        CaseTask(
            case=known[entry.identifier],
            root=dataset.root,
            prediction=str(results.files[entry.identifier]),
            labels=plan.labels,
            channels=plan.channels,
            four_d=plan.four_d,
            picture_bytes=share if index < pictures else 0,
            windows=_windows(plan),
        )
        for index, entry in enumerate(cases)
        if entry.identifier in known
    ]


def _compared_with(folder: Path, tasks: Sequence[CaseTask]) -> list[CaseTask]:
    """The tasks with the label maps of another folder where it has them.

    Raises:
        MissingInput: it has none.
    """
    files = {stem(path): path.resolve() for path in image_files(folder)} if folder.is_dir() else {}
    if not any(task.case.identifier in files for task in tasks):
        raise MissingInput(
            f"{folder.name} holds no label map named like a validated case", where=str(folder), do="check --references"
        )
    changed = {name: str(path) for name, path in files.items()}
    return [
        replace(task, case=replace(task.case, labels=changed.get(task.case.identifier, task.case.labels)))
        for task in tasks
    ]


def _completed(
    cases: Sequence[CaseEntry], seen: Mapping[str, Evidence], folds: Mapping[str, int]
) -> tuple[CaseEntry, ...]:
    gone = Evidence({}, remark="the case is no longer part of the dataset")
    return tuple(
        replace(_with_evidence(case, seen.get(case.identifier, gone), None), fold=folds.get(case.identifier))
        for case in cases
    )


def _with_evidence(case: CaseEntry, seen: Evidence, typical: Mapping[str, TrainingRange] | None) -> CaseEntry:
    differences = case.unlike if typical is None else find_outliers(seen.properties or {}, typical)
    return replace(
        case,
        dice=seen.dice or case.dice,
        volumes=seen.volumes,
        unit=seen.unit,
        confusion=seen.confusion,
        picture=seen.picture,
        remark=seen.remark,
        unlike=differences,
    )
