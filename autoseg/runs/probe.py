"""How long an epoch takes on the present device: one short measurement per configuration."""

from __future__ import annotations

import math

from autoseg.launch.devices import choose_device, use_cores
from autoseg.launch.precision import native_types, step_seconds
from autoseg.networks.build import build_network
from autoseg.planning.plan import Configuration, Plan
from autoseg.training.recipe import Recipe, load_recipe
from autoseg.training.step import Compute

PROBE_SECONDS = 0.4
"""A patch whose step takes this long is large enough to extrapolate from, in proportion to the voxels (assumption)."""


def seconds_per_epoch(plan: Plan, name: str, device_name: str, recipe: Recipe | None = None) -> float:
    """Seconds that the training steps and the quick validation of an epoch take, extrapolated from one step.

    Args:
        plan: with the configuration.
        name: of the configuration.
        device_name: as `--device` has it.
        recipe: how long an epoch is; default: the preset's.
    """
    configuration = plan.configurations[name]
    recipe = recipe or load_recipe("cpu" if plan.preset == "cpu" else "default")
    per_voxel = _seconds_per_voxel(plan, configuration, device_name)
    step = per_voxel * math.prod(configuration.patch_size) * configuration.batch_size
    forward_share = 1 / 3  # a backward pass costs about two forward passes
    return step * (recipe.steps_per_epoch + recipe.validation_steps * forward_share)


def _seconds_per_voxel(plan: Plan, configuration: Configuration, device_name: str) -> float:
    device, _ = choose_device(device_name)
    use_cores()
    compute = Compute(device, (*native_types(device), "fp32")[0], "channels_last")
    channels = plan.input_channels(configuration.name)
    network = build_network(configuration.network, channels, plan.labels.head_count)
    strides = [math.prod(axis) for axis in zip(*configuration.network.strides, strict=True)]
    patch = [min(2 * stride, edge) for stride, edge in zip(strides, configuration.patch_size, strict=True)]
    seconds = step_seconds(network, (1, channels, *patch), compute)
    while seconds < PROBE_SECONDS and tuple(patch) != configuration.patch_size:
        axis = min(range(len(patch)), key=lambda index: patch[index] / configuration.patch_size[index])
        patch[axis] = min(2 * patch[axis], configuration.patch_size[axis])
        seconds = step_seconds(network, (1, channels, *patch), compute)
    return float(seconds / math.prod(patch))
