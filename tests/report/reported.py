"""A small dataset that is really planned, with runs and predictions that look as if they had been trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from autoseg.api.plan import plan_dataset
from autoseg.core.records import load, save
from autoseg.core.workspace import WORK_FOLDER_NAME, Workspace
from autoseg.data.synthetic import write_synthetic_dataset
from autoseg.evaluation.confusion import overlaps
from autoseg.images.readers import read_labels
from autoseg.images.writers import write_labels
from autoseg.inference.postprocessing import PostprocessingStep
from autoseg.planning.plan import Plan
from autoseg.planning.planner import PlanOptions
from autoseg.runs.run import FoldScores, RunStatus
from autoseg.selection.record import (
    SELECTION_VERSION,
    CandidateScore,
    NestedScore,
    PostprocessingTrial,
    SelectedMember,
    Selection,
    plan_hash,
)
from autoseg.training.callbacks.history import append_history
from autoseg.training.splits import make_folds, save_folds
from tests.runs.trained import run_record

CASES = 6


def planned(folder: Path) -> Workspace:
    """A planned dataset of a few phantoms."""
    write_synthetic_dataset(folder, CASES, 1, 0)
    workspace = Workspace(folder / WORK_FOLDER_NAME)
    plan_dataset(folder, workspace, PlanOptions("cpu"), jobs=1)
    plan = load(Plan, workspace.plan)
    save_folds(make_folds(case_names(workspace)), workspace.splits)
    assert plan.labels.foreground == ("organ", "lesion", "vessel")
    return workspace


def case_names(workspace: Workspace) -> list[str]:
    return sorted(path.name.removesuffix(".nii.gz") for path in (workspace.root.parent / "labelsTr").glob("*.nii.gz"))


def add_results(workspace: Workspace, configuration: str, fold: int, shift: int = 1) -> dict[str, dict]:
    """A finished run whose predictions are the references moved by some voxels; gives case -> class -> Dice."""
    plan = load(Plan, workspace.plan)
    run = workspace.run(configuration, fold)
    names = make_folds(case_names(workspace))[fold].val
    scores = {}
    for name in names:
        volume = read_labels(workspace.root.parent / "labelsTr" / f"{name}.nii.gz")
        predicted = np.roll(volume.array, shift, 2)
        write_labels(run.validation / f"{name}.nii.gz", predicted, volume.geometry)
        found = overlaps(predicted, volume.array, plan.labels)
        scores[name] = {label: {"dice": own.dice, "iou": own.iou} for label, own in found.items()}
    save(FoldScores(scores, {}, {"dice": 0.8}, (), ()), run.validation / "scores.json")
    record = run_record(configuration, fold, 3, tuple(names))
    save(record, run.recipe)
    save(plan, run.plan)
    save(RunStatus("done", 3, 3, 75.0, 0.8, {"organ": 0.9}, 0.8, len(names)), run.state)
    for epoch in range(3):
        line = {"epoch": epoch, "loss": 1.0 - epoch, "validation_loss": None if epoch == 1 else 0.5, "ema_dice": 0.2}
        append_history(run.history, line)
    return {name: {label: own["dice"] for label, own in classes.items()} for name, classes in scores.items()}


def add_selection(workspace: Workspace, dice: dict[str, dict]) -> Selection:
    """A choice of an ensemble, with its out-of-fold label maps."""
    plan = load(Plan, workspace.plan)
    members = (SelectedMember("2d", 1), SelectedMember("3d_fullres", 2))
    single = CandidateScore("2d", "single", members[:1], 0.7, (0.6, 0.8), {}, 0.12, (0.05, 0.2), 0.4, 0.2)
    both = replace(
        single, name="2d + 2 x 3d_fullres", kind="greedy", members=members, dice=0.82, difference=0.0, interval=None
    )
    step = PostprocessingStep("minimum_volume", ("lesion",), 40.0)
    selection = Selection(
        version=SELECTION_VERSION,
        plan=plan_hash(plan, ("2d", "3d_fullres")),
        objective="default",
        name=both.name,
        because="It is better than the cheaper ones by more than noise.",
        members=members,
        folds={"2d": (0, 1), "3d_fullres": (0, 1)},
        candidates=(both, single),
        nnunet_choice="2d",
        nested=NestedScore(0.811, (0.77, 0.85), 0.82, ("2d", "2d")),
        postprocessing=(PostprocessingTrial(step, 0.7, 0.71, 0.008, True, "small pieces are never true"),),
        case_dice=dice,
        runs={f"{name}/fold_{fold}": "0" * 16 for name in ("2d", "3d_fullres") for fold in (0, 1)},
        notes=("fold 4 is missing",),
    )
    save(selection, workspace.selection)
    for name in dice:
        volume = read_labels(workspace.root.parent / "labelsTr" / f"{name}.nii.gz")
        write_labels(workspace.selected / f"{name}.nii.gz", np.roll(volume.array, 1, 1), volume.geometry)
    return selection
