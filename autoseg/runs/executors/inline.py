"""Runs trained in this process, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Self

import torch

from autoseg.runs.execute import execute
from autoseg.runs.queue import RunTask
from autoseg.runs.run import Run, RunResult


class InlineExecutor:
    """This process and the first device: a run is through when `submit` returns."""

    slots = 1

    def __init__(
        self,
        devices: Sequence[torch.device],
        check_stop: Callable[[], None],
        on_step: Callable[[Run, int, int], None],
    ) -> None:
        self._device = devices[0]
        self._check_stop = check_stop
        self._on_step = on_step

    def submit(self, task: RunTask) -> Future[RunResult]:
        """Trains a run to its end; the handle is done already."""

        def progress(done: int, total: int) -> None:
            self._on_step(task.run, done, total)

        handle: Future[RunResult] = Future()
        handle.set_result(execute(task, self._device, self._check_stop, progress))
        return handle

    def stop(self) -> None:
        """Nothing to do: a run in this process asks `check_stop` by itself."""

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was started."""
