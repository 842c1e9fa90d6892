"""Frozen dataclasses to JSON and back, with every fault of a bad file reported by its path."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

from autoseg.core.errors import AutoSegError, MissingInput, RecordFault
from autoseg.core.files import write_atomic

if TYPE_CHECKING:
    from pydantic import ValidationError

T = TypeVar("T")

LARGEST_JSON_BYTES = 64 << 20
"""Of a JSON file that others wrote; nnU-Net's fingerprints of thousands of cases stay below it (assumption)."""

LARGEST_RECORD_BYTES = 512 << 20
"""Of a record of AutoSeg's own; that of 100,000 pictures stays below it (assumption)."""

_SHOWN_FAULTS = 20
_LONGEST_SHOWN = 60
_PLAIN_WORDS = {"missing": "missing", "missing_argument": "missing", "unexpected_keyword_argument": "unknown entry"}

SEAL = "seal"
"""Entry of a sealed record: a hash of all the others, by which a change by other hands is noticed."""

_RESTORE = "restore the file, or delete it and run the command that wrote it again"

_adapters: dict[Any, Any] = {}


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(kind: type[T]) -> type[T]:
    """A frozen dataclass that checks its fields when it is made, in Python as from a file; unknown fields are refused.

    Constraints stand in the annotations: `Annotated[int, Field(gt=0)]`, `Literal["epoch", "step"]`, validators.

    Raises:
        pydantic.ValidationError: when made with wrong values; readers of files answer with RecordFault instead.
    """
    from pydantic import ConfigDict
    from pydantic.dataclasses import dataclass as checked_dataclass

    config = ConfigDict(extra="forbid", populate_by_name=True, allow_inf_nan=False)
    checked: Any = checked_dataclass(frozen=True, slots=True, config=config)
    made: type[T] = checked(kind)
    return made


def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter  # ~0.15 s of imports that `autoseg --help` does not need

    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def to_data(record: object) -> Any:
    """The record as plain dicts, lists, strings and numbers, as JSON would hold it."""
    return _adapter(type(record)).dump_python(record, mode="json")


def to_json(record: object) -> str:
    """The record as indented JSON with a final newline; equal records give equal bytes."""
    return json.dumps(to_data(record), indent=1, allow_nan=False) + "\n"


def from_data(kind: type[T], data: object, where: str) -> T:
    """The record that `data` (plain values, of a user's YAML file for example) describes.

    Raises:
        RecordFault: with the path and the reason of every fault, not only the first.
    """
    return _validated(kind, json.dumps(data), where, "correct what is named")


def from_json(kind: type[T], text: str | bytes, where: str, do: str = _RESTORE, context: object = None) -> T:
    """The record that a JSON text describes; `where` names its source in the error.

    Validators of the record see `context`.

    Raises:
        RecordFault: with the path and the reason of every fault, not only the first.
    """
    try:
        parse_json(text)
    except (ValueError, RecursionError) as error:  # pydantic would take the last of two equal keys, and NaN
        raise RecordFault(f"not a valid {kind.__name__}: {_json_fault(error)}", where=where, do=do) from error
    return _validated(kind, text, where, do, context)


