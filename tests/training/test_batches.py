from __future__ import annotations

import threading
import time

import pytest

from autoseg.core.errors import TrainingStopped
from autoseg.training.batches import Prefetcher


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_come_in_order_whatever_the_threads(threads: int) -> None:
    def slowly(index: int) -> int:
        time.sleep(0.002 * ((index * 7) % 3))
        return index * 10

    with Prefetcher(slowly, 4, threads) as batches:
        assert [next(batches) for _ in range(20)] == [10 * i for i in range(4, 24)]
        assert iter(batches) is batches
    assert batches.waited_seconds > 0


def test_no_more_is_made_ahead_than_twice_the_threads() -> None:
    made: list[int] = []
    with Prefetcher(made.append, 0, 2) as batches:
        next(batches)
        time.sleep(0.1)
        assert len(made) <= 1 + 4


def test_an_error_in_a_thread_reaches_the_loop() -> None:
    def fail_at_three(index: int) -> int:
        if index == 3:
            raise TrainingStopped("case x cannot be read")
        return index

    with Prefetcher(fail_at_three, 0, 2) as batches, pytest.raises(TrainingStopped, match="case x"):
        for _ in batches:
            pass


def test_a_stuck_thread_is_reported_and_does_not_keep_the_process() -> None:
    forever = threading.Event()
    with Prefetcher(lambda _i: forever.wait(), 0, 1, timeout_seconds=0.05) as batches:
        with pytest.raises(TrainingStopped, match="batch 0 was not ready"):
            next(batches)
        forever.set()
