"""What of a plan's configurations x folds is trained, and which cases every configuration predicted out of fold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from autoseg.core.errors import AutoSegError, IntegrityRefusal, MissingInput, UsageError
from autoseg.core.files import sha256_of_file
from autoseg.core.machine import BYTES_PER_GIB
from autoseg.core.registry import choose
from autoseg.core.workspace import Workspace
from autoseg.data.fingerprint import Fingerprint
from autoseg.data.model import Dataset
from autoseg.inference.out_of_fold import probabilities_file
from autoseg.inference.predictor import Predictor
from autoseg.networks.weights import WEIGHTS_FILE, generations
from autoseg.planning.plan import Configuration, Plan
from autoseg.runs.cascade import check_first_stage
from autoseg.runs.run import FoldScores, Run, check_same_cases, check_same_plan, damaged_run
from autoseg.selection.candidates import Costs
from autoseg.selection.ensemble_dice import OutOfFoldFiles
from autoseg.selection.record import Selection
from autoseg.training.splits import Fold, settle_folds

LEAST_IN_COMMON = 0.5
"""Of the cases of the configuration that was validated on most, how many have to stay in common with the others."""

_FLOAT_BYTES = 4
_SHOWN_RUNS = 6


FinishedRuns = dict[Run, FoldScores]
"""Runs of one configuration with the scores of their validation cases, read once."""


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
    runs: dict[str, FinishedRuns]
    missing: tuple[str, ...]

    def weight_hashes(self) -> dict[str, str]:
        """Hash of the weights of every run, by its key."""
        return {run.key: run.weights_hash for runs in self.runs.values() for run in runs}


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
        PlanFault: a run was trained with another plan or other data, or with another first stage than there is now.
        UsageError: a run was trained with other folds.
        IntegrityRefusal: a run has lost weights, scores or label maps.
    """
    dataset, fingerprint, plan = planned
    folds = _folds(workspace, dataset, fingerprint)
    names = _named(plan, configurations)
    contents = {case.identifier: case.content for case in fingerprint.cases}
    find_finished = partial(_finished_runs, workspace, plan, folds, contents)
    finished = {name: find_finished(name) for name in names}
    unfinished = partial(_unfinished, workspace, range(len(folds)))
    missing = tuple(title for name, runs in finished.items() for title in unfinished(name, runs))
    runs = {name: own for name, own in finished.items() if own}
    if not runs:
        raise MissingInput(
            "no fold is trained yet, so there are no out-of-fold predictions to select by",
            where=str(workspace.root),
            do=f"run `{workspace.command('train')}` first",
        )
    if missing and not allow_missing:
        raise _incomplete(workspace, missing, runs, len(folds))
    stages = _runs_of_first_stages(workspace, plan, runs, find_finished)
    return TrainedMatrix(plan, dataset, fingerprint, tuple(runs), {**runs, **stages}, missing)


def common_cases(matrix: TrainedMatrix) -> tuple[TrainedMatrix, list[OutOfFoldFiles], tuple[str, ...]]:
    """The cases that every compared configuration predicted out of fold, by name, and notes for people.

    Configurations that were hardly validated are not compared any more in the matrix that is returned.

    Raises:
        MissingInput: there is no such case.
    """
    matrix, not_compared = _comparable(matrix)
    run_of = {name: _predicted_cases(matrix.runs[name]) for name in matrix.compared}
    predicted = set().union(*run_of.values())
    common = _common(run_of, matrix.compared)
    if not common:
        raise MissingInput(
            f"no case was predicted out of fold by all of {', '.join(matrix.compared)}",
            why="no fold keeps a case back, or the validations had no time for the same cases",
            do="train with more time, or compare fewer configurations with --configuration",
        )
    references = {case.identifier: Path(matrix.dataset.root) / str(case.labels) for case in matrix.dataset.cases}
    files = []
    for case in common:
        runs = [own[case] for own in run_of.values()]
        predictions = tuple(run.folder.validation / f"{case}{matrix.plan.file_ending}" for run in runs)
        kept = tuple(_kept_probabilities(run, matrix.runs[run.configuration][run], case) for run in runs)
        files.append(OutOfFoldFiles(case, runs[0].fold, references[case], predictions, kept))
    return matrix, files, (*not_compared, *_notes(matrix, files, len(predicted) - len(common)))


