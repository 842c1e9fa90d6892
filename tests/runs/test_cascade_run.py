"""A cascade by the commands alone: trained in one queue, predicted with its first stage in front."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from autoseg.cli.main import cli
from autoseg.core.records import load
from autoseg.images.readers import read_labels
from autoseg.runs.run import RunRecord
from tests.runs.cascade import FIRST, FOLDS, RECIPE, SECOND, Cascade, planned_cascade

SETTINGS = ("epochs", "steps_per_epoch", "validation_steps", "ema_decay", "precision", "memory_format")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Cascade:
    """Both stages trained with two folds by one command."""
    cascade = planned_cascade(tmp_path_factory.mktemp("cascade") / "data")
    cascade.workspace.splits.write_text(json.dumps([asdict(fold) for fold in FOLDS]))
    recipe = cascade.planned.folder / "tiny.yaml"
    recipe.write_text("".join(f"{name}: {getattr(RECIPE, name)}\n" for name in SETTINGS))
    before = torch.get_num_threads()
    run("train", str(cascade.planned.folder), "--recipe", str(recipe), "--device", "cpu")
    torch.set_num_threads(before)
    return cascade


def run(*arguments: str) -> dict:
    result = CliRunner().invoke(cli, [*arguments, "--json"], standalone_mode=False)
    assert result.exception is None, result.output
    return json.loads(result.stdout)


def test_one_command_trains_the_first_stage_and_then_the_second(trained):
    document = run("train", str(trained.planned.folder), "--recipe", str(trained.planned.folder / "tiny.yaml"))
    assert [(entry["configuration"], entry["fold"], entry["state"]) for entry in document["runs"]] == [
        (name, fold, "done") for name in (FIRST, SECOND) for fold in (0, 1)
    ]
    extras = {load(RunRecord, trained.workspace.run(SECOND, fold).recipe).previous for fold in (0, 1)}
    assert [path.name for path in trained.workspace.store.glob("*-previous-*")] == list(extras)


@pytest.mark.parametrize("fold", [0, 1])
def test_a_user_gets_the_prediction_that_the_validation_scored(trained, fold, tmp_path: Path):
    folder = trained.workspace.run(SECOND, fold)
    inputs = [str(trained.planned.folder / "imagesTr" / f"{name}_0000.nii.gz") for name in FOLDS[fold].val]
    options = [part for name in inputs for part in ("-i", name)]
    run("predict", str(folder.root), *options, "-o", str(tmp_path), "--device", "cpu")
    for name in FOLDS[fold].val:
        predicted = read_labels(tmp_path / f"{name}.nii.gz")
        assert np.unique(predicted.array).size > 1
        validated = read_labels(folder.validation / f"{name}.nii.gz")
        np.testing.assert_array_equal(predicted.array, validated.array)
        assert predicted.geometry == validated.geometry
