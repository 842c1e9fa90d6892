"""Changes that know a binary format: header fields, chunks, tags, so that they get past the first check."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable

from tests.fuzz.mutators import BYTES, INTERESTING_NUMBERS
from tests.fuzz.target import Mutator


# --- header fields of a fixed place --------------------------------------------------------------------------------
def field_edits(fields: tuple[tuple[int, str], ...], orders: str = "<>") -> Callable[[random.Random, bytes], bytes]:
    """A change of header fields, given by their first byte and type, to 0, -1, the largest value or a neighbor."""

    def change(draw: random.Random, data: bytes) -> bytes:
        changed = bytearray(data)
        order = draw.choice(orders) if len(orders) > 1 and draw.random() < 0.15 else orders[0]
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            place, kind = draw.choice(fields)
            code = order + kind
            if place + struct.calcsize(code) <= len(changed):
                (now,) = struct.unpack_from(code, changed, place)
                struct.pack_into(code, changed, place, _another_number(draw, kind, now))
        return bytes(changed)

    return change


_FLOATS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    2.0,
    1e-9,
    1e-3,
    1e3,
    1e30,
    -1e30,
    3.4e38,
    float("nan"),
    float("inf"),
    255.0,
    352.0,
)


def _another_number(draw: random.Random, kind: str, now: float) -> float:
    if kind in "fd":
        return draw.choice((*_FLOATS, now + 1, now * 2, -now) if abs(now) < 1e30 else _FLOATS)
    bits = 8 * struct.calcsize("<" + kind)
    lowest, highest = (0, 2**bits - 1) if kind.isupper() else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    value = draw.choice((0, 1, 2, 3, 4, 5, -1, now - 1, now + 1, now * 2, lowest, highest, *INTERESTING_NUMBERS[:16]))
    return min(max(int(value), lowest), highest)


_NIFTI_1_FIELDS = (
    *((place, "h") for place in range(40, 56, 2)),
    *((place, "f") for place in range(76, 108, 4)),
    *((0, "i"), (39, "B"), (68, "h"), (70, "h"), (70, "h"), (72, "h"), (74, "h"), (108, "f"), (112, "f"), (116, "f")),
    *((120, "h"), (122, "B"), (123, "B"), (124, "f"), (128, "f"), (252, "h"), (254, "h"), (344, "i"), (348, "i")),
    *((place, "f") for place in range(256, 328, 4)),
)
_NIFTI_2_FIELDS = (
    *((place, "q") for place in range(16, 80, 8)),
    *((place, "d") for place in range(104, 168, 8)),
    *((0, "i"), (12, "h"), (12, "h"), (14, "h"), (80, "d"), (168, "q"), (176, "d"), (184, "d"), (344, "i"), (348, "i")),
    *((500, "i"), (504, "i"), (540, "i")),
    *((place, "d") for place in range(352, 496, 8)),
)


def nifti_fields(draw: random.Random, data: bytes) -> bytes:
    """Fields of a NIfTI-1 or NIfTI-2 header, of either byte order."""
    is_big = data[:1] == b"\0"
    fields = _NIFTI_2_FIELDS if b"n+2\0" in data[4:12] else _NIFTI_1_FIELDS
    return field_edits(fields, ">" if is_big else "<")(draw, data)


def swap_forms(draw: random.Random, data: bytes) -> bytes:
    """Another set of codes: which of the two transforms and which unit count."""
    place = 344 if b"n+2\0" in data[4:12] else 252
    kind = "i" if place == 344 else "h"
    changed = bytearray(data)
    order = ">" if data[:1] == b"\0" else "<"
    if len(changed) > 360:
        struct.pack_into(order + kind * 2, changed, place, draw.choice((0, 1, 2, 4)), draw.choice((0, 1, 2, 4)))
        if place == 252:
            changed[123] = draw.choice((0, 1, 2, 3, 8, 10, 11, 18))
    return bytes(changed)


NIFTI = (
    *(Mutator("NIfTI fields", nifti_fields),) * 3,
    Mutator("NIfTI forms", swap_forms),
)

_GIPL_FIELDS = (
    *((place, "H") for place in range(0, 10, 2)),
    *((place, "f") for place in range(10, 26, 4)),
    *((place, "d") for place in range(188, 252, 8)),
    (252, "I"),
)
GIPL = (Mutator("GIPL fields", field_edits(_GIPL_FIELDS, ">")),) * 3

_BMP_FIELDS = (
    *((2, "I"), (10, "I"), (14, "I"), (18, "i"), (22, "i"), (26, "H"), (28, "H"), (28, "H"), (30, "I"), (34, "I")),
    *((38, "i"), (42, "i"), (46, "I"), (50, "I"), (54, "I"), (58, "I"), (62, "I")),
)
BMP = (Mutator("BMP fields", field_edits(_BMP_FIELDS, "<")),) * 3

# --- PNG -----------------------------------------------------------------------------------------------------------
_PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
Chunks = list[tuple[bytes, bytes]]


def png_chunks(data: bytes) -> Chunks:
    """Name and content of every chunk."""
    chunks, place = [], 8
    while place + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def join_chunks(chunks: Chunks) -> bytes:
    """A PNG file with the right checksums."""
    parts = [_PNG_BEGIN]
    for name, content in chunks:
        parts += [struct.pack(">I", len(content)), name, content, struct.pack(">I", zlib.crc32(name + content))]
    return b"".join(parts)


def _with_chunks(change: Callable[[random.Random, Chunks], Chunks]) -> Callable[[random.Random, bytes], bytes]:
    def changed(draw: random.Random, data: bytes) -> bytes:
        chunks = png_chunks(data)
        return join_chunks(change(draw, chunks)) if chunks else data

    return changed


def _header_chunk(draw: random.Random, chunks: Chunks) -> Chunks:
    name, content = chunks[0]
    fields = ((0, "I"), (4, "I"), (8, "B"), (9, "B"), (9, "B"), (10, "B"), (11, "B"), (12, "B"))
    return [(name, field_edits(fields, ">")(draw, content)), *chunks[1:]]


def _pixel_stream(draw: random.Random, chunks: Chunks) -> Chunks:
    """The pixels are too few, too many or others, in a sound zlib stream and sound chunks."""
    stream = b"".join(content for name, content in chunks if name == b"IDAT")
    try:
        pixels = zlib.decompress(stream)
    except zlib.error:
        return chunks
    pixels = draw.choice(BYTES).change(draw, pixels)
    packed = zlib.compress(pixels, draw.choice((0, 1, 9)))
    if draw.random() < 0.2:
        packed = packed[: -draw.choice((1, 2, 4, 5))]
    middle = draw.randrange(len(packed) + 1) if draw.random() < 0.3 else len(packed)
    pieces = [(b"IDAT", packed[:middle])] + ([(b"IDAT", packed[middle:])] if middle < len(packed) else [])
    first = next(index for index, (name, _) in enumerate(chunks) if name == b"IDAT")
    rest = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    return [*rest[:first], *pieces, *rest[first:]]


_EXTRA_CHUNKS = (
    *(
        (b"tRNS", b"\0\1"),
        (b"tRNS", b"\0\1\0\2\0\3"),
        (b"tRNS", bytes(range(16))),
        (b"sBIT", b"\4"),
        (b"sBIT", b"\5\6\5"),
    ),
    *((b"gAMA", b"\0\0\xb1\x8f"), (b"gAMA", bytes(4)), (b"PLTE", bytes(range(48))), (b"PLTE", b"\1\2"), (b"IEND", b"")),
    *((b"pHYs", b"\0\0\0\1\0\0\0\1\1"), (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 22))), (b"iCCP", b"a\0\0bad")),
    *(
        (b"acTL", b"\0\0\0\2\0\0\0\0"),
        (b"fcTL", bytes(26)),
        (b"eXIf", b"II*\0\x08\0\0\0\1\0"),
        (b"XXXX", b"abc"),
        (b"IDAT", b""),
    ),
    *((b"bKGD", b"\0\0"), (b"cHRM", bytes(32)), (b"tEXt", b"\0" * 9), (b"oFFs", bytes(9)), (b"sRGB", b"\xff")),
)


def _some_chunk(draw: random.Random, chunks: Chunks) -> Chunks:
    """A chunk is moved, repeated, left out or added."""
    changed = list(chunks)
    place = draw.randrange(len(changed))
    match draw.randrange(4):
        case 0:
            changed.insert(draw.randrange(len(changed)), changed.pop(place))
        case 1:
            changed.insert(draw.randrange(len(changed)), changed[place])
        case 2:
            del changed[place]
        case _:
            changed.insert(draw.randrange(1, len(changed) + 1), draw.choice(_EXTRA_CHUNKS))
    return changed


def _chunk_content(draw: random.Random, chunks: Chunks) -> Chunks:
    """The content of a chunk is changed, its checksum is right."""
    place = draw.randrange(len(chunks))
    name, content = chunks[place]
    return [*chunks[:place], (name, draw.choice(BYTES).change(draw, content)), *chunks[place + 1 :]]


PNG = tuple(
    Mutator(name, _with_chunks(change))
    for name, change in (
        ("PNG header", _header_chunk),
        ("PNG pixels", _pixel_stream),
        ("PNG chunk", _some_chunk),
        ("PNG chunk content", _chunk_content),
    )
)

# --- TIFF ----------------------------------------------------------------------------------------------------------
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_VALUES = {
    254: (0, 1, 2, 4),  # kind of page: reduced, mask
    256: (),  # width
    257: (),  # height
    258: (1, 2, 4, 6, 8, 12, 16, 24, 32, 64, 0, 7),  # bits of a sample
    259: (1, 2, 5, 7, 8, 32773, 32946, 50000, 34925, 34712, 0, 99),  # compression
    262: (0, 1, 2, 3, 4, 5, 6, 8, 32803),  # meaning of the values
    266: (1, 2),  # order of bits
    273: (),  # offsets of the strips
    274: (1, 2, 3, 6, 8),  # orientation
    277: (0, 1, 2, 3, 4, 5),  # samples of a pixel
    278: (),  # rows of a strip
    279: (),  # lengths of the strips
    284: (1, 2, 0),  # together, or each channel by itself
    317: (1, 2, 3, 34892, 0),  # predictor
    320: (),  # palette
    322: (8, 16, 24, 0),  # width of a tile
    323: (8, 16, 24, 0),
    338: (0, 1, 2),  # further samples
    339: (1, 2, 3, 4, 5, 6),  # kind of number
    32997: (1, 2, 5),  # depth
    330: (),  # pages below a page
}


def tiff_entries(data: bytes) -> tuple[str, list[tuple[int, int]]]:
    """Byte order, and for each entry of every directory its place and the tag; of classic TIFF only."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
    entries: list[tuple[int, int]] = []
    if not order or len(data) < 8 or struct.unpack_from(order + "H", data, 2)[0] != 42:
        return "", entries
    (place,) = struct.unpack_from(order + "I", data, 4)
    seen: set[int] = set()
    while place and place + 2 <= len(data) and place not in seen and len(seen) < 64:
        seen.add(place)
        (count,) = struct.unpack_from(order + "H", data, place)
        for index in range(min(count, 64)):
            entry = place + 2 + 12 * index
            if entry + 12 <= len(data):
                entries.append((entry, struct.unpack_from(order + "H", data, entry)[0]))
        end = place + 2 + 12 * count
        place = struct.unpack_from(order + "I", data, end)[0] if end + 4 <= len(data) else 0
    return order, entries


