"""Finding and reading a dataset's own description, before anyone asks what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoseg.core.records import read_table

DESCRIPTION = "dataset.json"


def read_description(root: Path) -> dict[str, Any] | None:
    """The content of `dataset.json` in a folder; None where there is none.

    Raises:
        RecordFault: it is no JSON, or no table.
    """
    path = root / DESCRIPTION
    return read_table(path) if path.is_file() else None
