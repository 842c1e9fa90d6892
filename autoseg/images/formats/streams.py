"""Decompressing a stream block by block, with every checksum and length compared and bounded memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from autoseg.images.image_errors import refused

BLOCK_BYTES = 1 << 20

GZIP = 31
"""zlib's name for a gzip stream: CRC-32 and length follow each member, zlib compares both."""

ZLIB = 15
"""zlib's name for a bare stream with an Adler-32 checksum, as MetaImage has it."""

LARGEST_RATIO = 1032
"""No deflate stream expands further: 258 bytes for every 2 bits (zlib's technical notes)."""


def inflated(stream: BinaryIO, kind: int, path: Path) -> Iterator[bytes]:
    """The decompressed rest of `stream`, in blocks of at most 1 MiB; all members of a gzip file.

    Args:
        stream: stands at the first compressed byte.
        kind: `GZIP` or `ZLIB`.
        path: for the error.

    Raises:
        UnreadableFile: the stream ends early, a checksum or length differs, or the bytes are no such stream.
    """
    pending = stream.read(BLOCK_BYTES)
    while pending:
        decoder = zlib.decompressobj(kind)
        while not decoder.eof:
            pending = pending or stream.read(BLOCK_BYTES)
            if not pending:
                raise refused(path, "is cut short: the compressed data ends in the middle")
            block = _next_block(decoder, pending, path)
            pending = decoder.unconsumed_tail
            if block:
                yield block
        if kind == ZLIB:
            return
        pending = _skip_padding(decoder.unused_data, stream)


def _next_block(decoder: zlib._Decompress, pending: bytes, path: Path) -> bytes:
    try:
        return decoder.decompress(pending, BLOCK_BYTES)
    except zlib.error as error:
        raise refused(
            path, "is damaged: its compressed data does not match its checksum", why=f"zlib says: {error}"
        ) from error


def _skip_padding(pending: bytes, stream: BinaryIO) -> bytes:
    """What follows a gzip member: the next member, or nothing; zeros in between are padding, as gzip itself has it."""
    while not (rest := pending.lstrip(b"\0")):
        pending = stream.read(BLOCK_BYTES)
        if not pending:
            break
    return rest
