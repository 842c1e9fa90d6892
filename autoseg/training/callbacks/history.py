"""The run's history: one JSON document per line and epoch."""

from __future__ import annotations

import json
import logging
import math
import os
from itertools import islice
from pathlib import Path
from typing import Any

from autoseg.core.files import write_atomic
from autoseg.core.records import parse_json
from autoseg.training.callbacks.base import RunContext
from autoseg.training.loop import Callback, EpochResult
from autoseg.training.step import TrainingState
from autoseg.training.validation import class_dice

_ENTRIES = {"epoch"}  # without it a line is no epoch
_log = logging.getLogger(__name__)
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
            "busy_share": None if result.busy_share is None else round(result.busy_share, 4),
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
    """All complete lines; one that an interrupted writer left unfinished is passed over, a damaged one is named."""
    entries = []
    for number, line in enumerate(_lines(path), start=1):
        if (entry := _entry(line)) is not None:
            entries.append(entry)
        else:
            _log.warning("%s: line %d is damaged and left out", path, number)
    return entries


def _lines(path: Path) -> list[bytes]:
    """The complete lines, with their ends; none where there is no file."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith(b"\n")]


def _entry(line: bytes) -> dict[str, Any] | None:
    """The epoch that a line describes; None if it is damaged."""
    try:
        entry = parse_json(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and entry.keys() >= _ENTRIES else None


def last_history(path: Path) -> dict[str, Any] | None:
    """The newest epoch, read from the end of the file; None before the first."""
    return next(iter(recent_history(path, 1)), None)


def recent_history(path: Path, most: int) -> list[dict[str, Any]]:
    """The newest epochs, the newest first, read from the end of the file; none before the first.

    Args:
        path: of the history.
        most: epochs wanted.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = stream.read().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    found = (_entry(line) for line in reversed(lines) if line.endswith(b"\n"))
    return list(islice((entry for entry in found if entry is not None), most))


def truncate_history(path: Path, lines: int) -> None:
    """Leaves the first `lines` epochs: what came after the checkpoint that a run resumes from will come again."""
    content = b"".join(_lines(path)[:lines])
    if not path.exists() or path.read_bytes() != content:
        write_atomic(path, content)
