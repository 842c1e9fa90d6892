"""The pages of a TIFF as tifffile finds them, verified before any of them is decoded."""

from __future__ import annotations

import json
import logging
import math
import re
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoseg.core.errors import UnreadableFile
from autoseg.images.formats.headers import LARGEST_RATIO
from autoseg.images.image_errors import REPLACE, first_line, unreadable

DECODER_FAULTS = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OSError, EOFError, SyntaxError),
    *(ArithmeticError, AssertionError, MemoryError, ImportError, struct.error, zlib.error),
)
"""What tifffile and imagecodecs raise on broken files and on compressions that they do not know."""

_UNCOMPRESSED = 1
_LOSSY = {**dict.fromkeys((6, 7, 33007, 34892), "JPEG"), **dict.fromkeys((33003, 33004), "JPEG 2000")}
_UNCHECKED = {2: "CCITT fax", 3: "CCITT fax", 4: "CCITT fax", 22610: "JPEG XR", 34934: "JPEG XR"}
"""Compressions whose decoders give a whole picture however early the data end (imagecodecs 2026.3.6)."""

LARGEST_RATIOS = {
    _UNCOMPRESSED: 1,
    5: 4096,  # LZW: a code of 12 bits stands for at most 4,093 bytes
    32773: 64,  # PackBits: two bytes for at most 128
    34925: 1 << 14,  # LZMA, assumption: 7,000 was measured
    **dict.fromkeys((8, 32946, 50013), LARGEST_RATIO),  # deflate
    **dict.fromkeys((34926, 50000), 1 << 15),  # Zstandard: four bytes for at most 128 KiB
}
"""How far compressions of bytes can expand; those of pictures have no bound, but state their size themselves."""


