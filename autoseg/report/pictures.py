"""Overlay pictures for a page: gray image below, contours of prediction and reference above, in true proportions.

The image is a small PNG inside the picture; the contours are vectors, so they stay sharp and the page can hide them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from autoseg.images.crop import Box
from autoseg.report.charts import PALETTE_SIZE
from autoseg.report.figures import PLANES, SHOWN_CHANNELS, Labels, Plane, richest_planes, windowed
from autoseg.report.svg import Drawing

LARGEST_EDGE = 360
"""Pixels of the longest edge of a case's planes, of which three fit side by side on a page."""

LARGEST_EDGE_OF_PICTURES = 720
"""Pixels of the longer edge of an image of a single slice, which is shown alone."""

SMALLEST_EDGE = 64
GRAY_LEVELS = 64
"""Shades of the image; the eye tells no more apart on a screen, and a PNG of them is half as large (assumption)."""

_MARGIN_SHARE = 0.4  # around the objects, of their extent along the axis
_LEAST_MARGIN_MM = 12.0
_SHRINK = 0.8
_BYTES_PER_POINT = 12  # of a contour: two coordinates with one decimal
_FEWEST_POINTS = 6  # of a contour that is made coarser
_LEAST_PATH_BYTES = 200  # so that one voxel is still outlined
_STRAIGHT = 1e-9

Gray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """What is drawn of a case.

    Attributes:
        image: (c, z, y, x).
        predicted: training values (z, y, x), or None.
        reference: training values (z, y, x), or None.
        spacing_mm: along z, y, x.
        classes: name -> training values of the foreground classes.
        channels: names.
        windows: for each channel the intensities drawn black and white; None for percentiles of the image.
    """

    image: NDArray[np.float32]
    predicted: Labels | None
    reference: Labels | None
    spacing_mm: tuple[float, ...]
    classes: Mapping[str, tuple[int, ...]]
    channels: Sequence[str] = ()
    windows: Sequence[tuple[float, float] | None] = ()

    @property
    def objects(self) -> Labels:
        """Whatever is labeled: the prediction, and the reference where nothing is predicted."""
        maps = [labels for labels in (self.predicted, self.reference) if labels is not None]
        if not maps:
            return np.zeros(self.image.shape[1:], np.int8)
        return maps[0] if len(maps) == 1 else np.where(maps[0] > 0, maps[0], maps[1])


def overlay(scan: Scan, name: str, most_bytes: int) -> Markup:
    """Pictures of a case, one per channel (at most three) and plane, one after the other.

    With a reference the planes are those with the most voxels that differ from it; otherwise those through the largest
    object that show most of all classes. What is far from every object is cut off.

    Args:
        scan: the case.
        name: of the case, for those who cannot see the pictures.
        most_bytes: that all pictures of the case may take; images become coarser to keep to it.
    """
    planes = _planes(scan)
    is_color = len(scan.image) == 3 and scan.image.shape[1] == 1
    grays = [_gray(scan, index) for index in range(len(scan.image[:SHOWN_CHANNELS]))]
    shown = [np.stack(grays, axis=-1)] if is_color else grays
    share = most_bytes // (len(planes) * len(shown))
    box = _box(scan)
    drawn = [
        _draw(scan, gray, plane, box, _title(scan, name, plane, "" if is_color else _channel(scan, index)), share)
        for index, gray in enumerate(shown)
        for plane in planes
    ]
    return Markup("").join(drawn)


def _gray(scan: Scan, channel: int) -> Gray:
    window = scan.windows[channel] if channel < len(scan.windows) else None
    if window is None:
        return windowed(scan.image[channel])
    low, high = window
    gray: Gray = np.clip((np.nan_to_num(scan.image[channel]) - low) / max(high - low, 1e-6), 0, 1)
    return gray


def _channel(scan: Scan, index: int) -> str:
    if len(scan.image) == 1:
        return ""
    return f", {scan.channels[index]}" if index < len(scan.channels) else f", channel {index}"


def _title(scan: Scan, name: str, plane: Plane, channel: str) -> str:
    if scan.image.shape[1] == 1:
        return f"{name}{channel}"
    axis, index = plane
    return f"{name}: {PLANES[axis]} plane {index + 1} of {scan.image.shape[axis + 1]}{channel}"


def _planes(scan: Scan) -> list[Plane]:
    """For each axis the plane that tells most."""
    objects = scan.objects
    if scan.predicted is None or scan.reference is None:
        return richest_planes(objects, scan.classes.values())
    differs = scan.predicted != scan.reference
    known = [value for values in scan.classes.values() for value in values]
    differs &= np.isin(scan.reference, [0, *known])  # what is not annotated cannot be wrong
    if not differs.any():
        return richest_planes(objects, scan.classes.values())
    axes = range(3) if differs.shape[0] > 1 else range(1)
    others = ((1, 2), (0, 2), (0, 1))
    return [(axis, int(differs.sum(others[axis]).argmax())) for axis in axes]