def _comparable(matrix: TrainedMatrix) -> tuple[TrainedMatrix, tuple[str, ...]]:
    """Without the configurations that were hardly validated, and a note about these.

    Beginning with the configuration that predicted most cases, each joins if at least half of that one's cases stay in
    common: an unfinished candidate must not take away the cases that finished ones are chosen by.
    """
    run_of = {name: _predicted_cases(matrix.runs[name]) for name in matrix.compared}
    by_cases = sorted(run_of, key=lambda name: -len(run_of[name]))
    kept = by_cases[:1]
    for name in by_cases[1:]:
        if len(_common(run_of, [*kept, name])) >= LEAST_IN_COMMON * len(run_of[kept[0]]):
            kept.append(name)
    notes = tuple(
        f"{name} is not compared: it was validated on {len(run_of[name])} cases, "
        f"{by_cases[0]} on {len(run_of[by_cases[0]])}"
        for name in matrix.compared
        if name not in kept
    )
    return replace(matrix, compared=tuple(name for name in matrix.compared if name in kept)), notes


def _notes(matrix: TrainedMatrix, files: Sequence[OutOfFoldFiles], left_out: int) -> tuple[str, ...]:
    """What is not as usual about the cases that are compared."""
    notes = [f"{_cases(left_out)} left out, as not every configuration predicted them"] if left_out else []
    notes += _less_mirrored(matrix)
    without_probabilities = sum(None in case.probabilities for case in files)
    if without_probabilities and len(matrix.compared) > 1:
        notes.append(
            f"{_cases(without_probabilities)} decided by label maps that vote, as not all probabilities were kept "
            "(disk budget)"
        )
    notes += [f"without {', '.join(matrix.missing)}, which are not trained"] if matrix.missing else []
    return tuple(notes)


def costs_of(matrix: TrainedMatrix) -> Costs:
    """What every configuration costs at prediction with all its folds."""
    own = matrix.plan.configurations
    return Costs(
        seconds={name: _seconds(own[name], runs) for name, runs in matrix.runs.items()},
        memory_gib={name: _memory_gib(matrix, own[name], runs) for name, runs in matrix.runs.items()},
        first_stage=_first_stages(matrix.plan, own),
    )


def _named(plan: Plan, configurations: Sequence[str]) -> list[str]:
    """The configurations asked for, in the order of the plan."""
    for name in configurations:
        choose(name, plan.configurations, "configuration")
    return [name for name in plan.configurations if not configurations or name in configurations]


def _folds(workspace: Workspace, dataset: Dataset, fingerprint: Fingerprint) -> tuple[Fold, ...]:
    usable = {case.identifier for case in fingerprint.cases}
    refused = {case.identifier for case in dataset.cases} - usable
    return settle_folds(usable, refused, Path(dataset.root), workspace.splits)


def _first_stages(plan: Plan, names: Iterable[str]) -> dict[str, str]:
    """First stage of each cascade among the configurations."""
    stages = ((name, plan.configurations[name].cascade_from) for name in names)
    return {name: first for name, first in stages if first is not None}


def _runs_of_first_stages(
    workspace: Workspace, plan: Plan, runs: Mapping[str, FinishedRuns], find_finished: Callable[[str], FinishedRuns]
) -> dict[str, FinishedRuns]:
    """Finished runs of the first stages that are not themselves compared; a cascade cannot predict without them."""
    found = {}
    for name, first in _first_stages(plan, runs).items():
        if first not in runs:
            found[first] = find_finished(first)
            if not found[first]:
                sentence = f"{name} starts from {first}, which is not there"
                raise MissingInput(sentence, where=str(workspace.root), do=f"train {first} first")
    return found


def _finished_runs(
    workspace: Workspace, plan: Plan, folds: Sequence[Fold], contents: Mapping[str, str], name: str
) -> FinishedRuns:
    """Finished runs of a configuration with their scores, each checked to be of this plan, these data and folds."""
    runs = [Run(name, number, workspace.run(name, number)) for number in range(len(folds))]
    found = {}
    for run in (run for run in runs if run.is_done):
        check_same_plan(run, plan, contents)
        check_first_stage(run)
        found[run] = _checked_scores(run)
        check_same_cases(run, folds[run.fold])
    return found


def _unfinished(workspace: Workspace, folds: Iterable[int], name: str, finished: Iterable[Run]) -> list[str]:
    done = {run.fold for run in finished}
    missing = (Run(name, fold, workspace.run(name, fold)) for fold in folds if fold not in done)
    return [run.title + (" (state.json is damaged)" if run.is_unclear else "") for run in missing]


def other_networks(workspace: Workspace, selection: Selection) -> list[str]:
    """The runs of a selection that were trained again since, or have no weights any more."""
    weights = {run.key: _weights(run) for run in (Run(*own) for own in workspace.run_folders())}
    return [key for key, own in selection.runs.items() if weights.get(key) != own]


def _weights(run: Run) -> str | None:
    try:
        return run.weights_hash
    except AutoSegError:  # none, or none that is intact
        return None


