"""Choosing the configuration or ensemble that predicts, and its postprocessing, from out-of-fold predictions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from autoseg.core.files import atomic_folder
from autoseg.core.progress import Progress, silent
from autoseg.core.records import save
from autoseg.core.registry import choose
from autoseg.core.workspace import Workspace
from autoseg.data.labels import to_file_values
from autoseg.data.model import LabelSet
from autoseg.evaluation.statistics import bootstrap_interval, foreground_mean
from autoseg.images.writers import write_labels
from autoseg.networks.weights import weights_hash
from autoseg.planning.planned import load_planned
from autoseg.selection.candidates import Blend, Costs, all_blends
from autoseg.selection.choose import (
    OBJECTIVES,
    Choice,
    Nested,
    ScoreTable,
    candidate_scores,
    choose_like_nnunet,
    nested_choice,
    nested_groups,
)
from autoseg.selection.ensemble_dice import CaseFiles, CaseMaps, dice_of_blends, labels_of_blend, read_maps
from autoseg.selection.postprocessing import PostprocessingSearch, PredictedCase, predicted_case
from autoseg.selection.record import SELECTION_VERSION, NestedScore, Selection, plan_hash
from autoseg.selection.trained import TrainedMatrix, common_cases, costs_of, trained_matrix

MOST_THREADS = 8
"""Cases worked on at once, each with the label maps of all configurations in memory (assumption)."""

_log = logging.getLogger(__name__)


Measured = TypeVar("Measured")


def select_model(
    workspace: Workspace,
    objective: str = "default",
    configurations: Sequence[str] = (),
    *,
    allow_missing: bool = False,
    seed: int = 0,
    jobs: int = 1,
    progress: Progress = silent,
) -> Selection:
    """Compares everything that is trained, and writes selection.json and the choice's out-of-fold label maps.

    Args:
        workspace: with finished runs.
        objective: a key of `selection.choose.OBJECTIVES`: "default", "dice", "nnunet" or "cost".
        configurations: candidates; all of the plan if empty.
        allow_missing: whether unfinished runs are left out, and the comparison goes on with the cases in common.
        seed: of the bootstrap.
        jobs: threads.
        progress: told about finished cases, of which each is come to twice.

    Raises:
        MissingInput: nothing is planned or trained, or no case was predicted by all configurations.
        UsageError: no such objective or configuration, or runs are missing.
        PlanFault: a run was trained with another plan.
        IntegrityRefusal: a checkpoint or kept probabilities are damaged.
    """
    rule = choose(objective, OBJECTIVES, "objective")
    matrix = trained_matrix(workspace, load_planned(workspace), configurations, allow_missing=allow_missing)
    files, folds, notes = common_cases(matrix)
    notes += [f"without {', '.join(matrix.missing)}, which are not trained"] if matrix.missing else []
    work = _Work(matrix.plan.labels, min(jobs, MOST_THREADS), progress, 2 * len(files))
    table, costs = _score_table(matrix, files, folds, work), costs_of(matrix)
    choice = rule(table, np.arange(len(files)), costs, seed)
    nested = nested_choice(table, rule, costs, seed)
    search = _search(table, files, choice.blend, work)
    compared = _Comparison(matrix, table, costs, choice, nested, search, seed)
    selection = compared.selection(objective, notes)
    _write_label_maps(workspace, matrix, search)
    save(selection, workspace.selection)
    _log.info("%s: %s", selection.name, selection.because)
    return selection


@dataclass(slots=True)
class _Work:
    """Works on cases in threads and tells how far it is."""

    labels: LabelSet
    threads: int
    progress: Progress
    total: int
    done: int = 0

    def each(self, measure: Callable[[CaseMaps], Measured], files: Sequence[CaseFiles]) -> list[Measured]:
        """What `measure` makes of the label maps of each case; few cases are in memory at once."""
        results = []
        with ThreadPoolExecutor(self.threads) as pool:
            for result in pool.map(lambda own: measure(read_maps(own, self.labels)), files):
                results.append(result)
                self.done += 1
                self.progress(self.done, self.total)
        return results


def _score_table(matrix: TrainedMatrix, files: Sequence[CaseFiles], folds: Sequence[int], work: _Work) -> ScoreTable:
    blends = all_blends(len(matrix.compared))
    dice = work.each(lambda maps: dice_of_blends(maps, work.labels, blends), files)
    return ScoreTable(
        configurations=matrix.compared,
        blends=blends,
        classes=work.labels.foreground,
        cases=tuple(own.identifier for own in files),
        groups=np.array(folds),
        dice=np.stack(dice, axis=1),
    )


def _search(table: ScoreTable, files: Sequence[CaseFiles], blend: Blend, work: _Work) -> PostprocessingSearch:
    """The search for postprocessing on the predictions of the chosen ensemble."""

    def predicted(maps: CaseMaps) -> PredictedCase:
        labels = labels_of_blend(maps, work.labels, blend)
        return predicted_case(maps.files.identifier, labels, maps.reference, maps.geometry)

    search = PostprocessingSearch(work.each(predicted, files), nested_groups(table.groups), work.labels, work.threads)
    search.run()
    return search


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Everything that selection.json tells of."""

    matrix: TrainedMatrix
    table: ScoreTable
    costs: Costs
    choice: Choice
    nested: Nested | None
    search: PostprocessingSearch
    seed: int

    def selection(self, objective: str, notes: Sequence[str]) -> Selection:
        """The record."""
        matrix, table = self.matrix, self.table
        members = table.members(self.choice.blend)
        everything = np.arange(len(table.cases))
        runs = {run.title: weights_hash(run.folder.checkpoint) for own in matrix.runs.values() for run in own}
        stages = self.costs.with_stages(members)
        return Selection(
            version=SELECTION_VERSION,
            plan=plan_hash(matrix.plan, matrix.runs),
            objective=objective,
            name=table.title(self.choice.blend),
            because=self.choice.because,
            members=members,
            folds={name: tuple(run.fold for run in matrix.runs[name]) for name in stages},
            candidates=candidate_scores(table, self.costs, self.seed),
            nnunet_choice=table.title(choose_like_nnunet(table, everything, self.costs, self.seed).blend),
            nested=self._nested_score(),
            postprocessing=tuple(self.search.trials),
            case_dice=self._case_dice(),
            runs=runs,
            notes=tuple(notes),
        )

    def _nested_score(self) -> NestedScore | None:
        """Scores of every case under what was chosen without it, postprocessing included where that is the choice."""
        if self.nested is None:
            return None
        same = np.array([blend == self.choice.blend for blend in self.nested.blends])[self.nested.groups]
        dice = np.where(same[:, None], self.search.nested, self.nested.dice)
        mean = foreground_mean(dice)
        if not np.isfinite(mean):
            return None
        choices = tuple(self.table.title(blend) for blend in self.nested.blends)
        return NestedScore(mean, bootstrap_interval(dice, self.seed), foreground_mean(self.search.dice), choices)

    def _case_dice(self) -> dict[str, dict[str, float | None]]:
        return {
            case: {name: float(value) if np.isfinite(value) else None for name, value in zip(names, row, strict=True)}
            for names in [self.table.classes]
            for case, row in zip(self.table.cases, self.search.dice, strict=True)
        }


def _write_label_maps(workspace: Workspace, matrix: TrainedMatrix, search: PostprocessingSearch) -> None:
    """The out-of-fold label maps of the choice, postprocessed, beside selection.json."""
    labels, ending = matrix.plan.labels, matrix.plan.file_ending
    with atomic_folder(workspace.selected) as folder:
        for case in search.cases:
            values = to_file_values(case.label_map, labels)
            write_labels(folder / f"{case.identifier}{ending}", values, case.geometry)
