"""Walking the directory chain of a TIFF file, so that a cut stack is not taken for a shorter one."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from autoseg.images.image_errors import refused

_TYPE_FORMATS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _DESCRIPTION = 256, 257, 258, 259, 270
_STRIP_OFFSETS, _SAMPLES, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES = 273, 277, 279, 324, 325
_UNCOMPRESSED = 1
_LOSSY = {6: "JPEG", 7: "JPEG", 34892: "lossy JPEG"}

_MOST_PAGES = 1 << 20
_LZW_RATIO = 4096
"""LZW in TIFF expands at most to 4,093 bytes for a code of 12 bits; the bound covers every other compression too."""


@dataclass(frozen=True, slots=True)
class _Variant:
    """Classic TIFF or BigTIFF, in one byte order."""

    order: str
    count_format: str
    entry_bytes: int
    value_format: str

    @property
    def value_bytes(self) -> int:
        return struct.calcsize(self.value_format)


@dataclass(frozen=True, slots=True)
class _Page:
    """One image file directory: values of the tags of interest and the end of its data in the file."""

    tags: dict[int, tuple[int, ...]]
    description: bytes

    def value(self, tag: int, default: int) -> int:
        return (self.tags.get(tag) or (default,))[0]

    @property
    def elements(self) -> int:
        return self.value(_WIDTH, 0) * self.value(_HEIGHT, 0) * self.value(_SAMPLES, 1)

    @property
    def data_bytes(self) -> int:
        """Bytes of the decoded page."""
        return self.elements * max(self.value(_BITS, 1), 1) // 8

    @property
    def segments(self) -> Iterator[tuple[int, int]]:
        """Offset and length of every strip or tile."""
        for offsets, lengths in ((_STRIP_OFFSETS, _STRIP_BYTES), (_TILE_OFFSETS, _TILE_BYTES)):
            yield from zip(self.tags.get(offsets, ()), self.tags.get(lengths, ()), strict=False)


def verify_tiff(path: Path) -> None:
    """Checks that every page, strip and tile lies inside the file and that all announced pages are there.

    Raises:
        UnreadableFile: the file is cut short or damaged, is no TIFF, or is compressed with loss.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        pages = list(_pages(stream, size, path))
    for number, page in enumerate(pages):
        _verify_page(page, number, size, path)
    found = sum(page.elements for page in pages)
    for announced in _announced_elements(pages[0]):
        if announced > found and not _holds_contiguous(pages, announced, size):
            raise refused(
                path,
                f"is cut short: its description announces {announced // max(pages[0].elements, 1)} pages, "
                f"{len(pages)} are there",
            )


def _verify_page(page: _Page, number: int, size: int, path: Path) -> None:
    compression = page.value(_COMPRESSION, _UNCOMPRESSED)
    if compression in _LOSSY:
        raise refused(
            path,
            f"is compressed with loss ({_LOSSY[compression]} inside TIFF)",
            why="lossy compression changes intensities and invents label values",
            do="go back to the original and store it as PNG, or as TIFF without lossy compression",
        )
    segments = list(page.segments)
    if not page.elements or not segments:
        raise refused(path, f"is damaged: page {number} has no size or no data")
    if any(offset + length > size for offset, length in segments):
        raise refused(path, f"is cut short: data of page {number} ends beyond the end of the file")
    stored = sum(length for _, length in segments)
    ratio = 1 if compression == _UNCOMPRESSED else _LZW_RATIO
    if stored * ratio < page.data_bytes:
        raise refused(path, f"is cut short: page {number} holds {stored} of {page.data_bytes} bytes")


def _pages(stream: BinaryIO, size: int, path: Path) -> Iterator[_Page]:
    variant, offset = _start(stream, path)
    seen: set[int] = set()
    while offset:
        if offset >= size or offset in seen or len(seen) > _MOST_PAGES:
            raise refused(path, f"is cut short: page {len(seen)} lies beyond the end of the file")
        seen.add(offset)
        try:
            page, offset = _page(stream, variant, offset, size)
        except (struct.error, EOFError) as error:
            raise refused(path, f"is cut short: the directory of page {len(seen) - 1} is not complete") from error
        yield page
    if not seen:
        raise refused(path, "is damaged: it has no pages")


