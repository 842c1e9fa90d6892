from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock

from autoseg.api.plan import plan_dataset
from autoseg.cli.main import cli
from autoseg.core.errors import AutoSegError, Interrupted, MissingInput, NotEnoughResources, PlanFault, UsageError
from autoseg.core.records import load, save
from autoseg.core.workspace import Workspace
from autoseg.images.readers import read_labels
from autoseg.launch.side_by_side import SideBySide
from autoseg.models.runs import find_run_model
from autoseg.networks.weights import newest_weights
from autoseg.planning.plan import Plan
from autoseg.planning.planner import PlanOptions
from autoseg.runs import forecast
from autoseg.runs.budget import (
    INTERVALS_FILE,
    WorkInterval,
    WorkIntervals,
    budget_deadline,
    read_intervals,
    run_deadline,
    wall_seconds,
)
from autoseg.runs.forecast import RunNeeds, forecast_queue
from autoseg.runs.queue import TrainOptions, make_queue
from autoseg.runs.run import FoldScores, RunRecord, RunStatus
from autoseg.runs.train import TrainListeners, TrainReport, train_queue
from autoseg.training.callbacks.history import read_history
from autoseg.training.losses import make_objective
from tests.preprocessing.tiny_dataset import write_tiny_dataset
from tests.runs.trained import never

RECIPE = (
    "epochs: 3\nsteps_per_epoch: 2\nvalidation_steps: 1\nema_decay: 0.9\nprecision: fp32\nmemory_format: contiguous\n"
)
OPTIONS = TrainOptions(configurations=("3d_fullres",), folds=(0,), device="cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "data"
    write_tiny_dataset(folder, 4, (3.0,))
    plan_dataset(folder, Workspace(folder / "autoseg"), PlanOptions("cpu"))
    return folder


@pytest.fixture
def workspace(planned, tmp_path) -> Workspace:
    """A work folder of its own with the plan of the common dataset."""
    made = Workspace(tmp_path / "work")
    for name in ("dataset.json", "fingerprint.json", "plan.json"):
        made.root.mkdir(exist_ok=True)
        (made.root / name).write_bytes((planned / "autoseg" / name).read_bytes())
    return made


@pytest.fixture
def options(tmp_path) -> TrainOptions:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return replace(OPTIONS, recipe=str(tmp_path / "tiny.yaml"), started=time.monotonic())


def stop_at(step: int):
    """A progress callback and a check that asks to stop at a step."""
    seen: list[int] = []

    def check() -> None:
        if seen and seen[-1] >= step:
            raise Interrupted("stopped")

    return (lambda done, _total: seen.append(done)), check


def weights_of(workspace: Workspace, fold: int = 0) -> dict[str, torch.Tensor]:
    return newest_weights(workspace.run("3d_fullres", fold).checkpoint)


def only_run(report: TrainReport):
    assert len(report.results) == 1
    return report.results[0]


def test_a_run_leaves_everything_that_later_stages_need(workspace, options, planned):
    report = train_queue(workspace, options, never)
    run = only_run(report)
    assert (report.exit_code, run.state, run.run.status.epochs, run.run.status.validated_cases) == (0, "done", 3, 1)
    folder = workspace.run("3d_fullres", 0)
    assert len(read_history(folder.history)) == 3
    assert folder.curves.stat().st_size > 1000
    record = load(RunRecord, folder.recipe)
    assert sorted(record.train + record.val) == [f"case_{i}" for i in range(4)]
    name = record.val[0]
    scores = load(FoldScores, folder.validation / "scores.json")
    assert set(scores.cases[name]) == {"thing", "other"}
    predicted = read_labels(folder.validation / f"{name}.nii.gz")
    assert predicted.geometry == read_labels(planned / "labelsTr" / f"{name}.nii.gz").geometry
    again = train_queue(workspace, options, never)
    assert only_run(again).run.status == run.run.status


GROWING = "patch_growth: [0.5]\noptimizer: muon\nbatch_scale: 2\n"


@pytest.mark.parametrize(("changes", "threads"), [("", "1"), (GROWING, "1"), (GROWING, "2")])
def test_an_interrupted_run_resumes_to_the_same_weights(
    workspace, options, planned, tmp_path, monkeypatch, changes, threads
):
    parted, compute_parts = [], SideBySide.__call__
    monkeypatch.setattr(SideBySide, "__call__", lambda *own: parted.append(1) or compute_parts(*own))
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    (tmp_path / "tiny.yaml").write_text(RECIPE + changes)
    train_queue(workspace, options, never)
    assert bool(parted) == (threads == "2")
    other = Workspace(tmp_path / "other")
    other.root.mkdir()
    for name in ("dataset.json", "fingerprint.json", "plan.json"):
        (other.root / name).write_bytes((planned / "autoseg" / name).read_bytes())
    for step in (1, 4):
        progress, check = stop_at(step)
        report = train_queue(other, options, check, TrainListeners(on_steps=progress))
        assert report.exit_code == 75
        assert only_run(report).state == "interrupted"
    assert train_queue(other, replace(options, jobs=2), never).exit_code == 0
    expected = weights_of(workspace)
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(other).items())
    histories = [read_history(w.run("3d_fullres", 0).history) for w in (workspace, other)]
    assert [e["ema_dice"] for e in histories[0]] == [e["ema_dice"] for e in histories[1]]
    assert [e["loss"] for e in histories[0]] == [e["loss"] for e in histories[1]]