def tiff_tag(draw: random.Random, data: bytes) -> bytes:
    """A value of a tag, wherever it is stored, becomes another one that this tag may have, or none may."""
    order, entries = tiff_entries(data)
    known = [entry for entry in entries if entry[1] in _TIFF_VALUES]
    if not known:
        return data
    entry, tag = draw.choice(known)
    kind, count = struct.unpack_from(order + "HI", data, entry + 2)
    size = _TIFF_SIZES.get(kind, 0)
    code = {1: "B", 2: "H", 4: "I", 8: "Q"}.get(size)
    place = entry + 8 if size * count <= 4 else struct.unpack_from(order + "I", data, entry + 8)[0]
    changed = bytearray(data)
    if code is None or place + size * min(count, 4096) > len(changed):
        return data
    which = range(count) if draw.random() < 0.5 else [draw.randrange(max(1, count))]
    (now,) = struct.unpack_from(order + code, changed, place)
    value = draw.choice((*_TIFF_VALUES[tag] * 3, now + 1, now - 1, now * 2, 0, 2 ** (8 * size) - 1))
    for index in list(which)[:4096]:
        struct.pack_into(order + code, changed, place + size * index, max(0, value) % 2 ** (8 * size))
    return bytes(changed)


def tiff_entry(draw: random.Random, data: bytes) -> bytes:
    """The tag, type, count or value field of an entry, or the pointer to the next directory."""
    order, entries = tiff_entries(data)
    if not entries:
        return data
    entry, _ = draw.choice(entries)
    fields = (
        (entry, "H"),
        (entry + 2, "H"),
        (entry + 4, "I"),
        (entry + 8, "I"),
        (entry + 12, "I"),
        (entry - 2, "H"),
        (4, "I"),
    )
    return field_edits(fields, order)(draw, data)


def tiff_tag_number(draw: random.Random, data: bytes) -> bytes:
    """An entry becomes one of another tag, or of none, so that it counts as missing."""
    order, entries = tiff_entries(data)
    if not entries:
        return data
    entry, _ = draw.choice(entries)
    changed = bytearray(data)
    struct.pack_into(order + "H", changed, entry, draw.choice((*_TIFF_VALUES, 65000)))
    return bytes(changed)


TIFF = (
    *(Mutator("TIFF tag", tiff_tag),) * 3,
    Mutator("TIFF entry", tiff_entry),
    Mutator("TIFF other tag", tiff_tag_number),
)
