"""TIFF through tifffile, with the codecs of imagecodecs where those are installed: pictures, and stacks of slices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import UnreadableFile
from autoseg.core.geometry import Geometry
from autoseg.images.format import Format
from autoseg.images.formats.tiff.description import (
    CHANNEL_AXES,
    PALETTE,
    PLANE_AXES,
    check_description,
    check_planes,
    display_notes,
    name_of,
    spacing_beside,
    tagged_spacing,
    with_side_cars,
    write_side_car,
)
from autoseg.images.formats.tiff.pages import (
    DECODER_FAULTS,
    LARGEST_RATIOS,
    due_bytes,
    is_main,
    opened,
    several_images,
    verify,
)
from autoseg.images.image_errors import FOUR_D_REMEDY, first_line, unreadable
from autoseg.images.volume import Volume, color_names, plane_geometry

_STORE_AGAIN = "store it again as TIFF without compression or with deflate, or copy it again if it is damaged"


def _read(path: Path, four_d: bool) -> Volume:
    """One page is a picture (spacing 999 x 1 x 1), several pages are a stack (z, y, x).

    Declared channel and color axes become channels, the colors of a palette three; numbers are as stored, whatever the
    tags say on how to show them. The spacing of a stack is that of the side-car `<case>.json`, as in nnU-Net v2
    (imageio/tif_reader_writer.py), else that of the OME or ImageJ tags in millimeters, else 1.

    Raises:
        UnreadableFile: it cannot be decoded, holds several images, or has more axes than it may.
    """
    volume, palette = _stored(path, four_d)
    if palette is None or len(volume.array) > 1:
        return volume
    if int(volume.array.max()) >= palette.shape[1]:
        raise unreadable(path, f"uses color {volume.array.max()} of a palette of {palette.shape[1]}")
    return replace(
        volume,
        array=palette[:, volume.array[0].astype(np.intp)],  # of one bit they are truth values, which select otherwise
        notes=(*volume.notes, "the colors of its palette became RGB channels"),
    )


def _read_values(path: Path) -> Volume:
    """As `_read`, but of a palette the indices."""
    volume, palette = _stored(path, four_d=False)
    return volume if palette is None else replace(volume, value_names=color_names(volume.array, palette.T))


def _stored(path: Path, four_d: bool) -> tuple[Volume, NDArray[np.uint8] | None]:
    """The numbers as stored, and the colors (3, number) that they are indices of."""
    with opened(path, "cannot be decoded", _STORE_AGAIN) as file:
        series, notes = _image(file, path)
        array = _ordered(_decode(file, series, path), series.axes, four_d, path)
        alpha = None
        if len(array) == 2 and _has_gray_alpha(series.keyframe):
            array, alpha, notes = array[:1], array[1], [*notes, "its alpha channel was dropped"]
        palette = None if file.is_imagej else _palette(series.keyframe, path)
        tagged, unit_notes = tagged_spacing(file)
    depth, height, width = array.shape[1:]
    if depth == 1:
        return Volume(array, plane_geometry((height, width)), tuple(notes), alpha=alpha), palette
    if (spacing_mm := spacing_beside(path)) is None:
        spacing_mm, notes = tagged, [*notes, *unit_notes]
    if spacing_mm is None:
        what = "it states no spacing that is whole and possible: 1 x 1 x 1 (z, y, x) was assumed"
        spacing_mm, notes = (1.0, 1.0, 1.0), [*notes, what]
    geometry = Geometry((depth, height, width), spacing_mm, has_orientation=False)
    return Volume(array, geometry, tuple(notes), alpha=alpha), palette


def _palette(page: Any, path: Path) -> NDArray[np.uint8] | None:
    """Colors (3, n), or None."""
    colors: NDArray[Any] | None = page.colormap if page.photometric == PALETTE else None
    if colors is None:
        return None
    if colors.ndim != 2 or len(colors) != 3:
        raise unreadable(path, "is damaged: its palette does not hold three numbers for each color", do=_STORE_AGAIN)
    return (colors >> 8 if colors.max() > 255 else colors).astype(np.uint8)  # some programs write 8 bits, says libtiff


def _image(file: Any, path: Path) -> tuple[Any, list[str]]:
    """The series of pages that is the image, and notes on it."""
    found = [level for series in file.series for level in series.levels]
    images = [*filter(_is_full, filter(_is_top, found))] or [*filter(_is_full, found)] or found
    if len(images) != 1:
        raise several_images(path, ((*image.shape, image.dtype) for image in images))
    check_planes(images[0], path)
    check_description(file, images[0], path)
    _check_pages(filter(_is_top, found), len(file.pages), path)
    notes = [f"{len(found) - 1} smaller copies or masks in it were left out"] if len(found) > 1 else []
    return images[0], [*notes, *display_notes(file, images[0])]


def _is_top(image: Any) -> bool:
    return not image.keyframe.is_subifd


def _is_full(image: Any) -> bool:
    return is_main(image.keyframe)


def _check_pages(images: Iterable[Any], pages: int, path: Path) -> None:
    """Compares the pages of all images with those in the file, of which one may stand for a stack in one piece."""
    described = sum(image.size // image.keyframe.size for image in images)
    if described != pages > 1 or not described:
        what = f"holds {pages} pages where its description mentions {described}"
        raise unreadable(path, what, do="store it again as a plain stack of pages")


def _decode(file: Any, series: Any, path: Path) -> NDArray[Any]:
    """The voxels as tifffile decodes them, with imagecodecs where it is installed.

    Raises:
        UnreadableFile: a codec is not installed, or there are fewer bytes than the header promises.
    """
    try:
        array = np.asarray(series.asarray())
    except DECODER_FAULTS as error:
        if "imagecodecs" in str(error) or isinstance(error, ImportError):
            raise _codec_missing(series.keyframe, path, error) from error
        if shortage := next(_shortages(file, series), None):
            raise unreadable(path, f"is cut short: {shortage}") from error
        raise
    if array.shape != series.shape:
        raise unreadable(path, f"holds {array.shape} numbers where its description announces {series.shape}")
    return array


def _codec_missing(page: Any, path: Path, error: BaseException) -> UnreadableFile:
    return unreadable(
        path,
        f"needs a codec of imagecodecs to be decoded ({name_of(page.compression)}, {page.bitspersample} bits)",
        why=f"tifffile says: {first_line(error)}",
        do='python -m pip install "autosegkit[tiff]"',
    )


def _shortages(file: Any, series: Any) -> Iterator[str]:
    """Pages whose strips or tiles hold fewer bytes, decompressed one by one, than their size demands."""
    import tifffile

    key = series.keyframe
    if key.compression not in LARGEST_RATIOS:
        return
    decompress, due = tifffile.TIFF.DECOMPRESSORS[key.compression], due_bytes(key)
    for number, page in enumerate(series):
        found = 0
        for offset, length in zip(page.dataoffsets, page.databytecounts, strict=False):
            file.filehandle.seek(offset)
            with suppress(*DECODER_FAULTS):
                found += len(decompress(file.filehandle.read(length), out=due))
        if found < due:
            yield f"page {number} holds {found} bytes of pixels where its header promises {due}"


def _has_gray_alpha(page: Any) -> bool:
    extra = page.tags.get("ExtraSamples")
    return page.samplesperpixel == 2 and extra is not None and 0 not in np.atleast_1d(extra.value)


def _ordered(array: NDArray[Any], axes: str, four_d: bool, path: Path) -> NDArray[Any]:
    """The array as (c, z, y, x), from the axes that tifffile names: Y X, S and C channels, any other a stack."""
    single: list[int] = []
    channels: list[int] = []
    stack: list[int] = []
    for axis, name in enumerate(axes):
        if name not in PLANE_AXES:
            (channels if name in CHANNEL_AXES else stack if array.shape[axis] > 1 else single).append(axis)
    if four_d and len(stack) == 2:
        channels.insert(0, stack.pop(0))
    if len(stack) > 1:
        shown = " x ".join(f"{array.shape[axis]} {axes[axis]}" for axis in stack)
        what = f"is a stack along several axes ({shown}) where a 3D image is expected"
        raise unreadable(path, what, do=FOUR_D_REMEDY)
    ordered = array.transpose(*single, *channels, *stack, axes.index("Y"), axes.index("X"))
    depth = array.shape[stack[0]] if stack else 1
    return ordered.reshape(-1, depth, *ordered.shape[-2:])


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
    metadata: dict[str, Any] = {"axes": "".join((*axes, *PLANE_AXES))}
    resolution = None
    if depth > 1:
        z, y, x = geometry.spacing_mm
        metadata |= {"spacing": z, "unit": "mm"}
        resolution = (1 / x, 1 / y)
        write_side_car(path, geometry.spacing_mm)
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
    endings=(".tif", ".tiff"),
    verify=verify,
    read=_read,
    read_values=_read_values,
    write=_write,
    files=with_side_cars,
    has_grid=False,
    has_colors=True,
)
