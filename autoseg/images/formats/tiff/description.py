"""What a TIFF says of its numbers: the spacing of a stack, in nnU-Net's side-car or in tags, and how to show them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoseg.core.errors import RecordFault
from autoseg.core.files import write_atomic
from autoseg.core.records import read_json
from autoseg.images.formats.headers import is_plausible
from autoseg.images.image_errors import unreadable

_MILLIMETERS = {
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 10.0),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1.0),
    **dict.fromkeys(("µm", "μm", "um", "micron", "microns", "\\u00b5m", "\\u03bcm"), 1e-3),
    **dict.fromkeys(("micrometer", "micrometers", "micrometre", "micrometres"), 1e-3),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres"), 1e-6),
    **dict.fromkeys(("å", "ångström", "angstrom", "angstroms"), 1e-7),
    **dict.fromkeys(("pm", "picometer", "picometers", "picometre", "picometres"), 1e-9),
    **dict.fromkeys(("inch", "inches", "in", '"'), 25.4),
}
_NO_UNIT = ("", "pixel", "pixels", "voxel", "voxels", "reference frame", "sec", "none", "null")
"""What stands where a unit of length could, but names none: numbers are bare then."""

_OME_DEFAULT_UNIT = "µm"

_CALIBRATED = range(20)
"""ImageJ's numbers for functions that turn stored numbers into values: a straight line (0) and curves; 20: none."""

_PERHAPS_LOSSY = {
    **dict.fromkeys((33005, 34712), "JPEG 2000"),
    **dict.fromkeys((34927, 50001), "WebP"),
    **dict.fromkeys((50002, 52546), "JPEG XL"),
    34887: "LERC",
}
"""Compressions that come with and without loss, which only the program that wrote the file knows."""

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, PALETTE = range(4)
"""The photometric interpretations in whose numbers there is nothing to convert."""

CHANNEL_AXES = "CS"
PLANE_AXES = "YX"
_TIME_AXIS = "T"


def _side_cars(path: Path) -> tuple[Path, ...]:
    """Where the side-car of a TIFF stack may lie: beside `<case>_0000.tif` `<case>_0000.json`, then `<case>.json`."""
    base = path.name[: -len(path.suffix)]
    return tuple(path.with_name(f"{name}.json") for name in dict.fromkeys((base, re.sub(r"_\d{4}$", "", base))))


def with_side_cars(path: Path) -> tuple[Path, ...]:
    """A TIFF and the side-cars that are there."""
    return (path, *sorted(file for file in _side_cars(path) if file.is_file()))


def write_side_car(path: Path, spacing_mm: tuple[float, float, float]) -> None:
    """Writes the side-car of one TIFF alone: without the number, `s_0001.tif` and `s_0002.tif` would share it."""
    write_atomic(_side_cars(path)[0], json.dumps({"spacing": list(spacing_mm)}) + "\n")


def spacing_beside(path: Path) -> tuple[float, float, float] | None:
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


def tagged_spacing(file: Any) -> tuple[tuple[float, float, float] | None, list[str]]:
    """Spacing (z, y, x) in millimeters from OME or ImageJ metadata; in bare numbers if these name no unit; and notes.

    The resolution of other TIFF files is that of a printer, and ignored.
    """
    steps = _ome_steps(file.ome_metadata) if file.is_ome else _imagej_steps(file) if file.is_imagej else None
    if steps is None:
        return None, []
    z, y, x = (step * _MILLIMETERS.get(unit, 1.0) for step, unit in steps)
    if not all(map(is_plausible, (z, y, x))):
        return None, []
    unknown = sorted({unit for _, unit in steps}.difference(_MILLIMETERS, _NO_UNIT))
    notes = (
        f"its unit of length {unit[:20]!r} is not known; its spacing was taken in bare numbers" for unit in unknown
    )
    return (z, y, x), list(notes)


_Steps = list[tuple[float, str]]
"""Spacings and the units that they are in, along z, y, x."""


def _ome_steps(text: str) -> _Steps | None:
    import xml.etree.ElementTree as ET

    pixels = next((element for element in ET.fromstring(text).iter() if element.tag.endswith("Pixels")), None)
    if pixels is None:
        return None
    sizes = [f"PhysicalSize{axis}" for axis in "ZYX"]
    units = (pixels.get(f"{size}Unit", _OME_DEFAULT_UNIT).strip().lower() for size in sizes)
    return [(_number(pixels.get(size)), unit) for size, unit in zip(sizes, units, strict=True)]


