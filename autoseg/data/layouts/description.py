"""What a dataset says about itself in dataset.json or a manifest, checked; no other file is looked at.

Source: nnU-Net v2 documentation/dataset_format.md and utilities/label_handling/label_handling.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails

from autoseg.core.errors import RecordFault
from autoseg.core.records import read_table, record
from autoseg.data.layouts.entries import (
    IGNORE,
    CaseCount,
    ChannelNames,
    Classes,
    Ending,
    LabelValue,
    ListedCases,
    as_index,
    entry_fault,
    is_name,
    reserved,
)
from autoseg.data.model import BACKGROUND, LabelSet, label_set_of

DESCRIPTION = "dataset.json"
LEGACY_FILE_ENDING = ".nii.gz"
"""nnU-Net v1 and the Decathlon wrote no `file_ending`: they knew this one only."""

FREE_TEXT = frozenset(
    (
        *("name", "dataset_name", "description", "reference", "licence", "license", "release", "relase", "author"),
        *("authors", "url", "citation", "converted_by", "task", "tensorImageSize", "test", "numTest", "training"),
        *("overwrite_image_reader_writer", "image_reader_writer", "modality", "numTraining", "validation"),
    )
)
"""Entries of a dataset.json that other programs write, and that decide nothing here."""

_LIKE_IGNORE = ("ignored", "ignorelabel", "ignorevalue", "void", "unlabeled", "unlabelled", "dontcare")

_SHOWN_CHARACTERS = 60

_ENTRIES = ("channel_names", "labels", "regions_class_order", "file_ending", IGNORE)

_ALIKE = 0.75  # of 1 for equal texts: one or two wrong letters (assumption)

_EXAMPLE = (
    'correct these entries; a complete example: {"channel_names": {"0": "CT"}, '
    '"labels": {"background": 0, "liver": 1}, "numTraining": 131, "file_ending": ".nii.gz"}'
)


@record
class Description:
    """The entries of a dataset.json or manifest that were asked for, checked; no other file is looked at.

    Attributes:
        channel_names: names by channel index, in its order; the legacy name of the entry is `modality`.
        classes: class name -> values in the files, background and `ignore` included; several values make a region.
        regions_class_order: value painted for each region in turn; without regions it has no meaning.
        file_ending: ending of images and labels, dot included; empty where it is not declared.
        announced_cases: number of training cases that are said to be there.
        four_d: whether a fourth axis of the images holds the channels.
        cases: as listed, sorted by identifier.
        notes: entries that were understood although they are spelled otherwise, and entries that are not read.
    """

    channel_names: Annotated[ChannelNames, Field(validation_alias=AliasChoices("channel_names", "modality"))] = Field(
        default_factory=dict
    )
    classes: Annotated[Classes, Field(validation_alias="labels")] = Field(default_factory=dict)
    regions_class_order: list[LabelValue] = Field(default_factory=list)
    file_ending: Ending = ""
    announced_cases: Annotated[CaseCount | None, Field(validation_alias="numTraining")] = None
    four_d: bool = False
    cases: Annotated[ListedCases, Field(validation_alias=AliasChoices("cases", "training", "dataset"))] = Field(
        default_factory=list
    )
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Description:
        if not self._has_regions:
            return self
        regions = [name for name in self.classes if name not in (BACKGROUND, IGNORE)]
        known = {value for values in self.classes.values() for value in values}
        order, what = self.regions_class_order, "regions_class_order"
        if len(order) != len(regions):
            raise entry_fault(f"{what} has {len(order)} values for {len(regions)} regions ({', '.join(regions)})")
        if unknown := sorted(set(order) - known):
            raise entry_fault(f"{what}: no class has the value {', '.join(map(str, unknown))}")
        return self

    @property
    def _has_regions(self) -> bool:
        return any(len(values) > 1 for values in self.classes.values())

    @property
    def channels(self) -> tuple[str, ...]:
        """Names in the order of the channels; they select the normalization."""
        return tuple(self.channel_names.values())

    @property
    def labels(self) -> LabelSet:
        """Classes, regions and the ignore label; values with gaps are mapped to consecutive training values."""
        classes = {name: tuple(values) for name, values in self.classes.items()}
        ignored = classes.pop(IGNORE, None)
        order = tuple(self.regions_class_order) if self._has_regions else ()
        return label_set_of(classes, ignored[0] if ignored else None, order)


_ADAPTER = TypeAdapter(Description)


def describe(table: object, where: str, required: Iterable[str], optional: Iterable[str] = ()) -> Description:
    """What a description declares under the names asked for; other entries are named in its notes.

    Args:
        table: the parsed file.
        where: names the file in errors.
        required: entries that must be there.
        optional: entries that may be there.

    Raises:
        RecordFault: with the fault of every entry, not only the first.
    """
    if not isinstance(table, Mapping):
        raise _refusal(["it must be a JSON object {...}"], where)
    keys = {name: str(find_key(table, name)) for name in (*required, *optional) if entry(table, name) is not None}
    faults = [f"{name} is missing" for name in required if name not in keys]
    wanted = {name: table[key] for name, key in keys.items()}
    notes = [*_notes_on_keys(table, keys), *_notes_on_labels(wanted.get("labels"))]
    faults += _join_ignored(wanted)
    described = Description()
    try:
        # from JSON, because only there "strict" means that a text is no number, and not also that a table is no record
        described = _ADAPTER.validate_json(json.dumps({**wanted, "notes": notes}), strict=True)
    except ValidationError as error:
        faults += map(_sentence, error.errors())
    if faults:
        raise _refusal(faults, where)
    return described


def _refusal(faults: Iterable[str], where: str) -> RecordFault:
    return RecordFault("the dataset's description cannot be used: " + "; ".join(faults), where=where, do=_EXAMPLE)


def _join_ignored(wanted: dict[str, Any]) -> list[str]:
    """Makes an entry `ignore` of its own one of the labels; the fault where there are none."""
    ignored, labels = wanted.pop(IGNORE, None), wanted.get("labels")
    if ignored is None:
        return []
    if not isinstance(labels, dict):
        return [f"{IGNORE} needs the classes beside it: declare them in labels"]
    by_value = all(as_index(key) is not None for key in labels)
    wanted["labels"] = labels | ({str(ignored): IGNORE} if by_value else {IGNORE: ignored})
    return []


def entry(table: Mapping[str, Any], name: str) -> Any:
    """What a description holds under a name, or under a key that is this name in other spelling; None without it."""
    key = find_key(table, name)
    return None if key is None else table[key]


def find_key(table: Mapping[str, Any], name: str) -> str | None:
    """The key under which a description has an entry: its name, or this with other capitals or separators."""
    return name if name in table else next((key for key in table if _plain(key) == _plain(name)), None)


def _plain(key: str) -> str:
    return "".join(filter(str.isalnum, key.casefold()))


def _notes_on_keys(data: Mapping[str, Any], keys: Mapping[str, str]) -> Iterable[str]:
    yield from (f"the entry {key!r} is read as {name!r}" for name, key in keys.items() if key != name)
    unread = [key for key in data if key not in keys.values() and key not in FREE_TEXT]
    if "channel_names" in keys and data.get("modality", data[keys["channel_names"]]) != data[keys["channel_names"]]:
        unread.append("modality")
    if unread:
        yield f"these entries are not read: {', '.join(key + _meant(key, keys) for key in unread)}"


def _meant(key: str, known: Mapping[str, str]) -> str:
    """A question after a key that looks like an entry which is missing; empty for any other key."""
    missing = [name for name in _ENTRIES if name not in known]
    return "".join(f" (did you mean {near}?)" for near in get_close_matches(key, missing, n=1, cutoff=_ALIKE))


def _notes_on_labels(table: object) -> Iterable[str]:
    names = table if isinstance(table, dict) else {}
    if not all(as_index(key) is None for key in names):
        names = {name: value for value, name in names.items() if is_name(name)}
    for name in names:
        own = reserved(name)
        if own not in (None, name):
            yield f"the class {name!r} is taken for {own!r}"
        elif _plain(name) in _LIKE_IGNORE:
            yield f"{name!r} is a class like any other; voxels to leave out need the name {IGNORE!r}"


def describe_nnunet(data: object, where: str, optional: Iterable[str] = ()) -> Description:
    """What an nnU-Net dataset.json declares, of v2 or, with `modality` and {"value": name}, of v1.

    Args:
        data: the content of a dataset.json.
        where: names the source in errors.
        optional: more entries that may be there.

    Raises:
        RecordFault: with the fault of every entry, not only the first.
    """
    channels = channels_entry(data)
    if channels == "modality" and isinstance(data, Mapping):
        data = data if entry(data, "file_ending") else {**data, "file_ending": LEGACY_FILE_ENDING}
    required = (channels, "labels", "file_ending")
    return describe(data, where, required, ("regions_class_order", "numTraining", *optional))


def channels_entry(data: object) -> str:
    """The name under which a description has its channels."""
    is_legacy = isinstance(data, Mapping) and find_key(data, "modality") and not find_key(data, "channel_names")
    return "modality" if is_legacy else "channel_names"


def _sentence(fault: ErrorDetails) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
    found = repr(fault["input"])
    shown = found if len(found) <= _SHOWN_CHARACTERS else f"{found[: _SHOWN_CHARACTERS - 3]}..."
    what = fault["msg"] if fault["type"] == "description" else f"{fault['msg']}, found {shown}"
    return f"{place}: {what}" if place else what


def read_description(root: Path) -> dict[str, Any] | None:
    """The content of `dataset.json` in a folder, not checked; None where there is none.

    Raises:
        RecordFault: it is no JSON, or no table.
    """
    path = root / DESCRIPTION
    return read_table(path) if path.is_file() else None
