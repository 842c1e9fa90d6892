"""Calls of functions in supervised processes: many items at once, or one call after another."""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from autoseg.core.machine import available_memory_bytes
from autoseg.core.workers.worker import Failure, Message, Returned, Worker, answers, attempt

Item = TypeVar("Item")
Value = TypeVar("Value")

ITEM_TIMEOUT_S = 600.0
"""Seconds one item may take before its process is taken for hung. Assumption: the largest cases stay below it."""

_TICK_S = 0.2

_USABLE_SHARE = 0.8
"""Of the memory that is there, the most that items are let to take together; the rest is for other programs."""

_PROCESS_BYTES = 160 << 20
"""Memory of a process before it has an item: Python, numpy, scipy and AutoSeg (measured: 100 to 130 MiB)."""

logger = logging.getLogger(__name__)


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


def map_supervised(
    function: Callable[[Item], Value],
    items: Sequence[Item],
    jobs: int,
    timeout_s: float = ITEM_TIMEOUT_S,
    needs: Sequence[int] = (),
    memory_bytes: int | None = None,
) -> Iterator[Outcome[Value]]:
    """Yields what became of every item, in the order in which they finish.

    Where `needs` are given, the largest items are worked on first, and never so many together that they take more
    memory than there is; one that is too large for it is tried alone.

    Ends the processes when the caller stops iterating, also by an exception such as KeyboardInterrupt.

    Args:
        function: called with one item; a function of a module, as it is sent to other processes.
        items: sent to other processes likewise.
        jobs: processes; with 0 the calling process does everything itself, unprotected.
        timeout_s: seconds one item may take.
        needs: bytes of memory that each item takes at most, an estimate; empty where all of them are small.
        memory_bytes: that all items may take together; by default most of what the machine has left now.
    """
    if jobs == 0:
        for index, item in enumerate(items):
            yield _outcome(index, attempt(function, item))
        return
    pool = _Pool(function, items, timeout_s, _Memory(needs, memory_bytes))
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


class Helper:
    """One process for any calls, one at a time; what a call does to the process costs that call alone.

    The process starts at once, to be ready when it is needed. One that dies or hangs is replaced, and its call is
    tried once more.

    Args:
        likely: a function of the module whose functions it will call, which is imported beforehand.
        timeout_s: seconds one call may take.
    """

    def __init__(self, likely: Callable[..., Any] | None = None, timeout_s: float = ITEM_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._is_closed = False
        self._calling = threading.Lock()
        self._serve = partial(_apply, likely)
        self._worker = Worker(self._serve)

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, function: Callable[[Item], Value], item: Item) -> Value | Failure:
        """What a function of a module returns for an item, or why it does not."""
        with self._calling:
            answer = self._answer(function, item)
            if isinstance(answer, Failure) and not answer.trace and not self._is_closed:
                logger.warning("%s; it is tried again", answer.sentence)
                answer = self._answer(function, item)
                if isinstance(answer, Failure) and not answer.trace:
                    answer = replace(answer, sentence=f"{answer.sentence}, twice")
        return answer

    def map(self, function: Callable[[Item], Value], items: Sequence[Item]) -> Iterator[Outcome[Value]]:
        """What became of every item, in order."""
        for index, item in enumerate(items):
            answer = self.call(function, item)
            yield _outcome(index, answer if isinstance(answer, Failure) else Returned(answer))

    def close(self) -> None:
        """Ends the process, also in the middle of a call, which then fails."""
        self._is_closed = True
        self._worker.process.kill()
        with self._calling:
            self._worker.close()

    def _answer(self, function: Callable[[Item], Value], item: Item) -> Value | Failure:
        self._worker.call((function, item), self._timeout_s)
        answer = self._worker.answer()
        assert not isinstance(answer, Message), "functions of a helper send none"
        if isinstance(answer, Returned):
            value: Value = answer.value
            return value
        if not answer.trace and not self._is_closed:
            self._worker.close()
            self._worker = Worker(self._serve)
        return answer


@dataclass(slots=True)
class _Memory:
    """Bytes that items need, empty if nothing is known of them, and that they may take together."""

    needs: Sequence[int]
    limit: int | None

    def __post_init__(self) -> None:
        if self.needs and self.limit is None:
            self.limit = int(_USABLE_SHARE * available_memory_bytes())

    def of(self, index: int) -> int:
        return self.needs[index] + _PROCESS_BYTES if self.needs else 0

    def take(self, waiting: list[int], at_work: Collection[int]) -> int | None:
        """Takes the largest item that fits beside those at work off a list with the largest first; None if none does.

        Beside nothing every item fits.
        """
        free = (self.limit or 0) - sum(map(self.of, at_work))
        first = bisect_left(waiting, -free, key=lambda index: -self.of(index)) if at_work else 0
        return waiting.pop(first) if first < len(waiting) else None


class _Pool:
    """Workers, and the item that each of them has."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any], timeout_s: float, memory: _Memory) -> None:
        self._function = function
        self._items = items
        self._timeout_s = timeout_s
        self._memory = memory
        self._idle: list[Worker] = []
        self._at_work: dict[Worker, int] = {}

    def work(self, indices: Iterable[int], size: int) -> Iterator[tuple[int, Returned | Failure]]:
        """Has the items worked on by so many workers; those beyond them are ended, so that their memory is free."""
        while len(self._idle) > size:
            self._idle.pop().close()
        waiting = sorted(indices, key=self._memory.of, reverse=True)
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

    def _hand_out(self, waiting: list[int], size: int) -> None:
        at_work = self._at_work
        while len(at_work) < size and (index := self._memory.take(waiting, at_work.values())) is not None:
            worker = self._idle.pop() if self._idle else Worker(partial(_without_messages, self._function), threads=1)
            at_work[worker] = index
            worker.call(self._items[index], self._timeout_s)

    def close(self) -> None:
        """Ends every process at once."""
        everyone = [*self._idle, *self._at_work]
        for worker in everyone:
            worker.process.kill()
        for worker in everyone:
            worker.close()


def _outcome(index: int, answer: Returned | Failure, remark: str = "") -> Outcome[Any]:
    if isinstance(answer, Returned):
        return Outcome(index, answer.value)
    logger.debug("item %d failed\n%s", index, answer.trace)
    return Outcome(index, None, answer.sentence + remark)


def _without_messages(function: Callable[[Any], Any], item: Any, _send: Callable[[Any], None]) -> Any:
    return function(item)


def _apply(_likely: object, call: tuple[Callable[[Any], Any], Any], _send: Callable[[Any], None]) -> Any:
    function, item = call
    return function(item)
