"""Pictures: PNG and BMP, gray, palette, RGB and RGBA, of 1 to 16 bits, through Pillow."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.geometry import Geometry
from autoseg.images.format import Format
from autoseg.images.image_errors import first_line, unreadable
from autoseg.images.volume import Volume, color_names, plane_geometry

_DECODER_FAULTS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
"""What Pillow raises on broken files."""

_BLOCK_BYTES = 1 << 20

_ORIENTATION = 274
"""Number of the tag in the Exif data of a PNG that says how to turn the picture on the screen."""

_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Numbers of a pixel by PNG's color type: gray, RGB, index, gray and alpha, RGBA."""

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""The passes of an interlaced PNG: first column and row, and the steps to the next ones (PNG specification, 8.2)."""

_STRETCHED = {"L;2": 255 // 3, "L;4": 255 // 15}
"""Gray of 2 and 4 bits, which Pillow stretches to 0..255, and the factor."""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A picture that is not decoded yet, opened by format: Pillow's guess refuses pictures of 180 megapixels.

    Raises:
        UnreadableFile: Pillow refuses the file, or fails to decode it within the context.
    """
    from PIL.BmpImagePlugin import BmpImageFile
    from PIL.PngImagePlugin import PngImageFile

    plugin = PngImageFile if path.suffix.lower() == ".png" else BmpImageFile
    try:
        with path.open("rb") as stream, plugin(stream) as picture:
            if not picture.tile:
                raise unreadable(path, "is damaged: it holds no pixels")
            yield picture
    except _DECODER_FAULTS as error:
        why = f"Pillow says: {first_line(error)}"
        raise unreadable(path, "is damaged, cut short or of a kind that cannot be decoded", why=why) from error


def _stored_as(picture: Any) -> str:
    """How the pixels are stored, in Pillow's words: "L;2" is gray of 2 bits, "RGB;16B" three colors of 16."""
    args = picture.tile[0].args
    return str(args if isinstance(args, str) else args[0])


def _verify_png(path: Path) -> None:
    """Compares every checksum, and the pixels in the compressed stream with those that the header promises.

    Pillow's `verify` looks at checksums alone and at the end mark's name, and its decoder leaves missing rows black.
    """
    with path.open("rb") as stream:
        if stream.read(2) == b"\xff\xd8":
            why = "it holds a JPEG picture, which has lost detail already"
            raise unreadable(path, "is not a PNG file", why=why, do="go back to the original and store it as PNG")
    with _opened(path):
        pass  # a header that Pillow can read
    blocks = _chunks(path)
    first, head = next(blocks)
    if first != b"IHDR" or len(head) != 13 or head[9] not in _SAMPLES:
        raise unreadable(path, "is damaged: it does not begin with a header that PNG knows")
    pixels = (block for kind, block in blocks if kind == b"IDAT")
    promised, found = _promised_bytes(head), 0
    for piece in _inflated(pixels, path):
        found += len(piece)
        if found > promised:
            raise unreadable(path, f"holds more pixels than its header promises ({promised} bytes)")
    if found < promised:
        raise unreadable(path, f"is cut short: {found} bytes of pixels where its header promises {promised}")


def _chunks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """The kind and the bytes of each chunk of a PNG, large ones in blocks, up to the end mark.

    Raises:
        UnreadableFile: a checksum differs, the file ends early, or chunks come where Pillow would not look for them.
    """
    former: set[bytes] = set()
    last = b""
    with path.open("rb") as stream:
        stream.seek(8)
        while last != b"IEND":
            start = stream.read(8)
            length, kind = int.from_bytes(start[:4], "big"), start[4:]
            if kind in former and (kind == b"IHDR" or kind == b"IDAT" != last):
                raise unreadable(path, f"is damaged: it has a second header, or pixels in two places ({kind.decode()})")
            checksum = zlib.crc32(kind)
            while length:
                if not (block := stream.read(min(length, _BLOCK_BYTES))):
                    raise unreadable(path, "is cut short: it ends in the middle of a chunk, before its end mark")
                checksum, length = zlib.crc32(block, checksum), length - len(block)
                yield kind, block
            found = stream.read(4)
            if len(found) < 4:
                raise unreadable(path, "is cut short: its end mark is not complete")
            if int.from_bytes(found, "big") != checksum:
                raise unreadable(path, f"is damaged: its {kind!r} chunk does not match its checksum")
            former.add(kind)
            last = kind


