"""Changes of documents and headers of text that know their values: JSON, YAML, NRRD, MetaImage, safetensors."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

from tests.fuzz.mutators import INTERESTING_TEXTS, TEXT, on_head
from tests.fuzz.target import Mutator

# --- JSON ----------------------------------------------------------------------------------------------------------
_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 1.5, 1e308, -(2**63), 2**64, 10**400, float("nan"), float("inf"), "", [], {}, [[]]),
    *([None], {"": 0}, {"a": {"a": {}}}, [0] * 50, "a" * 5000, *INTERESTING_TEXTS),
)
Holder = tuple[Any, Any]
"""A list or table, and the index or key of an entry in it."""


def _entries(data: Any) -> Iterator[Holder]:
    for key in list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield data, key
        yield from _entries(data[key])


def _with_entry(change: Callable[[random.Random, Any, Any], None]) -> Callable[[random.Random, bytes], bytes]:
    """A change of one entry somewhere in a JSON document; other files stay as they are."""

    def changed(draw: random.Random, text: bytes) -> bytes:
        try:
            data = [json.loads(text)]
            change(draw, *draw.choice(list(_entries(data))))
            return json.dumps(data[0] if data else "").encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError):  # no JSON, or one that an earlier change made too deep to walk through
            return text

    return changed


def _another_value(draw: random.Random, holder: Any, key: Any) -> None:
    holder[key] = copy.deepcopy(draw.choice(_ODD_VALUES))


def _another_type(draw: random.Random, holder: Any, key: Any) -> None:
    value = holder[key]
    choices: list[Callable[[], Any]] = [lambda: [value], lambda: {"a": value}, lambda: str(value), lambda: [value] * 3]
    if isinstance(value, dict):
        choices.append(lambda: list(value.values()))
    if isinstance(value, int | float) and abs(value) < 1e300:  # larger whole numbers are no floats
        choices += [lambda: -value, lambda: value + 1, lambda: float(value), lambda: value * 10**6, lambda: value / 3]
    holder[key] = draw.choice(choices)()


def _deleted(_draw: random.Random, holder: Any, key: Any) -> None:
    del holder[key]


def _other_key(draw: random.Random, holder: Any, key: Any) -> None:
    value = holder[key]
    if isinstance(holder, dict):
        name = draw.choice((f"{key} ", key.upper(), f"_{key}", *INTERESTING_TEXTS))
        holder[name] = holder.pop(key) if draw.random() < 0.7 else copy.deepcopy(value)
    elif isinstance(holder, list):
        holder.append(copy.deepcopy(value))


def _from_elsewhere(draw: random.Random, holder: Any, key: Any) -> None:
    other, place = draw.choice(list(_entries(holder)))
    holder[key] = copy.deepcopy(other[place])


def _deep(draw: random.Random, holder: Any, key: Any) -> None:
    value = holder[key]
    for _ in range(draw.choice((5, 90, 250))):
        value = [value] if draw.random() < 0.5 else {"a": value}
    holder[key] = value


def key_twice(draw: random.Random, text: bytes) -> bytes:
    """A key is given twice, with different values."""
    found = list(re.finditer(rb'"[^"\n]{1,40}"\s*:', text))
    if not found:
        return text
    one = draw.choice(found)
    value = json.dumps(draw.choice(_ODD_VALUES[:12])).encode()
    return text[: one.start()] + one.group() + value + b", " + text[one.start() :]


def very_deep(draw: random.Random, text: bytes) -> bytes:
    """More brackets than any recursion takes."""
    mark = draw.choice((b"[", b'{"a":'))
    return text[: draw.randrange(len(text) + 1)] + mark * draw.choice((2_000, 100_000)) + text[-1:]


JSON = (
    *(Mutator("JSON value", _with_entry(_another_value)), Mutator("JSON type", _with_entry(_another_type))) * 2,
    Mutator("JSON deletion", _with_entry(_deleted)),
    Mutator("JSON key", _with_entry(_other_key)),
    Mutator("JSON from elsewhere", _with_entry(_from_elsewhere)),
    Mutator("JSON nesting", _with_entry(_deep)),
    Mutator("JSON key twice", key_twice),
    Mutator("JSON very deep", very_deep),
)

# --- YAML ----------------------------------------------------------------------------------------------------------
_YAML_SNIPPETS = (
    *("!!python/object/apply:os.system ['touch evil']", "!!binary aGVsbG8=", "2026-11-27", "2026-11-27T01:02:03Z"),
    *(
        "*nobody",
        "&a [*a]",
        "? [1, 2]\n: 3",
        "<<: {lr: 1}",
        "!!set {a, b}",
        "0o17",
        "0b11",
        "1:30:00",
        "yes",
        "~",
        "- a\n- b",
    ),
    *(
        "|\n  text",
        "{1: 2, null: 3}",
        "!!float 1",
        "!!int x",
        "%YAML 1.1",
        "---\na: 1\n---\nb: 2",
        "\tx: 1",
        "!x y",
        ".nan",
    ),
)


def yaml_value(draw: random.Random, text: bytes) -> bytes:
    """The value of a line becomes an odd piece of YAML."""
    found = list(re.finditer(rb"(?m):[ \t]+([^\n#]+)", text))
    if not found:
        return text
    one = draw.choice(found)
    value = draw.choice((*_YAML_SNIPPETS, *INTERESTING_TEXTS)).encode("utf-8", "surrogatepass")
    return text[: one.start(1)] + value + text[one.end(1) :]


def yaml_bomb(draw: random.Random, text: bytes) -> bytes:
    """Aliases of aliases, which fill the memory when somebody walks through them."""
    width, depth = draw.choice(((9, 9), (2, 40), (30, 6)))
    lines = [b"a0: &a0 [x, y]"]
    lines += [b"a%d: &a%d [%s]" % (n, n, b", ".join([b"*a%d" % (n - 1)] * width)) for n in range(1, depth)]
    name = draw.choice((b"patch_size", b"augmentation", b"a", b"lr"))
    return b"\n".join(lines) + b"\n" + name + b": *a%d\n" % (depth - 1) + text


YAML = (Mutator("YAML value", yaml_value), Mutator("YAML value", yaml_value), Mutator("YAML bomb", yaml_bomb))


# --- headers of text -----------------------------------------------------------------------------------------------
_NRRD_LINES = (
    *(
        "line skip: 1",
        "line skip: 2",
        "byte skip: 4",
        "byte skip: -1",
        "byte skip: 0",
        "encoding: raw",
        "encoding: gzip",
    ),
    *(
        "encoding: ascii",
        "encoding: hex",
        "encoding: bzip2",
        "endian: big",
        "endian: little",
        "type: uchar",
        "type: short",
    ),
    *("type: float", "type: double", "type: block", "type: ushort", "dimension: 2", "dimension: 3", "dimension: 4"),
    *(
        "kinds: domain domain domain",
        "kinds: vector domain domain",
        "kinds: list domain domain domain",
        "kinds: space space space",
    ),
    *(
        "space: left-posterior-superior",
        "space: RAS",
        "space: scanner-xyz",
        "space: 3D-right-handed",
        "space dimension: 3",
    ),
    *(
        "space directions: (1,0,0) (0,1,0) (0,0,1)",
        "space directions: none (1,0,0) (0,1,0) (0,0,2)",
        "space origin: (1,2,3)",
    ),
    *(
        "space directions: (0,0,0) (0,1,0) (0,0,1)",
        "space directions: (1,0.5,0) (0,1,0) (0,0,1)",
        "space origin: (nan,0,0)",
    ),
    *(
        "spacings: 1 2 3",
        "spacings: nan 1 1",
        "spacings: -1 1 1",
        'space units: "mm" "mm" "mm"',
        'space units: "um" "um" "um"',
    ),
    *(
        "measurement frame: (1,0,0) (0,1,0) (0,0,1)",
        "centerings: cell cell cell",
        "thicknesses: 1 1 1",
        "axis mins: 0 0 0",
    ),
    *(
        "old min: 0",
        "sizes: 3 4 5",
        "sizes: 60",
        "sizes: 5 4 3 1",
        "data file: x.raw",
        "data file: LIST",
        "datafile: ../x.raw",
    ),
    *(
        "data file: x%03d.raw 1 3 1",
        "min: 0",
        "sample units: HU",
        "key:=value",
        "# comment",
        "content: x",
        "block size: 4",
    ),
)
_META_LINES = (
    *(
        "ObjectType = Image",
        "NDims = 2",
        "NDims = 3",
        "NDims = 4",
        "BinaryData = True",
        "BinaryData = False",
        "CompressedData = True",
    ),
    *(
        "BinaryDataByteOrderMSB = True",
        "ElementByteOrderMSB = True",
        "CompressedData = False",
        "CompressedDataSize = 10",
    ),
    *("CompressedDataSize = 100000", "CompressedDataSize = 0", "TransformMatrix = 1 0 0 0 1 0 0 0 1", "Offset = 1 2 3"),
    *(
        "TransformMatrix = 0 0 0 0 1 0 0 0 1",
        "TransformMatrix = 1 0.5 0 0 1 0 0 0 1",
        "TransformMatrix = 2 0 0 0 2 0 0 0 2",
    ),
    *(
        "Rotation = 1 0 0 0 -1 0 0 0 1",
        "Orientation = 0 1 0 1 0 0 0 0 1",
        "Position = 4 5 6",
        "Origin = 7 8 9",
        "CenterOfRotation = 0 0 0",
    ),
    *(
        "AnatomicalOrientation = RAI",
        "ElementSpacing = 1 2 3",
        "ElementSpacing = nan 1 1",
        "ElementSize = 2 2 2",
        "DimSize = 3 4 5",
    ),
    *(
        "DimSize = 60",
        "DimSize = 5 4 3 1",
        "HeaderSize = -1",
        "HeaderSize = 10",
        "HeaderSize = 0",
        "ElementType = MET_UCHAR",
    ),
    *(
        "ElementType = MET_SHORT",
        "ElementType = MET_FLOAT",
        "ElementType = MET_DOUBLE",
        "ElementType = MET_UCHAR_ARRAY",
        "ElementType = MET_OTHER",
    ),
    *(
        "ElementNumberOfChannels = 2",
        "ElementNumberOfChannels = 0",
        "ElementNumberOfChannels = -1",
        "DistanceUnits = um",
        "DistanceUnits = mm",
    ),
    *(
        "ElementMin = 0",
        "ElementToIntensityFunctionSlope = 2",
        "ElementDataFile = LOCAL",
        "ElementDataFile = x.raw",
        "Comment = x",
    ),
    *(
        "ElementDataFile = ../x.raw",
        "ElementDataFile = LIST",
        "Modality = MET_MOD_CT",
        "ID = 1",
        "Color = 1 1 1 1",
        "Name = x",
    ),
)


def _line_edits(lines: tuple[str, ...], separator: bytes) -> tuple[Mutator, ...]:
    def add(draw: random.Random, head: bytes) -> bytes:
        own = head.splitlines(keepends=True) or [b""]
        own.insert(draw.randrange(1, len(own) + 1) if len(own) > 1 else 0, draw.choice(lines).encode() + b"\n")
        return b"".join(own)

    def replace(draw: random.Random, head: bytes) -> bytes:
        line = draw.choice(lines).encode()
        name = line.partition(separator)[0].strip()
        own = head.splitlines(keepends=True)
        place = next((index for index, there in enumerate(own) if there.partition(separator)[0].strip() == name), None)
        if place is None:
            return add(draw, head)
        own[place] = line + b"\n"
        return b"".join(own)

    return (Mutator("add field", add), *(Mutator("replace field", replace),) * 3)


NRRD = on_head((*_line_edits(_NRRD_LINES, b":"), *TEXT), re.compile(rb"\n(?=\r?\n)"))
META = on_head((*_line_edits(_META_LINES, b"="), *TEXT), re.compile(rb"(?m)^(?=ElementDataFile)"))


# --- safetensors ---------------------------------------------------------------------------------------------------
def tensor_header(draw: random.Random, data: bytes) -> bytes:
    """The JSON before the tensors, with the right length."""
    if len(data) < 8:
        return data
    (length,) = struct.unpack_from("<Q", data)
    header = draw.choice((*JSON, *TEXT)).change(draw, data[8 : 8 + min(length, len(data))])
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def record_in_header(draw: random.Random, data: bytes) -> bytes:
    """The JSON document in the metadata of a bundle."""
    if len(data) < 8:
        return data
    (length,) = struct.unpack_from("<Q", data)
    try:
        header = json.loads(data[8 : 8 + length])
        key, text = next(iter(header["__metadata__"].items()))
    except (ValueError, KeyError, StopIteration, AttributeError, TypeError, RecursionError):
        return data
    changed = draw.choice((*JSON, *JSON, *TEXT)).change(draw, str(text).encode("utf-8", "surrogatepass"))
    header["__metadata__"] = {key: changed.decode("utf-8", "replace")}
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data[8 + length :]


SAFETENSORS = (Mutator("tensor header", tensor_header), *(Mutator("record in header", record_in_header),) * 2)
