"""Where runs are trained: the one seam between the queue and processes, devices or, later, machines of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol, Self

import torch

from autoseg.core.registry import choose
from autoseg.runs.executors.inline import InlineExecutor
from autoseg.runs.executors.processes import ProcessExecutor
from autoseg.runs.queue import RunTask
from autoseg.runs.run import Run, RunResult

OnStep = Callable[[Run, int, int], None]
"""Called with a run at work, its steps done and its steps in all; may be called from any thread."""


class Executor(Protocol):
    """Trains runs that are submitted; used in a `with` block, which waits for what is still at work."""

    slots: int
    """Runs that are trained at the same time; as many may be submitted before the first is done."""

    def submit(self, task: RunTask) -> Future[RunResult]:
        """Begins a run. The handle gives its result, whatever happens to the run or to the process that trains it."""

    def stop(self) -> None:
        """Asks every run at work to write a checkpoint and end; their results come as usual."""

    def __enter__(self) -> Self:
        """Itself, ready to be given runs."""

    def __exit__(self, *_: object) -> None:
        """Ends what it has started."""


EXECUTORS: dict[str, Callable[[Sequence[torch.device], Callable[[], None], OnStep], Executor]] = {
    "inline": InlineExecutor,
    "processes": ProcessExecutor,
}
"""Name -> made of the devices, a function that raises Interrupted when the user wants to stop, and `OnStep`."""


AUTO = "auto"
"""In this process on one device, else in a process per device."""


def check_executor(name: str) -> None:
    """Raises UsageError if `--executor` names none; asked before any work is done."""
    choose(name, {AUTO: None, **EXECUTORS}, "executor")


def make_executor(
    name: str, devices: Sequence[torch.device], check_stop: Callable[[], None], on_step: OnStep
) -> Executor:
    """The executor that `--executor` names, or the usual one for so many devices.

    Raises:
        UsageError: no executor of that name.
    """
    check_executor(name)
    usual = "inline" if len(devices) == 1 else "processes"
    return EXECUTORS[usual if name == AUTO else name](devices, check_stop, on_step)
