"""Who trains: this process alone, or a team of processes with a device each."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from autoseg.core.errors import Interrupted, TrainingStopped
from autoseg.core.workers import start_without_script
from autoseg.launch.devices import use_cores
from autoseg.launch.interrupts import stoppable
from autoseg.runs.execute import Assignment, Materials, RunReport, attempt, report_of
from autoseg.runs.queue import Queue, QueuedRun, TrainOptions

TICK_SECONDS = 0.2
"""Longest wait of the process that hands runs out; then it looks whether the user wants to stop."""

GRACE_SECONDS = 60.0
"""That a member of a team has to end in once nothing is left to do."""

OnStep = Callable[[QueuedRun, int, int], None]
"""Told the run at work, its steps done and its steps in all."""

_log = logging.getLogger(__name__)


class Crew(Protocol):
    """Whoever trains runs that are handed out."""

    @property
    def has_room(self) -> bool:
        """Whether a run can be started."""

    @property
    def is_working(self) -> bool:
        """Whether a report is still to come."""

    def start(self, assignment: Assignment, materials: Materials) -> None:
        """Begins a run."""

    def wait(self) -> list[RunReport]:
        """Reports that have come; waits for a short while if there is none."""

    def stop(self) -> None:
        """Asks everybody to write a checkpoint and stop."""

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Sends everybody home."""


@dataclass(slots=True)
class Alone:
    """This process: a run is through when `start` returns."""

    queue: Queue
    options: TrainOptions
    device: torch.device
    check_stop: Callable[[], None]
    on_step: OnStep
    _reports: list[RunReport] = field(default_factory=list)

    @property
    def has_room(self) -> bool:
        """Whether the report of the last run was taken."""
        return not self._reports

    @property
    def is_working(self) -> bool:
        """Whether a report is still to be taken."""
        return bool(self._reports)

    def start(self, assignment: Assignment, materials: Materials) -> None:
        """Does a run, to its end."""

        def progress(done: int, total: int) -> None:
            self.on_step(assignment.run, done, total)

        own = (self.queue, self.options, materials, self.device)
        self._reports.append(attempt(assignment, *own, self.check_stop, progress))

    def wait(self) -> list[RunReport]:
        """The report of the last run."""
        reports, self._reports = self._reports, []
        return reports

    def stop(self) -> None:
        """Nothing to do: a run asks by itself."""

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to clean up."""


@dataclass(slots=True)
class _Member:
    """A process with a device, and the run that it has."""

    device: torch.device
    process: BaseProcess | None = None
    connection: Connection | None = None
    run: QueuedRun | None = None


@dataclass(slots=True)
class Team:
    """Processes with a device each; one that dies is reported and replaced."""

    queue: Queue
    options: TrainOptions
    devices: Sequence[torch.device]
    on_step: OnStep
    _members: list[_Member] = field(init=False)
    _options: TrainOptions = field(init=False)

    def __post_init__(self) -> None:
        self._members = [_Member(device) for device in self.devices]
        self._options = replace(self.options, jobs=max(1, self.options.jobs // len(self.devices)))

    @property
    def has_room(self) -> bool:
        """Whether a member has no run."""
        return any(member.run is None for member in self._members)

    @property
    def is_working(self) -> bool:
        """Whether a member has a run."""
        return any(member.run is not None for member in self._members)

    def start(self, assignment: Assignment, materials: Materials) -> None:
        """Gives a run to a member that has none."""
        member = next(member for member in self._members if member.run is None)
        if member.connection is None:
            self._hire(member)
        assert member.connection is not None, "just hired"
        member.run = assignment.run
        member.connection.send((assignment, materials))

    def wait(self) -> list[RunReport]:
        """Reports that have come within a tick."""
        busy = {member.connection: member for member in self._members if member.connection and member.run}
        reports = []
        for ready in wait(list(busy), TICK_SECONDS):
            assert isinstance(ready, Connection), "only connections are waited for"
            report = self._hear(busy[ready], ready)
            reports += [report] if report else []
        return reports

    def stop(self) -> None:
        """Asks every process to write a checkpoint and stop."""
        for member in self._members:
            if member.process is not None and member.run is not None:
                member.process.terminate()

    def __enter__(self) -> Self:
        """Itself; processes are started when they are needed."""
        return self

    def __exit__(self, *_: object) -> None:
        """Sends everybody home, and ends whoever does not go."""
        for member in self._members:
            if member.connection is not None and member.process is not None:
                member.connection.close()
                member.process.join(GRACE_SECONDS)
                member.process.kill()
                member.process.join()

    def _hire(self, member: _Member) -> None:
        context = multiprocessing.get_context("spawn")
        member.connection, theirs = context.Pipe()
        threads = max(1, use_cores() // len(self.devices))
        title = str(member.device)
        arguments = (theirs, self.queue, self._options, title, threads)
        member.process = context.Process(target=_serve, args=arguments, name=f"autoseg {title}", daemon=True)
        start_without_script(member.process)
        theirs.close()

    def _hear(self, member: _Member, connection: Connection) -> RunReport | None:
        run = member.run
        assert run is not None, "only members at work are listened to"
        try:
            word = connection.recv()
        except (EOFError, ConnectionError):
            member.run = None
            return self._dismiss(member, run)
        if isinstance(word, RunReport):
            member.run = None
            return word
        if isinstance(word, logging.LogRecord):
            logging.getLogger(word.name).handle(word)
        else:
            self.on_step(run, *word)
        return None

    def _dismiss(self, member: _Member, run: QueuedRun) -> RunReport:
        """The report of a run whose process has died."""
        assert member.process is not None, "it had a run"
        member.process.join(GRACE_SECONDS)
        code = member.process.exitcode
        name = signal.Signals(-code).name if code is not None and code < 0 else None
        how = f"by signal {name}" if name else f"with exit code {code}"
        member.process = member.connection = None
        error = TrainingStopped(
            f"the process that trained {run.title} on {member.device} ended {how}",
            where=str(run.folder.root),
            why="the system ends a process that takes too much memory" if name == "SIGKILL" else None,
            do="run the same command again to go on from the last checkpoint",
        )
        _log.error("%s", error)
        return report_of(run, "failed", error)


class _Sender(QueueHandler):
    """Sends log records to the process that hands runs out."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        super().__init__(None)  # type: ignore[arg-type]  # `enqueue` is all that uses the queue
        self._send = send

    def enqueue(self, record: logging.LogRecord) -> None:
        """Sends a record."""
        self._send(record)


def _serve(connection: Connection, queue: Queue, options: TrainOptions, device: str, threads: int) -> None:
    """A member's life: takes a run, trains it, reports; ends when nobody is there any more."""
    lock = threading.Lock()

    def send(word: object) -> None:
        with lock, suppress(ConnectionError):  # if nobody hears, `check_stop` will tell
            connection.send(word)

    logger = logging.getLogger("autoseg")
    logger.handlers[:] = [_Sender(send)]
    logger.setLevel(logging.DEBUG)
    use_cores(threads)
    parent = multiprocessing.parent_process()
    with stoppable() as asked:

        def check_stop() -> None:
            asked()
            if parent is not None and not parent.is_alive():
                raise Interrupted("the process that hands out the runs has ended")

        def progress(done: int, total: int) -> None:
            send((done, total))

        while True:
            try:
                assignment, materials = connection.recv()
            except (EOFError, ConnectionError):
                return
            send(attempt(assignment, queue, options, materials, torch.device(device), check_stop, progress))
