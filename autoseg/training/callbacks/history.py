"""The run's diary: one JSON document per line and epoch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from autoseg.core.files import write_atomic

_TAIL_BYTES = 1 << 16  # far more than an epoch's line


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
