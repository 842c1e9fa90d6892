"""What a dataset says about itself in dataset.json or a manifest, checked; no other file is looked at.

Source: nnU-Net v2 documentation/dataset_format.md and utilities/label_handling/label_handling.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from autoseg.core.errors import RecordFault
from autoseg.core.records import read_table, record
from autoseg.data.inputs import split_channel
from autoseg.data.model import BACKGROUND, Case, LabelSet, label_set_of
from autoseg.images.formats.files import stem

DESCRIPTION = "dataset.json"
IGNORE = "ignore"

LEGACY_FILE_ENDING = ".nii.gz"
"""nnU-Net v1 and the Decathlon wrote no `file_ending`: they knew this one only."""

LARGEST_VALUE = 2**31 - 1
"""Readers return label values as 32-bit integers."""

_LARGEST_INDEX_DIGITS = 9
_SHOWN_CHARACTERS = 60

_EXAMPLE = (
    'correct these entries; a complete example: {"channel_names": {"0": "CT"}, '
    '"labels": {"background": 0, "liver": 1}, "numTraining": 131, "file_ending": ".nii.gz"}'
)


def _fault(what: str) -> PydanticCustomError:
    return PydanticCustomError("description", "{what}", {"what": what})


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise _fault("; ".join(faults))


def _as_index(key: str) -> int | None:
    return int(key) if key.isascii() and key.isdigit() and len(key) <= _LARGEST_INDEX_DIGITS else None


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def is_identifier(name: str) -> bool:
    """Whether a case name is usable as a file name on every system: no separators, no blanks at the ends."""
    return bool(name) and name.strip() == name and name not in {".", ".."} and PureWindowsPath(name).name == name


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _name(value: str) -> str:
    _refuse([] if _is_name(value) else ["must not be empty"])
    return value


def _ending(value: str) -> str:
    _refuse([] if value.startswith(".") and len(value) > 1 else [f'must have its dot, as ".nii.gz", found {value!r}'])
    return value


def _numbered(table: dict[str, str]) -> dict[str, str]:
    """The channels in the order of their numbers, which is not that of the texts "10" and "9"."""
    indices = {key: _as_index(key) for key in table}
    if not table or set(indices.values()) != set(range(len(table))):
        raise _fault(f"must have the keys 0 to {max(len(table) - 1, 0)}, found {', '.join(table) or 'none'}")
    return dict(sorted(table.items(), key=lambda item: indices[item[0]] or 0))


def _distinct(values: list[int]) -> list[int]:
    _refuse(["names a value twice"] if len(set(values)) < len(values) else [])
    return values


def _by_name(table: object) -> object:
    """The label table as name -> value; the Decathlon and nnU-Net v1 wrote value -> name."""
    if not isinstance(table, dict) or not all(_as_index(key) is not None and _is_name(table[key]) for key in table):
        return table
    inverted: dict[str, Any] = {}
    for key, name in table.items():
        value = _as_index(key)
        unique = name if name not in inverted else f"{name} ({key})"  # two values of one name stay two classes
        inverted[BACKGROUND if value == 0 else unique] = value
    return inverted


def _sound_classes(table: dict[str, list[int]]) -> dict[str, list[int]]:
    classes = {name: values for name, values in table.items() if name != IGNORE}
    foreground = {name: values for name, values in classes.items() if name != BACKGROUND}
    faults = [] if classes.get(BACKGROUND) == [0] else [f"{BACKGROUND} must be there, with the value 0"]
    faults += [] if foreground else ["there must be at least one class beside the background"]
    faults += [f"{name} includes 0, which is the background" for name, values in foreground.items() if 0 in values]
    _refuse([*faults, *_shared_values(foreground), *_faults_of_ignore(table.get(IGNORE, []), classes)])
    return table


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
    """The case of {"image": path or paths, "label": path}.

    Its name is `case` where there is one, otherwise the file name of the label or image without its ending.
    """
    table = entry if isinstance(entry, dict) else {}
    name, label = table.get("case"), table.get("label") or None
    images = _as_list(table.get("image", table.get("images")))
    if not images or not all(map(_is_name, (*images, *([] if label is None else [label])))):
        raise _fault(f'{f"the case {name} " if name else ""}must be {{"image": path, "label": path}}')
    named = name or _stem_of_case(images[0], label)
    return Case(str(named), tuple(map(_posix, images)), None if label is None else _posix(label))


def _stem_of_case(image: str, label: str | None) -> str:
    return stem(Path(label)) if label else split_channel(stem(Path(image)))[0]


def _posix(path: str) -> str:
    return Path(path).as_posix()


def _entries(cases: object) -> object:
    """The cases as a list, also where they come as a table by name."""
    if not isinstance(cases, dict):
        return cases
    _refuse(_unusable(cases))
    return [{**entry, "case": name} if isinstance(entry, dict) else entry for name, entry in cases.items()]


def _sound_cases(cases: list[Case]) -> list[Case]:
    counts = Counter(case.identifier for case in cases)
    faults = [f"the case {name!r} is listed twice" for name, count in counts.items() if count > 1]
    _refuse([*faults, *_unusable(counts), *([] if cases else ["lists no case"])])
    return sorted(cases, key=lambda case: case.identifier)


def _unusable(names: Iterable[str]) -> list[str]:
    wrong = [name for name in names if not is_identifier(name)]
    return [f"{name!r} is no usable case name (no slashes, no blanks at the ends)" for name in wrong]


_Name = Annotated[str, AfterValidator(_name)]
_Value = Annotated[int, Field(ge=0, le=LARGEST_VALUE)]
_Values = Annotated[list[_Value], BeforeValidator(_as_list), Field(min_length=1), AfterValidator(_distinct)]
_Case = Annotated[Case, BeforeValidator(_listed_case)]


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
    """

    channel_names: Annotated[
        dict[str, _Name], AfterValidator(_numbered), Field(validation_alias=AliasChoices("channel_names", "modality"))
    ] = Field(default_factory=dict)
    classes: Annotated[
        dict[str, _Values], BeforeValidator(_by_name), AfterValidator(_sound_classes), Field(validation_alias="labels")
    ] = Field(default_factory=dict)
    regions_class_order: list[_Value] = Field(default_factory=list)
    file_ending: Annotated[str, AfterValidator(_ending)] = ""
    announced_cases: Annotated[int | None, Field(ge=0, validation_alias="numTraining")] = None
    four_d: bool = False
    cases: Annotated[
        list[_Case],
        BeforeValidator(_entries),
        AfterValidator(_sound_cases),
        Field(validation_alias=AliasChoices("cases", "training", "dataset")),
    ] = Field(default_factory=list)

    @model_validator(mode="after")
    def _fits_together(self) -> Description:
        if not self._has_regions:
            return self
        regions = [name for name in self.classes if name not in (BACKGROUND, IGNORE)]
        known = {value for values in self.classes.values() for value in values}
        order, what = self.regions_class_order, "regions_class_order"
        if len(order) != len(regions):
            raise _fault(f"{what} has {len(order)} values for {len(regions)} regions ({', '.join(regions)})")
        _refuse([f"{what}: no class has the value {value}" for value in order if value not in known])
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
    """What a description declares under the names asked for; all other entries are ignored.

    Args:
        table: the parsed file.
        where: names the file in errors.
        required: entries that must be there.
        optional: entries that may be there.

    Raises:
        RecordFault: with the fault of every entry, not only the first.
    """
    data = table if isinstance(table, Mapping) else {}
    faults = [] if isinstance(table, Mapping) else ["it must be a JSON object {...}"]
    faults += [f"{name} is missing" for name in required if data.get(name) is None]
    wanted = {name: data[name] for name in (*required, *optional) if data.get(name) is not None}
    described = Description()
    try:
        # from JSON, because only there "strict" means that a text is no number, and not also that a table is no record
        described = _ADAPTER.validate_json(json.dumps(wanted), strict=True)
    except ValidationError as error:
        faults += [_sentence(fault) for fault in error.errors()]
    if faults:
        raise RecordFault("the dataset's description cannot be used: " + "; ".join(faults), where=where, do=_EXAMPLE)
    return described


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
        data = {**data, "file_ending": data.get("file_ending") or LEGACY_FILE_ENDING}
    required = (channels, "labels", "file_ending")
    return describe(data, where, required, ("regions_class_order", "numTraining", *optional))


def channels_entry(data: object) -> str:
    """The name under which a description has its channels."""
    is_legacy = isinstance(data, Mapping) and "modality" in data and "channel_names" not in data
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
