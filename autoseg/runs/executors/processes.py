"""Runs trained in processes of their own, one for each device."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from logging.handlers import QueueHandler
from typing import Any, Self

import torch

from autoseg.core.errors import TrainingStopped
from autoseg.core.workers import Failure, Message, Worker
from autoseg.launch.devices import use_cores
from autoseg.launch.interrupts import stoppable
from autoseg.runs.execute import execute
from autoseg.runs.queue import RunTask
from autoseg.runs.run import Run, RunResult

GRACE_SECONDS = 60.0
"""That a worker has to end in once nothing is left to do."""

_log = logging.getLogger(__name__)


class ProcessExecutor:
    """Processes with a device each; one that dies is reported and replaced."""

    def __init__(
        self,
        devices: Sequence[torch.device],
        _check_stop: Callable[[], None],
        on_step: Callable[[Run, int, int], None],
    ) -> None:
        self.slots = len(devices)
        self._on_step = on_step
        self._devices = list(devices)
        self._free = list(range(len(devices)))
        self._started: dict[int, Worker] = {}

    def submit(self, task: RunTask) -> Future[RunResult]:
        """Gives a run to a free worker; a thread listens to it, and fulfills the handle."""
        slot = self._free.pop(0)
        worker = self._started.get(slot) or self._start(slot)
        jobs = max(1, task.options.jobs // self.slots)  # threads that cut batches: the cores are shared
        worker.call(replace(task, options=replace(task.options, jobs=jobs)))
        handle: Future[RunResult] = Future()
        threading.Thread(target=self._listen, args=(slot, task.run, handle), daemon=True).start()
        return handle

    def stop(self) -> None:
        """Sends every busy worker the signal that lets a run write a checkpoint and end."""
        for worker in list(self._started.values()):
            if worker.is_busy:
                worker.process.terminate()

    def __enter__(self) -> Self:
        """Itself; processes are started when they are needed."""
        return self

    def __exit__(self, *_: object) -> None:
        """Lets the workers end, and kills those that do not."""
        for worker in self._started.values():
            worker.close(GRACE_SECONDS)

    def _start(self, slot: int) -> Worker:
        device = self._devices[slot]
        threads = max(1, use_cores() // self.slots)
        worker = Worker(partial(_train, str(device), threads), name=f"autoseg {device}")
        self._started[slot] = worker
        return worker

    def _listen(self, slot: int, run: Run, handle: Future[RunResult]) -> None:
        """Passes on what a worker says until it gives the result, or dies."""
        worker = self._started[slot]
        while isinstance(answer := worker.answer(), Message):
            if isinstance(answer.value, logging.LogRecord):
                logging.getLogger(answer.value.name).handle(answer.value)
            else:
                self._on_step(run, *answer.value)
        if isinstance(answer, Failure):
            result = _failed(run, self._devices[slot], answer)
            worker.close()
            del self._started[slot]  # the next run on this device gets a new process
        else:
            result = answer.value
        self._free.append(slot)  # before the handle: what waits for it may submit at once
        handle.set_result(result)


def _failed(run: Run, device: torch.device, failure: Failure) -> RunResult:
    """The result of a run whose process has died, or met an error that is not meant for users."""
    error = TrainingStopped(
        f"{run.title} on {device} stopped: {failure.sentence}",
        where=str(run.folder.root),
        do="run the same command again to go on from the last checkpoint",
    )
    _log.error("%s", error)
    _log.debug("%s", failure.trace)
    return RunResult(run, "failed", error)


class _Sender(QueueHandler):
    """Sends log records to the process that hands runs out."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        super().__init__(None)  # type: ignore[arg-type]  # `enqueue` is all that uses the queue
        self._send = send

    def enqueue(self, record: logging.LogRecord) -> None:
        """Sends a record."""
        self._send(record)


def _train(device: str, threads: int, task: RunTask, send: Callable[[Any], None]) -> RunResult:
    """What a worker does with a run; it sends (steps done, steps in all) and log records meanwhile."""
    logger = logging.getLogger("autoseg")
    logger.handlers[:] = [_Sender(send)]
    logger.setLevel(logging.DEBUG)
    use_cores(threads)
    with stoppable() as check_stop:
        return execute(task, torch.device(device), check_stop, lambda done, total: send((done, total)))