def _checked_scores(run: Run) -> FoldScores:
    """Scores of a finished run, if they are its network's, on cases that it has not seen."""
    fault, scores = run.fault, run.scores
    if fault is not None or scores is None:
        raise damaged_run(run, str(fault))
    seen = sorted(set(run.record().train) & set(scores.cases))
    if seen:
        raise IntegrityRefusal(
            f"{run.title} was trained on {seen[0]}, which it was validated with",
            where=str(run.folder.root),
            why="its score would be too good",
            do="train this fold again with --fresh",
        )
    return scores


def _incomplete(
    workspace: Workspace, missing: Sequence[str], runs: Mapping[str, FinishedRuns], folds: int
) -> UsageError:
    complete = [name for name, own in runs.items() if len(own) == folds]
    more = f" and {len(missing) - _SHOWN_RUNS} more" if len(missing) > _SHOWN_RUNS else ""
    only = f", --configuration {complete[0]} to compare what is complete" if complete else ""
    return UsageError(
        f"not every run is trained, missing: {', '.join(missing[:_SHOWN_RUNS])}{more}",
        where=str(workspace.root),
        why="a comparison on different cases would favor the configuration with the easier ones",
        do=f"autoseg train DATASET to finish{only}, or --allow-missing to go on with the cases that all have in common",
    )


def _predicted_cases(runs: FinishedRuns) -> dict[str, Run]:
    """For each validated case the first run that kept it back."""
    found: dict[str, Run] = {}
    for run, scores in runs.items():
        for name in scores.cases:
            found.setdefault(name, run)
    return found


def _cases(count: int) -> str:
    return f"{count} cases are" if count > 1 else "1 case is"


def _less_mirrored(matrix: TrainedMatrix) -> list[str]:
    """A note for each configuration that was validated with less mirroring than it predicts with."""
    own = matrix.plan.configurations
    fewer = {
        name: {len(scores.mirror_axes) for scores in matrix.runs[name].values()} - {len(own[name].mirror_axes)}
        for name in matrix.compared
    }
    return [
        f"{name} was validated with mirroring along {min(counts)} of {len(own[name].mirror_axes)} axes only, "
        "for lack of time; predictions get all"
        for name, counts in fewer.items()
        if counts
    ]


def _common(run_of: Mapping[str, Mapping[str, Run]], names: Sequence[str]) -> list[str]:
    """The cases that all of these configurations predicted, and kept back in the same fold.

    Only then did their networks see the same training cases, and the nested score can leave the whole fold out.
    """
    first, *others = (run_of[name] for name in names)
    return sorted(
        case for case, run in first.items() if all(case in own and own[case].fold == run.fold for own in others)
    )


def _kept_probabilities(run: Run, scores: FoldScores, case: str) -> Path | None:
    """The probabilities of a case that a run kept back; None if there was no room for them, or they were deleted."""
    path = probabilities_file(run.folder.validation, case)
    if not path.exists():
        return None
    if path.name in scores.probabilities and sha256_of_file(path) != scores.probabilities[path.name]:
        error = damaged_run(run, f"has other kept probabilities {path.name} than its validation wrote")
        error.do = f"restore the file, or delete it: label maps alone are compared then ({path})"
        raise error
    return path


def _seconds(configuration: Configuration, runs: FinishedRuns) -> float | None:
    """Mean over the validated cases, times the networks and mirrorings that validation did without."""
    seconds = [
        value * 2.0 ** (len(configuration.mirror_axes) - len(scores.mirror_axes))
        for scores in runs.values()
        for value in scores.seconds.values()
    ]
    return round(float(np.mean(seconds)) * len(runs), 3) if seconds else None


def _memory_gib(matrix: TrainedMatrix, configuration: Configuration, runs: FinishedRuns) -> float:
    """Weights of all folds, the image, feature maps of a batch of tiles, and the slab of logits; an estimate."""
    plan = matrix.plan
    predictor = Predictor((), configuration, plan.labels.head_count)
    shape = _median_shape(matrix, configuration)
    weights = sum((generations(run.folder.checkpoint)[-1] / WEIGHTS_FILE).stat().st_size for run in runs)
    image = _FLOAT_BYTES * plan.input_channels(configuration.name) * int(np.prod(shape))
    needed = weights + image + predictor.working_bytes(shape)
    return needed / BYTES_PER_GIB


def _median_shape(matrix: TrainedMatrix, configuration: Configuration) -> tuple[int, ...]:
    """Voxels of the median case as prepared; a 2D configuration keeps the slices as they are."""
    shape = tuple(max(1, round(length)) for length in configuration.median_shape)
    if configuration.dimensions == 3:
        return shape
    first = matrix.plan.axis_order[0]
    slices = np.median([case.shape_after_crop[first] for case in matrix.fingerprint.cases])
    return (max(1, round(float(slices))), *shape)
