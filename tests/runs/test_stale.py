"""A run goes on only with what it was started with, and what is left of it is known by its hashes."""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoseg.api.model import find_model
from autoseg.api.plan import plan_dataset
from autoseg.core.errors import IntegrityRefusal, Interrupted, MissingInput, PlanFault, RecordFault, UsageError
from autoseg.core.files import sha256_of_file
from autoseg.core.records import load
from autoseg.core.workspace import Workspace
from autoseg.planning.planner import PlanOptions
from autoseg.runs.queue import TrainOptions
from autoseg.runs.run import Run, RunRecord
from autoseg.runs.train import TrainListeners, TrainReport, train_queue
from tests.preprocessing.tiny_dataset import SHAPE, write_tiny_dataset, write_volume
from tests.runs.trained import never

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = "{epochs: 2, steps_per_epoch: 2, validation_steps: 1, precision: fp32, memory_format: contiguous}"


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    write_tiny_dataset(tmp_path / "data", 6, (3.0,))
    return plan(tmp_path / "data")


@pytest.fixture
def options(tmp_path) -> TrainOptions:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    recipe = str(tmp_path / "tiny.yaml")
    return TrainOptions(configurations=("2d",), folds=(0,), device="cpu", recipe=recipe, started=time.monotonic())


def plan(folder: Path) -> Workspace:
    workspace = Workspace(folder / "autoseg", folder)
    plan_dataset(folder, workspace, PlanOptions("cpu", configurations=("2d",)))
    return workspace


def stop_at_first_step():
    seen: list[int] = []

    def check() -> None:
        if seen:
            raise Interrupted("stopped")

    return TrainListeners(on_steps=lambda done, _total: seen.append(done)), check


def error_of(report: TrainReport):
    (result,) = report.results
    return result.error


def change_labels(workspace: Workspace, case: str) -> None:
    write_volume(workspace.root.parent / "labelsTr" / f"{case}.nii.gz", np.ones(SHAPE, np.uint8))


def test_folds_are_not_replaced_by_a_command_that_is_refused(workspace, options):
    train_queue(workspace, options, never)
    before = sha256_of_file(workspace.splits)
    for fold in (0, 1):
        grouped = replace(options, group_by=r"case_([01])?", folds=(fold,))
        with pytest.raises(UsageError, match="2d fold 0"):
            train_queue(workspace, grouped, never)
        assert sha256_of_file(workspace.splits) == before
    assert train_queue(workspace, replace(grouped, folds=(0,), is_fresh=True), never).exit_code == 0
    assert sha256_of_file(workspace.splits) != before


def test_a_run_of_other_data_names_its_cases(workspace, options):
    listeners, check = stop_at_first_step()
    assert train_queue(workspace, options, check, listeners).exit_code == 75
    change_labels(workspace, "case_2")
    with pytest.raises(PlanFault, match="case_2: its labels changed"):
        train_queue(workspace, options, never)
    plan(workspace.root.parent)
    error = error_of(train_queue(workspace, options, never))
    assert isinstance(error, PlanFault)
    assert "case_2: its labels changed" in str(error)
    assert "--fresh" in str(error)
    assert train_queue(workspace, replace(options, is_fresh=True), never).exit_code == 0


def test_labels_that_change_during_the_training_are_not_validated_with(workspace, options):
    splits = [{"train": ["case_0", "case_1"], "val": ["case_2"]}]
    (workspace.root.parent / "splits.json").write_text(json.dumps(splits))
    on_steps = TrainListeners(on_steps=lambda *_: change_labels(workspace, "case_2"))
    error = error_of(train_queue(workspace, options, never, on_steps))
    assert isinstance(error, PlanFault)
    assert "case_2: its labels changed" in str(error)


def test_a_plan_that_is_replaced_during_the_training_stops_the_queue(workspace, options):
    def replan(done: int, _total: int) -> None:
        if done == 1:
            plan_dataset(workspace.root.parent, workspace, PlanOptions("reference", configurations=("2d",)))

    report = train_queue(workspace, replace(options, folds=(0, 1)), never, TrainListeners(on_steps=replan))
    assert [own.state for own in report.results] == ["done"]
    assert isinstance(report.stop, PlanFault)


def test_fresh_keeps_what_is_not_of_the_run_and_a_stop_says_how_to_go_on(workspace, options):
    train_queue(workspace, options, never)
    folder = workspace.run("2d", 0)
    (folder.root / "notes.txt").write_text("mine")
    listeners, check = stop_at_first_step()
    error = error_of(train_queue(workspace, replace(options, is_fresh=True), check, listeners))
    assert "without --fresh" in str(error)
    assert (folder.root / "notes.txt").read_text() == "mine"
    assert not folder.validation.exists()
    begun = load(RunRecord, folder.recipe)
    assert train_queue(workspace, options, never).exit_code == 0
    assert load(RunRecord, folder.recipe) == begun


