"""The run's history: one JSON document per line and epoch."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from autoseg.core.files import write_atomic
from autoseg.training.callbacks.base import RunContext
from autoseg.training.loop import Callback, EpochResult
from autoseg.training.step import TrainingState
from autoseg.training.validation import class_dice

_TAIL_BYTES = 1 << 16  # far more than an epoch's line


class History(Callback):
    """Adds a line to history.jsonl after each epoch; comes before checkpoints, which count its lines."""

    def __init__(self, run: RunContext) -> None:
        self._run = run

    def after_epoch(self, result: EpochResult, state: TrainingState) -> None:
        """Adds the epoch."""
        scores = result.scores
        state.seconds = self._run.seconds()
        entry = {
            "epoch": result.epoch,
            "step": state.step,
            "lr": result.lr,
            "loss": result.loss,
            "validation_loss": scores.loss if scores and math.isfinite(scores.loss) else None,
            "dice": class_dice(self._run.classes, scores),
            "mean_dice": scores.mean_dice if scores else None,
            "ema_dice": state.ema_dice,
            "seconds": round(result.seconds, 3),
            "data_wait_share": round(result.data_wait_share, 4),
            "total_seconds": round(state.seconds, 1),
            "events": list(result.events),
        }
        append_history(self._run.folder.history, entry)
        state.history_lines += 1


def append_history(path: Path, entry: dict[str, Any]) -> None:
    """Adds one epoch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry, allow_nan=False) + "\n")


def read_history(path: Path) -> list[dict[str, Any]]:
    """All complete lines; one that an interrupted writer left unfinished is passed over."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def last_history(path: Path) -> dict[str, Any] | None:
    """The newest epoch, read from the end of the file; None before the first."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = stream.read().splitlines(keepends=True)
    except FileNotFoundError:
        return None
    complete = [line for line in lines if line.endswith(b"\n") and line.startswith(b"{")]
    if not complete:
        return None
    entry: dict[str, Any] = json.loads(complete[-1])
    return entry


def truncate_history(path: Path, lines: int) -> None:
    """Leaves the first `lines` epochs: what came after the checkpoint that a run resumes from will come again."""
    entries = read_history(path)[:lines]
    text = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text)
