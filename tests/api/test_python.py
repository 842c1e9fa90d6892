"""The documented front door: `import autoseg` and four functions."""

from __future__ import annotations

import doctest
import subprocess
import sys

import pytest

import autoseg
import autoseg.api
from autoseg.core.errors import MissingInput, PlanFault, UsageError
from autoseg.core.workspace import Workspace
from autoseg.data.synthetic import write_synthetic_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_synthetic_dataset(tmp_path_factory.mktemp("api") / "synthetic", 3, 1)


def test_the_examples_of_the_front_door_run(dataset):
    found = doctest.testmod(autoseg.api, extraglobs={"dataset": str(dataset)})
    assert found.attempted >= 12
    assert found.failed == 0


def test_what_is_wrong_is_raised(tmp_path, dataset):
    with pytest.raises(MissingInput):
        autoseg.plan(tmp_path / "nowhere")
    with pytest.raises(MissingInput, match="plan"):
        autoseg.train(dataset, work=tmp_path / "empty")
    with pytest.raises(MissingInput):
        autoseg.select(dataset, work=tmp_path / "empty")
    with pytest.raises(PlanFault, match="3d_lowres"):
        autoseg.plan(dataset, work=tmp_path / "work", configurations=["3d_lowres"])


def test_a_run_that_failed_is_raised_after_the_others(dataset, tmp_path, monkeypatch):
    work = tmp_path / "work"
    autoseg.plan(dataset, work=work, preset="cpu", configurations=["2d"])
    assert Workspace(work).plan.exists()

    def broken(*_arguments):
        raise UsageError("no way")

    monkeypatch.setattr("autoseg.runs.execute.train_and_validate", broken)
    with pytest.raises(UsageError, match="no way"):
        autoseg.train(dataset, work=work, folds=[0], epochs=1, steps=1, device="cpu")


def test_importing_costs_nothing_and_unknown_names_are_errors(repository):
    code = "import sys, autoseg; print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)), dir(autoseg))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert ran.stdout.split("]")[0] == "["
    for name in ("plan", "train", "select", "load_model"):
        assert name in ran.stdout
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        autoseg.fly  # noqa: B018
