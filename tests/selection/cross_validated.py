"""A dataset with a work folder in which three configurations x five folds look trained, made in a second.

Their predictions are the references with known mistakes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from autoseg.core.geometry import Geometry
from autoseg.core.records import load, save
from autoseg.core.workspace import Workspace
from autoseg.data.fingerprint import (
    FINGERPRINT_VERSION,
    CaseStatistics,
    Fingerprint,
    IntensityStatistics,
    fingerprint_hash,
)
from autoseg.data.model import Case, Dataset, LabelSet
from autoseg.data.survey import SURVEY_VERSION, Survey
from autoseg.evaluation.confusion import overlaps
from autoseg.images.writers import write_labels
from autoseg.inference.out_of_fold import probabilities_file
from autoseg.planning.plan import Plan
from autoseg.runs.run import FoldScores, RunStatus
from autoseg.training.splits import make_folds
from tests.runs.trained import add_run, tiny_plan

LABELS = LabelSet({"background": (0,), "liver": (1,), "tumor": (2,)}, file_values=(0, 1, 2))
SHAPE = (6, 12, 12)
CASES = tuple(f"case_{index}" for index in range(10))
MISTAKES = {"2d": 60, "3d_fullres": 30, "3d_lowres": 60}
"""Background voxels that each configuration takes for liver, in a case."""


def reference(index: int) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:5, 2:8, 2 : 8 + index % 3] = 1
    labels[2:4, 3:6, 3:6] = 2
    return labels


def stored_probabilities(path: Path, labels: np.ndarray, certainty: int) -> None:
    heads = np.stack([(labels == value) * certainty + (labels != value) * (255 - certainty) // 2 for value in (1, 2)])
    with path.open("wb") as stream:
        rows = np.moveaxis(heads.astype(np.uint8), 0, 1)
        np.savez_compressed(stream, shape=SHAPE, start=(0, 0, 0), order=(0, 1, 2), probabilities=rows)


def predict(workspace: Workspace, plan: Plan, name: str, fold: int, cases, seed: int) -> None:
    """The validation of a run: references with an island of background taken for liver far from it."""
    run = add_run(workspace.root, plan, name, fold, seed=seed)
    rng = np.random.default_rng([seed, fold])
    scores, seconds = {}, {}
    for case in cases:
        truth = reference(CASES.index(case))
        predicted = truth.copy()
        wrong = rng.choice(np.flatnonzero(truth == 0), MISTAKES[name], replace=False)
        predicted.reshape(-1)[wrong] = 1
        write_labels(run.validation / f"{case}.nii.gz", predicted, Geometry(SHAPE))
        stored_probabilities(probabilities_file(run.validation, case), predicted, 220)
        found = overlaps(predicted, truth, plan.labels)
        scores[case] = {label: {"dice": own.dice} for label, own in found.items()}
        seconds[case] = {"2d": 1.0, "3d_fullres": 3.0, "3d_lowres": 2.0}[name]
    empty = {label: {"dice": None} for label in plan.labels.foreground}
    save(FoldScores(scores, empty, {"dice": None}, (), (), seconds), run.validation / "scores.json")
    save(replace(load(RunStatus, run.state), validated_cases=len(scores)), run.state)


def statistics(name: str) -> CaseStatistics:
    return CaseStatistics(name, SHAPE, SHAPE, (2.0, 1.0, 1.0), 1.0)


def write_cross_validated(root: Path) -> Workspace:
    """Writes the dataset and its work folder."""
    for index, case in enumerate(CASES):
        write_labels(root / "labelsTr" / f"{case}.nii.gz", reference(index), Geometry(SHAPE))
        write_labels(root / "imagesTr" / f"{case}_0000.nii.gz", reference(index), Geometry(SHAPE))  # never read
    described = {"channel_names": {"0": "channel_0"}, "labels": {"background": 0, "liver": 1, "tumor": 2}}
    (root / "dataset.json").write_text(json.dumps({**described, "numTraining": 10, "file_ending": ".nii.gz"}))
    workspace = Workspace(root / "autoseg")
    intensity = IntensityStatistics(0.0, 0.0, 1.0, -1.0, 1.0, -1.0, 1.0)
    fingerprint = Fingerprint(FINGERPRINT_VERSION, tuple(map(statistics, CASES)), (intensity,), 1.0)
    cases = tuple(Case(case, (f"imagesTr/{case}_0000.nii.gz",), f"labelsTr/{case}.nii.gz") for case in CASES)
    dataset = Dataset("tiny", str(root), "nnunet", "", ("channel_0",), LABELS, cases, ".nii.gz")
    plan = replace(tiny_plan(labels=LABELS), fingerprint=fingerprint_hash(fingerprint))
    save(dataset, workspace.dataset)
    save(Survey(SURVEY_VERSION, "", (), (), fingerprint), workspace.check)
    save(fingerprint, workspace.fingerprint)
    save(plan, workspace.plan)
    for seed, name in enumerate(plan.configurations):
        for fold, own in enumerate(make_folds(CASES)):
            predict(workspace, plan, name, fold, own.val, seed)
    return workspace
