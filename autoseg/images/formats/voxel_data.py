"""The voxels that the header of a medical format promises: verified and decoded by the same code."""

from __future__ import annotations

import binascii
import bz2
import gzip
import math
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import AutoSegError
from autoseg.images.formats.headers import LARGEST_RATIO, LONGEST_HEADER, check_spacing
from autoseg.images.image_errors import unreadable

_WBITS = {"gzip": 31, "zlib": 47}
"""What zlib calls the two kinds of stream; 47 takes gzip's for zlib's, as MetaIO does. All have a checksum."""

_COMPRESSED = (*_WBITS, "bzip2")

_BLOCK_BYTES = 1 << 20

_PADDING_BYTES = 1024
"""Bytes after the voxels that are taken for a writer's padding; more means a wrong header. Assumption."""

COMPRESSION_LEVEL = 2
"""Of what is written: label maps become 200 times smaller, in half the time of zlib's own choice of 6. As in ITK."""

_LONGEST_NUMBER = 64
"""Characters of a number in text; no writer needs more for any type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The voxel data that a header promises, and how they are found: what is verified is what is read.

    Attributes:
        dims: entries along each axis, fastest axis first, channels included.
        kind: type of one entry, with its byte order.
        spacing_mm: as written, fastest axis first; checked, not used. Empty where the header has none.
        data: file that holds the data.
        offset: first byte of the data in its file, before lines are skipped and before decompression.
        lines: lines that are skipped then.
        encoding: a key of `_DECODERS`.
        skip: bytes that are skipped then; of compressed data, bytes of what was compressed.
        is_at_end: whether the data are the last bytes of the file, wherever after `offset` they begin; raw data only.
    """

    dims: tuple[int, ...]
    kind: np.dtype[Any]
    spacing_mm: tuple[float, ...]
    data: Path
    offset: int = 0
    lines: int = 0
    encoding: str = "raw"
    skip: int = 0
    is_at_end: bool = False

    @property
    def promised_bytes(self) -> int:
        """Bytes of the decompressed data."""
        return math.prod(self.dims) * self.kind.itemsize


def checked(layout: Layout, path: Path) -> Layout:
    """The layout itself, once its sizes and spacings can be true.

    Raises:
        UnreadableFile: a size is not positive, or a spacing is not a positive, finite, plausible number.
    """
    if not layout.dims or min(layout.dims) < 1:
        raise unreadable(path, f"has an impossible header: sizes {layout.dims}")
    check_spacing(layout.spacing_mm, path)
    return layout


def header_and_data(parse: Callable[[Path], Layout]) -> Callable[[Path], tuple[Path, ...]]:
    """The `Format.files` of a format whose header, as `parse` understands it, may point to a data file."""

    def files(path: Path) -> tuple[Path, ...]:
        try:
            return tuple(dict.fromkeys((path, parse(path).data)))
        except (AutoSegError, OSError):  # reading the image will say what is wrong
            return (path,)

    return files


def verify_data(layout: Layout, path: Path) -> None:
    """Compares what the header of `path` promises with the data, wherever they lie; memory stays bounded.

    Raises:
        UnreadableFile: there are fewer or many more data, a checksum differs, or text holds something else.
    """
    with layout.data.open("rb") as stream:
        _checked_start(stream, layout, path)
        if layout.encoding != "raw":  # whose bytes are all there, and have no checksum
            _compare(layout, sum(map(len, _promised(stream, layout, path))), path)


def read_data(layout: Layout, path: Path) -> NDArray[Any]:
    """The data that the header of `path` promises: an array of the machine's byte order, fastest axis last.

    They are verified while they are decoded, in the same pass. Memory is taken as data come, whatever a damaged header
    promises: the system gives pages of an array when they are written to.

    Raises:
        UnreadableFile: as `verify_data`, in the same words.
    """
    promised, found = layout.promised_bytes, 0
    with layout.data.open("rb") as stream:
        _checked_start(stream, layout, path)
        data = np.empty(promised, np.uint8)
        for block in _promised(stream, layout, path):
            part = block[: max(promised - found, 0)]
            data[found : found + len(part)] = np.frombuffer(part, np.uint8)
            found += len(block)
    _compare(layout, found, path)
    array = data.view(layout.kind).reshape(layout.dims[::-1])
    return array.astype(layout.kind.newbyteorder("="), copy=False)