def test_an_interrupted_validation_goes_on_where_it_stopped(workspace, options):
    def check_at_validation() -> None:
        if workspace.run("3d_fullres", 0).state.exists():
            content = json.loads(workspace.run("3d_fullres", 0).state.read_text())
            if content["state"] == "validating":
                raise Interrupted("stopped")

    assert train_queue(workspace, options, check_at_validation).exit_code == 75
    before = weights_of(workspace)
    report = train_queue(workspace, options, never)
    assert only_run(report).state == "done"
    assert all(torch.equal(before[name], value) for name, value in weights_of(workspace).items())


def test_a_run_started_differently_is_not_resumed(workspace, options):
    progress, check = stop_at(1)
    train_queue(workspace, options, check, TrainListeners(on_steps=progress))
    for changed in (replace(options, epochs=9), replace(options, seed=1), replace(options, budget_seconds=60.0)):
        report = train_queue(workspace, changed, never)
        assert isinstance(report.stop, UsageError)
        assert "started differently" in str(report.stop)
        assert report.exit_code == 2
    report = train_queue(workspace, replace(options, epochs=1, is_fresh=True), never)
    assert only_run(report).run.status.epochs == 1
    assert only_run(train_queue(workspace, options, never)).state == "done"  # with a warning that the recipe differs


def test_a_run_without_a_checkpoint_may_change_its_recipe(workspace, options):
    def fail(_done: int, _total: int) -> None:
        raise OSError(28, "no space left")

    listeners = TrainListeners(on_steps=fail)
    assert train_queue(workspace, replace(options, epochs=7), never, listeners).exit_code == 5
    folder = workspace.run("3d_fullres", 0)
    assert load(RunRecord, folder.recipe).asked.epochs == 7
    assert only_run(train_queue(workspace, options, never)).state == "done"
    assert load(RunRecord, folder.recipe).asked.epochs == 3


def test_a_run_of_another_plan_asks_for_fresh(workspace, options):
    progress, check = stop_at(1)
    train_queue(workspace, options, check, TrainListeners(on_steps=progress))
    plan = load(Plan, workspace.plan)
    own = replace(plan.configurations["3d_fullres"], batch_size=3)
    save(replace(plan, configurations={**plan.configurations, "3d_fullres": own}), workspace.plan)
    report = train_queue(workspace, options, never)
    assert isinstance(report.stop, PlanFault)
    assert "batch_size" in str(report.stop)
    assert "--fresh" in str(report.stop)


def test_a_run_in_other_hands_is_left_alone(workspace, options):
    folder = workspace.run("3d_fullres", 0).root
    folder.parent.mkdir(parents=True)
    with FileLock(folder.with_name(".fold_0.lock")):
        report = train_queue(workspace, replace(options, folds=(0, 1), epochs=1), never)
    assert [run.state for run in report.results] == ["busy", "done"]
    assert report.exit_code == 75


