"""Seconds per epoch, extrapolated from batches that a device is made to take a known time for."""

from __future__ import annotations

import math

import pytest
import torch

from autoseg.runs import forecast
from autoseg.runs.forecast import seconds_per_epoch
from autoseg.training.recipe import load_recipe
from tests.planning.builders import fingerprint_of, plan_of

SHARE_OF_FORWARD = 1 / 3


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
    steps = recipe.steps_per_epoch + recipe.validation_steps * SHARE_OF_FORWARD
    expected = steps * step_seconds(None, (own.batch_size, *own.patch_size), None)
    assert seconds_per_epoch(plan, name, "cpu", recipe) == pytest.approx(expected, rel=0.1)


def test_a_batch_that_does_not_fit_is_extrapolated_to(monkeypatch):
    plan = planned()

    def step_seconds(network, shape, compute):
        if shape[0] > 1:
            raise torch.OutOfMemoryError("out of memory")
        return 1e-10 * math.prod(shape)

    monkeypatch.setattr(forecast, "step_seconds", step_seconds)
    own = plan.configurations["2d"]
    fewest = 1e-10 * own.batch_size * math.prod(own.patch_size) * load_recipe("default").steps_per_epoch
    assert fewest < seconds_per_epoch(plan, "2d", "cpu") < 1.2 * fewest
