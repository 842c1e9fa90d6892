"""Checking PNG and BMP files byte by byte before a library decodes them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from autoseg.images.formats.streams import BLOCK_BYTES, LARGEST_RATIO
from autoseg.images.image_errors import refused

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}

PNG_GRAY = 0
PNG_PALETTE = 3


def png_format(path: Path) -> tuple[int, int, int, int]:
    """Width, height, bits per sample and color type of a PNG file.

    Raises:
        UnreadableFile: it does not begin like a PNG file, or its header cannot be true.
    """
    with path.open("rb") as stream:
        start = stream.read(33)
    if start[:8] != _PNG_SIGNATURE:
        why = "it holds a JPEG picture, which has lost detail already" if start[:2] == b"\xff\xd8" else None
        raise refused(path, "is not a PNG file, or its header is damaged", why=why)
    if len(start) < 33 or start[12:16] != b"IHDR":
        raise refused(path, "is cut short: its header is not complete")
    width, height, bits, color = struct.unpack_from(">IIBB", start, 16)
    if not width or not height or color not in _PNG_SAMPLES or bits not in (1, 2, 4, 8, 16):
        raise refused(path, f"has an impossible header: {width} x {height} pixels, {bits} bits, color type {color}")
    return width, height, bits, color


def verify_png(path: Path) -> None:
    """Compares the checksum of every chunk up to the end mark, and the picture's size with the data there are.

    Raises:
        UnreadableFile: the file is cut short, damaged or no PNG.
    """
    width, height, bits, color = png_format(path)
    with path.open("rb") as stream:
        stream.seek(len(_PNG_SIGNATURE))
        data_bytes = 0
        kind = b""
        while kind != b"IEND":
            kind, length = _verify_chunk(stream, path)
            data_bytes += length if kind == b"IDAT" else 0
    if width * height * bits * _PNG_SAMPLES[color] // 8 > LARGEST_RATIO * data_bytes:
        raise refused(path, f"promises {width} x {height} pixels but holds {data_bytes} bytes of compressed data")


def _verify_chunk(stream: BinaryIO, path: Path) -> tuple[bytes, int]:
    head = stream.read(8)
    if len(head) < 8:
        raise refused(path, "is cut short: its end mark is missing")
    length, kind = struct.unpack(">I4s", head)
    checksum = zlib.crc32(kind)
    left = length
    while left and (block := stream.read(min(left, BLOCK_BYTES))):
        checksum = zlib.crc32(block, checksum)
        left -= len(block)
    stored = stream.read(4)
    if left or len(stored) < 4:
        raise refused(path, "is cut short: it ends in the middle of a chunk")
    if int.from_bytes(stored, "big") != checksum:
        raise refused(path, f"is damaged: the checksum of its {kind.decode('latin-1')} chunk differs")
    return kind, length


def verify_bmp(path: Path) -> None:
    """Compares the size that a BMP header promises with the bytes there are.

    Raises:
        UnreadableFile: the file is cut short, damaged or no BMP.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(54)
    if start[:2] != b"BM" or len(start) < 54:
        raise refused(path, "is not a BMP file, or its header is damaged")
    announced, offset, width, height, bits, compression = _bmp_fields(start)
    if width < 1 or height < 1 or bits not in (1, 4, 8, 16, 24, 32) or compression not in (0, 3):
        raise refused(
            path,
            f"has a header that cannot be true or is not supported: {width} x {height} pixels, {bits} bits, "
            f"compression {compression}",
            do="export it again as PNG",
        )
    rows = (width * bits + 31) // 32 * 4 * height
    if max(announced, offset + rows) > size:
        raise refused(path, f"is cut short: {size} bytes where its header promises {max(announced, offset + rows)}")


def _bmp_fields(start: bytes) -> tuple[int, int, int, int, int, int]:
    """File size, start of the pixels, width, height, bits and compression; a negative height means top row first."""
    announced, offset = struct.unpack_from("<I4xI", start, 2)
    width, height, bits, compression = struct.unpack_from("<iixxHI", start, 18)
    return announced, offset, width, abs(height), bits, compression
