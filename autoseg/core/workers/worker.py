"""A process that serves calls, one after another; how it died is told, and one that takes too long is killed."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import multiprocessing.process
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from autoseg.core.errors import is_machine_fault
from autoseg.core.machine import BYTES_PER_GIB, peak_memory_bytes

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


def attempt(function: Callable[..., Any], *arguments: Any) -> Returned | Failure:
    """What a function returns or raises; as text, as an exception itself may not survive the way between processes."""
    try:
        return Returned(function(*arguments))
    except Exception as error:  # whatever a reader of damaged files raises; interrupts and exits pass
        sentence = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return Failure(sentence, traceback.format_exc(), is_machine_fault(error))


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
            answer = attempt(function, connection.recv(), send_message)
            unsent = attempt(send, answer)  # nothing of a value that cannot be sent is in the pipe
            if isinstance(unsent, Failure):
                send(unsent)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers are spawned"
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
