"""What a queue will cost before it starts: hours of each run, and disk."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from autoseg.core.machine import BYTES_PER_GIB, free_disk_bytes
from autoseg.core.workspace import Workspace
from autoseg.launch.devices import choose_devices
from autoseg.networks.build import build_network
from autoseg.planning.decide import store_gib
from autoseg.planning.plan import Configuration, Plan
from autoseg.preprocessing.store import RECORD, store_folder
from autoseg.runs.execute import budget_deadline, run_deadline
from autoseg.runs.probe import seconds_per_epoch
from autoseg.runs.progress import epoch_seconds
from autoseg.runs.queue import Queue, QueuedRun, TrainOptions, run_status
from autoseg.training.checkpoint import GENERATIONS_KEPT
from autoseg.training.recipe import Recipe

_BYTES_PER_NUMBER = 4
_MOMENTS = {"sgd": 1, "adamw": 2}  # numbers that the optimizer keeps per weight


@dataclass(frozen=True, slots=True)
class RunForecast:
    """What a run will cost.

    Attributes:
        run: of the queue.
        epochs: still to be trained; None under a budget, which chooses them.
        hours: of training, without the validation at the end; 0 if it is done.
        disk_gib: that its checkpoints will take, if they are not there yet.
    """

    run: QueuedRun
    epochs: int | None
    hours: float
    disk_gib: float


@dataclass(frozen=True, slots=True)
class Forecast:
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


def forecast_queue(workspace: Workspace, queue: Queue, options: TrainOptions) -> Forecast:
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
    open_runs = [run for run in queue.runs if run.state != "done"]
    hours, because = _hours(workspace, queue, options, len(devices))
    checkpoints = {name: _checkpoint_gib(queue.plan, name, queue.recipe) for name in queue.plan.configurations}
    runs = tuple(
        RunForecast(
            run=run,
            epochs=None if options.budget_seconds is not None else _epochs_left(run, queue.recipe),
            hours=hours.get(run, 0.0),
            disk_gib=checkpoints[run.configuration.name] if run.state == "new" else 0.0,
        )
        for run in queue.runs
    )
    store = _missing_store_gib(workspace, queue, open_runs)
    return Forecast(
        runs=runs,
        hours=sum(hours.values()) / max(1, min(len(devices), len(open_runs))),
        devices=len(devices),
        store_gib=store,
        disk_gib=store + sum(run.disk_gib for run in runs),
        probabilities_gib=options.probabilities_gib,
        free_gib=free_disk_bytes(workspace.root) / BYTES_PER_GIB,
        because=because,
    )


def _hours(
    workspace: Workspace, queue: Queue, options: TrainOptions, devices: int
) -> tuple[dict[QueuedRun, float], str]:
    open_runs = [run for run in queue.runs if run.state != "done"]
    deadline = budget_deadline(workspace, queue, options)
    if deadline is not None:
        now = time.monotonic()
        ends = [run_deadline(deadline, run, open_runs, devices, now) for run in open_runs]
        shares = {run: (end - now) / 3600 for run, end in zip(open_runs, ends, strict=True) if end is not None}
        return shares, "shares of what is left of the budget"
    pace, because = epoch_seconds(queue), "from the epochs trained so far, without the validation of the folds"
    if not pace and open_runs:
        names = dict.fromkeys(run.configuration.name for run in open_runs)
        device = options.device.partition(",")[0]
        pace = {name: seconds_per_epoch(queue.plan, name, device, queue.recipe) for name in names}
        because = "from one measured training step of each configuration, without the validation of the folds"
    hours = {run: pace[run.configuration.name] * _epochs_left(run, queue.recipe) / 3600 for run in open_runs}
    return hours, because


def _epochs_left(run: QueuedRun, recipe: Recipe) -> int:
    if run.state == "done":
        return 0
    status = run_status(run.folder) if run.state == "started" else None
    return recipe.epochs if status is None else max(0, status.epochs_planned - status.epochs)


def _checkpoint_gib(plan: Plan, name: str, recipe: Recipe) -> float:
    """All generations of a run's checkpoint: weights, their average and what the optimizer keeps."""
    with torch.device("meta"):
        network = build_network(plan.configurations[name].network, plan.input_channels(name), plan.labels.head_count)
    weights = sum(parameter.numel() for parameter in network.parameters())
    averaged = int(recipe.ema_decay > 0)
    copies = GENERATIONS_KEPT * (1 + averaged + _MOMENTS[recipe.optimizer])
    return weights * copies * _BYTES_PER_NUMBER / BYTES_PER_GIB


def _missing_store_gib(workspace: Workspace, queue: Queue, runs: list[QueuedRun]) -> float:
    """Of the prepared cases that are not there yet; configurations that prepare alike share them."""
    needed: dict[str, Configuration] = {}
    for run in runs:
        folder = store_folder(workspace.store, queue.plan, run.configuration, queue.fingerprint)
        needed.setdefault(str(folder), run.configuration)
    total = 0.0
    for configuration in needed.values():
        folder = store_folder(workspace.store, queue.plan, configuration, queue.fingerprint)
        missing = sum(not (folder / case.identifier / RECORD).exists() for case in queue.fingerprint.cases)
        share = missing / len(queue.fingerprint.cases)
        total += share * store_gib(queue.plan, configuration, queue.fingerprint)
    return total
