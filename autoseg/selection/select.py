"""Selecting the configuration or ensemble that predicts, and its postprocessing, from out-of-fold predictions."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from autoseg.core.errors import MissingInput, RecordFault, UsageError
from autoseg.core.files import atomic_folder, remove_leftovers
from autoseg.core.progress import Progress, silent
from autoseg.core.records import load, save_sealed
from autoseg.core.registry import choose
from autoseg.core.workspace import Workspace
from autoseg.data.labels import to_file_values
from autoseg.data.model import LabelSet
from autoseg.evaluation.statistics import bootstrap_interval, foreground_mean
from autoseg.images.formats.files import hash_of_written
from autoseg.images.writers import write_labels
from autoseg.planning.plan import Plan, load_planned
from autoseg.selection.candidates import EnsembleWeights, all_ensembles
from autoseg.selection.choose import (
    OBJECTIVES,
    ScoreTable,
    best_as_nnunet,
    candidate_scores,
    nested_choices,
    nested_groups,
)
from autoseg.selection.ensemble_dice import OutOfFoldFiles, OutOfFoldMaps, ensemble_dice, ensemble_labels, read_maps
from autoseg.selection.postprocessing import PostprocessingSearch, PredictedCase, predicted_case
from autoseg.selection.record import SELECTION_VERSION, NestedScore, Selection, plan_hash
from autoseg.selection.trained import common_cases, costs_of, trained_matrix

MOST_THREADS = 8
"""Cases worked on at once, each with the label maps of all configurations in memory (assumption)."""

_log = logging.getLogger(__name__)

Measured = TypeVar("Measured")


@dataclass(frozen=True, slots=True)
class SelectionOptions:
    """How to choose.

    Attributes:
        objective: a key of `selection.choose.OBJECTIVES`: "default", "dice", "nnunet" or "cost".
        configurations: candidates; all of the plan if empty.
        allow_missing: whether unfinished runs are left out, and the comparison goes on with the cases in common.
        seed: of the bootstrap.
    """

    objective: str = "default"
    configurations: Sequence[str] = ()
    allow_missing: bool = False
    seed: int = 0


def select_model(
    workspace: Workspace,
    options: SelectionOptions | None = None,
    *,
    jobs: int = 1,
    progress: Progress = silent,
) -> Selection:
    """Compares everything that is trained, and writes selection.json and the choice's out-of-fold label maps.

    Args:
        workspace: with finished runs.
        options: how to choose; by default the cheapest within noise of everything trained.
        jobs: threads.
        progress: called with the number of finished cases; each case is read twice and counts twice.

    Raises:
        MissingInput: nothing is planned or trained, or no case was predicted by all configurations.
        UsageError: no such objective or configuration, runs are missing, or a selected label map was changed by hand.
        PlanFault: a run was trained with another plan.
        IntegrityRefusal: a checkpoint or kept probabilities are damaged.
    """
    options = options or SelectionOptions()
    rule, seed = choose(options.objective, OBJECTIVES, "objective"), options.seed
    planned = load_planned(workspace)
    matrix = trained_matrix(workspace, planned, options.configurations, allow_missing=options.allow_missing)
    matrix, cases, notes = common_cases(matrix)
    each = _CasePasses(cases, matrix.plan.labels, min(jobs, MOST_THREADS), progress)
    table, costs = _score_table(matrix.compared, each), costs_of(matrix)
    weights, because = rule(table, table.every_case, costs, seed)
    nested = nested_choices(table, rule, costs, seed)
    search = _postprocessing(table, weights, each)
    members, dice = table.members(weights), search.dice
    maps = _write_label_maps(workspace, matrix.plan, search.cases)
    selection = Selection(
        version=SELECTION_VERSION,
        plan=plan_hash(matrix.plan, matrix.runs),
        objective=options.objective,
        name=table.title(weights),
        because=because,
        members=members,
        folds={name: tuple(run.fold for run in matrix.runs[name]) for name in costs.with_stages(members)},
        candidates=candidate_scores(table, costs, seed),
        nnunet_choice=table.title(best_as_nnunet(table, table.every_case, costs, seed)[0]),
        nested=None if nested is None else _nested_score(table, weights, nested, search, seed),
        postprocessing=tuple(search.trials),
        case_dice={case: _by_class(table.classes, row) for case, row in zip(table.cases, dice, strict=True)},
        runs=matrix.weight_hashes(),
        notes=notes,
        dataset=matrix.plan.dataset,
        maps=maps,
    )
    save_sealed(selection, workspace.selection)
    _log.info("%s: %s", selection.name, selection.because)
    return selection


@dataclass(slots=True)
class _CasePasses:
    """Goes through all cases twice in threads: to score every ensemble, and to keep the predictions of the chosen."""

    cases: Sequence[OutOfFoldFiles]
    labels: LabelSet
    threads: int
    progress: Progress
    done: int = 0

    def each(self, measure: Callable[[OutOfFoldMaps], Measured]) -> list[Measured]:
        """What `measure` makes of the label maps of each case; only as many cases as threads are in memory at once."""
        results = []
        with ThreadPoolExecutor(self.threads) as pool:
            for result in pool.map(lambda own: measure(read_maps(own, self.labels)), self.cases):
                results.append(result)
                self.done += 1
                self.progress(self.done, 2 * len(self.cases))
        return results


def _score_table(compared: tuple[str, ...], passes: _CasePasses) -> ScoreTable:
    ensembles = all_ensembles(len(compared))
    dice = passes.each(lambda maps: ensemble_dice(maps, passes.labels, ensembles))
    return ScoreTable(
        configurations=compared,
        ensembles=ensembles,
        classes=passes.labels.foreground,
        cases=tuple(case.identifier for case in passes.cases),
        groups=nested_groups(np.array([case.fold for case in passes.cases])),
        dice=np.stack(dice, axis=1),
    )


def _postprocessing(table: ScoreTable, weights: EnsembleWeights, passes: _CasePasses) -> PostprocessingSearch:
    """The finished search for postprocessing on the predictions of the chosen ensemble."""

    def predicted(maps: OutOfFoldMaps) -> PredictedCase:
        labels = ensemble_labels(maps, passes.labels, weights)
        return predicted_case(maps.files.identifier, labels, maps.reference, maps.geometry)

    search = PostprocessingSearch(passes.each(predicted), table.groups, passes.labels, passes.threads)
    search.run()
    return search


def _nested_score(
    table: ScoreTable,
    weights: EnsembleWeights,
    nested: tuple[np.ndarray, tuple[EnsembleWeights, ...]],
    search: PostprocessingSearch,
    seed: int,
) -> NestedScore | None:
    """Score of every case under what was chosen without it, postprocessing included where that is the choice."""
    dice, choices = nested
    is_same = np.array([choice == weights for choice in choices])[table.groups]
    dice = np.where(is_same[:, None], search.nested, dice)
    mean = foreground_mean(dice)
    if not np.isfinite(mean):
        return None
    titles = tuple(table.title(choice) for choice in choices)
    return NestedScore(mean, bootstrap_interval(dice, seed), foreground_mean(search.dice), titles)


def _by_class(classes: Sequence[str], dice: np.ndarray) -> dict[str, float | None]:
    return {name: float(own) if np.isfinite(own) else None for name, own in zip(classes, dice, strict=True)}


def _write_label_maps(workspace: Workspace, plan: Plan, cases: Sequence[PredictedCase]) -> dict[str, str]:
    """The out-of-fold label maps of the choice, postprocessed, beside selection.json; their hashes by name.

    Those of the former choice are replaced; what else lies among them stays.

    Raises:
        UsageError: one of them was changed by hand since.
    """
    for place in (workspace.root, workspace.selected):  # a folder that could not be deleted moved along with its parent
        remove_leftovers(place)
    former, maps = _maps_of_former_choice(workspace), {}
    others = [entry for entry in _entries(workspace.selected) if entry.name not in former]
    with atomic_folder(workspace.selected) as folder:
        for case in cases:
            values = to_file_values(case.label_map, plan.labels)
            name = f"{case.identifier}{plan.file_ending}"
            write_labels(folder / name, values, case.geometry)
            maps[name] = hash_of_written(folder / name)
        _check_unchanged(workspace.selected, former, maps)
        for entry in (one for one in others if one.name not in maps):
            if entry.is_dir() and not entry.is_symlink():
                shutil.copytree(entry, folder / entry.name, symlinks=True)
            else:
                shutil.copy2(entry, folder / entry.name, follow_symlinks=False)
    return maps


def _maps_of_former_choice(workspace: Workspace) -> dict[str, str]:
    try:
        return load(Selection, workspace.selection).maps
    except (MissingInput, RecordFault):
        return {}


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _check_unchanged(folder: Path, former: Mapping[str, str], maps: Mapping[str, str]) -> None:
    """Each label map has to be that of the former choice, or what a stopped command has already written again."""
    there = {entry.name: hash_of_written(entry) for entry in _entries(folder) if entry.name in former}
    if changed := [name for name, own in sorted(there.items()) if own not in (former[name], maps.get(name))]:
        raise UsageError(
            f"Label maps were changed since they were selected: {', '.join(changed[:5])}",
            where=str(folder),
            do="move them elsewhere to keep them, or delete them, and run `autoseg select` again",
        )
