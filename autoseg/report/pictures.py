"""Overlay pictures: gray image below, contours of prediction and reference above, in true proportions.

In a page the image is a small PNG inside a vector picture; the contours are vectors, so that they stay sharp and the
page can hide them. `draw_overlay` writes the same views into one PNG file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from autoseg.core.files import atomic_file
from autoseg.data.model import CLASS_COLORS
from autoseg.images.crop import Box
from autoseg.images.volume import Volume
from autoseg.planning.plan import Plan
from autoseg.report.charts import PALETTE_SIZE, Drawing

SHOWN_CHANNELS = 3
"""Of an image; more do not fit into a picture."""

PLANES = ("axial", "coronal", "sagittal")
"""Names of the planes perpendicular to z, y and x."""

COMMON_SCALE = "ct"
"""Normalization of channels whose intensities mean the same in every case."""

LARGEST_EDGE = 360
"""Pixels of the longest edge of a case's planes, of which three fit side by side on a page."""

LARGEST_EDGE_OF_PICTURES = 720
"""Pixels of the longer edge of an image of a single slice, which is shown alone."""

SMALLEST_EDGE = 64
GRAY_LEVELS = 64
"""Shades of the image; the eye tells no more apart on a screen, and a PNG of them is half as large (assumption)."""

_WINDOW_PERCENTILES = (0.5, 99.5)  # gray values drawn as black and white, of the voxels that are not zero
_MARGIN_SHARE = 0.4  # around the objects, of their extent along the axis
_LEAST_MARGIN_MM = 12.0
_SHRINK = 0.8
_BYTES_PER_POINT = 12  # of a contour: two coordinates with one decimal
_FEWEST_POINTS = 6  # of a contour that is made coarser
_LEAST_PATH_BYTES = 200  # so that one voxel is still outlined
_STRAIGHT = 1e-9
_OVERSAMPLING = 2  # lines in PNG files are drawn larger and then averaged, which smooths them
_TEXT_PIXELS = 26

Labels = NDArray[np.integer[Any]]
Gray = NDArray[np.float32]
Plane = tuple[int, int]  # axis it is perpendicular to, index along that axis
Contour = NDArray[np.float64]  # (n, 2) points y, x of a closed line, in pixels of its view


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

    @property
    def is_flat(self) -> bool:
        """Whether the image is a single slice."""
        return bool(self.image.shape[1] == 1)


def scan_of(image: Volume, predicted: Labels, reference: Labels | None, plan: Plan) -> Scan:
    """What is drawn of a case of a plan.

    Args:
        image: all channels.
        predicted: training values (z, y, x).
        reference: training values (z, y, x), or None.
        plan: classes, channels, and the range of intensities where these mean the same in every case.
    """
    schemes = next(iter(plan.configurations.values())).normalization
    return Scan(
        image=image.array,
        predicted=predicted,
        reference=reference,
        spacing_mm=image.geometry.spacing_mm,
        classes={name: plan.labels.classes[name] for name in plan.labels.foreground},
        channels=plan.channels,
        windows=[
            (own.percentile_00_5, own.percentile_99_5) if scheme == COMMON_SCALE else None
            for scheme, own in zip(schemes, plan.intensities, strict=False)
        ],
    )


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """One plane of one channel, cut to the objects.

    Attributes:
        title: case, plane and channel in words.
        gray: (rows, columns) in [0, 1], or (rows, columns, 3) of a color picture; the first row is the upper end.
        size: height and width in pixels.
        contours: (index of the class, "predicted" or "reference") -> its contours.
    """

    title: str
    gray: Gray
    size: tuple[float, float]
    contours: dict[tuple[int, str], list[Contour]]