def test_a_failing_run_does_not_stop_the_queue(workspace, options):
    chosen = replace(options, folds=(0, 1), epochs=1)
    workspace.run("3d_fullres", 0).root.mkdir(parents=True)
    workspace.run("3d_fullres", 0).recipe.write_text("{}")
    report = train_queue(workspace, chosen, never)
    assert [run.state for run in report.results] == ["failed", "done"]
    assert report.exit_code == 4


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("tried to allocate"), OSError(28, "no space left")])
def test_a_lack_of_resources_stops_cleanly(workspace, options, error):
    def fail(_done: int, _total: int) -> None:
        raise error

    report = train_queue(workspace, options, never, TrainListeners(on_steps=fail))
    assert isinstance(report.stop, NotEnoughResources)
    assert report.exit_code == 5


def test_memory_that_runs_out_halves_the_batch_and_the_run_goes_on_so_when_resumed(workspace, options, monkeypatch):
    def with_memory_for_one(*arguments):
        objective = make_objective(*arguments)

        def guarded(outputs, labels):
            if torch.is_grad_enabled() and len(labels) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return objective(outputs, labels)

        return guarded

    monkeypatch.setattr("autoseg.runs.training.make_objective", with_memory_for_one)
    progress, check = stop_at(1)
    train_queue(workspace, options, check, TrainListeners(on_steps=progress))
    folder = workspace.run("3d_fullres", 0)
    state = json.loads(next(folder.checkpoint.glob("*/state.json")).read_text())
    assert (state["step"], state["parts"]) == (1, 2)
    monkeypatch.undo()  # there is memory again, but the run goes on as it was
    assert only_run(train_queue(workspace, options, never)).state == "done"
    state = json.loads(max(folder.checkpoint.glob("*/state.json")).read_text())
    assert (state["step"], state["parts"]) == (6, 2)
    assert "in 2 parts from here on" in read_history(folder.history)[0]["events"][0]


def test_a_single_case_is_trained_on_without_validation(tmp_path, options):
    folder = tmp_path / "one"
    write_tiny_dataset(folder, 1)
    workspace = Workspace(folder / "autoseg")
    plan_dataset(folder, workspace, PlanOptions("cpu"))
    status = only_run(train_queue(workspace, replace(options, folds=()), never)).run.status
    assert (status.validation, status.validated_cases) == (None, 0)
    assert "no validation is possible" in status.notes[0]


def test_all_cases_are_trained_on_where_none_is_kept_back(workspace, options):
    whole = replace(options, folds=(), on_all_cases=True)
    run = only_run(train_queue(workspace, whole, never)).run
    before = run.status
    assert (run.record().train, run.record().val) == (tuple(f"case_{i}" for i in range(4)), ())
    assert "no validation is possible" in run.status.notes[0]
    assert find_run_model(workspace.root).record.members[0].folds == (0,)
    later = train_queue(workspace, replace(options, folds=()), never)  # goes on with the folds that are there
    assert (only_run(later).state, run.status) == ("done", before)
    with pytest.raises(UsageError, match="nothing to group"):
        replace(whole, group_by=".")


def test_all_cases_do_not_replace_the_folds_of_other_runs(workspace, options):
    train_queue(workspace, options, never)
    with pytest.raises(UsageError, match="other folds than before") as found:
        make_queue(workspace, replace(options, configurations=("2d",), on_all_cases=True))
    assert "--all-cases" in found.value.do
    make_queue(workspace, replace(options, on_all_cases=True, is_fresh=True))  # the only run begins anew
    shutil.copytree(workspace.run("3d_fullres", 0).root, workspace.run("3d_fullres", 3).root)
    workspace.splits.unlink()
    with pytest.raises(UsageError, match=r"there: 3d_fullres fold 3 \("):
        make_queue(workspace, replace(options, on_all_cases=True, is_fresh=True))


def test_a_done_run_is_not_taken_for_one_of_cases_that_came_later(workspace, options, caplog):
    whole = replace(options, folds=(), on_all_cases=True)
    run = only_run(train_queue(workspace, whole, never)).run
    save(replace(run.record(), train=("case_0", "case_2")), run.folder.recipe)
    assert only_run(train_queue(workspace, whole, never)).state == "done"
    assert "is done, without case_1 and 1 more; --fresh trains it again" in caplog.text


def test_a_2d_configuration_and_other_augmentations_train(workspace, options, tmp_path):
    (tmp_path / "plain.yaml").write_text(RECIPE + "augmentation: none\noptimizer: adamw\n")
    chosen = replace(options, configurations=("2d",), recipe=str(tmp_path / "plain.yaml"))
    assert only_run(train_queue(workspace, chosen, never)).state == "done"


