"""Pictures: segmentations drawn over images, and learning curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.files import atomic_file

CLASS_COLORS = ("#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#F0E442", "#0072B2", "#D55E00")
"""Okabe and Ito's palette, told apart with every common color blindness; the brightest first, as images are dark."""

DOTS_PER_INCH = 110

SHOWN_CHANNELS = 3
"""Of an image; more do not fit into a picture."""

PLANES = ("axial", "coronal", "sagittal")
"""Names of the planes perpendicular to z, y and x."""

_WINDOW_PERCENTILES = (0.5, 99.5)  # gray values drawn as black and white, of the voxels that are not zero
_FIGURE_WIDTH_INCHES = 10.0
_LARGEST_PANEL_INCHES = 5.0
_DASHED = (0, (2.5, 2.5))

Labels = NDArray[np.integer[Any]]
Plane = tuple[int, int]  # axis it is perpendicular to, index along that axis


@dataclass(frozen=True, slots=True)
class _Scene:
    """What is drawn: training values per drawn class, label maps (z, y, x), spacing."""

    classes: dict[str, tuple[int, ...]]
    labels: Labels
    reference: Labels | None
    spacing_mm: tuple[float, ...]

    @property
    def colors(self) -> dict[str, str]:
        """Color of each class."""
        return dict(zip(self.classes, islice(cycle(CLASS_COLORS), len(self.classes)), strict=True))

    def size_mm(self, axis: int) -> tuple[float, float]:
        """Height and width of a plane perpendicular to `axis`."""
        extent_mm = [n * step for n, step in zip(self.labels.shape, self.spacing_mm, strict=True)]
        height, width = extent_mm[:axis] + extent_mm[axis + 1 :]
        return height, width


def draw_overlay(
    path: Path,
    image: NDArray[np.float32],
    labels: Labels,
    spacing_mm: Sequence[float],
    classes: Mapping[str, Sequence[int]],
    reference: Labels | None = None,
    channels: Sequence[str] = (),
    title: str = "",
) -> None:
    """Draws contours of a prediction, and of its reference if there is one, over the image; writes a PNG.

    One row per channel (at most three; three channels of a single slice are drawn as one color picture), one column
    per plane through the largest object, in true proportions. An image of a single slice has one column.

    Args:
        path: the PNG to write.
        image: (c, z, y, x).
        labels: predicted training values (z, y, x).
        spacing_mm: along z, y, x.
        classes: class name -> training values; the background, (0,), is left out.
        reference: training values (z, y, x), or None.
        channels: their names, written beside the rows.
        title: written above the panels.
    """
    drawn = {name: tuple(values) for name, values in classes.items() if tuple(values) != (0,)}
    scene = _Scene(drawn, labels, reference, tuple(spacing_mm))
    shown = labels if reference is None or not reference.any() else reference
    planes = richest_planes(shown, drawn.values())
    rows = _pictures(image, channels)
    figure, grid = _new_figure(scene, planes, len(rows), title)
    for row, (name, picture) in zip(grid, rows.items(), strict=True):
        row[0].set_ylabel(name, fontsize=9)
        for panel, (axis, index) in zip(row, planes, strict=True):
            _draw_plane(panel, np.take(picture, index, axis), scene, (axis, index))
    if len(planes) > 1:
        for panel, (axis, index) in zip(grid[0], planes, strict=True):
            panel.set_title(f"{PLANES[axis]} plane {index}", fontsize=9)
    _add_legend(figure, scene)
    _save(figure, path)


