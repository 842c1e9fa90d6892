"""A small real comparison: networks are trained, scored on the cases kept back, compared, and written for people."""

import csv
import importlib.util
import json
import shutil
import sys
from dataclasses import replace

import html5lib
import pytest

from autoseg.core.records import load, save
from autoseg.core.workspace import Workspace
from autoseg.planning.plan import Plan
from autoseg.runs.run import RunRecord, RunStatus
from tests.preprocessing.tiny_dataset import planned_tiny_dataset

CONTENDERS = {"2d, cpu", "3d_fullres, cpu"}


@pytest.fixture(scope="module")
def script(repository):
    path = repository / "scripts" / "benchmark_configurations.py"
    spec = importlib.util.spec_from_file_location("benchmark_configurations", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _command(dataset, out, *more):
    effort = ("--epochs", "1", "--steps", "1") if "--budget" not in more else ()
    return [str(dataset), "--recipes", "cpu", *effort, "--device", "cpu", "--out", str(out), *more]


@pytest.fixture(scope="module")
def made(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    planned_tiny_dataset(folder / "data", cases=6)
    before = sorted(path.name for path in (folder / "data" / "autoseg").iterdir())
    code = script.main(_command(folder / "data", folder / "out", "--seeds", "0", "1", "--folds", "0", "1"))
    assert code == 0
    assert sorted({*before, "store"}) == sorted(path.name for path in (folder / "data" / "autoseg").iterdir())
    return folder


def test_every_contender_is_scored_on_every_case_with_every_seed(made):
    out = made / "out"
    document = json.loads((out / "comparison.json").read_text())
    assert {own["name"] for own in document["comparison"]["contenders"]} == CONTENDERS
    assert len(document["runs"]) == 2 * 2 * 2
    assert {run["state"] for run in document["runs"]} == {"done"}
    kept = [name for fold in json.loads((out / "splits.json").read_text())[:2] for name in fold["val"]]
    assert document["comparison"]["cases"] == sorted(kept)
    assert all(set(own) == {"0", "1"} for own in document["seeds"].values())
    rows = list(csv.DictReader((out / "scores.csv").read_text().splitlines()))
    expected = {(name, seed, case) for name in CONTENDERS for seed in "01" for case in kept}
    assert {(row["contender"], row["seed"], row["case"]) for row in rows} == expected


def test_contenders_take_turns_on_equal_folds(script, made):
    document = json.loads((made / "out" / "comparison.json").read_text())
    order = [run["contender"] for run in document["runs"]]
    assert order == ["2d, cpu", "3d_fullres, cpu"] * 4
    folders = [
        made / "out/work/cpu" / f"seed_{seed}" / "runs" / name for seed in (0, 1) for name in ("2d", "3d_fullres")
    ]
    records = [load(RunRecord, folder / "fold_0/recipe.json") for folder in folders]
    assert len({record.val for record in records}) == 1
    assert {record.seed for record in records} == {0, 1}


def test_the_page_is_valid_html_and_needs_no_network(made):
    text = (made / "out" / "comparison.html").read_text()
    html5lib.HTMLParser(strict=True).parse(text)
    assert all(own in text for own in CONTENDERS)
    assert "http" not in text
    assert "data:image/png;base64," in text
    assert (made / "out" / "comparison.png").stat().st_size > 5000


def test_the_same_command_again_trains_nothing(script, made, tmp_path, capsys):
    shutil.copytree(made / "out", tmp_path / "out", symlinks=True)
    checkpoint = tmp_path / "out/work/cpu/seed_0/runs/2d/fold_0/checkpoint"
    before = {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")}
    command = _command(made / "data", tmp_path / "out", "--seeds", "0", "--folds", "0", "1")
    assert script.main(command) == 0
    assert before == {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")}
    assert "critical difference" in capsys.readouterr().out


def test_every_run_gets_the_whole_budget_for_itself(script, made, tmp_path, capsys):
    script.main(_command(made / "data", tmp_path / "out", "--budget", "1s", "--folds", "0"))
    assert "used up" not in "".join(capsys.readouterr())
    states = [load(RunStatus, path).state for path in (tmp_path / "out" / "work").glob("*/*/runs/*/fold_0/state.json")]
    assert states == ["done", "done"]


def test_another_effort_in_the_same_folder_is_refused(script, made, capsys):
    assert script.main(_command(made / "data", made / "out", "--budget", "5m")) == 2
    assert "epochs" in capsys.readouterr().err


@pytest.mark.parametrize("more", [("--epochs", "1", "--budget", "5m"), ("--configurations", "4d"), ("--recipes", "x")])
def test_contradictions_and_unknown_names_are_usage_errors(script, made, tmp_path, more, capsys):
    assert script.main(_command(made / "data", tmp_path / "out", *more)) == 2
    assert "error E0101" in capsys.readouterr().err


def test_a_dataset_without_a_plan_is_told_to_be_planned(script, tmp_path, capsys):
    assert script.main(_command(tmp_path, tmp_path / "out")) == 2
    assert "autoseg plan" in capsys.readouterr().err


def test_two_recipes_of_one_name_are_refused(script, made, tmp_path, repository):
    shutil.copyfile(repository / "configs/recipes/cpu.yaml", tmp_path / "cpu.yaml")
    command = _command(made / "data", tmp_path / "out", "--recipes", "cpu", str(tmp_path / "cpu.yaml"))
    assert script.main(command) == 2


def test_a_time_span_that_is_none_is_a_usage_error(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.parse(["data", "--budget", "soon"])
    assert stopped.value.code == 2
    assert "soon" in capsys.readouterr().err


def test_runs_that_kept_back_other_cases_are_refused(script, made, tmp_path, capsys):
    shutil.copytree(made / "out", tmp_path / "out", symlinks=True)
    path = tmp_path / "out/work/cpu/seed_1/runs/2d/fold_0/recipe.json"
    record = load(RunRecord, path)
    save(replace(record, val=()), path)
    assert script.main(_command(made / "data", tmp_path / "out", "--seeds", "0", "1", "--folds", "0", "1")) == 2
    assert "kept back other cases" in capsys.readouterr().err


def test_a_run_that_fails_is_listed_and_the_others_are_compared(script, made, tmp_path, capsys):
    shutil.copytree(made / "out", tmp_path / "out", symlinks=True)
    run = tmp_path / "out/work/cpu/seed_1/runs/2d/fold_1"
    (run / "state.json").unlink()
    (run / "recipe.json").write_text("not JSON")
    code = script.main(_command(made / "data", tmp_path / "out", "--seeds", "0", "1", "--folds", "0", "1"))
    assert code == script.SOME_FAILED
    document = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [run["state"] for run in document["runs"]].count("missing") == 1


def test_a_cascade_comes_after_the_stage_before_it(script, made, tmp_path):
    source = Workspace(made / "data" / "autoseg")
    plan = load(Plan, source.plan)
    full = plan.configurations["3d_fullres"]
    cascade = replace(full, name="3d_cascade_fullres", cascade_from="3d_lowres")
    low = replace(full, name="3d_lowres")
    plan = replace(plan, configurations={"3d_cascade_fullres": cascade, "3d_lowres": low})
    asked = script.parse(
        _command(made / "data", tmp_path, "--folds", "0", "1", "--configurations", "3d_cascade_fullres", "3d_lowres")
    )
    order = [run.configuration for run in script.make_runs(asked, plan, source)]
    assert order == ["3d_lowres"] * 2 + ["3d_cascade_fullres"] * 2


@pytest.mark.real
def test_hippocampus_configurations_are_compared(script, shared, tmp_path):
    from autoseg.api.plan import plan_dataset
    from autoseg.planning.planner import PlanOptions

    source = shared / "data" / "hippocampus"
    data = tmp_path / "hippocampus"
    names = sorted(path.name.removesuffix(".nii.gz") for path in (source / "labelsTr").glob("*.nii.gz"))[:6]
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (data / folder).mkdir(parents=True)
        for name in names:
            (data / folder / f"{name}{ending}").symlink_to(source / folder / f"{name}{ending}")
    description = json.loads((source / "dataset.json").read_text()) | {"numTraining": len(names)}
    (data / "dataset.json").write_text(json.dumps(description))
    plan_dataset(data, Workspace(data / "autoseg"), PlanOptions("cpu"), jobs=1)
    more = ("--epochs", "2", "--steps", "40", "--folds", "0", "1")
    command = [str(data), "--recipes", "cpu", "--device", "cpu", "--out", str(tmp_path / "out"), *more]
    assert script.main(command) == 0
    document = json.loads((tmp_path / "out" / "comparison.json").read_text())
    kept = [name for fold in json.loads((tmp_path / "out" / "splits.json").read_text())[:2] for name in fold["val"]]
    assert document["comparison"]["cases"] == sorted(kept)
    assert max(own["score"] for own in document["comparison"]["contenders"]) > 0.2