class _ErrorLog(logging.Handler):
    """Collects what tifffile logs as errors in this thread: damaged entries and pages, which it leaves out."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []
        self._thread = threading.get_ident()  # others may be reading other files

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.messages.append(record.getMessage())


@contextmanager
def opened(path: Path, failure: str, remedy: str = REPLACE) -> Iterator[Any]:
    """The file as tifffile opens it.

    Raises:
        UnreadableFile: tifffile fails to open it, fails within the context or logs an error; `failure` says what that
            means, and `remedy` what helps.
    """
    import tifffile

    log = _ErrorLog()
    logging.getLogger("tifffile").addHandler(log)
    try:
        with tifffile.TiffFile(path, _multifile=False) as file:
            yield file
    except DECODER_FAULTS as error:
        raise unreadable(path, failure, why=f"tifffile says: {first_line(error)}", do=remedy) from error
    finally:
        logging.getLogger("tifffile").removeHandler(log)
    if log.messages:
        raise unreadable(path, "is cut short or damaged", why=f"tifffile says: {log.messages[0][:200]}")


def verify(path: Path) -> None:
    """Checks that every page, strip and tile lies inside the file, and that all announced pages are there."""
    with path.open("rb") as stream:
        if (start := stream.read(8))[:2] not in (b"II", b"MM"):
            what = f"is not a TIFF file: it begins with {start!r}"
            raise unreadable(path, what, do="name it after what it is, or convert it")
    kinds: dict[int, tuple[int, Any]] = {}
    with opened(path, "is cut short or damaged") as file:
        for page in _main_pages(file, path):
            _verify_page(page, path)
            count, first = kinds.get(page.hash, (0, page))
            kinds[page.hash] = count + 1, first
        if len(kinds) > len({(page.shape, page.dtype) for _, page in kinds.values()}):
            what = "holds pages that are stored in different ways (compression, strips, tiles or colors)"
            raise unreadable(path, what, do="store all of its pages alike, or each in its own file")
        if len(kinds) > 1:
            raise several_images(path, ((count, *page.shape, page.dtype) for count, page in kinds.values()))
        ((count, first),) = kinds.values()
        _verify_count(first, count, path)


def _main_pages(file: Any, path: Path) -> Iterator[Any]:
    """All pages but previews and masks of others; where there are only previews, the pages below them."""
    has_any = False
    for page in _chain(file, path):
        if is_main(page):
            has_any = True
            yield page
    if not has_any:
        pages = list(file.pages)
        yield from [page for above in pages for page in above.pages or () if is_main(page)] or pages


def is_main(page: Any) -> bool:
    """Whether a page is neither a smaller copy of another nor a mask."""
    return not (page.is_reduced or page.is_mask)


def _chain(file: Any, path: Path) -> Iterator[Any]:
    """All pages, one after another, to the end of the chain of directories."""
    seen: set[int] = set()
    for page in file.pages:
        if page.offset in seen:  # tifffile notices only some of these chains and follows the others without end
            raise unreadable(path, f"is damaged: its chain of pages leads back from page {len(seen)}")
        seen.add(page.offset)
        yield page
    # The chain must end with a zero. Where it points beyond the end, tifffile takes the pages so far for all of them.
    file.filehandle.seek(file.pages.next_page_offset)
    if file.filehandle.read(file.tiff.offsetsize) != bytes(file.tiff.offsetsize):
        raise unreadable(path, f"is cut short: page {len(seen)} lies beyond the end of the file")


def _verify_page(page: Any, path: Path) -> None:
    _verify_kind(page, path)
    if not page.shape or not page.size or not page.dataoffsets:
        raise unreadable(path, f"is damaged: page {page.index} has no size or no data")
    chunks = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    missing = math.prod(page.chunked) - sum(offset > 0 and length > 0 for offset, length in chunks)
    if missing > 0:  # tifffile would fill them with zeros
        what = f"is cut short: {missing} of {math.prod(page.chunked)} strips or tiles of page {page.index} are missing"
        why = "the program that wrote it was interrupted, or left out what is empty (GDAL: SPARSE_OK)"
        raise unreadable(path, what, why=why, do=f"{REPLACE}; a sparse file has to be stored in full")
    if any(offset + length > page.parent.filehandle.size for offset, length in chunks):
        raise unreadable(path, f"is cut short: data of page {page.index} ends beyond the end of the file")
    stored, due = sum(page.databytecounts), due_bytes(page)
    if stored * LARGEST_RATIOS.get(page.compression, math.inf) < due:
        raise unreadable(path, f"is cut short: page {page.index} holds {stored} of {due} bytes")


def _verify_kind(page: Any, path: Path) -> None:
    if page.compression in _LOSSY:
        raise unreadable(
            path,
            f"is compressed with loss ({_LOSSY[page.compression]} inside TIFF)",
            why="lossy compression changes intensities and invents label values",
            do="go back to the original and store it as PNG, or as TIFF without lossy compression",
        )
    if page.compression in _UNCHECKED:
        raise unreadable(
            path,
            f"is compressed as {_UNCHECKED[page.compression]}",
            why="imagecodecs, which decodes it, fills in what is missing of such data and does not say so",
            do="store it again as TIFF with deflate or LZW compression, or as PNG",
        )
    if page.dtype is None:
        what = f"holds numbers of {page.bitspersample} bits in sample format {page.sampleformat}"
        raise unreadable(path, what, why="tifffile knows no such numbers", do="export it as integers or floats")


def due_bytes(page: Any) -> int:
    """Bytes of a page before compression; each row of a strip or tile begins with a whole byte."""
    bits, samples, planes = page.bitspersample, page.samplesperpixel, 1
    if page.planarconfig == 2:
        samples, planes = 1, samples
    bits_per_pixel = sum(bits) if isinstance(bits, tuple) else bits * samples
    width, rows = page.imagewidth, page.imagelength * page.imagedepth * planes
    if page.is_tiled:
        width, rows = page.tilewidth, page.tilelength * page.tiledepth * math.prod(page.chunked)
    return int(rows * -(-width * bits_per_pixel // 8))


def _verify_count(first: Any, count: int, path: Path) -> None:
    announced, due = _announced_samples(first), due_bytes(first)
    pages = announced // first.size
    # ImageJ stores stacks beyond 4 GiB in one piece, with one directory for all pages.
    is_one_piece = count == 1 and first.compression == _UNCOMPRESSED
    if pages <= count or (is_one_piece and min(first.dataoffsets) + pages * due <= first.parent.filehandle.size):
        return
    names = re.findall(r"\bFileName\s*=\s*\"([^\"]+)\"", first.description) if first.is_ome else []
    others = {*names} - {path.name}
    if others:
        what = f"holds {count} of the {pages} pages of an image in several files, such as {min(others)}"
        raise unreadable(path, what, do="store the whole image in one file")
    raise unreadable(path, f"is cut short: its description announces {pages} pages, {count} are there")


def _announced_samples(page: Any) -> int:
    """Samples of all pages together that the description of the first page announces: ImageJ, tifffile, OME."""
    text = page.description
    if page.is_imagej and (images := re.search(r"(?m)^images=(\d{1,9})\s*$", text)):
        return int(images[1]) * int(page.size)
    if page.is_shaped:
        try:
            return math.prod(int(length) for length in json.loads(text)["shape"])
        except (ValueError, TypeError, KeyError):
            return 0
    announced = 0
    for pixels in re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", text) if page.is_ome else ():
        announced += math.prod(map(int, re.findall(r"\bSize[XYZCT]\s*=\s*[\"'](\d{1,9})[\"']", pixels)))
    return announced


def several_images(path: Path, images: Iterable[tuple[Any, ...]]) -> UnreadableFile:
    """The error for a file of several images, each given by its lengths and its type."""
    shown = [f"{' x '.join(map(str, shape))} {kind}" for *shape, kind in images]
    what = f"holds {len(shown)} images of different size or kind: {', '.join(shown)}"
    return unreadable(path, what, do="store each in its own file")
