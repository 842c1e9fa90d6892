"""Manifests: a CSV or JSON file that lists every case with its files, wherever they lie."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoseg.core.errors import RecordFault
from autoseg.core.records import read_json, read_text
from autoseg.data.layouts.description import channels_entry, describe, entry
from autoseg.data.layouts.entries import CASE_KEYS, IMAGE_KEYS, LABEL_KEYS
from autoseg.data.layouts.layout import Found, Layout

MANIFESTS = ("manifest.csv", "manifest.json")

_IMAGE_COLUMN = re.compile(r"^image(?:[_ ](?P<channel>.+))?$", re.IGNORECASE)
_LIST_KEYS = ("cases", "training")
_CASE_ENTRIES = {*CASE_KEYS, *LABEL_KEYS, *IMAGE_KEYS}


def detect_manifest(path: Path) -> Found | None:
    """What a manifest lists: the file itself, or `manifest.csv` or `manifest.json` in a folder; None without one.

    CSV columns are `case` (may be left out), `image` or one `image_<channel>` per channel, and `label`. JSON is a list
    of {"case", "image": path or paths, "label"}, or a table with such a list under `cases` and optionally the entries
    `channel_names`, `labels`, `ignore` (a value), `regions_class_order`, `file_ending`, `numTraining` and `four_d` (a
    fourth axis holds the channels). Paths start from the manifest's folder. Columns and entries that are not read are
    noted.

    Raises:
        RecordFault: the manifest is faulty; every fault is listed.
    """
    file = path if path.is_file() else next((path / name for name in MANIFESTS if (path / name).is_file()), path)
    read = _READERS.get(file.suffix.lower())
    if read is None or not file.is_file():
        return None
    table = read(file)
    listed = next((key for key in _LIST_KEYS if entry(table, key) is not None), _LIST_KEYS[0])
    optional = ("labels", "ignore", "regions_class_order", "four_d", "file_ending", "numTraining")
    declared = describe(table, str(file), (listed,), (channels_entry(table), *optional))
    return Found(
        cases=tuple(declared.cases),
        seen=f"manifest: {file.name} lists {len(declared.cases)} cases",
        declared=declared,
        declares="it declares the classes",
        notes=_unread(table, listed),
        four_d=declared.four_d,
        name="" if file.name in MANIFESTS else file.stem,
    )


def _read_json(file: Path) -> dict[str, Any]:
    data = read_json(file)
    if isinstance(data, dict) and any(entry(data, key) is not None for key in _LIST_KEYS):
        return data
    if isinstance(data, list) or (isinstance(data, dict) and all(isinstance(one, dict) for one in data.values())):
        return {"cases": data}
    raise RecordFault(
        "a manifest must be a list of cases or a table with one",
        where=str(file),
        do='correct the file, for example {"cases": [{"image": "a.tif", "label": "a_mask.tif"}]}',
    )


def _read_csv(file: Path) -> dict[str, Any]:
    """The manifest's rows as the JSON form has them."""
    text = read_text(file)
    first = text.split("\n", 1)[0]
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), restval="")
    try:
        return _table_of(rows, file)
    except csv.Error as error:
        what = f"line {max(rows.line_num, 1)} cannot be read: {error}"
        raise RecordFault(what, where=str(file), do="correct this line, or write the file again") from error


def _table_of(rows: csv.DictReader[str], file: Path) -> dict[str, Any]:
    columns = [column.strip() for column in rows.fieldnames or ()]
    rows.fieldnames = columns
    images, case, label = _image_columns(columns), _column(columns, CASE_KEYS), _column(columns, LABEL_KEYS)
    if not images or not label:
        raise RecordFault(
            f"the columns must be case,image,label or case,image_<channel>,...,label; found: {','.join(columns)}",
            where=str(file),
            do="correct the first line of the file",
        )
    others = set(columns) - {*images, case, label, ""}
    entries = [
        {"image": [row[i].strip() for i in images], "label": row[label].strip(), "case": row.get(case, "").strip()}
        | dict.fromkeys(others, "")
        for row in rows
    ]
    return {"cases": entries, **_channel_names(list(images.values()))}


def _unread(table: dict[str, Any], listed: str) -> tuple[str, ...]:
    """A note on the columns, or entries of a case, that are not read."""
    cases = entry(table, listed)
    entries = [one for one in (cases.values() if isinstance(cases, dict) else cases) if isinstance(one, dict)]
    others = sorted({str(key) for one in entries for key in one if str(key).casefold() not in _CASE_ENTRIES})
    return (f"of the cases, these are not read: {', '.join(others)}",) if others else ()


def _channel_names(channels: Sequence[str | None]) -> dict[str, Any]:
    """The entry that names the channels, if every column has a name that is no number."""
    if not all(channel and not channel.isdigit() for channel in channels):
        return {}
    return {"channel_names": {str(index): channel for index, channel in enumerate(channels)}}


def _image_columns(columns: Sequence[str]) -> dict[str, str | None]:
    """Column -> channel for the image columns, in their order, or in that of their numbers where all are numbered."""
    found = {column: match["channel"] for column in columns if (match := _IMAGE_COLUMN.match(column))}
    numbers = {column: int(channel) for column, channel in found.items() if channel and channel.isdecimal()}
    ordered = sorted(found, key=numbers.__getitem__) if len(numbers) == len(found) else found
    return {column: found[column] for column in ordered}


def _column(columns: Sequence[str], wanted: Sequence[str]) -> str:
    return next((column for column in columns if column.lower() in wanted), "")


_READERS = {".csv": _read_csv, ".json": _read_json}

MANIFEST = Layout(
    detect_manifest,
    "manifest.csv with the columns case,image,label (or image_<channel>); or manifest.json",
    takes_file=True,
)