def richest_planes(shown: Labels, classes: Iterable[Sequence[int]]) -> list[Plane]:
    """For each axis the plane through the largest object that shows most of all classes; the middle without objects.

    Args:
        shown: training values (z, y, x); a single slice has one plane.
        classes: training values of each class drawn.
    """
    from scipy.ndimage import find_objects, label

    objects, count = label(shown > 0)
    axes = range(3) if shown.shape[0] > 1 else range(1)
    if count == 0:
        return [(axis, shown.shape[axis] // 2) for axis in axes]
    drawn = [tuple(values) for values in classes]
    box = find_objects(objects)[np.bincount(objects.ravel())[1:].argmax()]
    planes = []
    for axis in axes:
        others = tuple(i for i in range(3) if i != axis)
        areas = np.stack([np.isin(shown, values).sum(others) for values in drawn])
        richness = (areas / np.maximum(areas.max(1, keepdims=True), 1)).sum(0)[box[axis]]
        planes.append((axis, int(box[axis].start + richness.argmax())))
    return planes


def _pictures(image: NDArray[np.float32], channels: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Name and gray values in [0, 1] of each row to draw; a trailing axis of three holds colors."""
    shown = [windowed(channel) for channel in image[:SHOWN_CHANNELS]]
    if len(image) == 3 and image.shape[1] == 1:
        return {"": np.stack(shown, axis=-1)}
    names = [f"{index}: {name}" for index, name in enumerate(channels)] or [f"channel {i}" for i in range(len(image))]
    return dict(zip(names, shown, strict=False))


def windowed(channel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gray values in [0, 1]: black and white are the extreme percentiles of the voxels that are not zero."""
    finite = channel[np.isfinite(channel) & (channel != 0)]
    low, high = np.percentile(finite, _WINDOW_PERCENTILES) if finite.size else (0.0, 1.0)
    if channel.min() >= 0:
        low = min(low, 0.25 * high)  # zero stays darker than everything measured
    return np.clip((np.nan_to_num(channel) - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


def _draw_plane(panel: Any, picture: NDArray[np.float32], scene: _Scene, plane: Plane) -> None:
    axis, index = plane
    height, width = scene.size_mm(axis)
    panel.imshow(picture, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0), interpolation="nearest")
    for name, values in scene.classes.items():
        predicted = np.isin(np.take(scene.labels, index, axis), values)
        _draw_outline(panel, predicted, (height, width), color=scene.colors[name], linewidth=1.8)
    if scene.reference is not None:
        for values in scene.classes.values():
            referred = np.isin(np.take(scene.reference, index, axis), values)
            _draw_outline(panel, referred, (height, width), color="black", linewidth=1.0)
            _draw_outline(panel, referred, (height, width), color="white", linewidth=1.0, linestyle=_DASHED)
    panel.set(xlim=(0, width), ylim=(height, 0) if axis == 0 else (0, height), xticks=[], yticks=[])


def _draw_outline(
    panel: Any,
    mask: NDArray[np.bool_],
    size_mm: tuple[float, float],
    color: str,
    linewidth: float,
    linestyle: str | tuple[int, tuple[float, ...]] = "solid",
) -> None:
    if not mask.any():
        return
    steps = [extent / n for extent, n in zip(size_mm, mask.shape, strict=True)]
    y_mm, x_mm = ((np.arange(-1, n + 1) + 0.5) * step for n, step in zip(mask.shape, steps, strict=True))
    style = {"colors": [color], "linewidths": linewidth, "linestyles": [linestyle]}
    panel.contour(x_mm, y_mm, np.pad(mask, 1), levels=[0.5], **style)


def _new_figure(scene: _Scene, planes: Sequence[Plane], rows: int, title: str) -> tuple[Any, Any]:
    """An empty figure and its panels (rows x planes), every panel with one scale in inches per millimeter."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights, widths = zip(*(scene.size_mm(axis) for axis, _ in planes), strict=True)
    inches_per_mm = min(_FIGURE_WIDTH_INCHES / sum(widths), _LARGEST_PANEL_INCHES / max(*heights, *widths))
    size = (max(inches_per_mm * sum(widths), 4.0) + 0.5, rows * inches_per_mm * max(heights) + 1.1)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure, figure.subplots(rows, len(planes), squeeze=False, width_ratios=widths)


def _add_legend(figure: Any, scene: _Scene) -> None:
    from matplotlib.lines import Line2D

    entries: list[Any] = [Line2D([], [], color=color, linewidth=2) for color in scene.colors.values()]
    names = list(scene.classes)
    if scene.reference is not None:
        entries.append((Line2D([], [], color="black"), Line2D([], [], color="white", linestyle=_DASHED)))
        names.append("reference")
    figure.legend(entries, names, loc="outside lower center", ncols=min(len(entries), 6), fontsize=9, frameon=False)


def _save(figure: Any, path: Path) -> None:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
