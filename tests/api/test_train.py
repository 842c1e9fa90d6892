from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from autoseg.api.train import select_and_report
from autoseg.core.records import load, save
from autoseg.core.workspace import Workspace
from autoseg.planning.plan import Plan
from autoseg.runs.run import FoldScores, Run
from autoseg.selection.record import Selection
from autoseg.selection.select import SelectionOptions, select_model
from tests.runs.trained import add_run
from tests.selection.cross_validated import write_cross_validated


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "data"
    write_cross_validated(folder)
    return folder


@pytest.fixture
def workspace(original, tmp_path) -> Workspace:
    return Workspace(shutil.copytree(original / "autoseg", tmp_path / "work"))


def test_nothing_is_selected_while_a_run_is_missing(workspace) -> None:
    shutil.rmtree(workspace.run("2d", 3).root)
    assert select_and_report(workspace) is None
    assert not workspace.selection.exists()
    assert not workspace.report.exists()


def test_the_last_run_leads_to_a_choice_and_a_report(workspace) -> None:
    selection = select_and_report(workspace)
    assert selection == load(Selection, workspace.selection)
    assert selection.objective == "default"
    assert selection.name in workspace.report.read_text()


def test_what_a_budget_left_out_is_no_candidate(workspace) -> None:
    for fold in (1, 3):
        shutil.rmtree(workspace.run("2d", fold).root)
    missing = [Run("2d", fold, workspace.run("2d", fold)) for fold in (1, 3)]
    assert select_and_report(workspace, left_out=missing[:1]) is None
    selection = select_and_report(workspace, left_out=missing)
    assert {own.name for own in selection.candidates if own.kind == "single"} == {"3d_fullres", "3d_lowres"}
    assert select_and_report(workspace, left_out=missing) == selection
    for name in ("3d_fullres", "3d_lowres"):
        shutil.rmtree(workspace.root / "runs" / name)
    others = [Run(name, fold, workspace.run(name, fold)) for name in ("3d_fullres", "3d_lowres") for fold in range(5)]
    incomplete = select_and_report(workspace, left_out=[*missing, *others])
    assert (incomplete.name, incomplete.folds) == ("2d", {"2d": (0, 2, 4)})


def test_a_choice_made_from_the_same_runs_is_kept(workspace) -> None:
    before = select_model(workspace, SelectionOptions("cost"))
    assert select_and_report(workspace) == before


def test_a_choice_made_from_other_weights_is_made_again(workspace) -> None:
    before = select_model(workspace, SelectionOptions("cost"))
    plan, run = load(Plan, workspace.plan), workspace.run("2d", 0)
    validated = {path: path.read_bytes() for path in run.validation.iterdir()}
    shutil.rmtree(run.checkpoint)
    add_run(workspace.root, plan, "2d", 0, seed=77)
    assert {path: path.read_bytes() for path in run.validation.iterdir()} == validated
    after = select_and_report(workspace)
    assert after is not None
    assert (before.objective, after.objective) == ("cost", "default")
    assert before.runs["2d/fold_0"] != after.runs["2d/fold_0"]


def test_without_a_case_in_common_training_ends_without_a_choice(workspace, caplog) -> None:
    for folder in sorted((workspace.root / "runs").glob("*/fold_*/validation")):
        scores = load(FoldScores, folder / "scores.json")
        save(replace(scores, cases={}), folder / "scores.json")
    assert select_and_report(workspace) is None
    assert "nothing is selected" in caplog.text
    page = workspace.report.read_text()
    assert "no case validated" in page
    assert "segment new images" in page
