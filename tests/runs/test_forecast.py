"""Seconds per epoch, extrapolated from batches that a device is made to take a known time for."""

from __future__ import annotations

import math

import pytest
import torch

from autoseg.core.workspace import Workspace
from autoseg.runs import forecast
from autoseg.runs.forecast import USEFUL_EPOCHS, RunNeeds, seconds_per_epoch
from autoseg.runs.queue import Queue
from autoseg.runs.run import Run
from autoseg.training.callbacks.history import append_history
from autoseg.training.callbacks.time_budget import VALIDATION_COST
from autoseg.training.recipe import load_recipe
from autoseg.training.splits import Fold
from tests.planning.builders import fingerprint_of, plan_of

FOLDS = (Fold(("a",), ("b",)), Fold(("b",), ("a",)))


def planned():
    return plan_of(fingerprint_of([(1.0, 1.0, 1.0)] * 4, [(35, 51, 35)] * 4))


@pytest.mark.parametrize("name", ["2d", "3d_fullres"])
@pytest.mark.parametrize(
    ("overhead", "per_voxel"),
    [(0.01, 4e-7), (0.01, 1e-10), (0.0, 1e-5)],
    ids=["a GPU", "a GPU that is never busy", "a CPU"],
)
def test_a_step_that_takes_long_however_small_does_not_count_for_every_image(monkeypatch, name, overhead, per_voxel):
    plan, recipe = planned(), load_recipe("default")
    own = plan.configurations[name]
    assert own.batch_size > 1

    def step_seconds(network, shape, compute):
        return overhead + per_voxel * math.prod(shape)

    monkeypatch.setattr(forecast, "step_seconds", step_seconds)
    steps = recipe.steps_per_epoch + recipe.validation_steps * VALIDATION_COST
    expected = steps * step_seconds(None, (own.batch_size, *own.patch_size), None)
    assert seconds_per_epoch(plan, name, "cpu", recipe) == pytest.approx(expected, rel=0.1)


def test_a_batch_that_does_not_fit_is_extrapolated_to(monkeypatch):
    plan = planned()

    def step_seconds(network, shape, compute):
        if shape[0] > 4:
            raise torch.OutOfMemoryError("out of memory")
        return 1e-10 * math.prod(shape)

    monkeypatch.setattr(forecast, "step_seconds", step_seconds)
    own = plan.configurations["2d"]
    fewest = 1e-10 * own.batch_size * math.prod(own.patch_size) * load_recipe("default").steps_per_epoch
    assert fewest < seconds_per_epoch(plan, "2d", "cpu") < 1.2 * fewest


def test_a_measurement_that_was_too_slow_costs_the_first_run_no_more_than_it_was_thought_to_take(monkeypatch, tmp_path):
    plan = planned()
    monkeypatch.setattr(forecast, "step_seconds", lambda *_: 4.0)
    runs = tuple(Run("2d", fold, Workspace(tmp_path).run("2d", fold)) for fold in range(2))
    queue = Queue(plan, None, None, load_recipe("cpu"), FOLDS, runs, dict.fromkeys(runs, "new"))
    needs = RunNeeds(queue, torch.device("cpu"), 0.1)
    needs.groups(runs, 1000.0)
    useful, needed = USEFUL_EPOCHS * 50, needs.fewest_seconds("2d")
    assert needs.most_steps("2d", needed / 2) == useful
    assert needs.most_steps("2d", 3 * needed) == 3 * useful
    for step in (10, 20):
        append_history(runs[0].folder.history, {"epoch": step // 10, "step": step, "seconds": 10.0})
    needs.note(runs[0])
    assert needs.step_seconds("2d") == pytest.approx(1.0)
    assert needs.fewest_seconds("2d") < needed / 3
    assert needs.most_steps("2d", 3 * needed) == math.inf


def test_a_run_without_validation_needs_no_time_for_it(monkeypatch, tmp_path):
    plan = planned()
    monkeypatch.setattr(forecast, "step_seconds", lambda *_: 4.0)
    runs = (Run("2d", 0, Workspace(tmp_path).run("2d", 0)),)

    def needed(*folds: Fold) -> float:
        queue = Queue(plan, None, None, load_recipe("cpu"), folds, runs, dict.fromkeys(runs, "new"))
        needs = RunNeeds(queue, torch.device("cpu"), 0.1)
        needs.groups(runs, 1000.0)
        return needs.fewest_seconds("2d")

    assert needed(Fold(("a", "b"), ())) < 0.8 * needed(Fold(("a",), ("b",)))


def test_a_configuration_that_there_is_no_time_for_is_not_measured(monkeypatch, tmp_path):
    plan, measured = planned(), []
    monkeypatch.setattr(forecast, "_seconds_per_voxel", lambda _plan, own, *_: measured.append(own.name) or 1e-4)
    runs = tuple(Run(name, 0, Workspace(tmp_path).run(name, 0)) for name in ("3d_fullres", "2d"))
    queue = Queue(plan, None, None, load_recipe("cpu"), FOLDS, runs, dict.fromkeys(runs, "new"))
    needs = RunNeeds(queue, torch.device("cpu"), 0.1)
    little = needs.groups(runs, 1.0)
    assert measured == ["2d"]
    assert [own.configuration for own in little] == ["2d", "3d_fullres"]
    assert little[1].needed[runs[0]] > little[0].needed[runs[1]]
    needs.groups(runs, 1e9)
    assert measured == ["2d", "3d_fullres"]
