"""Finding and reading a dataset's own description, before anyone asks what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autoseg.core.errors import RecordFault

DESCRIPTION = "dataset.json"


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        RecordFault: it is no JSON, with line and column of the fault.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RecordFault(
            f"{path.name} is not valid JSON: {error}", where=str(path), do="correct the file, or remove it"
        ) from error


def read_description(root: Path) -> dict[str, Any] | None:
    """The content of `dataset.json` in a folder; None where there is none.

    Raises:
        RecordFault: it is no JSON, or no table.
    """
    path = root / DESCRIPTION
    if not path.is_file():
        return None
    data = read_json(path)
    if not isinstance(data, dict):
        raise RecordFault(
            f"{DESCRIPTION} must hold a table {{...}}", where=str(path), do="correct the file, or remove it"
        )
    return data