def _promised_bytes(head: bytes) -> int:
    """Bytes of all rows before compression, each with its filter; interlaced pictures have seven parts with rows."""
    width, height, bits, color, _, _, is_interlaced = struct.unpack(">IIBBBBB", head)
    total = 0
    for left, top, right, down in _ADAM7 if is_interlaced else ((0, 0, 1, 1),):
        columns, rows = max(0, -(-(width - left) // right)), max(0, -(-(height - top) // down))
        total += rows * (1 + -(-columns * _SAMPLES[color] * bits // 8)) if columns else 0
    return total


def _inflated(blocks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """The decompressed bytes, at most a mebibyte at once; blocks after the end of the stream are passed over."""
    decoder = zlib.decompressobj()
    for block in blocks:
        pending = block
        while pending and not decoder.eof:
            try:
                piece = decoder.decompress(pending, _BLOCK_BYTES)
            except zlib.error as error:
                what = "is damaged: its compressed pixels do not match their checksum"
                raise unreadable(path, what, why=f"zlib says: {error}") from error
            pending = decoder.unconsumed_tail
            yield piece
    if not decoder.eof:
        raise unreadable(path, "is cut short: its compressed pixels end in the middle")


def _verify_bmp(path: Path) -> None:
    """Compares sizes alone: Pillow's `verify` does nothing for BMP, which has no checksums."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        announced = int.from_bytes(stream.read(6)[2:], "little")
    with _opened(path) as picture:
        codec, _, offset, args = picture.tile[0]
        if codec == "bmp_rle":
            raise unreadable(path, "is a run-length encoded BMP, which is not supported", do="export it again as PNG")
        if codec != "raw" or min(picture.size) < 1:
            what = f"has a header that is damaged or not supported: {picture.width} x {picture.height} pixels, {codec}"
            raise unreadable(path, what, do="export it again as PNG")
        _, bytes_per_row, _ = args
        end = offset + bytes_per_row * picture.height
    if max(announced, end) > size:
        raise unreadable(path, f"is cut short: {size} bytes where its header promises {max(announced, end)}")


def _read(path: Path, _four_d: bool) -> Volume:
    """Intensities as stored: gray as one channel, RGB(A) as three or four, colors of a palette as RGB.

    Axes and spacing as in nnU-Net v2 (imageio/natural_image_reader_writer.py): (c, 1, y, x), 999 x 1 x 1. The alpha
    channel of a gray picture is dropped with a note, and so is a color that stands for transparency.
    """
    with _opened(path) as picture:
        notes, array = [*_notes(picture)], _numbers(picture, path)
        if picture.mode == "P":
            colors = np.reshape(picture.getpalette(), (-1, 3)).astype(np.uint8)
            if array.max() >= len(colors):
                raise unreadable(path, f"uses color {array.max()} of a palette of {len(colors)}")
            array, notes = colors[array], [*notes, "the colors of its palette became RGB channels"]
    return _volume(array, notes)


def _read_values(path: Path) -> Volume:
    """Numbers as stored, and of a palette the indices."""
    with _opened(path) as picture:
        volume = _volume(numbers := _numbers(picture, path), [])
        if picture.mode != "P":
            return volume
        colors = np.reshape(picture.getpalette(), (-1, 3)).astype(np.uint8)
    return replace(volume, value_names=color_names(numbers, colors))


def _notes(picture: Any) -> Iterator[str]:
    if _stored_as(picture) in _STRETCHED:
        yield f"its numbers of {_stored_as(picture)[-1]} bits were taken as stored, not stretched to 0..255"
    if _stored_as(picture).startswith("BGR;"):
        yield "its colors of 5 and 6 bits were stretched to 0..255"
    if (orientation := _exif_orientation(picture)) in range(2, 9):
        yield f"its orientation tag ({orientation}) was not followed: rows and columns are as stored"
    if "transparency" in picture.info:
        yield "its transparency was left out"
    if getattr(picture, "is_animated", False):
        yield "it is an animation, of which the first picture was read"


def _exif_orientation(picture: Any) -> int | None:
    """How a screen should turn the picture; Pillow's `getexif` would decode the pixels as well."""
    from PIL.Image import Exif

    exif = Exif()
    with suppress(*_DECODER_FAULTS):  # which says nothing of the pixels
        exif.load(picture.info.get("exif"))
    found: int | None = exif.get(_ORIENTATION)
    return found


def _numbers(picture: Any, path: Path) -> NDArray[Any]:
    """The pixels (y, x) or (y, x, c) as stored; Pillow cuts colors of 16 bits to 8, and stretches few bits to 8."""
    stored = _stored_as(picture)
    if path.suffix.lower() == ".bmp" and picture.mode in ("1", "L", "P"):
        return _bmp_numbers(picture)
    if stored == "LA;16B":
        with _opened(path) as again:
            return _as(again, "RGBA").view(">u2").astype(np.uint16)  # four bytes as they are
    if stored in ("RGB;16B", "RGBA;16B"):
        with _opened(path) as again:
            low = _as(again, stored.replace("16B", "16L"))  # the other byte of each number
        return np.asarray(picture) * np.uint16(256) + low
    factor = _STRETCHED.get(stored, 1)
    return np.asarray(picture) // factor if factor > 1 else np.asarray(picture)


def _as(picture: Any, stored: str) -> NDArray[np.uint8]:
    """The pixels as Pillow unpacks them if they are taken for `stored` in its words."""
    picture.tile = [(*picture.tile[0][:3], stored)]
    return np.asarray(picture)


def _bmp_numbers(picture: Any) -> NDArray[np.uint8]:
    """The indices of a BMP with a palette; Pillow takes 4 or 8 bits for 1 or 8 where the palette is gray."""
    (_, _, offset, (_, bytes_per_row, direction)), stream = picture.tile[0], picture.fp
    stream.seek(14)
    header = stream.read(16)
    bits = header[10 if header[0] == 12 else 14]
    stream.seek(offset)
    rows = np.frombuffer(stream.read(bytes_per_row * picture.height), np.uint8).reshape(picture.height, -1)
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    numbers = (rows[::direction, :, None] >> shifts) & (2**bits - 1)
    return np.asarray(numbers.reshape(picture.height, -1)[:, : picture.width], dtype=np.uint8)


def _volume(array: NDArray[Any], notes: list[str]) -> Volume:
    """The pixels of a (y, x) or (y, x, c) array; of two channels the second is alpha."""
    channels, alpha = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0), None
    if len(channels) == 2:
        channels, alpha, notes = channels[:1], channels[1:], [*notes, "its alpha channel was dropped"]
    return Volume(channels[:, None], plane_geometry((array.shape[0], array.shape[1])), tuple(notes), alpha=alpha)


def _limit(channels: tuple[int, ...], highest_gray: int, array: NDArray[Any], _geometry: Geometry) -> str | None:
    """What keeps a format of `channels` with gray up to `highest_gray` from holding an image (c, z, y, x)."""
    count, depth = array.shape[:2]
    if depth != 1:
        return f"{depth} slices"
    if count not in channels:
        return f"{count} channels"
    if not np.isfinite(array).all() or (np.rint(array) != array).any() or array.min() < 0:
        return "negative or fractional intensities"
    is_within = array.max() <= (highest_gray if count == 1 else 255)
    return None if is_within else f"intensities up to {array.max()} in {count} channels"


def _write(path: Path, array: NDArray[Any], _geometry: Geometry) -> None:
    from PIL import Image

    pixels = array[0, 0] if len(array) == 1 else np.moveaxis(array[:, 0], 0, -1)
    Image.fromarray(np.ascontiguousarray(pixels, np.uint8 if pixels.max() <= 255 else np.uint16)).save(path)


PNG = Format(
    endings=(".png",),
    verify=_verify_png,
    read=_read,
    read_values=_read_values,
    write=_write,
    limit=partial(_limit, (1, 3, 4), 65535),
    has_grid=False,
    has_colors=True,
)

BMP = Format(
    endings=(".bmp",),
    verify=_verify_bmp,
    read=_read,
    read_values=_read_values,
    write=_write,
    limit=partial(_limit, (1, 3), 255),
    has_grid=False,
    has_colors=True,
)
