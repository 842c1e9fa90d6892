"""What a queue will cost before it starts: hours of each run, and disk."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from autoseg.core.errors import NotEnoughResources
from autoseg.core.machine import BYTES_PER_GIB, free_disk_bytes
from autoseg.core.workspace import Workspace
from autoseg.launch.devices import choose_device, choose_devices, use_cores
from autoseg.launch.numerics import SHARE_FOR_MEASURING, check_training
from autoseg.launch.precision import growing_batches, step_seconds
from autoseg.planning.plan import Configuration, Plan
from autoseg.preprocessing.store import RECORD, store_folder
from autoseg.runs.budget import RunGroup, budget_deadline, choose_runs, run_deadline, spent_seconds
from autoseg.runs.progress import epoch_seconds, recent_step_seconds, step_work
from autoseg.runs.queue import Queue, TrainOptions
from autoseg.runs.run import Run
from autoseg.runs.setup import ENDING_SECONDS
from autoseg.runs.validation import LARGEST_VALIDATION_SHARE
from autoseg.training.callbacks.time_budget import VALIDATION_COST
from autoseg.training.checkpoint import GENERATIONS_KEPT
from autoseg.training.optimization import MOMENTS, mean_cost
from autoseg.training.recipe import Recipe, load_recipe, relative_costs, stage_configurations, usual_recipes
from autoseg.training.step import Compute

PROBE_SECONDS = 0.4
"""A patch whose step takes this long is large enough to extrapolate from, in proportion to the voxels (assumption)."""

LEAST_WORK = 2e6
"""Elements of feature maps of the smallest step that is measured, 40 ms on a core of 2026: in smaller ones, what every
layer costs however small it is would be taken for the cost of voxels."""

USEFUL_EPOCHS = 4
"""Epochs of its recipe after which a run is useful."""

TRAINING_SLOWNESS = 1.3
"""Seconds of a step in training / of its forward and backward pass (assumption until runs say)."""

STARTING_SECONDS = 3.0
"""From the beginning of a run to its first step (assumption)."""

_BYTES_PER_NUMBER = 4


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
        left_out: a sentence about what the budget leaves out; empty if nothing.
    """

    runs: tuple[RunForecast, ...]
    hours: float
    devices: int
    store_gib: float
    disk_gib: float
    probabilities_gib: float
    free_gib: float
    because: str
    left_out: str = ""


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
    hours, because, left_out = _hours(queue, options, devices)
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
        left_out=left_out,
    )


def _hours(queue: Queue, options: TrainOptions, devices: Sequence[torch.device]) -> tuple[dict[Run, float], str, str]:
    """Hours of the open runs that are trained, where they come from, and what the budget leaves out."""
    if options.budget_seconds is not None:
        return _hours_of_budget(queue, options, devices, options.budget_seconds)
    open_runs = queue.open_runs
    pace, because = epoch_seconds(queue), "from the epochs trained so far, without the validation of the folds"
    if not pace and open_runs:
        names = dict.fromkeys(run.configuration for run in open_runs)
        device = options.device.partition(",")[0]
        pace = {name: seconds_per_epoch(queue.plan, name, device, queue.recipe) for name in names}
        because = "from one measured training step of each configuration, without the validation of the folds"
    return {run: pace[run.configuration] * _epochs_left(run, queue) / 3600 for run in open_runs}, because, ""


def _hours_of_budget(
    queue: Queue, options: TrainOptions, devices: Sequence[torch.device], budget: float
) -> tuple[dict[Run, float], str, str]:
    needs = RunNeeds(queue, devices[0], SHARE_FOR_MEASURING * budget)
    deadline, now = budget_deadline(queue, options), time.monotonic()
    left = 0.0 if deadline is None else deadline - now
    groups = needs.groups(queue.open_runs, left * len(devices))
    choice = choose_runs(groups, left, len(devices), must_train=len(queue.open_runs) == len(queue.runs))
    weights = {run: needs.fewest_seconds(run.configuration) for run in choice.runs}
    spent = {run: needs.spent_seconds(run, ()) for run in weights}
    ends = {run: run_deadline(deadline, run, weights, spent, len(devices), now) or now for run in weights}
    hours = {run: (end - now) / 3600 for run, end in ends.items()}
    return hours, "shares of what is left of the budget", choice.sentence(budget)


