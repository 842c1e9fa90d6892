"""What a queue will cost before it starts: hours of each run, and disk."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from autoseg.core.machine import BYTES_PER_GIB, free_disk_bytes
from autoseg.core.workspace import Workspace
from autoseg.launch.devices import choose_device, choose_devices, use_cores
from autoseg.launch.precision import growing_batches, native_types, step_seconds
from autoseg.planning.plan import Configuration, Plan
from autoseg.preprocessing.store import RECORD, store_folder
from autoseg.runs.budget import budget_deadline, run_deadline
from autoseg.runs.progress import epoch_seconds
from autoseg.runs.queue import Queue, TrainOptions
from autoseg.runs.run import Run
from autoseg.training.checkpoint import GENERATIONS_KEPT
from autoseg.training.optimization import mean_cost
from autoseg.training.recipe import Recipe, load_recipe, relative_costs, stage_configurations
from autoseg.training.step import Compute

PROBE_SECONDS = 0.4
"""A patch whose step takes this long is large enough to extrapolate from, in proportion to the voxels (assumption)."""

_BYTES_PER_NUMBER = 4
_MOMENTS = {"sgd": 1, "adamw": 2, "muon": 1}  # numbers that the optimizer keeps per weight


@dataclass(frozen=True, slots=True)
class RunForecast:
    """What a run will cost.

    Attributes:
        run: of the queue.
        epochs: still to be trained; None under a budget, which chooses them.
        hours: of training, without the validation at the end; 0 if it is done.
        disk_gib: that its checkpoints will take, if they are not there yet.
    """

    run: Run
    epochs: int | None
    hours: float
    disk_gib: float


@dataclass(frozen=True, slots=True)
class QueueForecast:
    """What a queue will cost.

    Attributes:
        runs: in order.
        hours: of the whole, with all devices at work.
        devices: that work side by side.
        store_gib: of prepared cases that are not there yet.
        disk_gib: of everything that is not there yet, out-of-fold probabilities aside.
        probabilities_gib: that the out-of-fold probabilities of all runs may take at most.
        free_gib: on the disk of the work folder.
        because: where the hours come from.
    """

    runs: tuple[RunForecast, ...]
    hours: float
    devices: int
    store_gib: float
    disk_gib: float
    probabilities_gib: float
    free_gib: float
    because: str


def forecast_queue(workspace: Workspace, queue: Queue, options: TrainOptions) -> QueueForecast:
    """Hours and disk of a queue; writes nothing.

    The seconds of an epoch come from runs of the queue that have begun, else from one short measurement per
    configuration on the device.

    Args:
        workspace: with a plan.
        queue: as `make_queue` made it.
        options: it was made with.

    Raises:
        UsageError: no such device; or the budget was used up before.
    """
    devices, _ = choose_devices(options.device)
    open_runs = queue.open_runs
    hours, because = _hours(queue, options, len(devices))
    checkpoints = {name: _checkpoint_gib(queue.plan, name, queue.recipe) for name in queue.plan.configurations}
    runs = tuple(
        RunForecast(
            run=run,
            epochs=None if options.budget_seconds is not None else _epochs_left(run, queue),
            hours=hours.get(run, 0.0),
            disk_gib=checkpoints[run.configuration] if queue.stages[run] == "new" else 0.0,
        )
        for run in queue.runs
    )
    store = _missing_store_gib(workspace, queue, open_runs)
    return QueueForecast(
        runs=runs,
        hours=sum(hours.values()) / max(1, min(len(devices), len(open_runs))),
        devices=len(devices),
        store_gib=store,
        disk_gib=store + sum(run.disk_gib for run in runs),
        probabilities_gib=options.probabilities_gib,
        free_gib=free_disk_bytes(workspace.root) / BYTES_PER_GIB,
        because=because,
    )


def _hours(queue: Queue, options: TrainOptions, devices: int) -> tuple[dict[Run, float], str]:
    open_runs = queue.open_runs
    deadline = budget_deadline(queue, options)
    if deadline is not None:
        now = time.monotonic()
        ends = {run: run_deadline(deadline, run, open_runs, devices, now) or now for run in open_runs}
        return {run: (end - now) / 3600 for run, end in ends.items()}, "shares of what is left of the budget"
    pace, because = epoch_seconds(queue), "from the epochs trained so far, without the validation of the folds"
    if not pace and open_runs:
        names = dict.fromkeys(run.configuration for run in open_runs)
        device = options.device.partition(",")[0]
        pace = {name: seconds_per_epoch(queue.plan, name, device, queue.recipe) for name in names}
        because = "from one measured training step of each configuration, without the validation of the folds"
    return {run: pace[run.configuration] * _epochs_left(run, queue) / 3600 for run in open_runs}, because


def _epochs_left(run: Run, queue: Queue) -> int:
    stage = queue.stages[run]
    status = run.status if stage == "started" else None
    if status is None:
        return 0 if stage == "done" else queue.recipe.epochs
    return max(0, status.epochs_planned - status.epochs)


def _checkpoint_gib(plan: Plan, name: str, recipe: Recipe) -> float:
    """All generations of a run's checkpoint: weights, their average and what the optimizer keeps."""
    weights = sum(math.prod(shape) for shape in plan.parameter_shapes(name).values())
    averaged = int(recipe.ema_decay > 0)
    copies = GENERATIONS_KEPT * (1 + averaged + _MOMENTS[recipe.optimizer])
    return weights * copies * _BYTES_PER_NUMBER / BYTES_PER_GIB


def _missing_store_gib(workspace: Workspace, queue: Queue, runs: list[Run]) -> float:
    """Of the prepared cases that are not there yet; configurations that prepare alike share them."""
    needed: dict[Path, Configuration] = {}
    for run in runs:
        configuration = queue.configuration_of(run)
        folder = store_folder(workspace.store, queue.plan, configuration, queue.fingerprint)
        needed.setdefault(folder, configuration)
    total = 0.0
    for folder, configuration in needed.items():
        missing = sum(not (folder / case.identifier / RECORD).exists() for case in queue.fingerprint.cases)
        share = missing / len(queue.fingerprint.cases)
        total += share * queue.plan.store_gib(configuration, queue.fingerprint)
    return total


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
    stages = stage_configurations(configuration, recipe)
    voxels = math.prod(configuration.patch_size) * stages[-1].batch_size
    step = per_voxel * voxels * mean_cost(0.0, relative_costs(stages))
    forward_share = 1 / 3  # a backward pass costs about two forward passes
    return step * (recipe.steps_per_epoch + recipe.validation_steps * forward_share)


def _seconds_per_voxel(plan: Plan, configuration: Configuration, device_name: str) -> float:
    device, _ = choose_device(device_name)
    use_cores()
    compute = Compute(device, (*native_types(device), "fp32")[0], "channels_last")
    network = plan.build_network(configuration.name)
    per_voxel = math.nan
    for shape in growing_batches(configuration, plan.input_channels(configuration.name)):
        try:
            seconds = _settled_seconds(network, shape, compute)
        except torch.OutOfMemoryError:  # what fitted tells enough; training will say what to do
            if math.isnan(per_voxel):
                raise
            break
        per_voxel = seconds * shape[1] / math.prod(shape)
        if seconds >= PROBE_SECONDS:
            break
    return per_voxel


def _settled_seconds(network: nn.Module, shape: tuple[int, ...], compute: Compute) -> float:
    """Seconds of a step; one that seems long is measured again, as a hiccup of a small patch would count for all."""
    seconds = step_seconds(network, shape, compute)
    return float(seconds if seconds < PROBE_SECONDS else min(seconds, step_seconds(network, shape, compute)))
