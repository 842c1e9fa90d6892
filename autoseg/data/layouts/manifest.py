"""Manifests: a CSV or JSON file that lists every case with its files, wherever they lie."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoseg.core.errors import RecordFault
from autoseg.core.records import read_json
from autoseg.data.layouts.decathlon import listed_cases
from autoseg.data.layouts.nnunet_description import LEGACY_FILE_ENDING, read_channels, read_label_set, refuse_faults
from autoseg.data.layouts.scan import channel_names, count_channels, most_common_ending
from autoseg.data.layouts.undeclared import found_classes
from autoseg.data.model import Case, Dataset, LabelSet

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
    faults: list[str] = []
    table = _read_csv(file, faults) if file.suffix.lower() == ".csv" else _read_table(file)
    entries = next((table[key] for key in _LIST_KEYS if isinstance(table.get(key), list)), None)
    if entries is None:
        faults.append(
            'there must be a list of cases, for example {"cases": [{"image": "a.tif", "label": "a_mask.tif"}]}'
        )
    cases = listed_cases(entries or [], "cases", faults)
    root = file.parent
    refuse_faults(faults, str(file))
    four_d = table.get("four_d") is True
    labels, how = _labels(table, root, cases, faults)
    channels = _channels(table, root, cases, faults)
    refuse_faults(faults, str(file))
    return Dataset(
        name=root.resolve().name if file.name in MANIFESTS else file.stem,
        root=str(root),
        layout="manifest",
        layout_reason=f"manifest: {file.name} lists {len(cases)} cases; {how}",
        channels=channels,
        labels=labels,
        cases=cases,
        file_ending=most_common_ending(case.labels for case in cases) or LEGACY_FILE_ENDING,
        four_d=four_d,
    )


def _read_table(file: Path) -> dict[str, Any]:
    data = read_json(file)
    if isinstance(data, list):
        return {"cases": data}
    if isinstance(data, dict) and any(key in data for key in _LIST_KEYS):
        return data
    if isinstance(data, dict) and all(isinstance(entry, dict) for entry in data.values()):
        return {"cases": [{"case": name, **entry} for name, entry in data.items()]}
    raise RecordFault("a manifest must be a list of cases or a table", where=str(file), do="correct the file")


def _read_csv(file: Path, faults: list[str]) -> dict[str, Any]:
    """The manifest's rows as the JSON form has them."""
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    first = text.split("\n", 1)[0]
    rows = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=first.count))
    columns = [column.strip() for column in rows.fieldnames or ()]
    rows.fieldnames = columns
    images = _image_columns(columns)
    case_column = _column(columns, _CASE_COLUMNS)
    label_column = _column(columns, _LABEL_COLUMNS)
    if not images or label_column is None:
        faults.append(
            f"the columns must be case,image,label or case,image_<channel>,...,label; found: {','.join(columns)}"
        )
        return {"cases": []}
    try:
        entries = [_entry(row, case_column, list(images), label_column) for row in rows]
    except csv.Error as error:
        faults.append(f"line {rows.line_num} cannot be read: {error}")
        return {"cases": []}
    table: dict[str, Any] = {"cases": entries}
    if all(channel and not channel.isdigit() for channel in images.values()):
        table["channel_names"] = {str(index): channel for index, channel in enumerate(images.values())}
    return table


def _image_columns(columns: Sequence[str]) -> dict[str, str | None]:
    """Column -> channel for the image columns, in their order, or in that of their numbers where all are numbered."""
    found = {column: match["channel"] for column in columns if (match := _IMAGE_COLUMN.match(column))}
    numbers = {column: int(channel) for column, channel in found.items() if channel and channel.isdecimal()}
    return {
        column: found[column]
        for column in (sorted(found, key=numbers.__getitem__) if len(numbers) == len(found) else found)
    }


def _column(columns: Sequence[str], wanted: Sequence[str]) -> str | None:
    return next((column for column in columns if column.lower() in wanted), None)


def _entry(row: Mapping[str, str | None], case: str | None, images: Sequence[str], label: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "image": [(row.get(image) or "").strip() for image in images],
        "label": (row.get(label) or "").strip(),
    }
    return {**entry, "case": (row.get(case) or "").strip()} if case else entry


def _labels(table: Mapping[str, Any], root: Path, cases: tuple[Case, ...], faults: list[str]) -> tuple[LabelSet, str]:
    if "labels" in table:
        return read_label_set(table, faults), "it declares the classes"
    return found_classes(root, cases)


def _channels(table: Mapping[str, Any], root: Path, cases: tuple[Case, ...], faults: list[str]) -> tuple[str, ...]:
    if "channel_names" in table or "modality" in table:
        return read_channels(table, faults)
    per_case = max(len(case.images) for case in cases)
    count = per_case if per_case > 1 else count_channels(root, cases, four_d=table.get("four_d") is True)
    return channel_names(count, per_case)
