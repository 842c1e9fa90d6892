"""Ctrl-C and SIGTERM as a question that the work asks between two steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
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


def seconds_since_start() -> float:
    """Wall time since this process was started, the interpreter's own start included; 0 where it is not known."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        up_seconds = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, up_seconds - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0