def _imagej_steps(file: Any) -> _Steps:
    """The units along y and z are those along x unless they are named."""
    metadata = file.imagej_metadata
    steps = [_number(metadata.get("spacing", 1.0))]
    for name in ("YResolution", "XResolution"):
        tag = file.pages[0].tags.get(name)
        pixels, length = tag.value if tag is not None else (1, 1)
        steps.append(length / pixels if pixels else 1.0)
    along_x = metadata.get("unit", "")
    units = (str(metadata.get(name, along_x)).strip().lower() for name in ("zunit", "yunit", "unit"))
    return list(zip(steps, units, strict=True))


def _number(value: Any) -> float:
    """The number, or NaN where it is missing or none ("0,5")."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _imagej_notes(file: Any) -> Iterator[str]:
    """What ImageJ says of its numbers that is not followed."""
    function, *line = (file.imagej_metadata.get(name, usual) for name, usual in (("cf", 0), ("c0", 0), ("c1", 1)))
    if function in _CALIBRATED and (function, *line) != (0, 0, 1):
        constants = ", ".join(map(str, line))
        yield f"ImageJ's calibration (function {function}; {constants}) was not applied: its numbers are those stored"


def check_planes(series: Any, path: Path) -> None:
    """Checks that there is a page for each plane, where tifffile fills in zeros, and that none lies below another."""
    pages = list(series) if series.kind.lower() in ("ome", "generic") else []
    if any(page is None for page in pages):
        raise unreadable(path, "is cut short: its OME description names pages that are not there")
    if len({page.is_subifd for page in pages}) > 1:
        raise unreadable(path, "holds images of one size, one below the other", do="store each in its own file")


def check_description(file: Any, series: Any, path: Path) -> None:
    """Checks that tifffile did not take pages for a plain stack because it could not follow their description."""
    if series.kind.lower() not in ("uniform", "generic") or not (file.is_ome or file.is_imagej):
        return
    page = series.keyframe
    declared = re.findall(r"\bSize[CT]\s*=\s*[\"'](\d{1,9})[\"']|(?m:^(?:channels|frames)=(\d{1,9}))", page.description)
    if {int(ome or imagej) for ome, imagej in declared} - {1, page.samplesperpixel}:
        what = f"holds {len(series)} pages that do not fit the channels or time points of its description"
        raise unreadable(path, what, do="store it again, one file per channel and time point")


def display_notes(file: Any, series: Any) -> Iterator[str]:
    """What the tags say on how to show the numbers, which is not followed, and what the numbers may have lost."""
    page = series.keyframe
    yield from _imagej_notes(file) if file.is_imagej else ()
    yield from _photometric_notes(page)
    if (orientation := page.tags.valueof(274, default=1)) in range(2, 9):
        yield f"its orientation tag ({orientation}) was not followed: rows and columns are as stored"
    if page.compression in _PERHAPS_LOSSY:
        yield f"its compression ({_PERHAPS_LOSSY[page.compression]}) may have lost detail"
    lengths = dict(zip(series.axes, series.shape, strict=True))
    if {axis for axis, length in lengths.items() if length > 1} - {*PLANE_AXES, *CHANNEL_AXES} == {_TIME_AXIS}:
        yield "its time points were taken as slices"


def _photometric_notes(page: Any) -> Iterator[str]:
    photometric = page.tags.valueof(262, default=_BLACK_IS_ZERO)
    if photometric == _WHITE_IS_ZERO:
        yield "0 stands for white in it; its numbers were taken as stored"
    elif photometric == PALETTE and page.is_imagej:
        yield "its lookup table, which colors it on the screen, was not applied"
    elif photometric == PALETTE and page.colormap is None:
        yield "its palette has no colors; its numbers were taken as stored"
    elif photometric not in (_BLACK_IS_ZERO, _RGB, PALETTE):
        yield f"its samples are {name_of(page.photometric)} and were taken as stored"


def name_of(value: Any) -> str:
    """The name that tifffile gives to the value of a tag, or the value."""
    return str(getattr(value, "name", value))