def test_a_budget_chooses_the_epochs_and_is_noted(workspace, options):
    report = train_queue(workspace, replace(options, budget_seconds=3.0), never)
    assert only_run(report).state == "done"
    record = load(RunRecord, workspace.run("3d_fullres", 0).recipe)
    assert record.budget_seconds == 3.0
    assert "left for training" in record.decisions[-1]
    folder = workspace.run("3d_fullres", 0).root
    assert wall_seconds(read_intervals(folder), float("inf")) > 0.0
    assert read_intervals(folder.parent)  # preparing the cases counts as well


def test_a_budget_counts_earlier_work_and_a_larger_one_goes_on(workspace, options):
    chosen = replace(options, folds=(0, 1), budget_seconds=500.0, epochs=1)
    folder = workspace.run("3d_fullres", 0).root
    now = time.time()
    save(
        WorkIntervals((WorkInterval(now - 900.0, now - 600.0), WorkInterval(now - 400.0, now - 150.0))),
        folder / INTERVALS_FILE,
    )
    with pytest.raises(UsageError, match="550 s were spent"):
        train_queue(workspace, chosen, never)
    queue = make_queue(workspace, chosen)
    larger = replace(chosen, budget_seconds=800.0)
    left = budget_deadline(queue, larger) - larger.started
    assert left == pytest.approx(250.0, abs=1e-3)
    fresh = replace(chosen, is_fresh=True)
    assert budget_deadline(queue, fresh) - fresh.started == pytest.approx(500.0, abs=1e-3)
    assert budget_deadline(queue, replace(chosen, budget_seconds=None)) is None


def test_a_run_begun_under_a_budget_goes_on_under_another(workspace, options):
    progress, check = stop_at(1)
    report = train_queue(workspace, replace(options, budget_seconds=60.0), check, TrainListeners(on_steps=progress))
    assert only_run(report).state == "interrupted"
    later = replace(options, budget_seconds=63.0, started=time.monotonic() - 60.0)
    assert only_run(train_queue(workspace, later, never)).state == "done"


def test_a_budget_leaves_out_what_it_has_no_time_for_and_a_larger_one_trains_it(workspace, options, monkeypatch):
    monkeypatch.setattr(forecast, "_seconds_per_voxel", lambda *_: 1.0)
    chosen = replace(options, folds=(0, 1, 2))
    spent = replace(chosen, budget_seconds=60.0, started=time.monotonic() - 59.0)
    told = forecast_queue(workspace, make_queue(workspace, spent), spent)
    assert told.left_out.startswith("left out for lack of time: 3d_fullres (2 runs); --budget ")
    assert [own.hours > 0 for own in told.runs] == [True, False, False]
    report = train_queue(workspace, spent, never)
    assert (report.exit_code, only_run(report).run.fold, report.left_out) == (
        0,
        0,
        make_queue(workspace, chosen).runs[1:],
    )
    assert report.note.partition(";")[0] == told.left_out.partition(";")[0]
    again = train_queue(workspace, replace(spent, started=time.monotonic() - 60.0), never)  # everything is used up now
    assert (only_run(again).state, len(again.left_out)) == ("done", 2)
    larger = replace(chosen, budget_seconds=1e6, started=time.monotonic() - 60.0)
    enough = forecast_queue(workspace, make_queue(workspace, larger), larger)
    assert (enough.left_out, [own.hours > 0 for own in enough.runs]) == ("", [False, True, True])


def test_open_runs_share_what_is_left_by_what_they_need(workspace, options):
    runs = list(make_queue(workspace, replace(options, folds=())).runs)
    equal, spent = dict.fromkeys(runs, 30.0), {**dict.fromkeys(runs, 0.0), runs[1]: 100.0}
    assert run_deadline(None, runs[0], equal, spent, 1, now=0.0) is None
    # 100 s were spent on the second of four runs, 300 s are left: each comes to 100 s
    assert run_deadline(1300.0, runs[0], equal, spent, 1, now=1000.0) == pytest.approx(1100.0)
    assert run_deadline(1300.0, runs[1], equal, spent, 1, now=1000.0) == pytest.approx(1000.0)
    # the three others on two devices: two rounds
    others = dict.fromkeys((runs[0], runs[2], runs[3]), 30.0)
    assert run_deadline(1300.0, runs[0], others, spent, 2, now=1000.0) == pytest.approx(1150.0)
    assert run_deadline(1300.0, runs[0], others, spent, 2, now=1400.0) == 1400.0
    # one that needs twice as much gets twice as much
    assert run_deadline(1300.0, runs[2], {**others, runs[2]: 60.0}, spent, 1, now=1000.0) == pytest.approx(1150.0)


