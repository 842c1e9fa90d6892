"""Regions, an ignore label and lateral classes, from the label files to a prediction and its scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autoseg.api.evaluate import evaluate
from autoseg.api.model import load_model
from autoseg.api.plan import plan_dataset
from autoseg.core.records import load
from autoseg.core.workspace import Workspace
from autoseg.data.layouts.detect import detect_dataset
from autoseg.data.survey import survey
from autoseg.images.readers import read_image, read_labels
from autoseg.planning.lateral import lateral_swap
from autoseg.planning.plan import Plan
from autoseg.planning.planner import PlanOptions, make_plan
from autoseg.preprocessing.fill import fill_store
from autoseg.preprocessing.locations import ANNOTATED
from autoseg.preprocessing.store import open_case, store_recipe
from autoseg.runs.queue import RunTask, TrainOptions
from autoseg.runs.run import FoldScores, Run, RunStatus
from autoseg.runs.training import train_and_validate
from autoseg.training.recipe import Recipe
from autoseg.training.splits import Fold
from tests.inference.examples import unet_spec
from tests.preprocessing.tiny_dataset import SHAPE, write_volume
from tests.runs.trained import never

CPU = torch.device("cpu")
CLASSES = {
    "plain": {"background": 0, "thing": 5, "other": 9},
    "regions": {"background": 0, "whole": [5, 9], "core": 9},
    "lateral": {"background": 0, "thing_right": 5, "thing_left": 9},
}


def trained_on_phantoms(folder: Path, kind: str, unlabeled: int | None = None) -> tuple[Workspace, Plan, RunStatus]:
    """A run of two epochs on three cases, validated on the fourth; the files say 77 where nothing is annotated."""
    rng = np.random.default_rng(0)
    for index in range(4):
        labels = np.zeros(SHAPE, np.uint8)
        labels[2:4, 2:6, 2:6], labels[2:4, 2:6, 6:9] = 5, 9
        image = (rng.normal(0, 0.3, SHAPE) + labels).astype(np.float32)
        if unlabeled is not None:
            labels[rng.random(SHAPE) < 0.5] = unlabeled
        write_volume(folder / "imagesTr" / f"case_{index}_0000.nii.gz", image)
        write_volume(folder / "labelsTr" / f"case_{index}.nii.gz", labels)
    table = CLASSES[kind] if unlabeled is None else {**CLASSES[kind], "ignore": unlabeled}
    description = {"channel_names": {"0": "MRI"}, "labels": table, "numTraining": 4, "file_ending": ".nii.gz"}
    more = {"regions_class_order": [5, 9]} if kind == "regions" else {}
    (folder / "dataset.json").write_text(json.dumps({**description, **more}))
    workspace = Workspace(folder / "autoseg")
    made = plan_dataset(folder, workspace, PlanOptions())
    planned = made.plan.configurations["3d_fullres"]
    configuration = replace(planned, patch_size=(4, 8, 8), batch_size=2, network=unet_spec(3))
    plan = replace(made.plan, configurations={"3d_fullres": configuration})
    stored_as = store_recipe(plan, configuration, made.survey.fingerprint)
    store = fill_store(made.dataset, made.survey.fingerprint, stored_as, workspace.store).folder
    recipe = Recipe(epochs=2, steps_per_epoch=2, validation_steps=2, precision="fp32", memory_format="contiguous")
    task = RunTask(
        run=Run("3d_fullres", 0, workspace.run("3d_fullres", 0)),
        plan=plan,
        dataset=made.dataset,
        cases=Fold(("case_0", "case_1", "case_2"), ("case_3",)),
        recipe=recipe,
        options=TrainOptions(jobs=1),
        store=store,
        first_stage=None,
        begin=0.0,
        deadline=None,
    )
    return workspace, plan, train_and_validate(task, CPU, never)


@pytest.mark.parametrize("kind", ["plain", "regions"])
def test_what_is_not_annotated_is_neither_learned_nor_predicted_nor_scored(tmp_path, kind):
    workspace, plan, status = trained_on_phantoms(tmp_path, kind, unlabeled=77)
    stored = open_case(next(folder for folder in workspace.store.iterdir() if folder.is_dir()) / "case_0")
    rows = stored.locations[ANNOTATED]
    assert not (np.asarray(stored.labels)[tuple(rows.T)] == plan.labels.ignore).any()
    assert status.state == "done"
    assert set(status.validation) == set(plan.labels.foreground)
    run = workspace.run("3d_fullres", 0)
    scores = load(FoldScores, run.validation / "scores.json").cases["case_3"]
    reference = read_labels(tmp_path / "labelsTr" / "case_3.nii.gz").array
    predicted = read_labels(run.validation / "case_3.nii.gz").array
    assert set(np.unique(predicted)) <= {0, 5, 9}
    values = CLASSES[kind][plan.labels.foreground[0]]
    annotated = reference != 77
    assert scores[plan.labels.foreground[0]]["predicted_voxels"] == (np.isin(predicted, values) & annotated).sum()
    assert scores[plan.labels.foreground[0]]["reference_voxels"] == np.isin(reference, values).sum()
    volume = read_image((tmp_path / "imagesTr" / "case_3_0000.nii.gz",))
    assert set(np.unique(load_model(run.root, device="cpu").predict(volume.array, (3, 1, 1)))) <= {0, 5, 9}
    evaluation = evaluate(run.validation, tmp_path / "labelsTr", dataset=tmp_path)
    assert evaluation.cases["case_3"][plan.labels.foreground[0]]["dice"] == pytest.approx(
        scores[plan.labels.foreground[0]]["dice"]
    )


def test_regions_have_a_head_each_and_are_scored_by_name(tmp_path):
    workspace, plan, status = trained_on_phantoms(tmp_path, "regions")
    assert plan.labels.head_count == 2
    assert set(status.validation) == {"whole", "core"}
    history = [json.loads(line) for line in workspace.run("3d_fullres", 0).history.read_text().splitlines()]
    assert all(set(line["dice"]) == {"whole", "core"} for line in history)


@pytest.mark.real
def test_the_parotids_of_real_cases_are_recognized(shared):
    dataset = detect_dataset(shared / "data" / "openkbp_ct")
    found = survey(replace(dataset, cases=dataset.cases[:2]), None, 1)
    plan = make_plan(dataset, found.fingerprint, PlanOptions("cpu"))
    assert plan.lateral_pairs == (("left_parotid", "right_parotid"),)
    assert plan.axis_order[plan.lateral_axis] == 2
    swap = lateral_swap(plan, plan.configurations["3d_fullres"])
    assert swap.heads == (0, 1, 2, 4, 3, 5, 6, 7)


def test_a_run_with_lateral_classes_trains_validates_and_predicts(tmp_path):
    workspace, plan, status = trained_on_phantoms(tmp_path, "lateral")
    assert plan.lateral_pairs == (("thing_left", "thing_right"),)
    assert plan.lateral_axis == 2
    assert status.state == "done"
    model = load_model(workspace.run("3d_fullres", 0).root, device="cpu")
    swap = model.ensemble.members[0].predictor.swap
    assert (swap.axis, swap.values) == (2, (0, 2, 1))
