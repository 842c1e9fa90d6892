"""Changes of bytes and of text, and the table that says which changes suit a file by its ending."""

from __future__ import annotations

import gzip
import random
import re
import zlib
from collections.abc import Callable, Sequence

from tests.fuzz.target import Mutator

INTERESTING_NUMBERS = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 127, 128, 129, 255, 256, 257, 32767, 32768, 65535, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1),
)

INTERESTING_TEXTS = (
    *("0", "-1", "1", "2", "3", "4", "1.5", "-0.0", "nan", "NaN", "inf", "-inf", "1e308", "1e309", "1e-320", "1e-9"),
    *("99999999999999999999", "2147483648", "65536", "0x10", "1_000", "٣", "", " ", "true", "null", "None", "~"),
    *(
        "../../evil",
        "/tmp/evil",
        "C:\\evil",
        "a/b",
        "..",
        ".",
        "con",
        "a\0b",
        "a\x1b[31mb",
        "\u202egpj",
        "é",
        "e\u0301",
    ),
    *("=cmd|'/c calc'!A0", "<script>", "%s%n", "$(touch evil)", "a" * 300, "\ud7ff", "\U0001f9e0", "2026-11-27"),
)


def _place(draw: random.Random, data: bytes) -> int:
    return draw.randrange(len(data)) if data else 0