def _start(stream: BinaryIO, path: Path) -> tuple[_Variant, int]:
    header = stream.read(16)
    order = {b"II": "<", b"MM": ">"}.get(header[:2])
    if order and len(header) >= 8:
        (version,) = struct.unpack_from(order + "H", header, 2)
        if version == 42:
            return _Variant(order, "H", 12, "I"), struct.unpack_from(order + "I", header, 4)[0]
        if version == 43 and len(header) == 16:
            return _Variant(order, "Q", 20, "Q"), struct.unpack_from(order + "Q", header, 8)[0]
    raise refused(path, "is not a TIFF file, or its header is damaged")


def _page(stream: BinaryIO, variant: _Variant, offset: int, size: int) -> tuple[_Page, int]:
    stream.seek(offset)
    (count,) = _unpack(stream, variant, variant.count_format)
    if count * variant.entry_bytes > size:
        raise EOFError
    entries = stream.read(count * variant.entry_bytes)
    (following,) = _unpack(stream, variant, variant.value_format)
    tags: dict[int, tuple[int, ...]] = {}
    description = b""
    for start in range(0, len(entries), variant.entry_bytes):
        tag, kind, length = struct.unpack_from(f"{variant.order}HH{variant.value_format}", entries, start)
        content = _content(stream, variant, entries[start : start + variant.entry_bytes], size)
        if tag == _DESCRIPTION:
            description = description or content
        elif kind in _TYPE_FORMATS:
            tags[tag] = struct.unpack(f"{variant.order}{length}{_TYPE_FORMATS[kind]}", content)
    return _Page(tags, description), following


def _content(stream: BinaryIO, variant: _Variant, entry: bytes, size: int) -> bytes:
    """Bytes of a tag's value: in the entry itself when they fit, else where it points."""
    kind, length = struct.unpack_from(f"{variant.order}H{variant.value_format}", entry, 2)
    total = _TYPE_BYTES.get(kind, 1) * length
    if total <= variant.value_bytes:
        return entry[-variant.value_bytes :][:total]
    (offset,) = struct.unpack_from(variant.order + variant.value_format, entry, len(entry) - variant.value_bytes)
    if offset + total > size:
        raise EOFError
    stream.seek(offset)
    return stream.read(total)


def _unpack(stream: BinaryIO, variant: _Variant, code: str) -> tuple[int, ...]:
    return struct.unpack(variant.order + code, stream.read(struct.calcsize(variant.order + code)))


def _holds_contiguous(pages: list[_Page], announced: int, size: int) -> bool:
    """Whether one directory stands for a whole stack stored in one piece, as ImageJ does beyond 4 GiB."""
    page = pages[0]
    if len(pages) > 1 or page.value(_COMPRESSION, _UNCOMPRESSED) != _UNCOMPRESSED:
        return False
    first = min(offset for offset, _ in page.segments)
    return first + announced // page.elements * page.data_bytes <= size


def _announced_elements(page: _Page) -> Iterator[int]:
    """Samples of all pages together that the description of the first page announces: ImageJ, tifffile, OME."""
    text = page.description.rstrip(b"\0")
    if text.startswith(b"ImageJ=") and (images := re.search(rb"(?m)^images=(\d{1,9})\s*$", text)):
        yield int(images[1]) * page.elements
    elif text.startswith(b'{"shape":'):
        yield _shaped_elements(text)
    elif b"<OME" in text[:1000] or b"<OME" in text[-1000:]:
        yield sum(_ome_elements(pixels) for pixels in re.findall(rb"<(?:\w+:)?Pixels\b[^>]*>", text))


def _shaped_elements(text: bytes) -> int:
    try:
        return math.prod(int(length) for length in json.loads(text)["shape"])
    except (ValueError, TypeError, KeyError):
        return 0


def _ome_elements(pixels: bytes) -> int:
    sizes = re.findall(rb"\bSize[XYZCT]\s*=\s*[\"'](\d{1,9})[\"']", pixels)
    return math.prod(int(size) for size in sizes)
