"""Processes that serve calls, and a pool of them; one that dies, hangs or runs out of memory is named and replaced.

Readers of damaged files crash, the system kills what takes too much memory, a network drive hangs. `map_supervised`
works on items in processes, one item at a time each; a process that dies or exceeds its time is replaced, its item is
tried once more when nothing else takes memory, and after that it is a failure with a reason.

`Worker` is one such process. An executor of training runs keeps one for each device:

    worker = Worker(partial(train, device), name="autoseg cuda:1")   # train(device, task, send) of a module
    worker.call(task)                                   # returns at once
    while isinstance(answer := worker.answer(), Message): ...   # what `train` sent meanwhile: steps done, log records
    if isinstance(answer, Failure): ...                 # an exception of `train`, or how the process died
    else: ...                                           # Returned: what `train` returned; the worker is free again
    worker.process.terminate()                          # SIGTERM, as a request: launch.interrupts.stoppable
    worker.close(grace_s=60)                            # a worker at work has a minute to end, then it is killed

A worker whose parent dies sends itself SIGTERM as well, and so never outlives it.

Why neither concurrent.futures nor loky: their result pipe stays open in the parent. A process that is killed while its
answer is on the way is therefore not noticed before the timeout, and the program can never exit afterwards. Here each
process has a pipe of its own, whose end is seen at once.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import multiprocessing.process
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from autoseg.core.machine import BYTES_PER_GIB, peak_memory_bytes

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

_hiding = threading.Lock()
_SCRIPT_NAMES = ("__file__", "__spec__")  # by which a spawned process finds the script that it would run

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Message:
    """Something that the function of a worker sent before it returned."""

    value: Any


@dataclass(frozen=True, slots=True)
class Returned:
    """What the function of a worker returned."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call has no value.

    Attributes:
        sentence: the exception, or how the process died.
        trace: of the exception; empty if the process died.
        may_pass_alone: whether another try makes sense when nothing else runs: after a death or a lack of memory.
    """

    sentence: str
    trace: str = ""
    may_pass_alone: bool = True


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


class Worker:
    """A process that serves calls of one function, one after another.

    Args:
        function: called with an item and a function that sends messages; both it and the items must be importable from
            a module, as they are sent to the process.
        name: of the process, as the system's tools show it.
        threads: for linear algebra; None for the libraries' default.
    """

    def __init__(
        self, function: Callable[[Any, Callable[[Any], None]], Any], name: str | None = None, threads: int | None = None
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, threads), name=name, daemon=True)
        _start_without_script(self.process)
        theirs.close()
        # a caller that is interrupted may never close its workers; multiprocessing would then only ask them to end, and
        # wait for those that do not react
        atexit.register(self.process.kill)
        self.is_busy = False
        self._timeout_s = self._deadline = self._killed_at = float("inf")
        self._closed = threading.Event()
        threading.Thread(target=self._kill_when_overdue, daemon=True).start()
        self._send(function)

    def call(self, item: Any, timeout_s: float = float("inf")) -> None:
        """Starts a call and returns at once; a process that exceeds its time is killed."""
        self.is_busy = True
        self._timeout_s, self._deadline = timeout_s, time.monotonic() + timeout_s
        self._send(item)

    def answer(self) -> Message | Returned | Failure:
        """The next answer of the call, waited for; after anything but a message the call is over."""
        answer: Message | Returned | Failure
        try:
            if self.is_stuck:
                raise EOFError
            answer = self.connection.recv()
        except (EOFError, OSError):
            answer = Failure(self._cause_of_death())
        if not isinstance(answer, Message):
            self.is_busy, self._deadline = False, float("inf")
        return answer

    @property
    def is_stuck(self) -> bool:
        """Whether the process was killed and yet is not gone, as happens while it waits for a dead network drive."""
        return time.monotonic() > self._killed_at + _GRACE_S

    def close(self, grace_s: float = 0.0) -> None:
        """Ends the process: asks an idle one by closing its pipe, and kills what is still there after a while."""
        self.is_busy = False
        self._closed.set()
        self.connection.close()
        self.process.join(grace_s)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join(_GRACE_S)
        atexit.unregister(self.process.kill)

    def _send(self, something: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `answer` tells how the process died
            self.connection.send(something)

    def _kill_when_overdue(self) -> None:
        # in a thread of its own: what hangs in the middle of an item or of an answer blocks who writes or reads it
        while not self._closed.wait(_TICK_S):
            if time.monotonic() > self._deadline:
                self._killed_at, self._deadline = time.monotonic(), float("inf")
                self.process.kill()

    def _cause_of_death(self) -> str:
        if self._killed_at < float("inf"):
            return f"the process took longer than {self._timeout_s:g} s"
        self.process.join(_GRACE_S)
        code = self.process.exitcode
        if code is None:
            return "the process has closed its pipe but does not end"
        return _death(code)


def answers(
    workers: Iterable[Worker], timeout_s: float | None = None
) -> Iterator[tuple[Worker, Message | Returned | Failure]]:
    """The answers of busy workers that are there, or come first within some time; none after that."""
    busy = [worker for worker in workers if worker.is_busy]
    ready = wait([worker.connection for worker in busy], timeout_s)
    for worker in busy:
        if worker.connection in ready or worker.is_stuck:
            yield worker, worker.answer()


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
    pool = _Pool(function, items, timeout_s)
    try:
        again = []
        for index, answer in pool.work(range(len(items)), jobs):
            if isinstance(answer, Failure) and answer.may_pass_alone:
                logger.warning("item %d: %s; it is tried again alone", index, answer.sentence)
                again.append(index)
            else:
                yield _outcome(index, answer)
        for index, answer in pool.work(again, 1):
            is_second = isinstance(answer, Failure) and answer.may_pass_alone
            yield _outcome(index, answer, ", twice" if is_second else "")
    finally:
        pool.close()


class _Pool:
    """Workers, and the item that each of them has."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any], timeout_s: float) -> None:
        self._function = function
        self._items = items
        self._timeout_s = timeout_s
        self._idle: list[Worker] = []
        self._at_work: dict[Worker, int] = {}

    def work(self, indices: Iterable[int], size: int) -> Iterator[tuple[int, Returned | Failure]]:
        """Has the items worked on by so many workers; those beyond them are ended, so that their memory is free."""
        while len(self._idle) > size:
            self._idle.pop().close()
        waiting = iter(indices)
        self._hand_out(waiting, size)
        while self._at_work:
            for worker, answer in answers(list(self._at_work), _TICK_S):
                index = self._at_work.pop(worker)
                if isinstance(answer, Failure) and not answer.trace:
                    worker.close()
                else:
                    self._idle.append(worker)
                assert not isinstance(answer, Message), "functions of a pool send none"
                self._hand_out(waiting, size)
                yield index, answer

    def _hand_out(self, waiting: Iterator[int], size: int) -> None:
        while len(self._at_work) < size and (index := next(waiting, None)) is not None:
            worker = self._idle.pop() if self._idle else Worker(partial(_without_messages, self._function), threads=1)
            self._at_work[worker] = index
            worker.call(self._items[index], self._timeout_s)

    def close(self) -> None:
        """Ends every process at once."""
        everyone = [*self._idle, *self._at_work]
        for worker in everyone:
            worker.process.kill()
        for worker in everyone:
            worker.close()


