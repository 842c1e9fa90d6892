"""Learning curves of a run as a picture."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from autoseg.core.files import atomic_file
from autoseg.data.model import CLASS_COLORS
from autoseg.training.callbacks.base import RunContext, Throttle
from autoseg.training.callbacks.history import read_history
from autoseg.training.loop import Callback, EpochResult
from autoseg.training.step import TrainingState

DRAWING_SHARE = 0.01
"""Largest share of the time spent on drawing the curves."""

DOTS_PER_INCH = 110

_FEW_EPOCHS = 30  # every epoch gets a mark
_FIRST_COST = 0.1  # seconds (assumption): the first picture comes after 10 s


class Curves(Callback):
    """Draws the learning curves now and then, and at the end."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._throttle = Throttle(DRAWING_SHARE, cost=_FIRST_COST, last=time.monotonic())

    def after_epoch(self, _result: EpochResult, state: TrainingState) -> None:
        """Draws the history that was written so far."""
        if state.is_finished or self._throttle.is_due():
            folder = self._run.folder
            self._throttle.run(lambda: draw_curves(folder.curves, read_history(folder.history)))


def draw_curves(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Draws the learning curves of a run, writes a PNG: losses left, Dice per class right.

    Args:
        path: the PNG to write.
        history: lines of history.jsonl, one per epoch, with `epoch`, `loss`, `validation_loss`, `dice` (class -> value
            or None), `ema_dice` and `lr`. Missing values leave gaps.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    epochs = [entry["epoch"] for entry in history]
    mark = "o" if len(epochs) < _FEW_EPOCHS else None

    left.plot(epochs, _series(history, "loss"), color="#0072B2", marker=mark, markersize=3, label="training")
    left.plot(
        epochs, _series(history, "validation_loss"), color="#D55E00", marker=mark, markersize=3, label="validation"
    )
    left.set(xlabel="epoch", ylabel="loss")

    names = list(history[-1].get("dice") or {}) if history else []
    for color, name in zip(islice(cycle(CLASS_COLORS), len(names)), names, strict=True):
        values = _series([entry.get("dice") or {} for entry in history], name)
        right.plot(epochs, values, color=color, linewidth=1, marker=mark, markersize=3, label=name)
    right.plot(epochs, _series(history, "ema_dice"), color="black", linewidth=2, label="mean, smoothed")
    right.set(xlabel="epoch", ylabel="Dice of validation patches", ylim=(0, 1.02))

    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.legend(fontsize=8, frameon=False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _series(entries: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """The values under `key`, not-a-number where there is none."""
    return [float("nan") if (value := entry.get(key)) is None else float(value) for entry in entries]
