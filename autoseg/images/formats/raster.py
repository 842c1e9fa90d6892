"""Pictures: PNG and BMP, gray, palette, RGB and RGBA, of 1 to 16 bits."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.images.formats.itk import simpleitk
from autoseg.images.formats.pixels import Pixels
from autoseg.images.formats.raster_structure import PNG_GRAY, png_format
from autoseg.images.image_errors import first_line, refused
from autoseg.images.volume import plane_geometry

_DECODER_FAULTS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
"""What Pillow raises on broken files."""

_ALPHA_NOTE = "its alpha channel was dropped"


def read_raster(path: Path) -> Pixels:
    """Intensities of a picture: gray as one channel, RGB(A) as three or four, colors of a palette as RGB.

    Axes and spacing as in nnU-Net v2 (imageio/natural_image_reader_writer.py): (c, 1, y, x), 999 x 1 x 1. The alpha
    channel of a gray picture is dropped with a note. 16-bit colors keep their 16 bits.

    Raises:
        UnreadableFile: it cannot be decoded.
    """
    if _is_deep_color(path):
        return _pixels(_decode_deep(path))
    picture = _open(path)
    if picture.mode in ("P", "PA"):
        return _pixels(_decode(picture, path, "RGB"), ("the colors of its palette became RGB channels",))
    return _pixels(_decode(picture, path))


def read_raster_values(path: Path) -> Pixels:
    """Numbers as stored in a picture, for label maps: palette indices, 1-, 2- and 4-bit values without stretching.

    Raises:
        UnreadableFile: it cannot be decoded.
    """
    if _is_deep_color(path):
        return _pixels(_decode_deep(path))
    picture = _open(path)
    array = _decode(picture, path)
    if path.suffix.lower() == ".png":
        _, _, bits, color = png_format(path)
        if color == PNG_GRAY and bits in (2, 4):  # Pillow stretches them to 0..255
            array = array // (255 // (2**bits - 1))
    return _pixels(array)


def write_raster(path: Path, array: NDArray[Any]) -> None:
    """Writes (y, x) or (y, x, 3 or 4) pixels, uint8, or uint16 for gray PNG."""
    from PIL import Image

    Image.fromarray(np.ascontiguousarray(array)).save(path)


def _is_deep_color(path: Path) -> bool:
    """Whether this is a PNG with more than one 16-bit channel, which Pillow would cut to 8 bits."""
    if path.suffix.lower() != ".png":
        return False
    _, _, bits, color = png_format(path)
    return bits == 16 and color != PNG_GRAY


def _decode_deep(path: Path) -> NDArray[Any]:
    sitk = simpleitk()
    try:
        return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    except RuntimeError as error:
        raise refused(path, "cannot be decoded", why=f"SimpleITK says: {first_line(error)}") from error


def _open(path: Path) -> Any:
    """The picture, not yet decoded; opened by format, as Pillow's guess refuses pictures of 180 megapixels."""
    from PIL.BmpImagePlugin import BmpImageFile
    from PIL.PngImagePlugin import PngImageFile

    try:
        return PngImageFile(path) if path.suffix.lower() == ".png" else BmpImageFile(path)
    except _DECODER_FAULTS as error:
        raise refused(path, "cannot be decoded", why=first_line(error)) from error


def _decode(picture: Any, path: Path, mode: str | None = None) -> NDArray[Any]:
    try:
        return np.asarray(picture.convert(mode) if mode else picture)
    except _DECODER_FAULTS as error:
        raise refused(path, "cannot be decoded", why=first_line(error)) from error


def _pixels(array: NDArray[Any], notes: tuple[str, ...] = ()) -> Pixels:
    """The pixels of a (y, x) or (y, x, c) array; of two channels the second is alpha."""
    channels = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    if len(channels) == 2:
        channels, notes = channels[:1], (*notes, _ALPHA_NOTE)
    return Pixels(channels[:, None], plane_geometry((array.shape[0], array.shape[1])), notes)