class RunNeeds:
    """What the runs of a queue need to be useful, from the speed measured now and corrected by the runs since.

    Configurations are measured once, the cheapest first, and only as far as there is time for them.
    """

    def __init__(self, queue: Queue, device: torch.device, allowed_seconds: float) -> None:
        """Measures nothing yet.

        Args:
            queue: with the plan and the recipe.
            device: to measure on.
            allowed_seconds: that measuring all configurations may take.
        """
        self._queue, self._device = queue, device
        self._allowed_seconds = allowed_seconds / max(1, len({run.configuration for run in queue.open_runs}))
        self._measured: dict[str, float] = {}
        self._taken: dict[str, float] = {}  # seconds of a step in training, by configuration
        self._slowness = TRAINING_SLOWNESS  # of a step in training / as measured, in the latest run

    def step_seconds(self, name: str) -> float:
        """Of a step with the planned patch: by the configuration's runs, else the measurement and the latest run."""
        return self._taken[name] if name in self._taken else self._measured_seconds(name) * self._slowness

    def note(self, run: Run) -> None:
        """Corrects what was measured by the steps of a run that has ended."""
        if (seconds := recent_step_seconds(run)) is not None:
            self._taken[run.configuration] = seconds
            if run.configuration in self._measured:
                self._slowness = seconds / self._measured[run.configuration]

    def fewest_seconds(self, name: str) -> float:
        """That a run of a configuration needs from its start to its last validated case to be useful."""
        recipe = self._queue.recipe
        average = mean_cost(0.0, relative_costs(stage_configurations(self._queue.plan.configurations[name], recipe)))
        has_validation = any(fold.val for fold in self._queue.folds)
        validated = VALIDATION_COST * recipe.validation_steps if has_validation else 0.0
        training = USEFUL_EPOCHS * (average * recipe.steps_per_epoch + validated) * self.step_seconds(name)
        share = 1 - LARGEST_VALIDATION_SHARE if has_validation else 1.0
        return STARTING_SECONDS + training / share + ENDING_SECONDS

    def most_steps(self, name: str, seconds: float) -> float:
        """Of a run that has so many seconds: what it would take in them by the measurement; no limit once runs say.

        Where runs are left out, a measurement that was far too slow must not give their time to the first run.
        """
        useful = USEFUL_EPOCHS * self._queue.recipe.steps_per_epoch
        return math.inf if self._taken else useful * max(1.0, seconds / self.fewest_seconds(name))

    def groups(self, open_runs: Collection[Run], seconds: float, tried: Collection[Run] = ()) -> list[RunGroup]:
        """The open runs by configuration, with the seconds that each still needs.

        Args:
            open_runs: neither done nor given up.
            seconds: left for them, of all devices together.
            tried: that this command has begun.
        """
        own = {run.configuration: self._queue.configuration_of(run) for run in open_runs}
        begun = {run.configuration for run in self._queue.runs if run in tried or self._queue.stages[run] != "new"}
        groups = []
        for name in sorted(own, key=lambda name: step_work(own[name])):
            if name not in self._measured and (seconds > 0 or not self._measured):
                self._measured[name] = self._measure(name)
            groups.append(self._group(name, open_runs, tried, name in begun))
            seconds -= sum(groups[-1].needed.values())
        return groups

    def spent_seconds(self, run: Run, tried: Collection[Run]) -> float:
        """Wall time of all work on a run; none on one that this command is going to begin anew."""
        return 0.0 if self._queue.stages[run] == "new" and run not in tried else spent_seconds(run)

    def _group(self, name: str, open_runs: Collection[Run], tried: Collection[Run], is_begun: bool) -> RunGroup:
        own = self._queue.plan.configurations[name]
        fewest = self.fewest_seconds(name)
        runs = [run for run in open_runs if run.configuration == name]
        needed = {run: max(ENDING_SECONDS, fewest - self.spent_seconds(run, tried)) for run in runs}
        return RunGroup(name, needed, len(runs) * step_work(own), own.cascade_from, is_begun)

    def _measured_seconds(self, name: str) -> float:
        """As measured; of a configuration that there is no time for, by its work."""
        if name in self._measured:
            return self._measured[name]
        other, seconds = next(iter(self._measured.items()))
        own = self._queue.plan.configurations
        return seconds * step_work(own[name]) / step_work(own[other])

    def _measure(self, name: str) -> float:
        plan, recipe = self._queue.plan, self._queue.recipe
        own = plan.configurations[name]
        try:
            per_voxel = _seconds_per_voxel(plan, own, self._device, recipe, self._allowed_seconds)
        except torch.OutOfMemoryError as error:
            raise does_not_fit(name, self._device, error) from error
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # another process may train there, and need the memory
        return per_voxel * math.prod(own.patch_size) * stage_configurations(own, recipe)[-1].batch_size


