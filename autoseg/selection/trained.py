"""What of a plan's configurations x folds is trained, and which cases every configuration predicted out of fold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.core.errors import IntegrityRefusal, MissingInput, RecordFault, UsageError
from autoseg.core.machine import BYTES_PER_GIB
from autoseg.core.records import load
from autoseg.core.registry import choose
from autoseg.core.workspace import RunFolder, Workspace
from autoseg.data.fingerprint import Fingerprint
from autoseg.data.model import Dataset
from autoseg.inference.out_of_fold import probabilities_file
from autoseg.inference.predictor import Predictor
from autoseg.inference.stream import network_bytes
from autoseg.networks.weights import WEIGHTS_FILE, generations
from autoseg.planning.plan import Configuration, Plan
from autoseg.runs.cascade import check_first_stage
from autoseg.runs.records import RunRecord, RunStatus
from autoseg.runs.setup import check_same_plan
from autoseg.runs.validation import SCORES_FILE, FoldScores
from autoseg.selection.candidates import Costs
from autoseg.selection.ensemble_dice import CaseFiles
from autoseg.training.splits import settle_folds

_FLOAT_BYTES = 4
_SHOWN_RUNS = 6


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run with its validation.

    Attributes:
        configuration: name.
        fold: number.
        folder: of the run.
        scores: of its validation cases.
    """

    configuration: str
    fold: int
    folder: RunFolder
    scores: FoldScores

    @property
    def title(self) -> str:
        """As in selection.json: configuration/fold_k."""
        return f"{self.configuration}/fold_{self.fold}"


@dataclass(frozen=True, slots=True)
class TrainedMatrix:
    """The runs to be compared.

    Attributes:
        plan: of the dataset.
        dataset: knows the reference label files.
        fingerprint: of the dataset, for the size of a case.
        compared: configurations that are candidates, in the plan's order.
        runs: configuration -> finished runs, those of first stages of cascades included.
        missing: "configuration fold k" of the runs that were expected and are not finished.
    """

    plan: Plan
    dataset: Dataset
    fingerprint: Fingerprint
    compared: tuple[str, ...]
    runs: dict[str, tuple[FinishedRun, ...]]
    missing: tuple[str, ...]

    @property
    def first_stages(self) -> dict[str, str]:
        """First stage of each cascade."""
        found = self.plan.configurations.items()
        return {name: own.cascade_from for name, own in found if own.cascade_from is not None}


def trained_matrix(
    workspace: Workspace,
    planned: tuple[Dataset, Fingerprint, Plan],
    configurations: Sequence[str] = (),
    *,
    allow_missing: bool = False,
) -> TrainedMatrix:
    """The finished runs of the plan.

    Args:
        workspace: with runs.
        planned: dataset, fingerprint and plan.
        configurations: names; all of the plan if empty.
        allow_missing: whether unfinished runs, and configurations without any finished one, are left out.

    Raises:
        UsageError: no such configuration, or runs are missing and that is not allowed.
        MissingInput: nothing is trained.
        PlanFault: a run was trained with another plan, or with another first stage than there is now.
    """
    dataset, fingerprint, plan = planned
    names = [name for name in plan.configurations if not configurations or name in configurations]
    for name in configurations:
        choose(name, plan.configurations, "configuration")
    usable = {case.identifier for case in fingerprint.cases}
    refused = {case.identifier for case in dataset.cases} - usable
    folds = range(len(settle_folds(usable, refused, Path(dataset.root), workspace.splits)))
    expected = {name: {fold: _finished(workspace, plan, name, fold) for fold in folds} for name in names}
    runs = {name: tuple(run for run in own.values() if run is not None) for name, own in expected.items()}
    missing = tuple(f"{name} fold {k}" for name, own in expected.items() for k, run in own.items() if run is None)
    compared = tuple(name for name in names if runs[name])
    if not compared:
        raise MissingInput(
            "no fold is trained yet, so there are no out-of-fold predictions to select by",
            where=str(workspace.root),
            do="run autoseg train DATASET first",
        )
    if missing and not allow_missing:
        raise _half_trained(workspace, missing, [name for name in compared if len(runs[name]) == len(folds)])
    found = {name: runs[name] for name in compared}
    for name in compared:
        first = plan.configurations[name].cascade_from
        if first is not None and first not in found:
            found[first] = _first_stage(workspace, plan, name, first, folds)
    return TrainedMatrix(plan, dataset, fingerprint, compared, found, missing)