def _checked_start(stream: BinaryIO, layout: Layout, path: Path) -> None:
    """Goes to the first byte of the data, once the bytes from there on can hold what the header promises."""
    stored, promised = _seek(stream, layout, path), layout.promised_bytes
    if layout.encoding == "raw":
        _compare(layout, min(stored, promised) if layout.is_at_end else stored, path)
    if layout.encoding in _WBITS and promised > LARGEST_RATIO * max(stored, 0):
        raise unreadable(path, f"promises {promised} bytes, which {stored} compressed bytes cannot hold")


def _promised(stream: BinaryIO, layout: Layout, path: Path) -> Iterator[bytes]:
    """Blocks of the decoded data without what is to be skipped, until more came than any padding explains."""
    left = layout.promised_bytes + _PADDING_BYTES
    to_skip = layout.skip if layout.encoding in _COMPRESSED else 0
    for decoded in _DECODERS[layout.encoding](stream, layout, path):
        block, to_skip = decoded[to_skip:], max(to_skip - len(decoded), 0)
        yield block
        left -= len(block)
        if left < 0:
            return


def _seek(stream: BinaryIO, layout: Layout, path: Path) -> int:
    """Goes to the first byte of the data as they are stored; returns how many bytes there are from there on."""
    stream.seek(layout.offset)
    for _ in range(layout.lines):
        if not stream.readline(LONGEST_HEADER).endswith(b"\n"):
            raise unreadable(path, f"is cut short: it has fewer than the {layout.lines} lines of its `line skip`")
    if layout.encoding not in _COMPRESSED:
        stream.seek(layout.skip, os.SEEK_CUR)
    start, size = stream.tell(), os.fstat(stream.fileno()).st_size
    if layout.is_at_end:
        start = stream.seek(max(start, size - layout.promised_bytes))
    return size - start


def _compare(layout: Layout, found: int, path: Path) -> None:
    promised = layout.promised_bytes
    if found < promised:
        what = f"is cut short: {found} bytes of data where its header promises {promised}"
        raise unreadable(path, what + (f" ({layout.data.name})" if layout.data != path else ""))
    if found > promised + (0 if layout.encoding in ("text", "hex") else _PADDING_BYTES):
        raise unreadable(
            path,
            f"holds more data than its header promises ({promised} bytes)",
            why="the header is damaged, or does not belong to these voxels",
        )


def _raw(stream: BinaryIO, _layout: Layout, _path: Path) -> Iterator[bytes]:
    return iter(partial(stream.read, _BLOCK_BYTES), b"")


def _deflated(stream: BinaryIO, layout: Layout, path: Path) -> Iterator[bytes]:
    return inflated(stream, layout.encoding, path)


def _bzip2(stream: BinaryIO, _layout: Layout, path: Path) -> Iterator[bytes]:
    decoder = bz2.BZ2Decompressor()
    while not decoder.eof:
        pending = stream.read(_BLOCK_BYTES) if decoder.needs_input else b""
        if decoder.needs_input and not pending:
            raise unreadable(path, "is cut short: the compressed data ends in the middle")
        try:
            block = decoder.decompress(pending, _BLOCK_BYTES)
        except OSError as error:
            raise unreadable(path, "is damaged: its bzip2 data does not match its checksum") from error
        yield block


def _tokens(stream: BinaryIO, path: Path) -> Iterator[list[bytes]]:
    """What stands between the blanks of a text, block by block; a number that a block cuts is put together."""
    rest = b""
    for block in iter(partial(stream.read, _BLOCK_BYTES), b""):
        tokens = (rest + block).split()
        rest = tokens.pop() if tokens and not block[-1:].isspace() else b""
        is_long = len(rest) > _LONGEST_NUMBER or max(map(len, tokens), default=0) > _LONGEST_NUMBER
        if is_long or b"_" in block:  # which Python takes for a part of a number
            raise unreadable(path, "holds something else than numbers where its voxels should stand as text")
        yield tokens
    yield [rest] if rest else []


