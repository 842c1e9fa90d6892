"""Manifests: a CSV or JSON file that lists every case with its files, wherever they lie."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoseg.core.errors import RecordFault
from autoseg.core.records import read_json
from autoseg.data.layouts.description import (
    LEGACY_FILE_ENDING,
    channels_entry,
    describe,
    found_channels,
    found_classes,
)
from autoseg.data.layouts.layout import Layout, most_common_ending
from autoseg.data.model import Dataset

MANIFESTS = ("manifest.csv", "manifest.json")

_CASE_COLUMNS = ("case", "id", "identifier", "name")
_LABEL_COLUMNS = ("label", "labels", "mask", "segmentation")
_IMAGE_COLUMN = re.compile(r"^image(?:[_ ](?P<channel>.+))?$", re.IGNORECASE)
_LIST_KEYS = ("cases", "training")


def detect_manifest(path: Path) -> Dataset | None:
    """The dataset of a manifest: the file itself, or `manifest.csv` or `manifest.json` in a folder; None without one.

    CSV columns are `case` (may be left out), `image` or one `image_<channel>` per channel, and `label`. JSON is a list
    of {"case", "image": path or paths, "label"}, or a table with such a list under `cases` and optionally
    `channel_names`, `labels`, `ignore` and `four_d` (a fourth axis holds the channels). Paths start from the
    manifest's folder.

    Raises:
        RecordFault: the manifest is faulty; every fault is listed.
        DataRefused: no label file can be read, or none holds a class.
    """
    file = path if path.is_file() else next((path / name for name in MANIFESTS if (path / name).is_file()), None)
    if file is None or file.suffix.lower() not in (".csv", ".json"):
        return None
    table = _read_csv(file) if file.suffix.lower() == ".csv" else _read_json(file)
    listed = next((key for key in _LIST_KEYS if key in table), _LIST_KEYS[0])
    optional = (channels_entry(table), "labels", "regions_class_order", "four_d")
    declared = describe(table, str(file), (listed,), optional)
    root, cases = file.parent, tuple(declared.cases)
    has_classes = bool(declared.classes)
    labels, how = (declared.labels, "it declares the classes") if has_classes else found_classes(root, cases)
    return Dataset(
        name=root.resolve().name if file.name in MANIFESTS else file.stem,
        root=str(root),
        layout="manifest",
        layout_reason=f"manifest: {file.name} lists {len(cases)} cases; {how}",
        channels=declared.channels or found_channels(root, cases, four_d=declared.four_d),
        labels=labels,
        cases=cases,
        file_ending=most_common_ending(cases) or LEGACY_FILE_ENDING,
        four_d=declared.four_d,
    )


def _read_json(file: Path) -> dict[str, Any]:
    data = read_json(file)
    if isinstance(data, dict) and any(key in data for key in _LIST_KEYS):
        return data
    if isinstance(data, list) or (isinstance(data, dict) and all(isinstance(entry, dict) for entry in data.values())):
        return {"cases": data}
    raise RecordFault(
        "a manifest must be a list of cases or a table with one",
        where=str(file),
        do='correct the file, for example {"cases": [{"image": "a.tif", "label": "a_mask.tif"}]}',
    )


def _read_csv(file: Path) -> dict[str, Any]:
    """The manifest's rows as the JSON form has them."""
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    first = text.split("\n", 1)[0]
    rows = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=first.count))
    columns = [column.strip() for column in rows.fieldnames or ()]
    rows.fieldnames = columns
    images = _image_columns(columns)
    case, label = _column(columns, _CASE_COLUMNS), _column(columns, _LABEL_COLUMNS)
    if not images or label is None:
        raise RecordFault(
            f"the columns must be case,image,label or case,image_<channel>,...,label; found: {','.join(columns)}",
            where=str(file),
            do="correct the first line of the file",
        )
    try:
        filled = [{column: (row.get(column) or "").strip() for column in columns} for row in rows]
    except csv.Error as error:
        what = f"line {rows.line_num} cannot be read: {error}"
        raise RecordFault(what, where=str(file), do="correct this line, or write the file again") from error
    entries = [{"image": [row[i] for i in images], "label": row[label], "case": row.get(case or "")} for row in filled]
    table: dict[str, Any] = {"cases": entries}
    if all(channel and not channel.isdigit() for channel in images.values()):
        table["channel_names"] = {str(index): channel for index, channel in enumerate(images.values())}
    return table


def _image_columns(columns: Sequence[str]) -> dict[str, str | None]:
    """Column -> channel for the image columns, in their order, or in that of their numbers where all are numbered."""
    found = {column: match["channel"] for column in columns if (match := _IMAGE_COLUMN.match(column))}
    numbers = {column: int(channel) for column, channel in found.items() if channel and channel.isdecimal()}
    ordered = sorted(found, key=numbers.__getitem__) if len(numbers) == len(found) else found
    return {column: found[column] for column in ordered}


def _column(columns: Sequence[str], wanted: Sequence[str]) -> str | None:
    return next((column for column in columns if column.lower() in wanted), None)


MANIFEST = Layout(
    detect_manifest,
    "manifest.csv with the columns case,image,label (or image_<channel>); or manifest.json",
    takes_file=True,
)