def flip_bits(draw: random.Random, data: bytes) -> bytes:
    """One to four bits."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4)) if data else 0):
        changed[_place(draw, data)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def set_bytes(draw: random.Random, data: bytes) -> bytes:
    """A number of 1, 2, 4 or 8 bytes becomes one that programs stumble over."""
    size = draw.choice((1, 2, 4, 8))
    place = draw.randrange(max(1, len(data) - size + 1))
    value = draw.choice(INTERESTING_NUMBERS) % (1 << (8 * size))
    return data[:place] + value.to_bytes(size, draw.choice(("little", "big"))) + data[place + size :]


def splice(draw: random.Random, data: bytes) -> bytes:
    """A piece is copied over, or inserted at, another place."""
    start, place = _place(draw, data), _place(draw, data)
    piece = data[start : start + draw.choice((1, 2, 4, 16, 64, 512))]
    return data[:place] + piece + data[place + draw.choice((0, len(piece))) :]


def remove(draw: random.Random, data: bytes) -> bytes:
    """A piece is left out."""
    place = _place(draw, data)
    return data[:place] + data[place + draw.choice((1, 1, 2, 4, 16, 64, 512)) :]


def blank(draw: random.Random, data: bytes) -> bytes:
    """A piece becomes zeros or ones, as on a bad disk."""
    place, length = _place(draw, data), draw.choice((1, 4, 16, 64, 512))
    piece = data[place : place + length]
    return data[:place] + draw.choice((b"\0", b"\xff")) * len(piece) + data[place + len(piece) :]


def cut(draw: random.Random, data: bytes) -> bytes:
    """The file ends early: anywhere, or just before its end."""
    length = len(data)
    kept = draw.choice((draw.randrange(length + 1), length - 1, length - draw.randrange(1, 33), length // 2))
    return data[: max(0, kept)]


def extend(draw: random.Random, data: bytes) -> bytes:
    """Something stands behind the end."""
    more = draw.choice((b"\0", b"\n", b"\xff", data[:64], data))
    return data + (more * draw.choice((1, 1, 3, 200)))[: 1 << 16]


def shuffle(draw: random.Random, data: bytes) -> bytes:
    """Two pieces change places."""
    if len(data) < 4:
        return data
    first, second = sorted(draw.sample(range(len(data)), 2))
    size = min(draw.choice((1, 4, 16, 64)), second - first, len(data) - second)
    left, right = data[first : first + size], data[second : second + size]
    return data[:first] + right + data[first + size : second] + left + data[second + size :]


BYTES = (
    Mutator("flip bits", flip_bits, is_damage=True),
    Mutator("set bytes", set_bytes, is_damage=True),
    Mutator("splice", splice, is_damage=True),
    Mutator("remove", remove, is_damage=True),
    Mutator("blank", blank, is_damage=True),
    Mutator("cut", cut, is_damage=True, is_cut=True),
    Mutator("extend", extend, is_damage=True),
    Mutator("shuffle", shuffle, is_damage=True),
)


# --- text ----------------------------------------------------------------------------------------------------------
def _lines(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


def duplicate_line(draw: random.Random, data: bytes) -> bytes:
    """A line stands twice."""
    lines = _lines(data) or [b""]
    lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
    return b"".join(lines)


def remove_line(draw: random.Random, data: bytes) -> bytes:
    """A line is missing."""
    lines = _lines(data) or [b""]
    del lines[draw.randrange(len(lines))]
    return b"".join(lines)


def move_line(draw: random.Random, data: bytes) -> bytes:
    """A line stands elsewhere."""
    lines = _lines(data) or [b""]
    line = lines.pop(draw.randrange(len(lines)))
    lines.insert(draw.randrange(len(lines) + 1), line)
    return b"".join(lines)


_NUMBER = re.compile(rb"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?")
_WORD = re.compile(rb"[A-Za-z_][\w-]*")


def replace_number(draw: random.Random, data: bytes) -> bytes:
    """A number becomes another one, or none."""
    return _replaced(draw, data, _NUMBER, lambda: draw.choice(INTERESTING_TEXTS[:24]).encode())


def swap_words(draw: random.Random, data: bytes) -> bytes:
    """A word becomes another one of the same text."""
    words = _WORD.findall(data) or [b""]
    return _replaced(draw, data, _WORD, lambda: draw.choice(words))


def odd_word(draw: random.Random, data: bytes) -> bytes:
    """A word becomes something that means much to a file system, a terminal or a table."""
    return _replaced(draw, data, _WORD, lambda: draw.choice(INTERESTING_TEXTS).encode("utf-8", "surrogatepass"))


def _replaced(draw: random.Random, data: bytes, pattern: re.Pattern[bytes], new: Callable[[], bytes]) -> bytes:
    found = list(pattern.finditer(data))
    if not found:
        return data
    one = draw.choice(found)
    return data[: one.start()] + new() + data[one.end() :]


_ODD_BYTES = (
    b"\0",
    b"\x1b[2J",
    b"\xff\xfe",
    b"\xc3\x28",
    b"\r",
    b"\t",
    b"\x85",
    b"\xe2\x80\xa8",
    b"\xef\xbb\xbf",
    b'"',
    b"'",
)


def odd_bytes(draw: random.Random, data: bytes) -> bytes:
    """Bytes that are no text, or invisible."""
    place = draw.choice((0, _place(draw, data), len(data)))
    return data[:place] + draw.choice(_ODD_BYTES) + data[place:]


def other_encoding(draw: random.Random, data: bytes) -> bytes:
    """The same text as other systems write it."""
    text = data.decode("utf-8", "replace")
    choices = (
        lambda: text.encode("utf-16"),
        lambda: text.encode("latin-1", "replace"),
        lambda: text.replace("\n", "\r\n").encode(),
        lambda: text.replace("\n", "\r").encode(),
        lambda: b"\xef\xbb\xbf" + data,
        lambda: text.replace(" ", "\t").encode(),
    )
    return draw.choice(choices)()


TEXT = (
    Mutator("duplicate line", duplicate_line),
    Mutator("remove line", remove_line),
    Mutator("move line", move_line),
    Mutator("replace number", replace_number),
    Mutator("swap words", swap_words),
    Mutator("odd word", odd_word),
    Mutator("odd bytes", odd_bytes),
    Mutator("other encoding", other_encoding),
)


def on_head(mutators: Sequence[Mutator], end: re.Pattern[bytes]) -> tuple[Mutator, ...]:
    """The same changes, of the text before `end` only; voxels stand behind it."""

    def of(mutator: Mutator) -> Mutator:
        def change(draw: random.Random, data: bytes) -> bytes:
            found = end.search(data)
            border = found.end() if found else min(len(data), 1024)
            return mutator.change(draw, data[:border]) + data[border:]

        return Mutator(f"{mutator.name} of the header", change)

    return tuple(map(of, mutators))


def on_unzipped(mutators: Sequence[Mutator]) -> tuple[Mutator, ...]:
    """The same changes, of what a gzip stream holds, which is compressed again so that every checksum is right."""

    def of(mutator: Mutator) -> Mutator:
        def change(draw: random.Random, data: bytes) -> bytes:
            try:
                content = gzip.decompress(data)
            except (OSError, EOFError, zlib.error):
                return data
            changed = mutator.change(draw, content)
            if draw.random() < 0.1:  # several members are one file
                middle = len(changed) // 2
                return gzip.compress(changed[:middle], 1, mtime=0) + gzip.compress(changed[middle:], 1, mtime=0)
            return gzip.compress(changed, 1, mtime=0)

        return Mutator(f"{mutator.name} inside", change, is_cut=mutator.is_cut)

    return tuple(map(of, mutators))