def _text(stream: BinaryIO, layout: Layout, path: Path) -> Iterator[bytes]:
    widest = np.float64 if layout.kind.kind == "f" else np.uint64 if layout.kind.kind == "u" else np.int64
    for tokens in _tokens(stream, path):
        try:
            numbers = np.array(tokens, bytes).astype(widest)
            with np.errstate(over="ignore"):
                converted = numbers.astype(layout.kind)
        except (ValueError, OverflowError) as error:
            raise unreadable(path, f"holds text that is no number of type {layout.kind.name}") from error
        if layout.kind.kind != "f" and (converted != numbers).any():
            raise unreadable(path, f"holds numbers that its type ({layout.kind.name}) cannot hold")
        yield converted.tobytes()


def notes_on_end(layout: Layout) -> tuple[str, ...]:
    """A note where the last number of a text has no blank or line end behind it: digits that were cut off leave one."""
    if layout.encoding != "text":
        return ()
    with layout.data.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        is_open = not stream.read().isspace()
    return (
        ("its text ends right behind a digit; if it was cut short there, the last voxel is wrong",) if is_open else ()
    )


def _hexadecimal(stream: BinaryIO, _layout: Layout, path: Path) -> Iterator[bytes]:
    rest = b""
    for block in iter(partial(stream.read, _BLOCK_BYTES), b""):
        digits = rest + b"".join(block.split())
        whole = len(digits) // 2 * 2
        rest = digits[whole:]
        try:
            yield binascii.unhexlify(digits[:whole])
        except binascii.Error as error:
            raise unreadable(
                path, "holds something else than hexadecimal digits where its voxels should stand"
            ) from error


def start_of(blocks: Iterator[bytes], count: int) -> bytes:
    """The first `count` bytes of decompressed blocks, or all if there are fewer; some more may follow them."""
    start = b""
    while len(start) < count and (block := next(blocks, b"")):
        start += block
    return start


def inflated(stream: BinaryIO, encoding: str, path: Path, block_bytes: int = _BLOCK_BYTES) -> Iterator[bytes]:
    """The decompressed rest of `stream`, in blocks, every checksum and length compared.

    `gzip.GzipFile` would do for gzip, but it takes 2.7 times as long (66 MB in 1.3 s instead of 0.5 s, Python 3.11).

    Args:
        stream: stands at the first compressed byte.
        encoding: "gzip" (all members, zeros between and after them ignored) or "zlib".
        path: for the error.
        block_bytes: of the largest block.

    Raises:
        UnreadableFile: the stream ends early, a checksum or length differs, or the bytes are no such stream.
    """
    pending = stream.read(block_bytes)
    while pending:
        decoder = zlib.decompressobj(_WBITS[encoding])
        while not decoder.eof:
            pending = pending or stream.read(block_bytes)
            if not pending:
                raise unreadable(path, "is cut short: the compressed data ends in the middle")
            try:
                block = decoder.decompress(pending, block_bytes)
            except zlib.error as error:
                what, why = "is damaged: its compressed data does not match its checksum", f"zlib says: {error}"
                raise unreadable(path, what, why=why) from error
            pending = decoder.unconsumed_tail  # compressed bytes left over because the block is full
            if block:
                yield block
        if encoding == "zlib":
            return
        # a further gzip member may follow, or zeros as padding, which gzip itself ignores as well
        pending = decoder.unused_data.lstrip(b"\0")
        while not pending and (more := stream.read(block_bytes)):
            pending = more.lstrip(b"\0")


_DECODERS: dict[str, Callable[[BinaryIO, Layout, Path], Iterator[bytes]]] = {
    "raw": _raw,
    "gzip": _deflated,
    "zlib": _deflated,
    "bzip2": _bzip2,
    "text": _text,
    "hex": _hexadecimal,
}
"""Decoded blocks of about 1 MiB from a stream that stands at the first stored byte."""


def write_gzip(stream: BinaryIO, *parts: bytes | NDArray[Any]) -> None:
    """Writes bytes and the bytes of contiguous arrays compressed, the same ones each time."""
    with gzip.GzipFile(filename="", mode="wb", compresslevel=COMPRESSION_LEVEL, fileobj=stream, mtime=0) as packed:
        for part in parts:
            packed.write(part if isinstance(part, bytes) else part.data)
