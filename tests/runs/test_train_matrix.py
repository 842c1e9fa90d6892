"""The matrix as users meet it: several devices, cascades, kills, the table and the forecast."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock
from rich.console import Console

from autoseg.api.plan import plan_dataset
from autoseg.cli.main import cli
from autoseg.cli.train_board import draw_board
from autoseg.core.errors import Interrupted, UsageError
from autoseg.core.records import load, save
from autoseg.core.workspace import RunFolder, Workspace
from autoseg.networks.weights import newest_weights
from autoseg.planning.plan import Plan
from autoseg.planning.planner import PlanOptions
from autoseg.runs.forecast import forecast_queue
from autoseg.runs.progress import ProgressReporter, QueueProgress, RunProgress, clock_time, epoch_seconds
from autoseg.runs.queue import Queue, TrainOptions, make_queue
from autoseg.runs.run import Run, RunRecord, RunResult, RunStatus
from autoseg.runs.train import TrainListeners, train_queue
from autoseg.training.callbacks.history import append_history
from autoseg.training.recipe import load_recipe
from tests.preprocessing.tiny_dataset import write_tiny_dataset
from tests.runs.trained import never, run_record

RECIPE = "epochs: 2\nsteps_per_epoch: 2\nvalidation_steps: 1\nprecision: fp32\nmemory_format: contiguous\n"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("matrix") / "data"
    write_tiny_dataset(folder, 2, (3.0,))
    workspace = Workspace(folder / "autoseg")
    plan_dataset(folder, workspace, PlanOptions("cpu"))
    plan = load(Plan, workspace.plan)
    full = plan.configurations["3d_fullres"]
    low = replace(full, name="3d_lowres", spacing_mm=(3.0, 2.0, 2.0), patch_size=full.patch_size)
    cascade = replace(full, name="3d_cascade_fullres", cascade_from="3d_lowres")
    save(replace(plan, configurations={"3d_cascade_fullres": cascade, "3d_lowres": low}), workspace.plan)
    return folder


@pytest.fixture
def workspace(planned, tmp_path) -> Workspace:
    made = Workspace(tmp_path / "work")
    made.root.mkdir()
    for name in ("dataset.json", "fingerprint.json", "plan.json"):
        (made.root / name).write_bytes((planned / "autoseg" / name).read_bytes())
    return made


@pytest.fixture
def options(tmp_path) -> TrainOptions:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return TrainOptions(recipe=str(tmp_path / "tiny.yaml"), device="cpu")


def test_two_devices_train_the_matrix_as_one_does(workspace, options, planned, tmp_path, caplog):
    seen: list[QueueProgress] = []
    with caplog.at_level(logging.INFO, logger="autoseg"):
        report = train_queue(
            workspace, replace(options, device="cpu,cpu"), never, TrainListeners(on_progress=seen.append)
        )
    assert [(own.run.configuration, own.run.fold, own.state) for own in report.results] == [
        (name, fold, "done") for name in ("3d_lowres", "3d_cascade_fullres") for fold in (0, 1)
    ]
    assert report.exit_code == 0
    assert "3d_lowres fold 1: epoch 2/2" in caplog.text  # a line per epoch, from the other processes
    assert "4 of 4 runs done" in caplog.text
    assert [row.state for row in seen[-1].runs] == ["done"] * 4
    alone = Workspace(tmp_path / "alone")
    alone.root.mkdir()
    for name in ("dataset.json", "fingerprint.json", "plan.json"):
        (alone.root / name).write_bytes((planned / "autoseg" / name).read_bytes())
    assert train_queue(alone, options, never).exit_code == 0
    for result in report.results:
        run = result.run
        expected, found = (
            newest_weights(own.run(run.configuration, run.fold).checkpoint) for own in (alone, workspace)
        )
        assert all(torch.equal(expected[name], value) for name, value in found.items())


def test_images_stored_in_half_precision_train_and_validate_a_cascade(workspace, options):
    save(replace(load(Plan, workspace.plan), store_type="float16"), workspace.plan)
    report = train_queue(workspace, options, never)
    assert [own.state for own in report.results] == ["done"] * 4
    images = [np.load(path, mmap_mode="r") for path in workspace.store.glob("*/*/image.npy")]
    assert {own.dtype for own in images} == {np.dtype(np.float16)}


def test_a_process_that_is_killed_is_reported_and_the_others_go_on(workspace, options, caplog):
    killed: list[int] = []
    asked = threading.Event()
    epochs_then: dict[Run, int] = {}

    def check() -> None:
        if asked.is_set():
            raise Interrupted("stopped")

    def kill_one_and_watch_the_other(now: QueueProgress) -> None:
        if not killed:
            child = next(own for own in multiprocessing.active_children() if own.name == "autoseg cpu")
            killed.append(child.pid)
            os.kill(child.pid, signal.SIGKILL)
        if any(row.state == "failed" for row in now.runs):
            for row in now.runs:
                if row.state == "training" and row.epochs > epochs_then.setdefault(row.run, row.epochs):
                    asked.set()

    chosen = replace(options, configurations=("3d_lowres",), device="cpu,cpu", epochs=100_000)
    report = train_queue(workspace, chosen, check, TrainListeners(on_progress=kill_one_and_watch_the_other))
    assert sorted(run.state for run in report.results) == ["failed", "interrupted"]
    assert "ended by SIGKILL" in caplog.text


def test_a_first_stage_in_other_hands_keeps_its_cascade_waiting(workspace, options):
    folder = workspace.run("3d_lowres", 0).root
    folder.parent.mkdir(parents=True)
    with FileLock(folder.with_name(".fold_0.lock")):
        report = train_queue(workspace, replace(options, epochs=1), never)
    assert [run.state for run in report.results] == ["busy", "done", "busy", "busy"]
    assert report.exit_code == 75


def test_an_interruption_while_cases_are_prepared_ends_the_command(workspace, options):
    def check() -> None:
        raise Interrupted("stopped")

    report = train_queue(workspace, options, check)
    assert (report.results, report.exit_code) == ((), 75)


def test_an_interruption_reaches_every_device(workspace, options):
    asked = threading.Event()

    def check() -> None:
        if asked.is_set():
            raise Interrupted("stopped")

    def stop_when_both_train(now: QueueProgress) -> None:
        if all(row.state == "training" for row in now.runs):
            asked.set()

    chosen = replace(options, configurations=("3d_lowres",), device="cpu,cpu", epochs=100_000)
    report = train_queue(workspace, chosen, check, TrainListeners(on_progress=stop_when_both_train))
    assert [run.state for run in report.results] == ["interrupted", "interrupted"]
    assert report.exit_code == 75
    assert all(Workspace(workspace.root).run("3d_lowres", fold).state.exists() for fold in (0, 1))


def test_a_first_stage_that_fails_takes_its_cascade_along(workspace, options):
    folder = workspace.run("3d_lowres", 0)
    folder.root.mkdir(parents=True)
    folder.recipe.write_text("{}")
    report = train_queue(workspace, replace(options, epochs=1), never)
    assert [run.state for run in report.results] == ["failed", "done", "failed", "failed"]
    assert "needs every fold of 3d_lowres" in str(report.results[2].error)
    assert report.exit_code == 4


def test_a_cascade_is_left_out_where_no_case_is_kept_back(workspace, options, caplog):
    whole = replace(options, on_all_cases=True)
    assert [run.title for run in make_queue(workspace, whole).runs] == ["3d_lowres fold 0"]
    assert "3d_cascade_fullres is left out" in caplog.text
    with pytest.raises(UsageError, match="was not trained on case_0, which no fold keeps back"):
        make_queue(workspace, replace(whole, configurations=("3d_lowres", "3d_cascade_fullres")))


def test_the_forecast_counts_hours_and_disk_of_what_is_not_there(workspace, options):
    folder = workspace.run("3d_lowres", 0)
    save(RunStatus("training", 1, 2, 1.0, None), folder.state)
    folder.recipe.write_text("{}")
    append_history(folder.history, {"epoch": 0, "step": 2, "seconds": 1800.0, "ema_dice": 0.25})
    queue = make_queue(workspace, options)
    told = forecast_queue(workspace, queue, options)
    pace = epoch_seconds(queue)
    assert pace == {"3d_lowres": 1800.0, "3d_cascade_fullres": 1800.0}  # networks of equal cost
    assert [(queue.stages[own.run], own.epochs, own.hours) for own in told.runs] == [
        ("started", 1, 0.5),
        ("new", 2, 1.0),
        ("new", 2, 1.0),
        ("new", 2, 1.0),
    ]
    assert (told.hours, told.devices) == (3.5, 1)
    assert forecast_queue(workspace, queue, replace(options, device="cpu,cpu")).hours == 1.75
    assert told.disk_gib == pytest.approx(told.store_gib + sum(own.disk_gib for own in told.runs))
    assert told.store_gib > 0
    assert told.runs[0].disk_gib == 0 < told.runs[1].disk_gib < told.runs[2].disk_gib * 1.01
    budget = replace(options, budget_seconds=4 * 3600.0, started=time.monotonic())
    shares = forecast_queue(workspace, queue, budget)
    assert [own.epochs for own in shares.runs] == [None] * 4
    assert sum(own.hours for own in shares.runs) == pytest.approx(4.0, abs=0.1)


def test_a_budget_trains_the_preset_cpu_with_the_fast_recipe_unless_one_is_named(workspace, options):
    unnamed = replace(options, recipe=None)
    budget = replace(unnamed, budget_seconds=60.0)
    assert make_queue(workspace, unnamed).recipe == load_recipe("cpu")
    assert make_queue(workspace, budget).recipe == load_recipe("fast")
    assert make_queue(workspace, replace(budget, recipe="cpu")).recipe == load_recipe("cpu")


@pytest.mark.parametrize(("begun_with", "more"), [("cpu", {"budget_seconds": 60.0}), ("fast", {})])
def test_runs_are_trained_as_those_before_where_no_recipe_is_named(workspace, options, begun_with, more):
    folder = workspace.run("3d_lowres", 0)
    folder.root.mkdir(parents=True)
    asked = load_recipe(begun_with, epochs=2)
    save(replace(run_record("3d_lowres", 0), asked=asked), folder.recipe)
    unnamed = replace(options, recipe=None, epochs=2, **more)
    assert make_queue(workspace, unnamed).recipe == asked
    other = replace(unnamed, epochs=3, configurations=("3d_lowres",), folds=(1,))  # the begun run is not in this queue
    assert make_queue(workspace, other).recipe == replace(asked, epochs=3)
    usual = load_recipe("fast" if more else "cpu", epochs=2)
    assert make_queue(workspace, replace(unnamed, is_fresh=True)).recipe == usual
    folder.recipe.write_text("{}")
    assert make_queue(workspace, unnamed).recipe == usual


def test_the_forecast_measures_what_has_no_history(workspace, options):
    told = forecast_queue(workspace, make_queue(workspace, options), options)
    assert all(own.hours > 0 for own in told.runs)
    assert "one measured training step" in told.because


def progress_of(queue: Queue, states=None, steps=None, deadline=None) -> QueueProgress:
    """Where a queue stands whose runs have these states (by position) or steps."""
    results = {queue.runs[index]: RunResult(queue.runs[index], state) for index, state in (states or {}).items()}
    at_work = {queue.runs[index]: own for index, own in (steps or {}).items()}
    return ProgressReporter(queue, deadline, 1, None, results, at_work).now()


def test_the_progress_says_where_runs_are_and_when_all_will_end(workspace, options):
    queue = make_queue(workspace, options)
    assert progress_of(queue).ends_at is None
    folder = workspace.run("3d_lowres", 0)
    folder.root.mkdir(parents=True)
    folder.recipe.write_text("{}")
    append_history(folder.history, {"epoch": 0, "step": 2, "seconds": 100.0, "ema_dice": 0.25})
    now = progress_of(queue, {1: "failed"}, {0: (3, 4)})
    assert now.runs[0] == RunProgress(queue.runs[0], "training", 1, 2, 0.25)
    assert [row.state for row in now.runs] == ["training", "failed", "waiting", "waiting"]
    assert now.ends_at - time.time() == pytest.approx(500.0, abs=60.0)
    save(RunStatus("validating", 2, 2, 1.0, 0.5), folder.state)
    assert progress_of(queue, steps={0: (4, 4)}).runs[0].state == "validating"
    assert progress_of(queue, dict.fromkeys(range(4), "done"), deadline=time.monotonic() + 9.0).ends_at is None


def test_moments_far_away_carry_their_date():
    now = time.time()
    assert len(clock_time(now)) == 5
    assert clock_time(now + 3 * 86400).startswith("20")


def test_the_board_shows_every_run_and_the_end():
    first, second = (Run("3d_lowres", fold, RunFolder(Path("nowhere"))) for fold in (0, 1))
    rows = (RunProgress(first, "done", 2, 2, 0.87654), RunProgress(second, "waiting", 0, 2, None))
    stream = io.StringIO()
    Console(file=stream, width=100).print(draw_board(QueueProgress(rows, time.time())))
    shown = stream.getvalue()
    assert "0.8765" in shown
    assert "waiting" in shown
    assert "1 of 2 runs done, ends about" in shown
    stream = io.StringIO()
    Console(file=stream, width=100).print(draw_board(QueueProgress(rows, None)))
    assert "ends" not in stream.getvalue()


def test_the_dry_run_prints_the_queue_for_people_and_programs(workspace, options, planned):
    common = ["train", str(planned), "--work", str(workspace.root), "--recipe", options.recipe, "--device", "cpu"]
    told = CliRunner().invoke(cli, [*common, "--dry-run", "--json", "--budget", "1000h"], standalone_mode=False)
    document = json.loads(told.stdout)
    assert [run["configuration"] for run in document["runs"]] == ["3d_lowres"] * 2 + ["3d_cascade_fullres"] * 2
    assert document["hours"] == pytest.approx(1000.0, abs=50.0)
    shown = CliRunner().invoke(cli, [*common, "--dry-run", "--budget", "1000h"], standalone_mode=False)
    assert "shares of what is left of the budget" in shown.stdout
    assert "out-of-fold probabilities" in shown.stdout
    assert "h:mm" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--fold", "7"], UsageError),
        (["--configuration", "2d"], UsageError),
        (["--configuration", "3d_cascade_fullres"], UsageError),
        (["--device", "cpu,tpu"], UsageError),
        (["--group-by", "("], UsageError),
    ],
)
def test_contradictions_are_usage_errors(workspace, planned, arguments, code):
    result = CliRunner().invoke(cli, ["train", str(planned), "--work", str(workspace.root), *arguments])
    assert isinstance(result.exception, code)
    assert result.exception.exit_code == 2


def test_probabilities_get_the_disk_that_the_user_grants(workspace, options, planned):
    common = ["train", str(planned), "--work", str(workspace.root), "--recipe", options.recipe, "--device", "cpu"]
    chosen = [*common, "--configuration", "3d_lowres", "--fold", "0", "--epochs", "1", "--probabilities-disk", "0"]
    result = CliRunner().invoke(cli, [*chosen, "--group-by", ".+", "-q"], standalone_mode=False)
    assert result.return_value == 0
    folder = workspace.run("3d_lowres", 0)
    assert load(RunRecord, folder.recipe).val
    assert list(folder.validation.glob("*.nii.gz"))
    assert not list(folder.validation.glob("*.npz"))