def does_not_fit(what: str, device: torch.device, error: torch.OutOfMemoryError) -> NotEnoughResources:
    """The error for users that a training step takes more memory than a device has free."""
    return NotEnoughResources(
        f"{what} does not fit into the memory of {device}",
        why=str(error).splitlines()[0],
        do="plan with a smaller --memory or --preset cpu, then train with --fresh",
    )


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
    moments = MOMENTS.get(recipe.optimizer, max(MOMENTS.values()))
    copies = GENERATIONS_KEPT * (1 + averaged + moments)
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
        recipe: how long an epoch is; default: the preset's without a budget.
    """
    configuration = plan.configurations[name]
    recipe = recipe or load_recipe(usual_recipes(plan.preset, has_budget=False)[0])
    per_voxel = _seconds_per_voxel(plan, configuration, choose_device(device_name)[0], recipe)
    stages = stage_configurations(configuration, recipe)
    voxels = math.prod(configuration.patch_size) * stages[-1].batch_size
    step = per_voxel * voxels * mean_cost(0.0, relative_costs(stages))
    return step * (recipe.steps_per_epoch + recipe.validation_steps * VALIDATION_COST)


def _seconds_per_voxel(
    plan: Plan,
    configuration: Configuration,
    device: torch.device,
    recipe: Recipe,
    allowed_seconds: float = math.inf,
) -> float:
    begin = time.monotonic()
    use_cores()
    network, channels = plan.build_network(configuration.name), plan.input_channels(configuration.name)
    wanted = (recipe.precision, recipe.memory_format)
    stages = stage_configurations(configuration, recipe)
    found = check_training(network, stages, channels, device, wanted, allowed_seconds)
    compute = found.compute(device)
    per_voxel = math.nan
    shapes = list(growing_batches(configuration, channels))
    work = [step_work(configuration) * math.prod(shape) / math.prod(shapes[-1]) for shape in shapes]
    for shape in [own for own, amount in zip(shapes, work, strict=True) if amount >= LEAST_WORK] or shapes[-1:]:
        try:
            seconds = _settled_seconds(network, shape, compute)
        except torch.OutOfMemoryError:  # what fitted tells enough; training will say what to do
            if math.isnan(per_voxel):
                raise
            break
        per_voxel = seconds * shape[1] / math.prod(shape)
        if seconds >= PROBE_SECONDS or time.monotonic() - begin > allowed_seconds:
            break
    return per_voxel


def _settled_seconds(network: nn.Module, shape: tuple[int, ...], compute: Compute) -> float:
    """Seconds of a step; one that seems long is measured again, as a hiccup of a small patch would count for all."""
    seconds = step_seconds(network, shape, compute)
    return float(seconds if seconds < PROBE_SECONDS else min(seconds, step_seconds(network, shape, compute)))
