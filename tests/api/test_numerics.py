"""Commands compute with what is right on this machine, and say what that is."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from autoseg import predict, train
from autoseg.api.doctor import examine
from autoseg.api.plan import plan
from autoseg.core.errors import Interrupted, WrongNumerics
from autoseg.core.records import load
from autoseg.core.workspace import Workspace
from autoseg.inference.manifest import PredictionManifest
from autoseg.launch import precision
from autoseg.runs.run import RunRecord
from tests.cli.test_predict import write_cases
from tests.launch.planted import is_channels_last, is_half, plant
from tests.preprocessing.tiny_dataset import write_tiny_dataset
from tests.runs.trained import trained_work_folder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _own_cache_and_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "cpu_features", lambda: {"avx512_bf16"})


def wrong_in_bfloat16_and_channels_last(result: Tensor, weight: Tensor) -> Tensor:
    return result * 1.3 if is_half() or is_channels_last(weight) else result


def test_training_goes_around_what_is_wrong_and_its_record_says_so(tmp_path, monkeypatch) -> None:
    plant(monkeypatch, wrong_in_bfloat16_and_channels_last)
    folder = tmp_path / "data"
    write_tiny_dataset(folder, 4, (3.0,))
    plan(folder, preset="cpu")
    train(folder, configurations=("3d_fullres",), folds=(0,), device="cpu", epochs=1, steps=1, jobs=1)
    run = Workspace(folder / "autoseg").run("3d_fullres", 0)
    record = load(RunRecord, run.recipe)
    assert (record.precision, record.memory_format) == ("fp32", "contiguous")
    assert "bf16 channels last, which computes wrong values" in record.decisions[0]


def test_a_resumed_run_is_refused_where_its_precision_is_wrong_by_now(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "data"
    write_tiny_dataset(folder, 4, (3.0,))
    plan(folder, preset="cpu")

    def stop_soon(done: int, _total: int) -> None:
        if done == 1:
            raise Interrupted("stopped")

    options = {"configurations": ("3d_fullres",), "folds": (0,), "device": "cpu", "epochs": 1, "steps": 3, "jobs": 1}
    with pytest.raises(Interrupted):
        train(folder, progress=stop_soon, **options)
    monkeypatch.setenv("AUTOSEG_CACHE", str(tmp_path / "of other libraries"))
    with monkeypatch.context() as changed:
        plant(changed, lambda result, _weight: result * 1.3)
        with pytest.raises(WrongNumerics):
            train(folder, **options)
    monkeypatch.setenv("AUTOSEG_CACHE", str(tmp_path / "of repaired ones"))
    assert train(folder, **options).report.exit_code == 0


def test_prediction_goes_around_what_is_wrong_and_its_manifest_says_so(tmp_path, monkeypatch) -> None:
    plant(monkeypatch, wrong_in_bfloat16_and_channels_last)
    work, out = trained_work_folder(tmp_path, folds=(0,)), tmp_path / "out"
    predict(work, write_cases(tmp_path / "in", 1), out, device="cpu", report=False)
    assert load(PredictionManifest, out / "manifest.json").numerics == {"3d_fullres": "fp32, contiguous"}


def test_the_doctor_names_what_is_wrong_and_that_it_is_not_used(tmp_path, monkeypatch) -> None:
    plant(monkeypatch, wrong_in_bfloat16_and_channels_last)
    found = examine(tmp_path)
    assert found.works
    assert found.numerics["cpu, 3D"].startswith("fp32, contiguous")
    notes = [finding.what for finding in found.findings]
    assert any("bf16 contiguous" in note and "wrong" in note for note in notes)


def test_the_doctor_says_that_training_is_impossible_where_all_is_wrong(tmp_path, monkeypatch) -> None:
    plant(monkeypatch, lambda result, _weight: result.neg())
    found = examine(tmp_path)
    assert not found.works
    assert "cpu computes" in found.findings[0].what