def test_a_checkpoint_without_its_recipe_is_no_new_run(workspace, options):
    train_queue(workspace, options, never)
    workspace.run("2d", 0).recipe.unlink()
    error = error_of(train_queue(workspace, options, never))
    assert isinstance(error, MissingInput)
    assert "recipe.json" in str(error)


@pytest.mark.parametrize("name", ["plan.json", "recipe.json"])
def test_what_a_run_was_started_with_comes_back_from_a_backup_or_by_fresh_alone(workspace, options, name):
    train_queue(workspace, options, never)
    record = workspace.run("2d", 0).root / name
    record.write_text(record.read_text().replace('"fold": 0', '"fold": 1').replace('"dataset": "', '"dataset": "x'))
    error = error_of(train_queue(workspace, options, never))
    assert isinstance(error, RecordFault)
    assert "--fresh" in (error.do or "")
    assert train_queue(workspace, replace(options, is_fresh=True), never).exit_code == 0
    record.unlink()
    error = error_of(train_queue(workspace, options, never))
    assert "--fresh" in (error.do or "")


def test_a_checkpoint_of_another_fold_is_not_gone_on_with(workspace, options):
    train_queue(workspace, replace(options, folds=(0, 1)), never)
    own, other = (workspace.run("2d", fold).checkpoint for fold in (0, 1))
    shutil.rmtree(own)
    shutil.copytree(other, own)
    report = train_queue(workspace, options, never)
    assert isinstance(error_of(report), IntegrityRefusal)
    assert train_queue(workspace, replace(options, is_fresh=True), never).exit_code == 0


def test_a_run_still_in_training_does_not_predict_with_the_checkpoint_of_another_one(workspace, options):
    listeners, check = stop_at_first_step()
    train_queue(workspace, replace(options, folds=(0,)), check, listeners)
    train_queue(workspace, replace(options, folds=(1,)), never)
    own, other = (workspace.run("2d", fold).checkpoint for fold in (0, 1))
    assert find_model(workspace.root, folds=(0,)).record.name
    shutil.rmtree(own)
    shutil.copytree(other, own)
    with pytest.raises(IntegrityRefusal, match="2d fold 0 has a checkpoint of another training"):
        find_model(workspace.root)


@pytest.mark.parametrize("place", ["2d/fold_1", "3d_fullres/fold_0"])
def test_a_run_is_not_used_under_another_name(workspace, options, place):
    plan_dataset(workspace.root.parent, workspace, PlanOptions("cpu"))
    (workspace.root.parent / "splits.json").write_text(json.dumps(2 * [{"train": ["case_0"], "val": ["case_2"]}]))
    train_queue(workspace, options, never)
    (workspace.runs / place).parent.mkdir(exist_ok=True)
    shutil.copytree(workspace.run("2d", 0).root, workspace.runs / place)
    name, fold = place.split("/fold_")
    with pytest.raises(IntegrityRefusal, match=r"is 2d fold 0 by its recipe\.json"):
        find_model(workspace.root, name, [int(fold)])
    report = train_queue(workspace, replace(options, configurations=(name,), folds=(int(fold),)), never)
    assert isinstance(error_of(report), IntegrityRefusal)


def test_what_a_killed_first_checkpoint_left_is_removed(workspace, options):
    left = workspace.run("2d", 0).checkpoint / ".partial-0123456789ab-00000001"
    left.mkdir(parents=True)
    assert train_queue(workspace, options, never).exit_code == 0
    assert not left.exists()


def test_a_finished_run_of_another_seed_is_named(workspace, options, caplog):
    train_queue(workspace, options, never)
    assert train_queue(workspace, options, never).exit_code == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert train_queue(workspace, replace(options, seed=5), never).exit_code == 0
    assert "seed: 0 at the start, 5 now" in caplog.text


@pytest.mark.parametrize("damage", ["one flipped", "one gone", "all gone"])
def test_a_finished_run_that_lost_checkpoints_is_trained_to_the_same_weights(workspace, options, damage):
    train_queue(workspace, options, never)
    run = Run("2d", 0, workspace.run("2d", 0))
    before, status = run.weights_hash, run.status
    generations = sorted(run.folder.checkpoint.iterdir())
    if damage == "one flipped":
        (generations[-1] / "weights.safetensors").write_bytes(b"")
    for generation in {"one gone": generations[-1:], "all gone": generations}.get(damage, []):
        for file in generation.iterdir():
            file.unlink()
        generation.rmdir()
    assert run.fault is not None
    assert train_queue(workspace, options, never).exit_code == 0
    assert run.fault is None
    assert (run.weights_hash, run.status.validation) == (before, status.validation)
