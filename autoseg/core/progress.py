"""Progress as a plain callback: work is done below, bars are drawn by the command line."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (items done, items in all) whenever an item is finished."""


def silent(_done: int, _total: int) -> None:
    """Progress for callers that show none."""
