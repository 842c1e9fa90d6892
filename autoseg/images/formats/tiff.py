"""TIFF: pictures, and stacks with a spacing from a side-car file or from ImageJ's and OME's tags."""

from __future__ import annotations

import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import RecordFault
from autoseg.core.files import write_atomic
from autoseg.core.geometry import Geometry
from autoseg.core.records import read_json
from autoseg.images.formats.headers import LARGEST_SPACING, SMALLEST_SPACING
from autoseg.images.formats.itk import simpleitk
from autoseg.images.formats.pixels import FOUR_D_REMEDY, Pixels
from autoseg.images.image_errors import first_line, refused
from autoseg.images.volume import plane_geometry

_DECODER_FAULTS = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OSError, EOFError, SyntaxError),
    *(OverflowError, struct.error, zlib.error),
)
"""What tifffile raises on broken files and on compressions it does not know."""

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


def read_tiff(path: Path, four_d: bool) -> Pixels:
    """Voxels of a TIFF file: one page is a picture (spacing 999 x 1 x 1), several pages are a stack (z, y, x).

    Declared channel and color axes become channels. The spacing of a stack is that of the side-car `<case>.json`, as in
    nnU-Net v2 (imageio/tif_reader_writer.py), else that of the OME or ImageJ tags in millimeters, else 1.

    Args:
        path: a file that `verify_file` accepted.
        four_d: whether a fourth axis without a name holds channels.

    Raises:
        UnreadableFile: it cannot be decoded, holds several images, or has more axes than it may.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path, _multifile=False) as file:
            if len(file.series) != 1:
                raise refused(
                    path, f"holds {len(file.series)} images of different size or kind", do="store each in its own file"
                )
            series = file.series[0]
            axes, has_alpha = series.axes, _has_gray_alpha(file.pages[0])
            volume = _ordered(_decode(series, path), axes, four_d, path)
            tagged = _tagged_spacing(file)
    except _DECODER_FAULTS as error:
        raise refused(path, "cannot be decoded", why=f"tifffile says: {first_line(error)}") from error
    notes: tuple[str, ...] = ()
    if has_alpha and len(volume) == 2:
        volume, notes = volume[:1], ("its alpha channel was dropped",)
    return Pixels(volume, _stack_geometry(volume.shape[1:], tagged, path), notes)


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
    channels = [axis for axis, name in enumerate(axes) if name in _CHANNEL_AXES]
    plane = [axes.index(name) for name in _PLANE_AXES]
    stack = [axis for axis in range(len(axes)) if axis not in (*channels, *plane) and array.shape[axis] > 1]
    if four_d and len(stack) == 2:
        channels, stack = [stack[0], *channels], stack[1:]
    if len(stack) > 1:
        shown = " x ".join(f"{array.shape[axis]} {axes[axis]}" for axis in stack)
        raise refused(path, f"is a stack along several axes ({shown}) where a 3D image is due", do=FOUR_D_REMEDY)
    rest = [axis for axis in range(len(axes)) if axis not in (*channels, *stack, *plane)]
    ordered = array.transpose(*rest, *channels, *stack, *plane)
    depth = array.shape[stack[0]] if stack else 1
    return ordered.reshape(-1, depth, *ordered.shape[-2:])


def _stack_geometry(shape: tuple[int, ...], tagged: tuple[float, float, float] | None, path: Path) -> Geometry:
    depth, height, width = shape
    if depth == 1:
        return plane_geometry((height, width))
    return Geometry((depth, height, width), side_car_spacing(path) or tagged or (1.0, 1.0, 1.0))


def side_car_spacing(path: Path) -> tuple[float, float, float] | None:
    """The spacing (z, y, x) in `<case>.json` beside a TIFF image (`<case>_0000.tif`) or label map (`<case>.tif`).

    Raises:
        UnreadableFile: the side-car names a spacing that cannot be true.
    """
    base = path.name[: -len(path.suffix)]
    for name in dict.fromkeys((base, re.sub(r"_\d{4}$", "", base))):
        side_car = path.with_name(f"{name}.json")
        if side_car.is_file():
            return _spacing_in(side_car)
    return None


def _spacing_in(side_car: Path) -> tuple[float, float, float] | None:
    try:
        data = read_json(side_car)
        if not isinstance(data, dict) or "spacing" not in data:
            return None
        z, y, x = (float(step) for step in data["spacing"])
    except (RecordFault, ValueError, TypeError) as error:
        raise refused(side_car, "should hold three numbers as spacing", do='write {"spacing": [z, y, x]}') from error
    if not _are_plausible((z, y, x)):
        raise refused(side_car, f"holds an impossible spacing: {[z, y, x]}", do='write {"spacing": [z, y, x]}')
    return z, y, x


def _are_plausible(spacing: tuple[float, ...]) -> bool:
    return all(SMALLEST_SPACING <= step <= LARGEST_SPACING for step in spacing)


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
    return spacing if spacing and _are_plausible(spacing) else None


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


def write_tiff(path: Path, array: NDArray[Any], spacing: tuple[float, float, float] | None) -> None:
    """Writes (c, z, y, x) voxels, zlib-compressed, readable by ImageJ where the type allows it.

    Args:
        path: file to write.
        array: voxels; three or four 8-bit or 16-bit channels of one slice become RGB(A).
        spacing: of a stack (z, y, x), in millimeters; None for a picture.
    """
    import tifffile

    count, depth = array.shape[:2]
    if spacing is None and count in (3, 4) and array.dtype in (np.uint8, np.uint16):
        extra = ("unassalpha",) if count == 4 else None
        colors = np.moveaxis(array[:, 0], 0, -1)
        tifffile.imwrite(path, colors, photometric="rgb", extrasamples=extra, compression="zlib", metadata=None)
        return
    axes = ("Z" if depth > 1 else "") + ("C" if count > 1 else "") + _PLANE_AXES
    pages = array.transpose(1, 0, 2, 3).reshape(
        [length for length in (depth, count) if length > 1] + [*array.shape[2:]]
    )
    metadata: dict[str, Any] = {"axes": axes}
    resolution = None
    if spacing is not None:
        metadata |= {"spacing": spacing[0], "unit": "mm"}
        resolution = (1 / spacing[2], 1 / spacing[1])
    tifffile.imwrite(
        path,
        pages,
        imagej=array.dtype in (np.uint8, np.uint16, np.float32),
        photometric="minisblack",
        compression="zlib",
        metadata=metadata,
        resolution=resolution,
    )


def write_side_car(path: Path, spacing: tuple[float, float, float]) -> None:
    """Writes nnU-Net's side-car of a TIFF stack: `<case>.json` with the exact spacing (z, y, x)."""
    base = re.sub(r"_\d{4}$", "", path.name[: -len(path.suffix)])
    write_atomic(path.with_name(f"{base}.json"), json.dumps({"spacing": list(spacing)}) + "\n")