def _box(scan: Scan) -> Box:
    """First voxel and the one behind the last of what is shown along each axis: the objects with a margin."""
    objects = np.isin(scan.objects, [value for values in scan.classes.values() for value in values])
    if not objects.any():
        return tuple((0, length) for length in objects.shape)
    box = []
    for axis, step_mm in enumerate(scan.spacing_mm):
        along = np.flatnonzero(objects.any(tuple(other for other in range(3) if other != axis)))
        first, behind = int(along[0]), int(along[-1]) + 1
        margin = int(np.ceil(max(_MARGIN_SHARE * (behind - first), _LEAST_MARGIN_MM / step_mm)))
        box.append((max(first - margin, 0), min(behind + margin, objects.shape[axis])))
    return tuple(box)


def _draw(scan: Scan, gray: Gray, plane: Plane, box: Box, title: str, most_bytes: int) -> Markup:
    axis, index = plane
    kept = box[:axis] + box[axis + 1 :]
    rows, columns = (slice(first, behind) for first, behind in kept)
    height, width = _drawn_size(scan, axis, box)
    drawing = Drawing(width, height, title, "overlay")
    drawing.root.set("width", f"{width:.0f}")
    drawing.root.set("height", f"{height:.0f}")
    direction = 1 if axis == 0 else -1  # the other planes have z upwards
    png = _png(np.take(gray, index, axis)[rows, columns][::direction], (height, width), most_bytes // 2)
    drawing.add("image", width=width, height=height, preserveAspectRatio="none", href=png)
    masks = {}
    for style, labels in (("predicted", scan.predicted), ("reference", scan.reference)):
        if labels is not None:
            cut = np.take(labels, index, axis)[rows, columns][::direction]
            for number, (name, values) in enumerate(scan.classes.items()):
                masks[f"{style} k{number % PALETTE_SIZE}", f"{name}, {style}"] = np.isin(cut, values)
    for (style, hint), path in zip(masks, _outlines(masks.values(), (height, width), most_bytes // 2), strict=True):
        if path:
            drawing.add("path", style, hint, d=path)
    return drawing.markup()


def _drawn_size(scan: Scan, axis: int, box: Box) -> tuple[float, float]:
    """Height and width of a plane perpendicular to `axis`, in units of the drawing."""
    extent = [(behind - first) * step for (first, behind), step in zip(box, scan.spacing_mm, strict=True)]
    is_flat = scan.image.shape[1] == 1  # and then has no thickness
    scale = LARGEST_EDGE_OF_PICTURES / max(extent[1:]) if is_flat else LARGEST_EDGE / max(extent)
    height, width = (length * scale for length in extent[:axis] + extent[axis + 1 :])
    return height, width


def _outlines(masks: Iterable[NDArray[np.bool_]], size: tuple[float, float], most_bytes: int) -> list[str]:
    """Path data of the contours of each mask; all coarser, and without the smallest pieces, where it gets too long."""
    found = [_contours(mask, size) for mask in masks]
    points = sum(len(contour) for contours in found for contour in contours)
    thinning = max(1, -(-_BYTES_PER_POINT * points // most_bytes))
    paths = []
    for contours in found:
        share = most_bytes * sum(map(len, contours)) // max(points, 1)
        pieces = [_piece(contour, thinning) for contour in sorted(contours, key=len, reverse=True)]
        kept = np.searchsorted(np.cumsum([len(piece) for piece in pieces]), max(share, _LEAST_PATH_BYTES), side="right")
        paths.append("".join(pieces[:kept]))
    return paths


def _contours(mask: NDArray[np.bool_], size: tuple[float, float]) -> list[NDArray[np.float64]]:
    from skimage import measure

    if not mask.any():
        return []
    find_contours: Any = measure.find_contours
    steps = [length / n for length, n in zip(size, mask.shape, strict=True)]
    # the center of the first voxel is half a voxel inside, and the mask has a border of one voxel
    return [_corners((contour - 0.5) * steps) for contour in find_contours(np.pad(mask, 1).astype(np.float32), 0.5)]


def _piece(contour: NDArray[np.float64], thinning: int) -> str:
    thinned = contour[:: min(thinning, max(1, len(contour) // _FEWEST_POINTS))]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for y, x in thinned) + "Z"


def _corners(contour: NDArray[np.float64]) -> NDArray[np.float64]:
    """The points of a closed contour at which it turns."""
    points = contour[:-1]
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    turns = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > _STRAIGHT
    return points[turns]


def _png(picture: Gray, size: tuple[float, float], most_bytes: int) -> str:
    """A data URI of the picture with at most as many pixels as it has voxels, and at most as many bytes as allowed."""
    from PIL import Image

    levels = np.round(picture * (GRAY_LEVELS - 1)) * (255 / (GRAY_LEVELS - 1))
    whole = Image.fromarray(levels.astype(np.uint8))
    edge = max(size)
    while True:
        factor = edge / max(size)
        width, height = (max(1, round(length * factor)) for length in (size[1], size[0]))
        shape = (min(width, whole.width), min(height, whole.height))
        coded = _encoded(whole.resize(shape, Image.Resampling.BOX) if shape != whole.size else whole)
        if len(coded) <= most_bytes or edge * _SHRINK < SMALLEST_EDGE:
            return f"data:image/png;base64,{coded}"
        edge *= _SHRINK


def _encoded(picture: Any) -> str:
    from PIL import Image

    stream = io.BytesIO()
    is_color = picture.mode == "RGB"
    small = picture.quantize(256, method=Image.Quantize.FASTOCTREE) if is_color else picture.quantize(GRAY_LEVELS)
    small.save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")
