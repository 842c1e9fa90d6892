"""Ctrl-C and SIGTERM as a question that the work asks between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from autoseg.core.errors import Interrupted


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """A function that raises Interrupted once Ctrl-C or SIGTERM came; a second Ctrl-C stops at once.

    Outside the main thread, where signals cannot be caught, it never raises.
    """
    asked: list[str] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(signal.Signals(number).name)

    def check() -> None:
        if asked:
            raise Interrupted(f"stopped by {asked[0]}", do="run the same command again to go on")

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, note) for number in numbers]
    try:
        yield check
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