def test_work_on_runs_that_are_discarded_is_not_counted(workspace, options):
    queue = make_queue(workspace, replace(options, folds=(), is_fresh=True))
    needs = RunNeeds(queue, torch.device("cpu"), 1.0)
    first, second = queue.runs[:2]
    for run in (first, second):
        save(WorkIntervals((WorkInterval(0.0, 100.0),)), run.folder.root / INTERVALS_FILE)
    assert (needs.spent_seconds(first, ()), needs.spent_seconds(first, (first,))) == (0.0, 100.0)


def test_a_done_run_of_other_folds_is_not_taken_for_done(workspace, options):
    train_queue(workspace, replace(options, epochs=1), never)
    fold = make_queue(workspace, options).folds[0]
    swapped = [{"train": [*fold.val, *fold.train[1:]], "val": [fold.train[0]]}]
    workspace.splits.write_text(json.dumps(swapped))
    report = train_queue(workspace, replace(options, epochs=1), never)
    assert "other cases in this fold" in str(report.stop)
    assert report.exit_code == 2


def test_a_budget_that_is_over_validates_one_case_all_the_same(workspace, options):
    halves = [{"train": ["case_0"], "val": ["case_1", "case_2", "case_3"]}]
    workspace.splits.write_text(json.dumps(halves))
    report = train_queue(workspace, replace(options, budget_seconds=0.001, started=time.monotonic()), never)
    status = only_run(report).run.status
    assert (status.epochs, status.validated_cases) == (1, 1)
    assert "lack of time" in status.notes[-1]
    assert "1 step was trained, less than an epoch" in status.notes[0]
    assert "no time is left" in load(RunRecord, workspace.run("3d_fullres", 0).recipe).decisions[-1]


def test_a_training_meant_for_a_gpu_is_said_to_be_one_on_a_cpu(workspace, options, caplog):
    def stop() -> None:
        raise Interrupted("stopped")

    for recipe, is_long in (("default", True), (options.recipe, False)):
        caplog.clear()
        assert train_queue(workspace, replace(options, recipe=recipe), stop).exit_code == 75
        assert ("meant for a GPU" in caplog.text) == is_long


def planned_cascade(workspace: Workspace) -> None:
    plan = load(Plan, workspace.plan)
    full = plan.configurations["3d_fullres"]
    low = replace(full, name="3d_lowres")
    cascade = replace(full, name="3d_cascade_fullres", cascade_from="3d_lowres")
    two = {"3d_cascade_fullres": cascade, "3d_lowres": low}
    save(replace(plan, configurations=two), workspace.plan)


def test_all_folds_of_the_first_stage_come_before_the_cascade(workspace, options):
    planned_cascade(workspace)
    queue = make_queue(workspace, replace(options, configurations=(), folds=()))
    expected = [(name, fold) for name in ("3d_lowres", "3d_cascade_fullres") for fold in range(4)]
    assert [(run.configuration, run.fold) for run in queue.runs] == expected


def test_a_cascade_without_its_first_stage_is_refused_if_named_and_left_out_otherwise(workspace, options, caplog):
    planned_cascade(workspace)
    save(RunStatus("done", 1, 1, 1.0, None), workspace.run("3d_lowres", 1).state)
    workspace.run("3d_lowres", 1).recipe.write_text("{}")
    with pytest.raises(UsageError, match="3d_lowres fold 0, 2, 3"):
        make_queue(workspace, replace(options, configurations=("3d_cascade_fullres",), folds=()))
    queue = make_queue(workspace, replace(options, configurations=(), folds=(1,)))
    assert [run.title for run in queue.runs] == ["3d_lowres fold 1"]
    assert "3d_cascade_fullres is left out" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"configurations": ("3d_fullre",)}, "did you mean 3d_fullres"),
        ({"folds": (7,)}, "there is no fold 7: this dataset has 4"),
        ({"recipe": "none"}, "none"),
    ],
)
def test_an_unknown_name_or_number_is_a_usage_error(workspace, options, changes, words):
    with pytest.raises(AutoSegError) as found:
        make_queue(workspace, replace(options, **changes))
    assert words in str(found.value)
    assert found.value.exit_code == 2


