"""Calls of functions in supervised processes: many items at once, or one call after another."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from autoseg.core.workers.worker import Failure, Message, Returned, Worker, answers, attempt

Item = TypeVar("Item")
Value = TypeVar("Value")

ITEM_TIMEOUT_S = 600.0
"""Seconds one item may take before its process is taken for hung. Assumption: the largest cases stay below it."""

_TICK_S = 0.2

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
            yield _outcome(index, attempt(function, item))
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
