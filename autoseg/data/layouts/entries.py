"""Single entries of a dataset.json or manifest: channels, labels and listed cases, each checked by itself.

Source: nnU-Net v2 documentation/dataset_format.md and utilities/label_handling/label_handling.py.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from autoseg.core.limits import name_fault, title_fault
from autoseg.data.model import BACKGROUND, Case
from autoseg.data.naming import name_of, partners, split_channel
from autoseg.images.formats.files import SUPPORTED_ENDINGS

IGNORE = "ignore"

CASE_KEYS = ("case", "id", "identifier", "name")
LABEL_KEYS = ("label", "labels", "mask", "segmentation")
IMAGE_KEYS = ("image", "images")
"""Of an entry that lists a case; the first that is there counts."""

LARGEST_VALUE = 2**31 - 1
"""Readers return label values as 32-bit integers."""

_LARGEST_INDEX_DIGITS = 9


def entry_fault(what: str) -> PydanticCustomError:
    """The error of an entry, for pydantic; `what` is shown as it is."""
    return PydanticCustomError("description", "{what}", {"what": what})


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise entry_fault("; ".join(faults))


def as_index(key: str) -> int | None:
    """The number that a key is; None for anything else."""
    return int(key) if key.isascii() and key.isdigit() and len(key) <= _LARGEST_INDEX_DIGITS else None


def is_name(value: object) -> bool:
    """Whether a value can name something: a text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _present(value: str) -> str:
    fault = title_fault(value) if is_name(value) else "must not be empty"
    _refuse([fault] if fault else [])
    return value


def _with_dot(value: str) -> str:
    _refuse([] if value.startswith(".") and len(value) > 1 else [f'must have its dot, as ".nii.gz", found {value!r}'])
    ending = value.lower()
    _refuse([] if ending in SUPPORTED_ENDINGS else [f"must be one of {', '.join(SUPPORTED_ENDINGS)}, found {value!r}"])
    return ending


def _channel_table(table: object) -> object:
    """The table of channels; one that is written the other way round, or as a list, is refused with the right one."""
    names = table if isinstance(table, list) else []
    if isinstance(table, dict) and all(isinstance(table[key], int) and as_index(key) is None for key in table):
        names = sorted(table, key=table.__getitem__)
    if names and all(map(is_name, names)):
        right = json.dumps({str(index): name for index, name in enumerate(names)}, ensure_ascii=False)
        raise entry_fault(f"must give the name for each number: write {right}")
    return table


def _number(value: object) -> object:
    if isinstance(value, str) and as_index(value) is not None:
        raise entry_fault(f"must be a number: write {int(value)} without quotes")
    return value


def _numbered(table: dict[str, str]) -> dict[str, str]:
    """The channels in the order of their numbers, which is not that of the texts "10" and "9"."""
    indices = {key: as_index(key) for key in table}
    if not table or set(indices.values()) != set(range(len(table))):
        raise entry_fault(f"must have the keys 0 to {max(len(table) - 1, 0)}, found {', '.join(table) or 'none'}")
    return dict(sorted(table.items(), key=lambda item: indices[item[0]] or 0))


def _distinct(values: list[int]) -> list[int]:
    _refuse(["names a value twice"] if len(set(values)) < len(values) else [])
    return values


def _by_name(table: object) -> object:
    """The label table as name -> value; the Decathlon and nnU-Net v1 wrote value -> name."""
    if not isinstance(table, dict):
        return table
    if not all(as_index(key) is not None and is_name(table[key]) for key in table):
        return _with_reserved_names(table)
    inverted: dict[str, Any] = {}
    for key, name in table.items():
        value = as_index(key)
        unique = name if name not in inverted else f"{name} ({key})"  # two values of one name stay two classes
        inverted[BACKGROUND if value == 0 else unique] = value
    return _with_reserved_names(inverted)


def _with_reserved_names(table: Mapping[str, Any]) -> dict[str, Any]:
    """The label table with `background` and `ignore` in lower case, as only they mean what they say."""
    renamed: dict[str, Any] = {}
    for name, value in table.items():
        own = reserved(name) or name
        _refuse([f"{own} is there twice, the second time as {name!r}"] if own in renamed else [])
        renamed[own] = value
    return renamed


def reserved(name: str) -> str | None:
    """`background` or `ignore` where a class name is one of them in any case; None for other names."""
    return next((own for own in (BACKGROUND, IGNORE) if name.strip().casefold() == own), None)


def _sound_classes(table: dict[str, list[int]]) -> dict[str, list[int]]:
    classes = {name: values for name, values in table.items() if name != IGNORE}
    foreground = {name: values for name, values in classes.items() if name != BACKGROUND}
    faults = (
        [] if classes.get(BACKGROUND) == [0] else [f"{BACKGROUND} must be there, with the value 0: {_zero(classes)}"]
    )
    faults += [] if foreground else ["there must be at least one class beside the background"]
    faults += _unusable_titles(table)
    faults += [f"{name} includes 0, which is the background" for name, values in foreground.items() if 0 in values]
    _refuse([*faults, *_shared_values(foreground), *_faults_of_ignore(table.get(IGNORE, []), classes)])
    return table


