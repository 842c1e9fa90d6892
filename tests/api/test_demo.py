"""The demo makes what it says, goes on where it was stopped, and says so in one JSON document."""

import json

import pytest
from click.testing import CliRunner

from autoseg.api import demo as walk
from autoseg.api.demo import run_demo
from autoseg.cli.demo import demo
from autoseg.core.errors import Interrupted
from autoseg.runs.queue import TrainOptions

TINY = TrainOptions(epochs=1, steps=1, device="cpu")
CASES = {"training_cases": 3, "test_cases": 1}


def _never():
    pass


def _curves(folder):
    return (folder / "synthetic/autoseg/runs").glob("*/*/curves.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, TINY, _never, **CASES)


def test_the_walk_leaves_dataset_plan_runs_selection_predictions_pictures_and_report(made):
    folder, result = made
    assert list(result.scores.cases) == ["phantom_ts000"]
    assert set(result.scores.mean) == {"organ", "lesion", "vessel"}
    assert [path.name for path in result.overlays] == ["phantom_ts000.png"]
    assert all(path.stat().st_size > 10_000 for path in result.overlays)
    assert (folder / "predictions" / "phantom_ts000.nii.gz").exists()
    assert (folder / "predictions" / "report.html").exists()
    assert (folder / "synthetic/autoseg/plan.json").exists()
    runs = {f"{name}/fold_{fold}" for name in ("2d", "3d_fullres") for fold in range(3)}
    assert {path.parent.relative_to(folder / "synthetic/autoseg/runs").as_posix() for path in _curves(folder)} == runs
    assert set(result.selection.runs) == runs
    assert result.report.read_text().startswith("<!")
    splits = json.loads((folder / "synthetic/autoseg/splits.json").read_text())
    assert sorted(name for fold in splits for name in fold["val"]) == [f"phantom_tr{i:03d}" for i in range(3)]


def test_the_same_demo_again_trains_nothing(made):
    folder, _ = made
    checkpoint = folder / "synthetic/autoseg/runs/3d_fullres/fold_0/checkpoint"
    before = {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")}
    again = run_demo(folder, TINY, _never, **CASES)
    assert before == {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")}
    assert again.scores.cases.keys() == {"phantom_ts000"}


def test_a_demo_that_is_stopped_leaves_a_dataset_to_go_on_with(tmp_path):
    def stop():
        raise Interrupted("stopped by SIGINT")

    with pytest.raises(Interrupted):
        run_demo(tmp_path, TINY, stop, **CASES)
    assert (tmp_path / "synthetic/dataset.json").exists()


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_prints_a_table_or_one_document(tmp_path, made, monkeypatch, as_json):
    folder, result = made
    monkeypatch.setattr(walk, "run_demo", lambda *_: result)
    options = ["--json", "-q"] if as_json else ["-q"]
    done = CliRunner().invoke(demo, ["--out", str(tmp_path), *options], catch_exceptions=False)
    assert done.exit_code == 0
    if as_json:
        told = json.loads(done.stdout)
        assert told["overlays"] == [str(folder / "overlays" / "phantom_ts000.png")]
        assert set(told["mean"]) == {"organ", "lesion", "vessel"}
    else:
        assert "mean Dice over classes" in done.stdout
        assert "phantom_ts000" in done.stdout