def common_cases(matrix: TrainedMatrix) -> tuple[list[CaseFiles], list[int], list[str]]:
    """The cases that every compared configuration predicted out of fold, the fold of each, and notes for people.

    Raises:
        MissingInput: there is no such case.
    """
    by_name = {name: _predicted_cases(matrix.runs[name]) for name in matrix.compared}
    first, *others = by_name.values()
    names = sorted(name for name, run in first.items() if all(_has(own, name, run.fold) for own in others))
    if not names:
        raise MissingInput(
            f"no case was predicted out of fold by all of {', '.join(matrix.compared)}",
            why="no fold keeps a case back, or the validations had no time for the same cases",
            do="train with more time, or compare fewer configurations with --configuration",
        )
    left_out = sorted({name for own in by_name.values() for name in own} - set(names))
    notes = [f"{_cases(len(left_out))} left out, as not every configuration predicted them"] if left_out else []
    references = {case.identifier: case.labels for case in matrix.dataset.cases}
    root, ending, files, votes = Path(matrix.dataset.root), matrix.plan.file_ending, [], 0
    for name in names:
        folders = [own[name].folder.validation for own in by_name.values()]
        kept = [file if file.exists() else None for file in (probabilities_file(own, name) for own in folders)]
        votes += None in kept
        predictions = tuple(folder / f"{name}{ending}" for folder in folders)
        files.append(CaseFiles(name, root / str(references[name]), predictions, tuple(kept)))
    notes += _less_mirrored(matrix)
    if votes and len(matrix.compared) > 1:
        notes.append(
            f"{_cases(votes)} decided by label maps that vote, as not all probabilities were kept (disk budget)"
        )
    return files, [first[name].fold for name in names], notes


def costs_of(matrix: TrainedMatrix) -> Costs:
    """What every configuration costs at prediction with all its folds."""
    own = matrix.plan.configurations
    return Costs(
        seconds={name: _seconds(own[name], runs) for name, runs in matrix.runs.items()},
        memory_gib={name: _memory_gib(matrix, own[name], runs) for name, runs in matrix.runs.items()},
        first_stage=matrix.first_stages,
    )


def _finished(workspace: Workspace, plan: Plan, name: str, fold: int) -> FinishedRun | None:
    folder = workspace.run(name, fold)
    try:
        if load(RunStatus, folder.state).state != "done":
            return None
        record, file = load(RunRecord, folder.recipe), folder.validation / SCORES_FILE
        keeps_none_back = not record.val and not file.exists()
        scores = FoldScores({}, {}, {}, (), ()) if keeps_none_back else load(FoldScores, file)
    except (MissingInput, RecordFault):
        return None
    check_same_plan(plan, plan.configurations[name], folder)
    check_first_stage(folder)
    _refuse_seen_cases(folder, record, scores)
    return FinishedRun(name, fold, folder, scores)


def _refuse_seen_cases(folder: RunFolder, record: RunRecord, scores: FoldScores) -> None:
    seen = sorted(set(record.train) & set(scores.cases))
    if seen:
        raise IntegrityRefusal(
            f"{record.configuration} fold {record.fold} was trained on {seen[0]}, which it was validated with",
            where=str(folder.root),
            why="its score would be too good",
            do="train this fold again with --fresh",
        )


