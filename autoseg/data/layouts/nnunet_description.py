"""What an nnU-Net dataset.json declares: channels, classes, values; no other file is looked at.

Source: nnU-Net v2 documentation/dataset_format.md and utilities/label_handling/label_handling.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

from autoseg.core.errors import RecordFault
from autoseg.data.model import LabelSet

LEGACY_FILE_ENDING = ".nii.gz"
"""nnU-Net v1 and the Decathlon wrote no `file_ending`: they knew this one only."""

BACKGROUND = "background"
IGNORE = "ignore"

LARGEST_VALUE = 2**31 - 1
"""Readers return label values as 32-bit integers."""

_INDEX_DIGITS = 9

_Faults = list[str]


class Description(NamedTuple):
    """What a dataset.json declares, without looking at any other file.

    Attributes:
        channels: names in order of the channel index; the name selects the normalization.
        labels: classes, regions, ignore label and the values in the files.
        file_ending: ending of images and labels, dot included.
        announced_cases: `numTraining`, or None where it is not declared.
    """

    channels: tuple[str, ...]
    labels: LabelSet
    file_ending: str
    announced_cases: int | None


def describe_nnunet(data: object, name: str) -> Description:
    """What an nnU-Net dataset.json declares, as one checked value.

    Channels come as `channel_names` (or the legacy `modality`), {"0": name, ...}, and are ordered by their number.
    Labels are {name: value} or {name: [values]} for regions, with background 0 and optionally `ignore`; the legacy
    {"value": name} is understood too. Values with gaps are mapped to consecutive training values, the originals are
    remembered.

    Args:
        data: the content of a dataset.json.
        name: names the source in errors.

    Raises:
        RecordFault: with every fault found, not only the first.
    """
    faults: _Faults = [] if isinstance(data, Mapping) else ["it must be a JSON object {...}"]
    table = data if isinstance(data, Mapping) else {}
    channels = read_channels(table, faults)
    labels = read_label_set(table, faults)
    ending = _read_ending(table, faults)
    announced = read_announced(table, faults)
    refuse_faults(faults, name)
    return Description(channels, labels, ending, announced)


def refuse_faults(faults: list[str], where: str) -> None:
    """Raises one error that lists all faults; does nothing when there are none.

    Raises:
        RecordFault: naming `where` and every fault.
    """
    if faults:
        raise RecordFault(
            "the dataset's description cannot be used: " + "; ".join(faults),
            where=where,
            do='correct these entries; a complete example: {"channel_names": {"0": "CT"}, '
            '"labels": {"background": 0, "liver": 1}, "numTraining": 131, "file_ending": ".nii.gz"}',
        )


def read_channels(data: Mapping[str, Any], faults: list[str]) -> tuple[str, ...]:
    """Channel names in the order of their integer keys; faults are appended to the list."""
    key = "channel_names" if "channel_names" in data else "modality"
    table = data.get(key)
    if table is None:
        faults.append('channel_names is missing (for example {"0": "CT"})')
        return ()
    if not isinstance(table, dict) or not table:
        faults.append(f'{key} must be a table such as {{"0": "CT"}}, not {_shown(table)}')
        return ()
    numbered = {_as_index(index): channel for index, channel in table.items()}
    if len(numbered) != len(table) or set(numbered) != set(range(len(table))):
        faults.append(f"{key} must have the keys 0 to {len(table) - 1}, found {', '.join(map(str, table))}")
        return ()
    faults += [f"{key}.{i} must be a name, not {_shown(n)}" for i, n in sorted(numbered.items()) if not is_name(n)]
    return tuple(str(numbered[index]) for index in range(len(numbered)))


def read_label_set(data: Mapping[str, Any], faults: list[str]) -> LabelSet:
    """Classes and values out of the keys `labels` and `regions_class_order`; faults are appended to the list."""
    table = data.get("labels")
    if not isinstance(table, dict) or not table:
        found = "missing" if table is None else _shown(table)
        faults.append(f'labels must be a table such as {{"background": 0, "liver": 1}}, found: {found}')
        return LabelSet({BACKGROUND: (0,)}, file_values=(0,))
    before = len(faults)
    declared = {str(name): _values_of(str(name), entry, faults) for name, entry in _by_name(table).items()}
    ignored = declared.pop(IGNORE, None)
    faults += _faults_of_classes(declared, ignored)
    order = _read_regions_class_order(data, declared, faults)
    if len(faults) > before:
        return LabelSet({BACKGROUND: (0,)}, file_values=(0,))
    return label_set_of(declared, ignored[0] if ignored else None, order)


def label_set_of(
    classes: Mapping[str, tuple[int, ...]], ignore: int | None = None, regions_class_order: tuple[int, ...] = ()
) -> LabelSet:
    """The label set of classes given by the values in the files; training values are their ranks, ignore comes last.

    Args:
        classes: class name -> values in the files, background (0) included.
        ignore: value in the files of voxels that are not annotated.
        regions_class_order: values in the files.
    """
    values = sorted({value for entry in classes.values() for value in entry})
    training = {value: rank for rank, value in enumerate(values)}
    return LabelSet(
        classes={name: tuple(training[value] for value in entry) for name, entry in classes.items()},
        ignore=None if ignore is None else len(values),
        regions_class_order=tuple(training[value] for value in regions_class_order),
        file_values=(*values, *(() if ignore is None else (ignore,))),
    )


def _by_name(table: dict[str, Any]) -> dict[str, Any]:
    """The label table as name -> value; the Decathlon and nnU-Net v1 wrote value -> name."""
    if not all(_as_index(key) is not None and is_name(name) for key, name in table.items()):
        return table
    inverted: dict[str, Any] = {}
    for key, name in table.items():
        value = _as_index(key)
        unique = BACKGROUND if value == 0 else name if name not in inverted else f"{name} ({key})"
        inverted[unique] = value
    return inverted


def _values_of(name: str, entry: object, faults: _Faults) -> tuple[int, ...]:
    values: list[Any] = entry if isinstance(entry, list) else [entry]
    wrong = [value for value in values if not _is_whole(value) or not 0 <= value <= LARGEST_VALUE]
    if wrong or not values:
        faults.append(f"labels.{name} must be a whole number from 0 to 2^31 - 1 or a list of them, not {_shown(entry)}")
        return ()
    if len(set(values)) < len(values):
        faults.append(f"labels.{name} names a value twice: {_shown(entry)}")
    return tuple(values)


def _faults_of_classes(declared: Mapping[str, tuple[int, ...]], ignored: tuple[int, ...] | None) -> _Faults:
    faults = []
    if declared.get(BACKGROUND) != (0,):
        found = declared.get(BACKGROUND)
        faults.append(f"labels.background must be 0, found {'nothing' if found is None else _shown(list(found))}")
    foreground = {name: values for name, values in declared.items() if name != BACKGROUND and values}
    if not any(name != BACKGROUND for name in declared):
        faults.append("labels must declare at least one class beside the background")
    faults += [f"labels.{name} includes 0, which is the background" for name, entry in foreground.items() if 0 in entry]
    faults += _faults_of_shared_values(foreground)
    if ignored is not None and len(ignored) > 1:
        faults.append(f"labels.ignore must be one value, not {_shown(list(ignored))}")
    taken = [name for name, values in declared.items() if ignored and ignored[0] in values]
    if taken:
        faults.append(f"labels.ignore has the value {ignored[0] if ignored else ''} of {', '.join(taken)}")
    return faults


def _faults_of_shared_values(foreground: Mapping[str, tuple[int, ...]]) -> _Faults:
    if any(len(values) > 1 for values in foreground.values()):
        return []  # regions may overlap
    owners: dict[int, list[str]] = {}
    for name, values in foreground.items():
        owners.setdefault(values[0], []).append(name)
    return [f"labels {' and '.join(names)} have the same value {v}" for v, names in owners.items() if len(names) > 1]


def _read_regions_class_order(
    data: Mapping[str, Any], declared: Mapping[str, tuple[int, ...]], faults: _Faults
) -> tuple[int, ...]:
    """The value painted for each region; empty without regions, where the key has no meaning."""
    if not any(len(values) > 1 for values in declared.values()):
        return ()
    order = data.get("regions_class_order")
    regions = [name for name in declared if name != BACKGROUND]
    if not isinstance(order, list) or not all(_is_whole(value) for value in order):
        found = "missing" if order is None else _shown(order)
        faults.append(f"regions_class_order must list the value painted for each region, found: {found}")
        return ()
    if len(order) != len(regions):
        faults.append(f"regions_class_order has {len(order)} values for {len(regions)} regions ({', '.join(regions)})")
    known = {value for values in declared.values() for value in values}
    faults += [f"regions_class_order: no class has the value {value}" for value in order if value not in known]
    return tuple(order)


def _read_ending(data: Mapping[str, Any], faults: _Faults) -> str:
    ending = data.get("file_ending", LEGACY_FILE_ENDING if "modality" in data else None)
    if not isinstance(ending, str) or not ending.startswith(".") or len(ending) < 2:
        found = "missing" if ending is None else _shown(ending)
        faults.append(f'file_ending must be an ending with its dot such as ".nii.gz", found: {found}')
        return LEGACY_FILE_ENDING
    return ending


def read_announced(data: Mapping[str, Any], faults: _Faults) -> int | None:
    """The announced number of training cases, or None; a fault is appended to the list."""
    announced = data.get("numTraining")
    if announced is not None and (not _is_whole(announced) or announced < 0):
        faults.append(f"numTraining must be a whole number, not {_shown(announced)}")
        return None
    return announced


def _as_index(key: object) -> int | None:
    is_number = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= _INDEX_DIGITS
    return int(str(key)) if is_number else None


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def is_name(value: object) -> bool:
    """Whether a JSON value is a text with something in it."""
    return isinstance(value, str) and bool(value.strip())


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