def overlay(scan: Scan, name: str, most_bytes: int) -> Markup:
    """Vector pictures of a case, one per channel (at most three) and plane, one after the other.

    With a reference the planes are those with the most voxels that differ from it; otherwise those through the largest
    object that show most of all classes. What is far from every object is cut off.

    Args:
        scan: the case.
        name: of the case, for those who cannot see the pictures.
        most_bytes: that all pictures of the case may take; images become coarser to keep to it.
    """
    views = [view for row in _views(scan, name) for view in row]
    return Markup("").join(_as_vectors(view, list(scan.classes), most_bytes // len(views)) for view in views)


def draw_overlay(path: Path, scan: Scan, title: str) -> None:
    """Writes a PNG of what `overlay` shows: a row per channel, a column per plane, below the title the classes.

    Args:
        path: the PNG to write.
        scan: the case.
        title: written above.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows = [_side_by_side([_as_pixels(view) for view in row]) for row in _views(scan, title)]
    top = 2 * _TEXT_PIXELS
    size = max(row.width for row in rows), top + sum(row.height for row in rows)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT_PIXELS * 0.55)
    pen.text((6, 4), title, "black", font)
    x = 6.0
    for index, own in enumerate(scan.classes):
        pen.line([(x, 1.4 * _TEXT_PIXELS), (x + 16, 1.4 * _TEXT_PIXELS)], CLASS_COLORS[index % PALETTE_SIZE], 4)
        pen.text((x + 22, _TEXT_PIXELS), own, "black", font)
        x += 40 + pen.textlength(own, font)
    if scan.reference is not None:
        pen.text((x, _TEXT_PIXELS), "white: reference", "black", font)
    y = top
    for row in rows:
        sheet.paste(row, (0, y))
        y += row.height
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG")


def _views(scan: Scan, name: str) -> list[list[_View]]:
    """The views of a case: a row for each channel, a column for each plane."""
    is_color = len(scan.image) == 3 and scan.is_flat
    grays = [_gray(scan, index) for index in range(len(scan.image[:SHOWN_CHANNELS]))]
    shown = {"": np.stack(grays, axis=-1)} if is_color else {_channel(scan, i): gray for i, gray in enumerate(grays)}
    planes, box = _planes(scan), _box(scan)
    return [[_view(scan, gray, plane, box, name, channel) for plane in planes] for channel, gray in shown.items()]


def _view(scan: Scan, gray: Gray, plane: Plane, box: Box, name: str, channel: str) -> _View:
    axis, index = plane
    rows, columns = (slice(first, behind) for first, behind in box[:axis] + box[axis + 1 :])
    direction = 1 if axis == 0 else -1  # the other planes have z upwards
    size = _drawn_size(scan, axis, box)
    contours = {}
    for style, labels in (("predicted", scan.predicted), ("reference", scan.reference)):
        if labels is not None:
            cut = np.take(labels, index, axis)[rows, columns][::direction]
            for number, values in enumerate(scan.classes.values()):
                contours[number, style] = _contours(np.isin(cut, values), size)
    place = "" if scan.is_flat else f": {PLANES[axis]} plane {index + 1} of {scan.image.shape[axis + 1]}"
    return _View(f"{name}{place}{channel}", np.take(gray, index, axis)[rows, columns][::direction], size, contours)


def _gray(scan: Scan, channel: int) -> Gray:
    """Gray values in [0, 1]."""
    window = scan.windows[channel] if channel < len(scan.windows) else None
    low, high = window or _window(scan.image[channel])
    gray: Gray = np.clip((np.nan_to_num(scan.image[channel]) - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    return gray


def _window(channel: NDArray[np.float32]) -> tuple[float, float]:
    """Intensities drawn black and white: the extreme percentiles of the voxels that are not zero."""
    finite = channel[np.isfinite(channel) & (channel != 0)]
    low, high = np.percentile(finite, _WINDOW_PERCENTILES) if finite.size else (0.0, 1.0)
    if channel.min() >= 0:
        low = min(low, 0.25 * high)  # zero stays darker than everything measured
    return float(low), float(high)


def _channel(scan: Scan, index: int) -> str:
    if len(scan.image) == 1:
        return ""
    return f", {scan.channels[index]}" if index < len(scan.channels) else f", channel {index}"


def _planes(scan: Scan) -> list[Plane]:
    """For each axis the plane that shows most of the differences; without any, of the objects."""
    if scan.predicted is None or scan.reference is None:
        return _richest_planes(scan)
    known = [value for values in scan.classes.values() for value in values]
    differs = (scan.predicted != scan.reference) & np.isin(scan.reference, [0, *known])  # what is annotated
    if not differs.any():
        return _richest_planes(scan)
    axes = range(3) if differs.shape[0] > 1 else range(1)
    return [(axis, int(differs.sum(_other_axes(axis)).argmax())) for axis in axes]


def _richest_planes(scan: Scan) -> list[Plane]:
    """For each axis the plane through the largest object that shows most of all classes; the middle without objects."""
    from scipy.ndimage import find_objects, label

    shown = scan.objects
    objects, count = label(shown > 0)
    axes = range(3) if shown.shape[0] > 1 else range(1)
    if count == 0:
        return [(axis, shown.shape[axis] // 2) for axis in axes]
    box = find_objects(objects)[np.bincount(objects.ravel())[1:].argmax()]
    planes = []
    for axis in axes:
        areas = np.stack([np.isin(shown, values).sum(_other_axes(axis)) for values in scan.classes.values()])
        richness = (areas / np.maximum(areas.max(1, keepdims=True), 1)).sum(0)[box[axis]]
        planes.append((axis, int(box[axis].start + richness.argmax())))
    return planes


def _other_axes(axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(3) if other != axis)


def _box(scan: Scan) -> Box:
    """First voxel and the one behind the last of what is shown along each axis: the objects with a margin."""
    objects = np.isin(scan.objects, [value for values in scan.classes.values() for value in values])
    if not objects.any():
        return tuple((0, length) for length in objects.shape)
    box = []
    for axis, step_mm in enumerate(scan.spacing_mm):
        along = np.flatnonzero(objects.any(_other_axes(axis)))
        first, behind = int(along[0]), int(along[-1]) + 1
        margin = int(np.ceil(max(_MARGIN_SHARE * (behind - first), _LEAST_MARGIN_MM / step_mm)))
        box.append((max(first - margin, 0), min(behind + margin, objects.shape[axis])))
    return tuple(box)


def _drawn_size(scan: Scan, axis: int, box: Box) -> tuple[float, float]:
    """Height and width of a plane perpendicular to `axis`, in pixels."""
    extent = [(behind - first) * step for (first, behind), step in zip(box, scan.spacing_mm, strict=True)]
    # a single slice has no thickness
    scale = LARGEST_EDGE_OF_PICTURES / max(extent[1:]) if scan.is_flat else LARGEST_EDGE / max(extent)
    height, width = (length * scale for length in extent[:axis] + extent[axis + 1 :])
    return height, width


def _contours(mask: NDArray[np.bool_], size: tuple[float, float]) -> list[Contour]:
    from skimage import measure

    if not mask.any():
        return []
    find_contours: Any = measure.find_contours
    steps = [length / n for length, n in zip(size, mask.shape, strict=True)]
    # the center of the first voxel is half a voxel inside, and the mask has a border of one voxel
    return [_corners((contour - 0.5) * steps) for contour in find_contours(np.pad(mask, 1).astype(np.float32), 0.5)]


def _corners(contour: Contour) -> Contour:
    """The points of a closed contour at which it turns."""
    points = contour[:-1]
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    turns = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > _STRAIGHT
    return points[turns]


def _as_vectors(view: _View, classes: Sequence[str], most_bytes: int) -> Markup:
    height, width = view.size
    drawing = Drawing(width, height, view.title, "overlay")
    drawing.root.set("width", f"{width:.0f}")
    drawing.root.set("height", f"{height:.0f}")
    png = _png(view.gray, view.size, most_bytes // 2)
    drawing.add("image", width=width, height=height, preserveAspectRatio="none", href=png)
    for (number, style), path in zip(view.contours, _paths(view.contours.values(), most_bytes // 2), strict=True):
        if path:
            drawing.add("path", f"{style} k{number % PALETTE_SIZE}", f"{classes[number]}, {style}", d=path)
    return drawing.markup()


def _paths(contours: Iterable[Sequence[Contour]], most_bytes: int) -> list[str]:
    """Path data of the contours of each class; all coarser, and without the smallest pieces, where it gets too long."""
    contours = list(contours)
    points = sum(len(contour) for own in contours for contour in own)
    thinning = max(1, -(-_BYTES_PER_POINT * points // most_bytes))
    paths = []
    for own in contours:
        share = most_bytes * sum(map(len, own)) // max(points, 1)
        pieces = [_piece(contour, thinning) for contour in sorted(own, key=len, reverse=True)]
        kept = np.searchsorted(np.cumsum([len(piece) for piece in pieces]), max(share, _LEAST_PATH_BYTES), side="right")
        paths.append("".join(pieces[:kept]))
    return paths


def _piece(contour: Contour, thinning: int) -> str:
    thinned = contour[:: min(thinning, max(1, len(contour) // _FEWEST_POINTS))]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for y, x in thinned) + "Z"


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


def _side_by_side(panels: Sequence[Any]) -> Any:
    from PIL import Image

    row = Image.new("RGB", (sum(panel.width for panel in panels), max(panel.height for panel in panels)), "black")
    x = 0
    for panel in panels:
        row.paste(panel, (x, 0))
        x += panel.width
    return row


def _as_pixels(view: _View) -> Any:
    """The view as a Pillow image; predictions in color, references as thin white lines above."""
    from PIL import Image, ImageDraw

    height, width = (max(1, round(length)) for length in view.size)
    image = Image.fromarray((255 * view.gray).astype(np.uint8)).convert("RGB")
    large = image.resize((_OVERSAMPLING * width, _OVERSAMPLING * height), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(large)
    for (number, style), contours in view.contours.items():
        line = (CLASS_COLORS[number % PALETTE_SIZE], 2) if style == "predicted" else ("white", 1)
        for contour in contours:
            points = [(_OVERSAMPLING * x, _OVERSAMPLING * y) for y, x in (*contour, contour[0])]
            pen.line(points, line[0], _OVERSAMPLING * line[1], joint="curve")
    return large.resize((width, height), Image.Resampling.BOX)