def _unusable_titles(names: Iterable[str]) -> list[str]:
    return [f"{name!r} is no usable class name: it {fault}" for name in names if (fault := title_fault(name))]


def _zero(classes: Mapping[str, list[int]]) -> str:
    """What to write for the background."""
    called = next((name for name, values in classes.items() if values == [0]), None)
    return f'write "{BACKGROUND}": 0' + (f' instead of "{called}": 0' if called else "")


def _faults_of_ignore(ignored: list[int], classes: Mapping[str, list[int]]) -> Iterable[str]:
    if len(ignored) > 1:
        yield "ignore must be one value"
    yield from (f"ignore has the value of {name}" for name, values in classes.items() if set(ignored) & set(values))


def _shared_values(foreground: Mapping[str, list[int]]) -> Iterable[str]:
    if any(len(values) > 1 for values in foreground.values()):
        return  # regions may overlap
    owners: dict[int, list[str]] = {}
    for name, values in foreground.items():
        owners.setdefault(values[0], []).append(name)
    yield from (f"{' and '.join(names)} have the same value {v}" for v, names in owners.items() if len(names) > 1)


def _listed_case(entry: object) -> Case:
    """The case of {"case": name, "image": path or paths, "label": path}; without a name it gets one afterwards."""
    table = {str(key).casefold(): value for key, value in entry.items()} if isinstance(entry, dict) else {}
    name, label = _first_of(table, CASE_KEYS), _first_of(table, LABEL_KEYS)
    images = _as_list(_first_of(table, IMAGE_KEYS))
    if not images or not all(map(is_name, (*images, *([] if label is None else [label])))):
        raise entry_fault(f'{f"the case {name} " if name else ""}must be {{"image": path, "label": path}}')
    identifier = unicodedata.normalize("NFC", str(name or ""))
    return Case(identifier, tuple(map(_posix, images)), None if label is None else _posix(label))


def _first_of(table: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((table[key] for key in keys if table.get(key)), None)


def _named_by_image(case: Case) -> str:
    """The name that `predict` gives the case as well: its image's, without an index that numbers the channels."""
    names = [split_channel(name_of(Path(image))) for image in case.images]
    bases = {base for base, _ in names}
    is_numbered = len(bases) == 1 and [index for _, index in names] == list(range(len(names)))
    if is_numbered and (len(names) > 1 or case.labels is None or partners(bases, [name_of(Path(case.labels))])):
        return names[0][0]
    return name_of(Path(case.images[0])) if len(names) == 1 else _named_by_label(case)


def _named_by_label(case: Case) -> str:
    return name_of(Path(case.labels or case.images[0]))


def _posix(path: str) -> str:
    return Path(path).as_posix()


def _entries(cases: object) -> object:
    """The cases as a list, also where they come as a table by name."""
    if not isinstance(cases, dict):
        return cases
    _refuse(_unusable(cases))
    return [{**entry, "case": name} if isinstance(entry, dict) else entry for name, entry in cases.items()]


def _sound_cases(cases: list[Case]) -> list[Case]:
    cases = _with_names(cases)
    counts = Counter(case.identifier for case in cases)
    faults = [f"the case {name!r} is listed twice" for name, count in counts.items() if count > 1]
    _refuse([*faults, *_unusable(counts), *([] if cases else ["lists no case"])])
    return sorted(cases, key=lambda case: case.identifier)


def _with_names(cases: list[Case]) -> list[Case]:
    """The cases, those without a name called as their images, or where these do not differ as their labels."""
    by_image = [replace(case, identifier=case.identifier or _named_by_image(case)) for case in cases]
    if len({case.identifier for case in by_image}) == len(cases):
        return by_image
    return [replace(case, identifier=case.identifier or _named_by_label(case)) for case in cases]


def _unusable(names: Iterable[str]) -> list[str]:
    faults = {name: name_fault(name) for name in names}
    return [f"{name!r} is no usable case name: it {fault}" for name, fault in faults.items() if fault]


_Name = Annotated[str, AfterValidator(_present)]
_Case = Annotated[Case, BeforeValidator(_listed_case)]

LabelValue = Annotated[int, BeforeValidator(_number), Field(ge=0, le=LARGEST_VALUE)]
_Values = Annotated[list[LabelValue], BeforeValidator(_as_list), Field(min_length=1), AfterValidator(_distinct)]

ChannelNames = Annotated[dict[str, _Name], BeforeValidator(_channel_table), AfterValidator(_numbered)]
Classes = Annotated[dict[str, _Values], BeforeValidator(_by_name), AfterValidator(_sound_classes)]
Ending = Annotated[str, AfterValidator(_with_dot)]
CaseCount = Annotated[int, BeforeValidator(_number), Field(ge=0)]
ListedCases = Annotated[list[_Case], BeforeValidator(_entries), AfterValidator(_sound_cases)]
