"""TIFF: pictures, and stacks with a spacing from a side-car file or from ImageJ's and OME's tags, through tifffile."""

from __future__ import annotations

import json
import logging
import math
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import RecordFault
from autoseg.core.files import write_atomic
from autoseg.core.geometry import Geometry
from autoseg.core.records import read_json
from autoseg.images.format import Format
from autoseg.images.formats.headers import is_plausible
from autoseg.images.formats.itk import simpleitk
from autoseg.images.image_errors import FOUR_D_REMEDY, first_line, unreadable
from autoseg.images.volume import Volume, plane_geometry

_DECODER_FAULTS = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OSError, EOFError, SyntaxError),
    *(OverflowError, MemoryError, struct.error, zlib.error),
)
"""What tifffile raises on broken files and on compressions it does not know."""

_UNCOMPRESSED = 1
_LOSSY = {6: "JPEG", 7: "JPEG", 34892: "lossy JPEG"}
_LARGEST_RATIO = 4096
"""LZW in TIFF expands at most to 4,093 bytes for a code of 12 bits; the bound covers every other compression too."""

_PALETTE = 3
_CHANNEL_AXES = "CS"
_PLANE_AXES = "YX"

_MILLIMETERS = {
    **dict.fromkeys(("m", "meter", "metre"), 1e3),
    **dict.fromkeys(("cm", "centimeter"), 10.0),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1.0),
    **dict.fromkeys(("µm", "μm", "um", "micron", "microns", "micrometer", "micrometre", "\\u00b5m", "\\u00B5m"), 1e-3),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-6),
    **dict.fromkeys(("å", "ångström", "angstrom"), 1e-7),
    **dict.fromkeys(("pm", "picometer"), 1e-9),
    **dict.fromkeys(("inch", "in", '"'), 25.4),
}
_OME_DEFAULT_UNIT = "µm"


@contextmanager
def _opened(path: Path, failure: str) -> Iterator[Any]:
    """The file as tifffile opens it.

    Raises:
        UnreadableFile: tifffile fails to open it, or fails within the context; `failure` says what that means.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path, _multifile=False) as file:
            yield file
    except _DECODER_FAULTS as error:
        raise unreadable(path, failure, why=f"tifffile says: {first_line(error)}") from error


class _ErrorLog(logging.Handler):
    """Collects what tifffile logs as errors in this thread: damaged entries and pages, which it leaves out."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []
        self._thread = threading.get_ident()  # others may be reading other files

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.messages.append(record.getMessage())


def _verify(path: Path) -> None:
    """Checks that every page, strip and tile lies inside the file, and that all announced pages are there."""
    log = _ErrorLog()
    logging.getLogger("tifffile").addHandler(log)
    try:
        with _opened(path, "is cut short or damaged") as file:
            _verify_pages(file, path)
    finally:
        logging.getLogger("tifffile").removeHandler(log)
    if log.messages:
        raise unreadable(path, "is cut short or damaged", why=f"tifffile says: {log.messages[0][:200]}")


def _verify_pages(file: Any, path: Path) -> None:
    size, found = path.stat().st_size, 0
    seen: set[int] = set()
    for page in file.pages:
        if page.offset in seen:  # tifffile notices only some of these chains and follows the others without end
            raise unreadable(path, f"is damaged: its chain of pages leads back from page {len(seen)}")
        _verify_page(page, len(seen), size, path)
        seen.add(page.offset)
        found += page.size
    # The chain must end with a zero. Where it points beyond the end, tifffile takes the pages so far for all of them.
    file.filehandle.seek(file.pages.next_page_offset)
    if file.filehandle.read(file.tiff.offsetsize) != bytes(file.tiff.offsetsize):
        raise unreadable(path, f"is cut short: page {len(seen)} lies beyond the end of the file")
    first = file.pages.first
    announced = _announced_samples(first)
    # ImageJ stores stacks beyond 4 GiB in one piece, with one directory for all pages.
    is_one_piece = len(seen) == 1 and first.compression == _UNCOMPRESSED
    if announced > found and not (is_one_piece and min(first.dataoffsets) + _bytes(announced, first) <= size):
        pages = announced // first.size
        raise unreadable(path, f"is cut short: its description announces {pages} pages, {len(seen)} are there")


