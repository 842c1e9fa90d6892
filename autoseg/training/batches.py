"""Making batches ahead of the training in a few threads that can neither hang it nor change its order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

from autoseg.core.errors import TrainingStopped

T = TypeVar("T")

TIMEOUT_SECONDS = 300.0
"""Longest wait for one batch before the training stops (assumption: the slowest network disk needs seconds)."""


class Prefetcher(Generic[T]):
    """Iterates over make(start), make(start + 1), ... made ahead in threads; use it in a `with` block.

    What it yields does not depend on the number of threads. With 0 threads every batch is made when it is asked for.

    Attributes:
        waited_seconds: time spent waiting for batches so far.
    """

    def __init__(
        self, make: Callable[[int], T], start: int, threads: int, *, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self.waited_seconds = 0.0
        self._make = make
        self._next_made = start
        self._next_given = start
        self._ahead = 2 * threads
        self._timeout_seconds = timeout_seconds
        self._ready: dict[int, T | BaseException] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        # Daemons: a thread stuck in a dead file system must not keep the process from ending.
        self._threads = [threading.Thread(target=self._work, daemon=True, name="batches") for _ in range(threads)]

    def __enter__(self) -> Prefetcher[T]:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=1.0)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """The next batch.

        Raises:
            TrainingStopped: it did not come in time.
        """
        begin = time.perf_counter()
        result = self._take() if self._threads else self._make(self._next_given)
        self._next_given += 1
        self.waited_seconds += time.perf_counter() - begin
        if isinstance(result, BaseException):
            raise result
        return result

    def _take(self) -> T | BaseException:
        index = self._next_given
        with self._changed:
            if not self._changed.wait_for(lambda: index in self._ready, self._timeout_seconds):
                raise TrainingStopped(
                    f"batch {index} was not ready after {self._timeout_seconds:g} s",
                    why="the disk of the work folder does not answer",
                    do="check the disk, then run the same command again",
                )
            result = self._ready.pop(index)
            self._changed.notify_all()
        return result

    def _work(self) -> None:
        while (index := self._claim()) is not None:
            result: T | BaseException
            try:
                result = self._make(index)
            except BaseException as error:  # raised where the batch is asked for
                result = error
            with self._changed:
                self._ready[index] = result
                self._changed.notify_all()

    def _claim(self) -> int | None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._next_made - self._next_given < self._ahead)
            if self._is_closed:
                return None
            self._next_made += 1
            return self._next_made - 1
