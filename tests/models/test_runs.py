"""Work folders as models: what was selected predicts, as long as it is still there."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from autoseg.api.model import find_model, load_model
from autoseg.core.errors import Busy, PlanFault, RecordFault, UsageError
from autoseg.core.records import load, save
from autoseg.core.workspace import RunFolder, Workspace
from autoseg.inference.postprocessing import PostprocessingStep
from autoseg.models.model import make_ensemble
from autoseg.planning.plan import Plan
from autoseg.runs.run import RunStatus
from autoseg.selection.record import Selection
from tests.runs.trained import add_run, add_selection, cascade_plan, tiny_plan, trained_work_folder, write_weights

STEP = PostprocessingStep("largest_component", ("liver", "tumor"))
SECOND = "3d_cascade_fullres"


@pytest.fixture
def work(tmp_path):
    """Three configurations of two folds; the cascade and its first stage were selected, three to one."""
    plan = cascade_plan()
    folder = trained_work_folder(tmp_path, plan, "3d_lowres")
    for fold in (0, 1):
        add_run(folder, plan, SECOND, fold, seed=5 + fold)
        add_run(folder, plan, "3d_fullres", fold, seed=8 + fold)
    add_selection(folder, plan, {SECOND: 3, "3d_lowres": 1}, steps=(STEP,))
    return folder


def test_what_was_selected_predicts(work):
    files = find_model(work)
    assert [(one.configuration.name, one.share, one.folds) for one in files.record.members] == [
        (SECOND, 0.75, (0, 1)),
        ("3d_lowres", 0.25, (0, 1)),
    ]
    assert [stage.configuration.name for stage in files.record.stages] == ["3d_lowres"]
    assert files.record.postprocessing == (STEP,)
    assert "selected: the best" in files.record.because
    ensemble = make_ensemble(files, "cpu")
    assert ensemble.stages["3d_lowres"] is ensemble.members[1]
    assert ensemble.postprocessing == (STEP,)


def test_a_configuration_asked_for_goes_before_what_was_selected(work):
    files = find_model(work, SECOND)
    assert [(one.configuration.name, one.share) for one in files.record.members] == [(SECOND, 1.0)]
    assert (files.record.postprocessing, files.record.stages[0].folds) == ((), (0, 1))
    assert files.record.name != find_model(work).record.name
    ensemble = make_ensemble(files, "cpu")
    assert len(ensemble.every) == 2


def test_between_configurations_without_any_score_nothing_is_guessed(work):
    Workspace(work).selection.unlink()
    shutil.rmtree(Workspace(work).runs / "3d_fullres")
    assert "the best by Dice" in find_model(work).record.because
    for _, _, folder in Workspace(work).run_folders():
        save(replace(load(RunStatus, folder.state), ema_dice=None), folder.state)
    with pytest.raises(UsageError, match="no score says which is better"):
        find_model(work)
    assert find_model(work, "3d_lowres").record.members


def test_folds_asked_for_are_those_of_every_stage(work):
    files = find_model(work, folds=(1,))
    assert {one.folds for one in files.record.by_configuration.values()} == {(1,)}
    assert files.record.postprocessing == (STEP,)
    with pytest.raises(UsageError, match="fold 7"):
        find_model(work, folds=(7,))


def test_a_selection_of_other_networks_is_refused(work):
    write_weights(Workspace(work).run("3d_lowres", 1), cascade_plan(), "3d_lowres", seed=99)
    with pytest.raises(UsageError, match="3d_lowres fold 1 was trained again") as refused:
        load_model(work)
    assert "autoseg select" in (refused.value.do or "")
    assert find_model(work, "3d_fullres").record.members


def test_a_selection_of_networks_that_are_gone_is_refused(work):
    shutil.rmtree(work / "runs" / SECOND / "fold_0")
    with pytest.raises(UsageError, match="fold 0 is not there any more"):
        find_model(work)


def test_other_runs_may_change_without_harm(work):
    before = find_model(work).record.name
    write_weights(Workspace(work).run("3d_fullres", 1), cascade_plan(), "3d_fullres", seed=99)
    assert find_model(work).record.name == before


def test_folds_that_came_later_and_plans_that_changed_are_pointed_out(work, caplog):
    plan = cascade_plan()
    save(plan, Workspace(work).plan)
    with caplog.at_level(logging.WARNING):
        find_model(work)
        assert not caplog.records
        add_run(work, plan, "3d_lowres", 2)
        save(replace(plan, axis_order=(2, 1, 0)), Workspace(work).plan)
        files = find_model(work)
    assert files.record.members[0].folds == (0, 1)
    told = " ".join(record.getMessage() for record in caplog.records)
    assert "fold 2 of 3d_lowres came after the selection" in told
    assert "the plan changed after the selection" in told


def test_one_run_of_a_cascade_takes_the_first_stage_of_its_fold(work):
    files = find_model(work / "runs" / SECOND / "fold_1")
    assert (files.record.members[0].folds, files.record.stages[0].folds) == ((1,), (1,))
    with pytest.raises(UsageError, match="nothing else"):
        find_model(work / "runs" / SECOND / "fold_1", "2d")
    shutil.rmtree(work / "runs" / "3d_lowres" / "fold_1")
    assert find_model(work / "runs" / SECOND / "fold_1").record.stages[0].folds == (0,)


def test_a_cascade_without_its_first_stage_is_refused(work):
    shutil.rmtree(work / "runs" / "3d_lowres")
    for path in (work / "runs" / SECOND / "fold_1", work):
        with pytest.raises(UsageError, match="first stage") as refused:
            find_model(path, SECOND)
        assert "--configuration 3d_lowres" in (refused.value.do or "")


def test_configurations_of_plans_that_do_not_fit_are_not_averaged(work):
    for fold in (0, 1):
        path = Workspace(work).run("3d_lowres", fold).plan
        save(replace(load(Plan, path), channels=("other",)), path)
    with pytest.raises(PlanFault, match="another plan"):
        find_model(work)


def test_runs_from_before_orientations_get_that_of_the_same_cases(work):
    present = load(Plan, Workspace(work).run("3d_lowres", 0).plan)
    before = find_model(work).record
    assert before.plan.orientation is None
    save(replace(present, orientation="RAS"), Workspace(work).plan)
    known = find_model(work).record
    assert [member.plan.orientation for member in (*known.members, *known.stages)] == ["RAS"] * 3
    assert known.name != before.name  # it predicts otherwise, so what was predicted before is not kept
    save(replace(present, orientation="RAS", fingerprint="of other cases"), Workspace(work).plan)
    assert find_model(work).record == before


def test_a_selection_is_of_its_plan_with_and_without_an_orientation(work):
    plan = load(Plan, Workspace(work).run("3d_lowres", 0).plan)
    selection = load(Selection, Workspace(work).selection)
    assert selection.is_of(plan)
    assert selection.is_of(replace(plan, orientation="LPS"))


def test_members_that_turn_images_differently_are_refused(work):
    record = find_model(work).record
    turned = replace(record.members[1], plan=replace(record.members[1].plan, axis_order=(2, 1, 0)))
    with pytest.raises(PlanFault, match="different orders of image axes"):
        replace(record, members=(record.members[0], turned))


def test_only_a_whole_selection_has_its_scores(work):
    assert find_model(work).record.scores.chosen == f"{SECOND} + 3d_lowres"
    for part in (find_model(work, SECOND), find_model(work, folds=(1,)), find_model(work / "runs" / SECOND / "fold_1")):
        assert part.record.scores is None


def test_a_run_still_in_training_predicts_with_a_warning(tmp_path, caplog):
    work = trained_work_folder(tmp_path, tiny_plan(), folds=(0,))
    save(RunStatus("training", 1, 9, 1.0, 0.1), Workspace(work).run("3d_fullres", 0).state)
    with caplog.at_level(logging.WARNING):
        find_model(work)
    assert any("still in training" in record.getMessage() for record in caplog.records)


def test_weights_that_are_trained_on_meanwhile_are_not_used_under_the_name_of_the_former(tmp_path):
    work, plan = trained_work_folder(tmp_path, tiny_plan(), folds=(0,)), tiny_plan()
    files = find_model(work)
    assert files.read("3d_fullres", 0)
    write_weights(Workspace(work).run("3d_fullres", 0), plan, "3d_fullres", seed=5)
    with pytest.raises(Busy, match="trained on meanwhile"):
        files.read("3d_fullres", 0)
    assert find_model(work).read("3d_fullres", 0)


@pytest.mark.parametrize("place", ["/fold_0", "/a/fold_0"])
def test_a_run_that_was_copied_to_the_top_of_a_disk_is_in_no_work_folder(place):
    assert RunFolder(Path(place)).workspace.root == Path("/")


def test_a_selection_that_names_no_folds_of_a_first_stage_is_refused(tmp_path):
    work, plan = tmp_path / "autoseg", cascade_plan()
    for name in ("3d_lowres", "3d_cascade_fullres"):
        add_run(work, plan, name, 0)
    selection = add_selection(work, plan, {"3d_cascade_fullres": 1}, folds=(0,))
    folds = {name: own for name, own in selection.folds.items() if name != "3d_lowres"}
    save(replace(selection, folds=folds), Workspace(work).selection)
    with pytest.raises(UsageError, match="names no folds of 3d_lowres") as refused:
        find_model(work)
    assert "autoseg select" in str(refused.value.do)


def test_a_run_whose_record_names_no_known_precision_is_refused_by_its_file(tmp_path):
    work = trained_work_folder(tmp_path)
    file = Workspace(work).run("3d_fullres", 0).recipe
    file.write_text(file.read_text().replace('"memory_format": "contiguous"', '"memory_format": "channels"'))
    with pytest.raises(RecordFault, match="memory_format"):
        find_model(work)
