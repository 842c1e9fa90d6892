"""Signals that ask to stop as a question that the work asks between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from autoseg.core.errors import Interrupted

_ASKING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU")
"""Ctrl-C; the end of a job; a terminal that was closed; `ulimit -t`. Not every system has all of them."""


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """A function that raises Interrupted once Ctrl-C or another signal came; a second Ctrl-C stops at once.

    What is ignored stays ignored, so that `nohup` works.

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
    known = [getattr(signal, name) for name in _ASKING if hasattr(signal, name)]
    numbers = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT]
    before = [signal.signal(number, note) for number in numbers]
    try:
        yield check
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
