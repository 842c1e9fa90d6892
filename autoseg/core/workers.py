"""Work spread over processes that are watched: whatever happens to one of them, the caller hears of it in time.

Readers of damaged files crash, the system kills what takes too much memory, a network drive hangs. So items are worked
on in spawned processes, one item at a time each; a process that dies or exceeds its time is replaced, its item is tried
once more when no other process takes memory, and after that it is a failure with a name, not a hang.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import multiprocessing.process
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")

ITEM_TIMEOUT_S = 600.0
"""Seconds one item may take before its process is taken for hung. Assumption: the largest cases stay below it."""

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)

_TICK_S = 0.2
_GRACE_S = 1.0

logger = logging.getLogger(__name__)


_hiding = threading.Lock()
_SCRIPT_NAMES = ("__file__", "__spec__")  # by which a spawned process finds the script that it would run


def start_without_script(process: multiprocessing.process.BaseProcess) -> None:
    """Starts a spawned process that does not run the caller's script again.

    Otherwise a script that plans or trains without `if __name__ == "__main__":` would start itself once more in every
    process. What the process is given to do must be in an importable module, not in the script.
    """
    script = sys.modules["__main__"]
    with _hiding:
        kept: dict[str, Any] = {name: vars(script)[name] for name in _SCRIPT_NAMES if name in vars(script)}
        try:
            script.__spec__ = None
            vars(script).pop("__file__", None)
            process.start()
        finally:
            vars(script).update(kept)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Value]):
    """What became of one item.

    Attributes:
        index: of the item.
        value: what the function returned; None after a failure.
        failure: what went wrong, in one sentence; None otherwise.
    """

    index: int
    value: Value | None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class _Raised:
    """An exception of the function, as text: the exception itself may not survive the way between processes."""

    sentence: str
    trace: str
    is_lack_of_memory: bool


class _Catch:
    """Turns an exception of the function into a value; signals and exits still end the process."""

    def __init__(self) -> None:
        self.raised: _Raised | None = None

    def __enter__(self) -> _Catch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        text = "".join(traceback.format_exception(kind, error, trace))
        sentence = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        self.raised = _Raised(sentence, text, isinstance(error, MemoryError))
        return True


def _attempt(function: Callable[[Any], Any], item: Any) -> Any:
    value = None
    with _Catch() as catch:
        value = function(item)
    return catch.raised or value


def map_supervised(
    function: Callable[[Item], Value],
    items: Sequence[Item],
    jobs: int,
    timeout_s: float = ITEM_TIMEOUT_S,
) -> Iterator[Outcome[Value]]:
    """Yields what became of every item, in the order in which they finish.

    Ends the processes when the caller stops iterating, also by an exception such as KeyboardInterrupt.

    Args:
        function: called with one item; a function of a module, as it is sent to other processes.
        items: sent to other processes likewise.
        jobs: processes; with 0 the calling process does everything itself, unprotected.
        timeout_s: seconds one item may take.
    """
    if jobs == 0:
        for index, item in enumerate(items):
            yield _outcome(index, _attempt(function, item))
        return
    crew = _Crew(function, items, min(jobs, len(items)), timeout_s)
    # a caller that is interrupted between two outcomes may never close this generator; multiprocessing would then only
    # ask the processes to end, and wait for those that do not hear
    atexit.register(crew.dismiss)
    try:
        yield from crew.work()
    finally:
        crew.dismiss()
        atexit.unregister(crew.dismiss)


def _outcome(index: int, answer: Any) -> Outcome[Any]:
    if isinstance(answer, _Raised):
        logger.debug("item %d failed\n%s", index, answer.trace)
        return Outcome(index, None, answer.sentence)
    return Outcome(index, answer)


@dataclass(frozen=True, slots=True)
class _Answer:
    worker: _Worker
    value: Any


@dataclass(frozen=True, slots=True)
class _Gone:
    worker: _Worker


class _Worker:
    """One process, and a thread that talks with it so that the supervisor itself never waits on a pipe."""

    def __init__(self, function: Callable[[Any], Any], events: queue.SimpleQueue[_Answer | _Gone]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        start_without_script(self.process)
        theirs.close()
        self.index: int | None = None
        self.deadline = float("inf")
        self.killed_at: float | None = None
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.events = events
        self.thread = threading.Thread(target=self._talk, args=(function,), daemon=True)
        self.thread.start()

    def _talk(self, function: Callable[[Any], Any]) -> None:
        try:
            self.connection.send(function)
            while True:
                self.connection.send(self.inbox.get())
                self.events.put(_Answer(self, self.connection.recv()))
        except (EOFError, OSError):
            self.events.put(_Gone(self))

    def give(self, index: int, item: Any, timeout_s: float) -> None:
        self.index, self.deadline = index, time.monotonic() + timeout_s
        self.inbox.put(item)

    def kill_if_overdue(self) -> None:
        """Kills the process after its deadline; its thread then reads the end of the pipe and reports it gone."""
        now = time.monotonic()
        if now > self.deadline:
            self.killed_at, self.deadline = now, now + _GRACE_S
            self.process.kill()

    @property
    def is_unkillable(self) -> bool:
        """Whether the process was killed and yet is not gone, as happens while it waits for a dead network drive."""
        return self.killed_at is not None and time.monotonic() > self.killed_at + _GRACE_S

    def end(self) -> str:
        """Sees the process off; returns how it went."""
        self.process.join(_GRACE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(_GRACE_S)
        self.inbox.put(None)  # a thread that waits for an item finds the pipe closed
        exitcode = self.process.exitcode
        if exitcode is not None:
            self.connection.close()
        return "the process cannot be ended" if exitcode is None else _cause_of_death(exitcode)


class _Crew:
    """The processes, the items still to be done, and those that killed a process once."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any], size: int, timeout_s: float) -> None:
        self.function = function
        self.items = items
        self.size = size
        self.timeout_s = timeout_s
        self.waiting = deque(range(len(items)))
        self.again: deque[int] = deque()
        self.workers: set[_Worker] = set()
        self.events: queue.SimpleQueue[_Answer | _Gone] = queue.SimpleQueue()

    def work(self) -> Iterator[Outcome[Any]]:
        while self.waiting or any(worker.index is not None for worker in self.workers):
            self._assign(self.waiting, self.size)
            yield from self._next_outcome(is_last_try=False)
        while self.again or any(worker.index is not None for worker in self.workers):
            self._assign(self.again, 1)
            yield from self._next_outcome(is_last_try=True)

    def _assign(self, waiting: deque[int], size: int) -> None:
        idle = [worker for worker in self.workers if worker.index is None]
        for worker in idle[: max(0, len(self.workers) - size)]:
            self.workers.discard(worker)
            worker.process.terminate()
            worker.end()
        while waiting and sum(worker.index is not None for worker in self.workers) < size:
            worker = next((worker for worker in self.workers if worker.index is None), None) or self._hire()
            index = waiting.popleft()
            worker.give(index, self.items[index], self.timeout_s)

    def _hire(self) -> _Worker:
        worker = _Worker(self.function, self.events)
        self.workers.add(worker)
        return worker

    def _next_outcome(self, *, is_last_try: bool) -> Iterator[Outcome[Any]]:
        for worker in list(self.workers):
            worker.kill_if_overdue()
        event = self._next_event()
        if event is None or event.worker not in self.workers:
            return
        worker, index = event.worker, event.worker.index
        worker.index, worker.deadline = None, float("inf")
        if isinstance(event, _Gone):
            self.workers.discard(worker)
            failure = self._describe(worker)
        elif isinstance(event.value, _Raised) and event.value.is_lack_of_memory:
            failure = event.value.sentence
        elif index is not None:
            yield _outcome(index, event.value)
            return
        if index is not None and is_last_try:
            yield Outcome(index, None, f"{failure}, twice")
        elif index is not None:
            logger.warning("item %d: %s; it is tried again alone", index, failure)
            self.again.append(index)

    def _next_event(self) -> _Answer | _Gone | None:
        try:
            return self.events.get(timeout=_TICK_S)
        except queue.Empty:
            return next((_Gone(worker) for worker in self.workers if worker.is_unkillable), None)

    def _describe(self, worker: _Worker) -> str:
        cause = worker.end()
        return cause if worker.killed_at is None else f"the process took longer than {self.timeout_s:g} s"

    def dismiss(self) -> None:
        """Ends every process at once."""
        for worker in self.workers:
            if worker.index is None:
                worker.process.terminate()
            else:
                worker.process.kill()
        for worker in self.workers:
            worker.end()
        self.workers.clear()


def _cause_of_death(exitcode: int) -> str:
    if exitcode >= 0:
        return f"the process ended by itself with exit code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    likely = "; the system does this when memory runs out" if name == "SIGKILL" else ""
    return f"the process was ended by {name}{likely}{_peak_memory()}"


def _peak_memory() -> str:
    """The most memory that any process of ours which has ended took, as far as the system tells."""
    if sys.platform == "win32":
        return ""
    import resource

    unit = 1 if sys.platform == "darwin" else 1 << 10
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    return f" (largest process so far: {peak / (1 << 30):.2f} GiB)"


def _serve(connection: Connection) -> None:
    """The life of a worker: a function first, then items, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the supervisor ends this one
    for variable in _THREAD_VARIABLES:
        os.putenv(variable, "1")  # one thread each; numpy is only imported by what comes through the pipe
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        function = connection.recv()
        while True:
            connection.send(_attempt(function, connection.recv()))