def test_without_a_plan_the_user_is_told_to_plan(tmp_path, options):
    with pytest.raises(MissingInput, match="autoseg plan"):
        make_queue(Workspace(tmp_path), options)


def test_the_command_prints_one_document(workspace, options, planned):
    common = ["train", str(planned), "--work", str(workspace.root), "--recipe", options.recipe, "--fold", "0"]
    dry = CliRunner().invoke(cli, [*common, "--dry-run", "--json"], standalone_mode=False)
    assert [run["state"] for run in json.loads(dry.stdout)["runs"]] == ["new", "new"]
    assert not (workspace.root / "runs").exists()
    assert not workspace.splits.exists()
    arguments = [*common, "--configuration", "3d_fullres", "--epochs", "1", "--device", "cpu"]
    result = CliRunner().invoke(cli, [*arguments, "--json"], standalone_mode=False)
    run = json.loads(result.stdout)["runs"][0]
    assert result.return_value == 0
    assert (run["state"], run["epochs"], run["configuration"], run["fold"]) == ("done", 1, "3d_fullres", 0)
    assert set(run["validation"]["mean"]) == {"thing", "other"}
    table = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert "3d_fullres" in table.stdout


def test_kill_9_at_any_moment_changes_nothing(workspace, options, planned, tmp_path):
    train_queue(workspace, replace(options, epochs=30), never)
    killed = Workspace(tmp_path / "killed")
    killed.root.mkdir()
    for name in ("dataset.json", "fingerprint.json", "plan.json"):
        (killed.root / name).write_bytes((planned / "autoseg" / name).read_bytes())
    common = ["--work", str(killed.root), "--recipe", options.recipe, "--fold", "0", "--configuration", "3d_fullres"]
    command = [sys.executable, "-m", "autoseg", "train", str(planned), *common, "--epochs", "30", "--device", "cpu"]
    random = np.random.default_rng(0)
    for _ in range(2):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for line in process.stderr:
            if "epoch" in line:
                break
        time.sleep(float(random.uniform(0.0, 0.3)))
        process.kill()
        process.communicate()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    expected = weights_of(workspace)
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(killed).items())


def test_a_compiler_that_fails_does_not_stop_the_run(workspace, options, tmp_path, monkeypatch):
    def fail(_network):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr("autoseg.launch.precision.FEWEST_COMPILING_SECONDS", 0.0)
    (tmp_path / "compiled.yaml").write_text(RECIPE + "compile: true\n")
    chosen = replace(options, recipe=str(tmp_path / "compiled.yaml"), epochs=1)
    assert only_run(train_queue(workspace, chosen, never)).state == "done"
    record = load(RunRecord, workspace.run("3d_fullres", 0).recipe)
    assert not record.recipe.compile
    assert "no compiler here" in record.decisions[-1]


def test_a_run_begun_on_another_device_goes_on_here(workspace, options, caplog, monkeypatch):
    monkeypatch.setattr("autoseg.runs.setup.sha256_of_file", lambda _: "as if recipe.json had always been this")
    progress, check = stop_at(1)
    train_queue(workspace, options, check, TrainListeners(on_steps=progress))
    folder = workspace.run("3d_fullres", 0)
    save(replace(load(RunRecord, folder.recipe), device="cuda"), folder.recipe)
    assert only_run(train_queue(workspace, options, never)).state == "done"
    assert "not bit-exact" in caplog.text


def test_a_failed_run_is_shown_and_gives_its_exit_code(workspace, options, planned):
    workspace.run("3d_fullres", 0).root.mkdir(parents=True)
    workspace.run("3d_fullres", 0).recipe.write_text("{}")
    common = ["train", str(planned), "--work", str(workspace.root), "--recipe", options.recipe, "--epochs", "1"]
    arguments = [*common, "--configuration", "3d_fullres", "--fold", "0", "--device", "cpu"]
    alone = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert alone.return_value == 2
    assert "error E0103" in alone.stderr  # the run's copy of the plan is missing
    both = CliRunner().invoke(cli, [*arguments, "--fold", "1"], standalone_mode=False)
    assert both.return_value == 4
    assert "error E0103" in both.stderr
