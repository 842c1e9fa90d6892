"""Selection from runs that look trained: their predictions are the references with known mistakes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoseg.core.errors import IntegrityRefusal, MissingInput, PlanFault, UsageError
from autoseg.core.geometry import Geometry
from autoseg.core.records import load, save
from autoseg.core.workspace import Workspace
from autoseg.data.model import Dataset
from autoseg.evaluation.confusion import overlaps
from autoseg.images.readers import read_labels
from autoseg.images.writers import write_labels
from autoseg.planning.plan import Plan
from autoseg.runs.run import FoldScores, RunRecord, RunStatus
from autoseg.selection.record import Selection, plan_hash
from autoseg.selection.select import SelectionOptions, select_model
from tests.selection.cross_validated import CASES, LABELS, MISTAKES, SHAPE, reference, write_cross_validated


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("select")
    write_cross_validated(root)
    return root


@pytest.fixture
def workspace(everything, tmp_path) -> Workspace:
    shutil.copytree(everything / "autoseg", tmp_path / "autoseg")
    return Workspace(tmp_path / "autoseg")


def test_the_choice_is_written_with_everything_behind_it(workspace) -> None:
    told = []
    selection = select_model(workspace, jobs=2, progress=lambda done, total: told.append((done, total)))
    assert load(Selection, workspace.selection) == selection
    assert told == [(done, 20) for done in range(1, 21)]
    assert {own.name for own in selection.candidates if own.kind == "single"} == {"2d", "3d_fullres", "3d_lowres"}
    assert sum(own.kind == "pair" for own in selection.candidates) == 3
    assert selection.candidates[0].dice == max(own.dice for own in selection.candidates)
    assert set(selection.case_dice) == set(CASES)
    assert set(selection.runs) == {f"{name}/fold_{fold}" for name in MISTAKES for fold in range(5)}
    assert selection.plan == plan_hash(load(Plan, workspace.plan), MISTAKES)
    assert all(selection.folds[member.configuration] == (0, 1, 2, 3, 4) for member in selection.members)
    assert any("2d was validated with mirroring along 0 of 2 axes only" in note for note in selection.notes)
    single = next(own for own in selection.candidates if own.name == "2d")
    assert single.seconds_per_case == pytest.approx(5 * 4.0)  # five folds, and two axes that validation did not mirror
    assert 0 < single.memory_gib < 1


def cut_validation(workspace: Workspace, name: str, keep: int) -> None:
    """Leaves the scores of so many cases of a configuration."""
    for fold in range(5):
        path = workspace.run(name, fold).validation / "scores.json"
        scores = load(FoldScores, path)
        kept = dict(list(scores.cases.items())[: max(0, keep)])
        keep -= len(scores.cases)
        save(replace(scores, cases=kept), path)


def test_a_configuration_that_was_hardly_validated_does_not_take_cases_from_the_others(workspace) -> None:
    cut_validation(workspace, "3d_fullres", 3)
    selection = select_model(workspace)
    assert {own.name for own in selection.candidates if own.kind == "single"} == {"2d", "3d_lowres"}
    assert set(selection.case_dice) == set(CASES)
    assert "3d_fullres is not compared: it was validated on 3 cases, 2d on 10" in selection.notes


def test_half_of_the_cases_in_common_are_enough_to_be_compared(workspace) -> None:
    cut_validation(workspace, "3d_fullres", 5)
    selection = select_model(workspace)
    assert {own.name for own in selection.candidates if own.kind == "single"} == set(MISTAKES)
    assert len(selection.case_dice) == 5
    assert "5 cases are left out, as not every configuration predicted them" in selection.notes


def test_what_the_user_put_among_the_label_maps_stays(workspace) -> None:
    select_model(workspace)
    (workspace.selected / "notes.txt").write_text("mine")
    (workspace.selected / "more").mkdir()
    (workspace.selected / "more" / "mine.txt").write_text("mine")
    (workspace.selected / "link").symlink_to("not-fetched")
    before = sorted(path.relative_to(workspace.selected) for path in workspace.selected.rglob("*"))
    (workspace.selected / ".partial-0123456789ab-case_0.nii.gz").mkdir()  # which a former command could not delete
    select_model(workspace)
    assert sorted(path.relative_to(workspace.selected) for path in workspace.selected.rglob("*")) == before


def test_a_selected_label_map_that_was_corrected_by_hand_is_not_replaced(workspace) -> None:
    selection = select_model(workspace)
    corrected = workspace.selected / f"{CASES[0]}.nii.gz"
    written = corrected.read_bytes()
    corrected.write_bytes(b"mine")
    with pytest.raises(UsageError, match=f"changed since they were selected: {corrected.name}"):
        select_model(workspace)
    assert corrected.read_bytes() == b"mine"
    corrected.unlink()
    assert select_model(workspace) == selection
    assert corrected.read_bytes() == written


def test_three_that_err_in_different_places_are_best_together_and_islands_are_removed(workspace, everything) -> None:
    selection = select_model(workspace, SelectionOptions("dice"))
    best = selection.candidates[0]
    assert len(best.members) >= 2
    singles = {own.name: own.dice for own in selection.candidates if own.kind == "single"}
    assert best.dice > singles["3d_fullres"] > singles["2d"]
    alone = select_model(workspace, SelectionOptions("dice", ("2d",)))
    assert alone.name == "2d"
    accepted = [own for own in alone.postprocessing if own.is_accepted]
    assert accepted
    assert all(own.nested_gain > 0 and own.after > own.before for own in accepted)
    assert alone.nested.naive_dice > singles["2d"]
    for index, case in enumerate(CASES):
        written = read_labels(workspace.selected / f"{case}.nii.gz").array
        scores = overlaps(written, reference(index), LABELS)
        assert {name: own.dice for name, own in scores.items()} == alone.case_dice[case]


def test_one_configuration_alone_is_simply_chosen(workspace) -> None:
    selection = select_model(workspace, SelectionOptions(configurations=("3d_fullres",)))
    assert (selection.name, len(selection.candidates)) == ("3d_fullres", 1)
    assert "only candidate" in selection.because
    assert selection.nested.choices == ("3d_fullres",) * 5
    assert selection.folds == {"3d_fullres": (0, 1, 2, 3, 4)}


def test_before_training_there_is_nothing_to_select_by(workspace) -> None:
    shutil.rmtree(workspace.root / "runs")
    with pytest.raises(MissingInput, match="no fold is trained yet"):
        select_model(workspace)
    workspace.plan.unlink()
    with pytest.raises(MissingInput, match="no plan"):
        select_model(workspace)


def test_a_half_trained_matrix_says_what_is_missing(workspace) -> None:
    shutil.rmtree(workspace.run("2d", 3).root)
    run = workspace.run("3d_lowres", 1)
    save(replace(load(RunStatus, run.state), state="training"), run.state)
    with pytest.raises(UsageError, match="2d fold 3, 3d_lowres fold 1") as stopped:
        select_model(workspace)
    assert "--configuration 3d_fullres" in str(stopped.value)
    assert stopped.value.exit_code == 2
    assert select_model(workspace, SelectionOptions(configurations=("3d_fullres",))).name == "3d_fullres"
    selection = select_model(workspace, SelectionOptions(allow_missing=True))
    assert len(selection.case_dice) == 6
    assert any("2d fold 3" in note for note in selection.notes)
    assert "2d/fold_3" not in selection.runs


def test_a_long_list_of_missing_runs_is_cut(workspace) -> None:
    for name in ("2d", "3d_lowres"):
        shutil.rmtree(workspace.root / "runs" / name)
    with pytest.raises(UsageError, match="and 4 more"):
        select_model(workspace)
    assert select_model(workspace, SelectionOptions(allow_missing=True)).name == "3d_fullres"


def test_unknown_names_are_answered_with_the_known(workspace) -> None:
    with pytest.raises(UsageError, match="unknown configuration '3d_ful'") as stopped:
        select_model(workspace, SelectionOptions(configurations=("3d_ful",)))
    assert "3d_fullres" in str(stopped.value)
    with pytest.raises(UsageError, match="unknown objective"):
        select_model(workspace, SelectionOptions("speed"))


def test_runs_of_another_plan_are_refused(workspace) -> None:
    plan = load(Plan, workspace.plan)
    own = plan.configurations["2d"]
    save(replace(plan, configurations={**plan.configurations, "2d": replace(own, batch_size=99)}), workspace.plan)
    with pytest.raises(PlanFault, match="another plan"):
        select_model(workspace)


def test_a_run_that_has_seen_what_it_is_scored_on_is_refused(workspace) -> None:
    run = workspace.run("3d_lowres", 2)
    seen = next(iter(load(FoldScores, run.validation / "scores.json").cases))
    save(replace(load(RunRecord, run.recipe), train=(seen,)), run.recipe)
    with pytest.raises(IntegrityRefusal, match=f"3d_lowres fold 2 was trained on {seen}") as stopped:
        select_model(workspace)
    assert stopped.value.exit_code == 6


def test_cases_that_no_time_was_left_for_are_left_out_for_all(workspace) -> None:
    run = workspace.run("2d", 0)
    scores = load(FoldScores, run.validation / "scores.json")
    gone, *kept = scores.cases
    left = replace(scores, cases={name: scores.cases[name] for name in kept}, left_out=(gone,))
    save(left, run.validation / "scores.json")
    selection = select_model(workspace)
    assert gone not in selection.case_dice
    assert any("1 case is left out" in note for note in selection.notes)


def test_no_case_in_common_is_said(workspace) -> None:
    for name in MISTAKES:
        cut_validation(workspace, name, 0)
    with pytest.raises(MissingInput, match="no case was predicted out of fold by all"):
        select_model(workspace)


def test_folds_that_keep_no_case_back_are_nothing_to_select_by(workspace) -> None:
    for file in (workspace.root / "runs").glob("*/*/validation/scores.json"):
        file.unlink()
    with pytest.raises(MissingInput, match="no case was predicted out of fold"):
        select_model(workspace)


def test_label_maps_vote_where_probabilities_were_not_kept(workspace) -> None:
    for file in (workspace.root / "runs").glob("2d/*/validation/*.probabilities.npz"):
        file.unlink()
    selection = select_model(workspace)
    assert any("10 cases are decided by label maps" in note for note in selection.notes)


def test_damaged_probabilities_stop_the_selection(workspace) -> None:
    next((workspace.root / "runs").glob("3d_fullres/*/validation/*.npz")).write_bytes(b"no zip")
    with pytest.raises(IntegrityRefusal, match="probabilities are damaged"):
        select_model(workspace)


def as_cascade(workspace: Workspace) -> None:
    """Makes 3d_fullres the second stage of 3d_lowres, for all that selection looks at."""
    plan = load(Plan, workspace.plan)
    own = replace(plan.configurations["3d_fullres"], cascade_from="3d_lowres")
    plan = replace(plan, configurations={**plan.configurations, "3d_fullres": own})
    save(plan, workspace.plan)
    for file in (workspace.root / "runs").glob("*/*/plan.json"):
        save(plan, file)


def test_a_cascade_brings_its_first_stage(workspace) -> None:
    as_cascade(workspace)
    selection = select_model(workspace, SelectionOptions(configurations=("3d_fullres",)))
    assert set(selection.folds) == {"3d_fullres", "3d_lowres"}
    assert "3d_lowres/fold_4" in selection.runs
    whole = select_model(workspace)
    seconds = {own.name: own.seconds_per_case for own in whole.candidates}
    assert seconds["3d_fullres"] == pytest.approx(5 * 8 * (3.0 + 2.0))
    shutil.rmtree(workspace.root / "runs" / "3d_lowres")
    with pytest.raises(MissingInput, match="starts from 3d_lowres"):
        select_model(workspace, SelectionOptions(configurations=("3d_fullres",)))


def keep_only(workspace: Workspace, names: set[str]) -> None:
    for file in (workspace.root / "runs").glob("*/*/validation/scores.json"):
        scores = load(FoldScores, file)
        save(replace(scores, cases={name: own for name, own in scores.cases.items() if name in names}), file)


def test_a_single_case_has_a_choice_but_no_nested_score(workspace) -> None:
    keep_only(workspace, {"case_3"})
    selection = select_model(workspace)
    assert selection.nested is None
    assert selection.candidates[0].interval is None
    assert not any(trial.is_accepted for trial in selection.postprocessing)


def test_where_no_score_is_defined_the_first_is_chosen(workspace, everything) -> None:
    keep_only(workspace, {"case_3", "case_4"})
    around = workspace.root.parent  # a dataset of its own, which is found because the work folder lies in it
    shutil.copytree(everything / "imagesTr", around / "imagesTr")
    shutil.copy(everything / "dataset.json", around)
    for case in load(Dataset, workspace.dataset).cases:
        write_labels(around / case.labels, np.zeros(SHAPE, np.uint8), Geometry(SHAPE))
    for file in (workspace.root / "runs").glob("*/*/validation/case_*.nii.gz"):
        write_labels(file, np.zeros(SHAPE, np.uint8), Geometry(SHAPE))
    selection = select_model(workspace)
    assert (selection.nested, selection.postprocessing) == (None, ())
    assert selection.candidates[0].dice is None
    assert load(Selection, workspace.selection) == selection
