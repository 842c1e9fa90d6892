"""Pictures: PNG and BMP, gray, palette, RGB and RGBA, of 1 to 16 bits, through Pillow."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.geometry import Geometry
from autoseg.images.format import Format
from autoseg.images.formats.headers import LARGEST_RATIO
from autoseg.images.formats.itk import simpleitk
from autoseg.images.image_errors import first_line, unreadable
from autoseg.images.volume import Volume, plane_geometry

_DECODER_FAULTS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
"""What Pillow raises on broken files."""

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
"""The end mark of PNG. Pillow looks at its name alone: a damaged length or a cut checksum escape `verify`."""

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
    with path.open("rb") as stream:
        if stream.read(2) == b"\xff\xd8":
            why = "it holds a JPEG picture, which has lost detail already"
            raise unreadable(path, "is not a PNG file", why=why, do="go back to the original and store it as PNG")
    with _opened(path) as picture:
        (bits,) = re.findall(r"\d+", _stored_as(picture)) or (1 if picture.mode == "1" else 8,)
        promised = picture.width * picture.height * len(picture.getbands()) * int(bits) // 8
        stream = picture.fp
        picture.verify()  # the checksum of every chunk up to the end mark
        stream.seek(-8, os.SEEK_CUR)  # Pillow has read the length and the name
        if stream.read(len(_PNG_END)) != _PNG_END:
            raise unreadable(path, "is cut short: its end mark is not complete")
    if promised > LARGEST_RATIO * path.stat().st_size:
        raise unreadable(path, f"promises {promised} bytes of pixels, which its compressed data cannot hold")


def _verify_bmp(path: Path) -> None:
    """Compares sizes alone: Pillow's `verify` does nothing for BMP, which has no checksums."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        announced = int.from_bytes(stream.read(6)[2:], "little")
    with _opened(path) as picture:
        codec, _, offset, args = picture.tile[0]
        if codec != "raw" or min(picture.size) < 1:
            what = f"has a header that is damaged or not supported: {picture.width} x {picture.height} pixels, {codec}"
            raise unreadable(path, what, do="export it again as PNG")
        _, bytes_per_row, _ = args
        end = offset + bytes_per_row * picture.height
    if max(announced, end) > size:
        raise unreadable(path, f"is cut short: {size} bytes where its header promises {max(announced, end)}")


def _read(path: Path, _four_d: bool) -> Volume:
    """Intensities: gray as one channel, RGB(A) as three or four, colors of a palette as RGB, 16-bit colors as such.

    Axes and spacing as in nnU-Net v2 (imageio/natural_image_reader_writer.py): (c, 1, y, x), 999 x 1 x 1. The alpha
    channel of a gray picture is dropped with a note.
    """
    with _opened(path) as picture:
        if picture.mode in ("P", "PA"):
            return _volume(np.asarray(picture.convert("RGB")), "the colors of its palette became RGB channels")
        return _volume(_decoded(picture, path))


def _read_values(path: Path) -> Volume:
    """Numbers as stored: palette indices, and 1-, 2- and 4-bit values without stretching."""
    with _opened(path) as picture:
        factor = _STRETCHED.get(_stored_as(picture), 1)
        return _volume(_decoded(picture, path) // factor if factor > 1 else _decoded(picture, path))


def _decoded(picture: Any, path: Path) -> NDArray[Any]:
    """The pixels (y, x) or (y, x, c); through SimpleITK where Pillow would cut 16-bit colors to 8 bits."""
    if not _stored_as(picture).endswith(";16B") or picture.mode == "I;16":
        return np.asarray(picture)
    sitk = simpleitk()
    try:
        return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    except RuntimeError as error:
        raise unreadable(path, "cannot be decoded", why=f"SimpleITK says: {first_line(error)}") from error


def _volume(array: NDArray[Any], *notes: str) -> Volume:
    """The pixels of a (y, x) or (y, x, c) array; of two channels the second is alpha."""
    channels = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    if len(channels) == 2:
        channels, notes = channels[:1], (*notes, "its alpha channel was dropped")
    return Volume(channels[:, None], plane_geometry((array.shape[0], array.shape[1])), notes)


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