def _start_without_script(process: multiprocessing.process.BaseProcess) -> None:
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


def _outcome(index: int, answer: Returned | Failure, remark: str = "") -> Outcome[Any]:
    if isinstance(answer, Returned):
        return Outcome(index, answer.value)
    logger.debug("item %d failed\n%s", index, answer.trace)
    return Outcome(index, None, answer.sentence + remark)


def _attempt(function: Callable[..., Any], *arguments: Any) -> Returned | Failure:
    """What a function returns or raises; as text, as an exception itself may not survive the way between processes."""
    try:
        return Returned(function(*arguments))
    except Exception as error:  # whatever a reader of damaged files raises; interrupts and exits pass
        sentence = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return Failure(sentence, traceback.format_exc(), isinstance(error, MemoryError))


def _without_messages(function: Callable[[Any], Any], item: Any, _send: Callable[[Any], None]) -> Any:
    return function(item)


def _death(exitcode: int) -> str:
    if exitcode >= 0:
        return f"the process ended by itself with exit code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    likely = "; the system does this when memory runs out" if name == "SIGKILL" else ""
    peak = peak_memory_bytes(of_children=True)
    largest = f" (largest process so far: {peak / BYTES_PER_GIB:.2f} GiB)" if peak else ""
    return f"the process was ended by {name}{likely}{largest}"


def _serve(connection: Connection, threads: int | None) -> None:
    """The life of a worker: a function first, then items, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for variable in _THREAD_VARIABLES if threads else ():
        os.putenv(variable, str(threads))  # in time: numpy is only imported by what comes through the pipe
    lock = threading.Lock()

    def send(something: Any) -> None:
        with lock:
            connection.send(something)

    def send_message(value: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # SIGTERM is on its way
            send(Message(value))

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        function = connection.recv()
        while True:
            answer = _attempt(function, connection.recv(), send_message)
            unsent = _attempt(send, answer)  # nothing of a value that cannot be sent is in the pipe
            if isinstance(unsent, Failure):
                send(unsent)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers are spawned"
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