def _validated(kind: type[T], text: str | bytes, where: str, do: str, context: object = None) -> T:
    from pydantic import ValidationError

    try:
        record: T = _adapter(kind).validate_json(text, strict=True, context=context)
    except ValidationError as error:
        raise RecordFault(f"not a valid {kind.__name__}: {described_faults(error)}", where=where, do=do) from error
    except AutoSegError as error:  # a validator's own: an unknown name, with the nearest one
        error.where = error.where or where
        raise
    return record


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The table of `json.loads(object_pairs_hook=...)`; the last of two equal keys would else win without a word."""
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice!r} is given twice")
    return table


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number} is no number of JSON")
    return value


def _whole(number: str) -> int:
    _finite(number)  # 400 digits are none of JSON's, and infinite where a number with a fraction is expected
    return int(number)


def parse_json(text: str | bytes) -> Any:
    """What a JSON text means, where it means one thing: no key twice, no NaN, no infinite number.

    Raises:
        ValueError: it does not, or is no JSON.
        RecursionError: it is nested too deeply.
    """
    return json.loads(
        text,
        object_pairs_hook=_without_duplicates,
        parse_constant=_finite,
        parse_float=_finite,
        parse_int=_whole,
    )


def _json_fault(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def described_faults(error: ValidationError) -> str:
    """Every fault that pydantic found, or the first twenty, in one line."""
    faults = [_described(fault) for fault in error.errors()]
    more = [f"and {len(faults) - _SHOWN_FAULTS} more"] if len(faults) > _SHOWN_FAULTS else []
    return "; ".join(faults[:_SHOWN_FAULTS] + more)


def _described(fault: Mapping[str, Any]) -> str:
    """Where a fault is, what was expected, and what was found if that is short enough to print."""
    expected = _PLAIN_WORDS.get(fault["type"], fault["msg"].removeprefix("Value error, "))
    shown = json.dumps(fault["input"], default=str)
    is_said = fault["type"] in _PLAIN_WORDS or (isinstance(fault["input"], str) and fault["input"] in expected)
    is_shown = fault["loc"] and not is_said and len(shown) <= _LONGEST_SHOWN
    found = f", found {shown}" if is_shown else ""
    return f"{'.'.join(map(str, fault['loc'])) or '(whole file)'}: {expected}{found}"


def load(kind: type[T], path: Path, context: object = None) -> T:
    """The record in a JSON file; its validators see `context`.

    Raises:
        MissingInput: there is no such file.
        RecordFault: it is not a valid record of this kind, or not what was sealed.
    """
    try:
        if (size := path.stat().st_size) > LARGEST_RECORD_BYTES:
            raise RecordFault(f"{path.name} has {size} bytes", where=str(path), do=_RESTORE)
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingInput(f"{path.name} is missing", where=str(path.parent)) from error
    return from_json(kind, _unsealed(text, path), str(path), context=context)


def _unsealed(text: bytes, path: Path) -> bytes | str:
    """The text without its seal; one without any, as earlier versions wrote, as it is.

    Raises:
        RecordFault: the seal is that of another content.
    """
    if f'"{SEAL}"'.encode() not in text:
        return text
    try:
        data = parse_json(text)
    except (ValueError, RecursionError):
        return text  # whose faults are described with those of its fields
    if not isinstance(data, dict) or SEAL not in data:
        return text
    try:
        is_as_sealed = data.pop(SEAL) == content_hash(data)
    except ValueError:  # nested more deeply than anything that was sealed
        is_as_sealed = False
    if not is_as_sealed:
        raise RecordFault(f"{path.name} was changed since AutoSeg wrote it", where=str(path), do=_RESTORE)
    return json.dumps(data)


def read_json(path: Path) -> Any:
    """The content of a JSON file that others wrote, with or without a byte order mark; not checked against a record.

    Numbers may be NaN or infinite, as in nnU-Net's statistics of what does not occur, but not have 400 digits.

    Raises:
        MissingInput: there is no such file.
        RecordFault: it is no JSON, or too large.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_JSON_BYTES:
            raise RecordFault(f"{path.name} has {size} bytes", where=str(path), do="give the file that was meant")
        return json.loads(path.read_bytes(), object_pairs_hook=_without_duplicates, parse_int=_whole)
    except FileNotFoundError as error:
        raise MissingInput(f"there is no file {path}", where=str(path), do="check the path") from error
    except (ValueError, RecursionError, IsADirectoryError) as error:
        what = f"{path.name} is not valid JSON: {_json_fault(error)}"
        raise RecordFault(what, where=str(path), do="correct the file, or get it again") from error


def read_text(path: Path) -> str:
    """The content of a text file of the user, with or without a byte order mark.

    Raises:
        MissingInput: there is no such file.
        RecordFault: it is not UTF-8; read as if it were, names would silently become others.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise MissingInput(f"there is no file {path}", where=str(path), do="check the path") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        what = f"{path.name} is not UTF-8: line {line} holds the byte 0x{error.object[error.start]:02x}"
        raise RecordFault(what, where=str(path), do="save it as UTF-8 (in a spreadsheet: CSV UTF-8)") from error


def read_table(path: Path) -> dict[str, Any]:
    """The table in a JSON file that others wrote; errors as for `read_json`, and if it holds something else."""
    data = read_json(path)
    if not isinstance(data, dict):
        raise RecordFault(
            f"{path.name} must hold a JSON object {{...}}, found {type(data).__name__}",
            where=str(path),
            do="correct the file, or get it again",
        )
    return data


def save(record: object, path: Path) -> None:
    """Writes the record as JSON, atomically."""
    write_atomic(path, to_json(record))


def to_sealed_json(record: object) -> str:
    """The record as JSON with its seal, which `load` compares."""
    data = to_data(record)
    return json.dumps({**data, SEAL: content_hash(data)}, indent=1, allow_nan=False) + "\n"


def save_sealed(record: object, path: Path) -> None:
    """Writes a record that nobody is meant to change as JSON, atomically; `load` refuses it where it was changed."""
    write_atomic(path, to_sealed_json(record))


def content_hash(*parts: object) -> str:
    """16 hexadecimal digits that change whenever any part (a record or plain JSON values) changes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(to_data(part), sort_keys=True, allow_nan=False).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]