def _verify_page(page: Any, number: int, size: int, path: Path) -> None:
    if page.compression in _LOSSY:
        raise unreadable(
            path,
            f"is compressed with loss ({_LOSSY[page.compression]} inside TIFF)",
            why="lossy compression changes intensities and invents label values",
            do="go back to the original and store it as PNG, or as TIFF without lossy compression",
        )
    if not page.shape or not page.size or not page.dataoffsets:
        raise unreadable(path, f"is damaged: page {number} has no size or no data")
    if any(offset + length > size for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise unreadable(path, f"is cut short: data of page {number} ends beyond the end of the file")
    stored, promised = sum(page.databytecounts), _bytes(page.size, page)
    if stored * (1 if page.compression == _UNCOMPRESSED else _LARGEST_RATIO) < promised:
        raise unreadable(path, f"is cut short: page {number} holds {stored} of {promised} bytes")


def _bytes(samples: int, page: Any) -> int:
    return samples * int(np.min(page.bitspersample)) // 8


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


def _read(path: Path, four_d: bool) -> Volume:
    """One page is a picture (spacing 999 x 1 x 1), several pages are a stack (z, y, x).

    Declared channel and color axes become channels. The spacing of a stack is that of the side-car `<case>.json`, as in
    nnU-Net v2 (imageio/tif_reader_writer.py), else that of the OME or ImageJ tags in millimeters, else 1.

    Raises:
        UnreadableFile: it cannot be decoded, holds several images, or has more axes than it may.
    """
    with _opened(path, "cannot be decoded") as file:
        if len(file.series) != 1:
            what = f"holds {len(file.series)} images of different size or kind"
            raise unreadable(path, what, do="store each in its own file")
        series = file.series[0]
        volume = _ordered(_decode(series, path), series.axes, four_d, path)
        has_alpha = len(volume) == 2 and _has_gray_alpha(file.pages.first)
        tagged = _tagged_spacing(file)
    depth, height, width = volume.shape[1:]
    geometry = plane_geometry((height, width))
    if depth > 1:
        geometry = Geometry((depth, height, width), _spacing_beside(path) or tagged or (1.0, 1.0, 1.0))
    return Volume(volume[:1], geometry, ("its alpha channel was dropped",)) if has_alpha else Volume(volume, geometry)


def _decode(series: Any, path: Path) -> NDArray[Any]:
    """The voxels; through other libraries' libtiff where the compression, LZW for one, needs a codec not installed."""
    try:
        return np.asarray(series.asarray())
    except (ValueError, KeyError) as error:
        if "imagecodecs" not in str(error):
            raise
    is_indexed = series.keyframe.photometric == _PALETTE or series.keyframe.bitspersample == 1
    return (_frames(path) if is_indexed else _itk_frames(path)).reshape(series.shape)


def _frames(path: Path) -> NDArray[Any]:
    """All pages through Pillow, which leaves palette indices and single bits as they are."""
    from PIL import ImageSequence
    from PIL.TiffImagePlugin import TiffImageFile

    with TiffImageFile(path) as picture:
        return np.stack([np.asarray(frame) for frame in ImageSequence.Iterator(picture)])


def _itk_frames(path: Path) -> NDArray[Any]:
    """All pages through SimpleITK, which keeps 16 bits of color and floats."""
    sitk = simpleitk()
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


def _has_gray_alpha(page: Any) -> bool:
    extra = page.tags.get("ExtraSamples")
    return page.samplesperpixel == 2 and extra is not None and 0 not in np.atleast_1d(extra.value)


def _ordered(array: NDArray[Any], axes: str, four_d: bool, path: Path) -> NDArray[Any]:
    """The array as (c, z, y, x), from the axes that tifffile names: Y X, S and C channels, any other a stack."""
    single: list[int] = []
    channels: list[int] = []
    stack: list[int] = []
    for axis, name in enumerate(axes):
        if name not in _PLANE_AXES:
            (channels if name in _CHANNEL_AXES else stack if array.shape[axis] > 1 else single).append(axis)
    if four_d and len(stack) == 2:
        channels.insert(0, stack.pop(0))
    if len(stack) > 1:
        shown = " x ".join(f"{array.shape[axis]} {axes[axis]}" for axis in stack)
        what = f"is a stack along several axes ({shown}) where a 3D image is expected"
        raise unreadable(path, what, do=FOUR_D_REMEDY)
    ordered = array.transpose(*single, *channels, *stack, axes.index("Y"), axes.index("X"))
    depth = array.shape[stack[0]] if stack else 1
    return ordered.reshape(-1, depth, *ordered.shape[-2:])


def _side_cars(path: Path) -> tuple[Path, ...]:
    """Where the side-car of a TIFF stack may lie: beside `<case>_0000.tif` `<case>_0000.json`, then `<case>.json`."""
    base = path.name[: -len(path.suffix)]
    return tuple(path.with_name(f"{name}.json") for name in dict.fromkeys((base, re.sub(r"_\d{4}$", "", base))))


def _files(path: Path) -> tuple[Path, ...]:
    return (path, *sorted(file for file in _side_cars(path) if file.is_file()))


def _spacing_beside(path: Path) -> tuple[float, float, float] | None:
    """The spacing (z, y, x) in the first side-car that is there.

    Raises:
        UnreadableFile: it names a spacing that cannot be true.
    """
    side_car = next((file for file in _side_cars(path) if file.is_file()), None)
    if side_car is None:
        return None
    remedy = 'write {"spacing": [z, y, x]}'
    try:
        data = read_json(side_car)
        if not isinstance(data, dict) or "spacing" not in data:
            return None
        z, y, x = (float(step) for step in data["spacing"])
    except (RecordFault, ValueError, TypeError) as error:
        raise unreadable(side_car, "should hold three numbers as spacing", do=remedy) from error
    if not all(map(is_plausible, (z, y, x))):
        raise unreadable(side_car, f"holds an impossible spacing: {[z, y, x]}", do=remedy)
    return z, y, x


def _tagged_spacing(file: Any) -> tuple[float, float, float] | None:
    """Spacing (z, y, x) in millimeters from OME or ImageJ metadata; in bare numbers if these name no unit.

    The resolution of other TIFF files is that of a printer, and ignored.
    """
    if file.is_ome:
        spacing = _ome_spacing(file.ome_metadata)
    elif file.is_imagej:
        spacing = _imagej_spacing(file.imagej_metadata, file.pages[0])
    else:
        return None
    return spacing if spacing and all(map(is_plausible, spacing)) else None


def _ome_spacing(text: str) -> tuple[float, float, float] | None:
    import xml.etree.ElementTree as ET

    pixels = next((element for element in ET.fromstring(text).iter() if element.tag.endswith("Pixels")), None)
    if pixels is None:
        return None
    steps = []
    for axis in "ZYX":
        unit = pixels.get(f"PhysicalSize{axis}Unit", _OME_DEFAULT_UNIT)
        steps.append(float(pixels.get(f"PhysicalSize{axis}", "nan")) * _MILLIMETERS.get(unit.lower(), 1.0))
    z, y, x = steps
    return z, y, x


def _imagej_spacing(metadata: dict[str, Any], page: Any) -> tuple[float, float, float] | None:
    unit = _MILLIMETERS.get(str(metadata.get("unit", "")).strip().lower(), 1.0)
    steps = [float(metadata.get("spacing", 1.0))]
    for name in ("YResolution", "XResolution"):
        tag = page.tags.get(name)
        pixels, length = tag.value if tag is not None else (1, 1)
        steps.append(length / pixels if pixels else 1.0)
    z, y, x = (step * unit for step in steps)
    return z, y, x


def _write(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Writes zlib-compressed pages that ImageJ reads where the type allows it.

    Three or four 8-bit or 16-bit channels of one slice become RGB(A), others pages. A stack gets its spacing twice: in
    ImageJ's tags, for ImageJ and Fiji, and in nnU-Net's side-car, because the tags hold fractions of 32-bit numbers
    and the side-car is exact.
    """
    import tifffile

    count, depth = array.shape[:2]
    if depth == 1 and count in (3, 4) and array.dtype in (np.uint8, np.uint16):
        extra = ("unassalpha",) if count == 4 else None
        colors = np.moveaxis(array[:, 0], 0, -1)
        tifffile.imwrite(path, colors, photometric="rgb", extrasamples=extra, compression="zlib", metadata=None)
        return
    lengths = {"Z": depth, "C": count}
    axes = [axis for axis in lengths if lengths[axis] > 1]
    metadata: dict[str, Any] = {"axes": "".join((*axes, *_PLANE_AXES))}
    resolution = None
    if depth > 1:
        z, y, x = geometry.spacing_mm
        metadata |= {"spacing": z, "unit": "mm"}
        resolution = (1 / x, 1 / y)
        write_atomic(_side_cars(path)[-1], json.dumps({"spacing": [z, y, x]}) + "\n")
    tifffile.imwrite(
        path,
        array.transpose(1, 0, 2, 3).reshape(*(lengths[axis] for axis in axes), *array.shape[2:]),
        imagej=array.dtype in (np.uint8, np.uint16, np.float32),
        photometric="minisblack",
        compression="zlib",
        metadata=metadata,
        resolution=resolution,
    )


TIFF = Format(
    endings=(".tif", ".tiff"), verify=_verify, read=_read, write=_write, files=_files, has_grid=False, has_colors=True
)