def _half_trained(workspace: Workspace, missing: Sequence[str], complete: Sequence[str]) -> UsageError:
    more = f" and {len(missing) - _SHOWN_RUNS} more" if len(missing) > _SHOWN_RUNS else ""
    only = f", --configuration {complete[0]} to compare what is complete" if complete else ""
    return UsageError(
        f"the matrix is half trained, missing: {', '.join(missing[:_SHOWN_RUNS])}{more}",
        where=str(workspace.root),
        why="a comparison on different cases would favor whoever got the easy ones",
        do=f"autoseg train DATASET to finish{only}, or --allow-missing to go on with the cases that all have in common",
    )


def _first_stage(
    workspace: Workspace, plan: Plan, name: str, first: str, folds: Iterable[int]
) -> tuple[FinishedRun, ...]:
    found = tuple(run for fold in folds if (run := _finished(workspace, plan, first, fold)) is not None)
    if not found:
        raise MissingInput(
            f"{name} starts from {first}, which is not there", where=str(workspace.root), do=f"train {first} first"
        )
    return found


def _predicted_cases(runs: Sequence[FinishedRun]) -> dict[str, FinishedRun]:
    """For each validated case the first run that kept it back."""
    found: dict[str, FinishedRun] = {}
    for run in runs:
        for name in run.scores.cases:
            found.setdefault(name, run)
    return found


def _cases(count: int) -> str:
    return f"{count} cases are" if count > 1 else "1 case is"


def _less_mirrored(matrix: TrainedMatrix) -> list[str]:
    """A note for each configuration that was validated with less mirroring than it predicts with."""
    own = matrix.plan.configurations
    fewer = {
        name: {len(run.scores.mirror_axes) for run in matrix.runs[name]} - {len(own[name].mirror_axes)}
        for name in matrix.compared
    }
    return [
        f"{name} was validated with mirroring along {min(counts)} of {len(own[name].mirror_axes)} axes only, "
        "for lack of time; predictions get all"
        for name, counts in fewer.items()
        if counts
    ]


def _has(cases: Mapping[str, FinishedRun], name: str, fold: int) -> bool:
    return name in cases and cases[name].fold == fold


def _seconds(configuration: Configuration, runs: Sequence[FinishedRun]) -> float | None:
    """Mean over the validated cases, times the networks and mirrorings that validation did without."""
    seconds = [
        value * 2.0 ** (len(configuration.mirror_axes) - len(run.scores.mirror_axes))
        for run in runs
        for value in run.scores.seconds.values()
    ]
    return round(float(np.mean(seconds)) * len(runs), 3) if seconds else None


def _memory_gib(matrix: TrainedMatrix, configuration: Configuration, runs: Sequence[FinishedRun]) -> float:
    """Weights of all folds, the image, feature maps of a batch of tiles, and the slab of logits; an estimate."""
    plan = matrix.plan
    predictor = Predictor((), configuration, plan.labels.head_count)
    shape = _median_shape(matrix, configuration)
    weights = sum((generations(run.folder.checkpoint)[-1] / WEIGHTS_FILE).stat().st_size for run in runs)
    image = _FLOAT_BYTES * plan.input_channels(configuration.name) * int(np.prod(shape))
    tiling = predictor.tiling(shape)
    needed = weights + image + network_bytes(predictor) + predictor.slab_bytes(tiling)
    return needed / BYTES_PER_GIB


def _median_shape(matrix: TrainedMatrix, configuration: Configuration) -> tuple[int, ...]:
    """Voxels of the median case as prepared; a 2D configuration keeps the slices as they are."""
    shape = tuple(max(1, round(length)) for length in configuration.median_shape)
    if configuration.dimensions == 3:
        return shape
    first = matrix.plan.axis_order[0]
    slices = np.median([case.shape_after_crop[first] for case in matrix.fingerprint.cases])
    return (max(1, round(float(slices))), *shape)
