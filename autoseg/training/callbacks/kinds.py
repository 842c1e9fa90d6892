"""The callbacks that a recipe can name, and those that every training has."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from autoseg.core.registry import choose
from autoseg.training.callbacks.base import RunContext
from autoseg.training.callbacks.checkpointing import Checkpointing
from autoseg.training.callbacks.curves import Curves
from autoseg.training.callbacks.epoch_logger import EpochLogger
from autoseg.training.callbacks.history import History
from autoseg.training.loop import Callback

CALLBACKS: dict[str, Callable[[RunContext], Callback]] = {
    "curves": Curves,
    "epoch_logger": EpochLogger,
}
"""Kinds of callbacks by the name used in recipes."""


def make_callbacks(names: Iterable[str], run: RunContext) -> list[Callback]:
    """History and checkpoints, which a resumed run needs, then the callbacks named, in order.

    Raises:
        UsageError: there is no such callback.
    """
    return [History(run), Checkpointing(run), *(choose(name, CALLBACKS, "callback")(run) for name in names)]
