"""From logits to labels on the original grid, row by row: never all classes at full resolution at once.

Logits come as rows of the prepared grid (see `accumulate`). Each row of the original grid is interpolated between the
two rows next to it as soon as the second one is there, then within its plane, and decided at once: what is kept of it
is one byte per voxel, however many classes there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.core.geometry import Shape, Spacing
from autoseg.core.progress import Progress, silent
from autoseg.data.model import LabelSet
from autoseg.images.crop import slices
from autoseg.images.resample import axis_matrix, coarse_axis
from autoseg.inference.accumulate import LogitRows, allocate
from autoseg.inference.predictor import Predictor
from autoseg.inference.windows import Tiling
from autoseg.preprocessing.prepare import Placement

_LARGEST_BYTE = 255

TakeRow = Callable[[int, Tensor], None]
"""Gets the number of a row and the probabilities (heads, a, b) of its voxels; they are valid until the next row."""


@dataclass(frozen=True, slots=True)
class LinearInterpolation:
    """Linear or nearest interpolation along one axis: each output is `low + fraction * (high - low)`.

    Attributes:
        low: index of the first input voxel of each output voxel.
        high: index of the second; equal to `low` where only one counts.
        fraction: weight of the second, float32 in [0, 1].
    """

    low: Tensor
    high: Tensor
    fraction: Tensor

    def apply(self, plane: Tensor, axis: int) -> Tensor:
        """The plane (a, b) interpolated along its axis 0 or 1."""
        fraction = self.fraction[:, None] if axis == 0 else self.fraction
        return torch.lerp(plane.index_select(axis, self.low), plane.index_select(axis, self.high), fraction)


def interpolation(n_in: int, n_out: int, order: int, device: torch.device | str = "cpu") -> LinearInterpolation | None:
    """Which two of `n_in` voxels make each of `n_out` voxels, or None if nothing changes along this axis."""
    if n_in == n_out:
        return None
    matrix = axis_matrix(n_in, n_out, order)
    low = (matrix > 0).argmax(axis=1)
    high = np.minimum(low + 1, n_in - 1)
    fraction = np.where(high > low, matrix[np.arange(n_out), high], 0)
    high = np.where(fraction > 0, high, low)
    return LinearInterpolation(
        torch.from_numpy(low).to(device),
        torch.from_numpy(high).to(device),
        torch.from_numpy(fraction.astype(np.float32)).to(device),
    )


def interpolation_orders(spacing_mm: Spacing, target_mm: Spacing) -> tuple[int, ...]:
    """Order of the interpolation of logits along z, y, x: 1, or 0 along a coarse axis.

    Source: nnU-Net v2 default_resampling.py (probabilities: order 1, order_z 0, separate-z rule).
    """
    coarse = coarse_axis(spacing_mm, target_mm)
    return tuple(0 if axis == coarse else 1 for axis in range(3))


def resampled_rows(
    rows: Iterable[LogitRows], tiling: Tiling, shape: Shape, orders: tuple[int, ...]
) -> Iterator[Iterator[Tensor]]:
    """For each row of the resampled volume the planes (a, b) of its logits, one per head, made when asked for.

    Args:
        rows: all rows in order, as `Predictor.rows` gives them.
        tiling: the tiling they come from: their shape and direction.
        shape: voxels (z, y, x) of the result; its rows lie along the tiling's rolling axis.
        orders: interpolation order along z, y, x.
    """
    axis, *plane_axes = tiling.rolled_axes
    within: list[LinearInterpolation | None] | None = None
    for planes in _along_rows(rows, interpolation(tiling.shape[axis], shape[axis], orders[axis])):
        if within is None:  # made late, because only now the device is known
            within = [interpolation(tiling.shape[o], shape[o], orders[o], planes.device) for o in plane_axes]
        yield _within_planes(planes, *within)


def _along_rows(rows: Iterable[LogitRows], along: LinearInterpolation | None) -> Iterator[Tensor]:
    """Logits (heads, a, b) of each row of the result, interpolated along the rolling axis alone."""
    if along is None:
        for block in rows:
            yield from block.values
        return
    below: Tensor | None = None  # the last row seen, copied because the ring that it came from is reused
    wanted = list(zip(along.low.tolist(), along.high.tolist(), along.fraction.tolist(), strict=True))
    position = 0
    for block in rows:
        for index, current in enumerate(block.values, start=block.start):
            # an output row is due once the upper of its two input rows is there; several may lie between the same two
            while position < len(wanted) and wanted[position][1] <= index:
                low, _, fraction = wanted[position]
                lower = current if low == index else below
                assert lower is not None, "the two rows are neighbors, so the lower one was the row before"
                yield current if low == index else torch.lerp(lower, current, fraction)
                position += 1
            below = current.clone()


def _within_planes(
    planes: Tensor, first: LinearInterpolation | None, second: LinearInterpolation | None
) -> Iterator[Tensor]:
    for plane in planes:
        narrow = plane if second is None else second.apply(plane, 1)
        yield narrow if first is None else first.apply(narrow, 0)


def labels_of_rows(
    rows: Iterable[Iterable[Tensor]], rolling_axis: int, shape: Shape, labels: LabelSet
) -> NDArray[np.integer]:
    """Training values (z, y, x) decided from rows of planes (a, b), one per head, as they come.

    Args:
        rows: along the rolling axis, as `resampled_rows` gives them.
        rolling_axis: axis of the result along which they come.
        shape: voxels (z, y, x) of the result.
        labels: decides between softmax (largest logit) and sigmoid (regions painted in their order).
    """
    decided = np.zeros(shape, dtype=label_kind(labels))
    rolled = np.moveaxis(decided, rolling_axis, 0)
    for index, planes in enumerate(rows):
        rolled[index] = labels_of_planes(iter(planes), labels).cpu().numpy()
    return decided


def predict_case(
    predictor: Predictor,
    image: NDArray[np.float32],
    placement: Placement,
    labels: LabelSet,
    take_row: TakeRow | None = None,
    progress: Progress = silent,
) -> NDArray[np.integer]:
    """Training values (z, y, x) on the grid of the file that the image was read from.

    Args:
        predictor: networks and how to apply them.
        image: prepared (c, z, y, x), as preprocessing returns it.
        placement: what preprocessing did to the case.
        labels: classes of the plan.
        take_row: gets all rows of the crop (`placement.cropped_shape`, axes in the plan's order) along
            `predictor.tiling(shape).rolling_axis`, in order: probabilities (heads, a, b) by softmax, or by sigmoid
            where there are regions. All heads of a row are then in memory together.
        progress: called with finished and all tiles.

    Raises:
        NonFiniteLogits: a network returned an infinite or undefined value.
    """
    tiling, shape = predictor.tiling(image.shape[1:]), placement.cropped_shape
    orders = interpolation_orders(placement.prepared_spacing_mm, placement.cropped_spacing_mm)
    rows: Iterator[Iterable[Tensor]] = resampled_rows(predictor.rows(image, progress), tiling, shape, orders)
    if take_row is not None:
        rows = _handed_on(rows, labels, take_row)
    return placement.restore_labels(labels_of_rows(rows, tiling.rolling_axis, shape, labels))


def _handed_on(rows: Iterable[Iterable[Tensor]], labels: LabelSet, take_row: TakeRow) -> Iterator[Tensor]:
    for index, planes in enumerate(rows):
        logits = torch.stack(list(planes))
        take_row(index, logits.sigmoid() if labels.has_regions else logits.softmax(0))
        yield logits


def predict_case_probabilities(
    predictor: Predictor,
    image: NDArray[np.float32],
    placement: Placement,
    labels: LabelSet,
    progress: Progress = silent,
) -> tuple[NDArray[np.integer], NDArray[np.float16]]:
    """Training values (z, y, x) as of `predict_case`, and probabilities (heads, z, y, x) on the grid of the file.

    What the tiles leave of the memory that the predictor may take is theirs; where that is too little, they are mapped
    from a file.
    """
    shape, most = image.shape[1:], predictor.max_slab_bytes
    left = None if most is None else max(0, most - predictor.slab_bytes(shape))
    probabilities, inside = probabilities_outside(placement, labels, left, predictor.scratch)
    rolled = np.moveaxis(inside, predictor.tiling(shape).rolling_axis + 1, 0)

    def take_row(index: int, row: Tensor) -> None:
        rolled[index] = row.to("cpu", torch.float16).numpy()

    return predict_case(predictor, image, placement, labels, take_row, progress), probabilities


def probabilities_outside(
    placement: Placement, labels: LabelSet, most_bytes: int | None = None, scratch: Path | None = None
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Probabilities (heads, z, y, x) on the grid of the file, and a view of those inside the crop, still to be filled.

    Outside the crop the background is certain; regions have no background head and are 0 there. The view has the axes
    of the plan. What takes more than `most_bytes` of memory is a file in `scratch`, which vanishes with the array.
    """
    shape = (labels.head_count, *placement.geometry.shape)
    probabilities: NDArray[np.float16] = allocate(
        shape, torch.device("cpu"), most_bytes, scratch, torch.float16
    ).numpy()
    probabilities[0] = 0 if labels.has_regions else 1
    return probabilities, placement.in_plan_order(probabilities)[slices(placement.box)]


def label_kind(labels: LabelSet) -> type[np.integer]:
    """The integer type that decided label maps have."""
    return np.uint8 if labels.largest_value <= _LARGEST_BYTE else np.int32


def labels_of_planes(planes: Iterator[Tensor], labels: LabelSet) -> Tensor:
    """Training values (a, b) of one row, decided from its planes of logits (a, b), one per head.

    Args:
        planes: with softmax any values of which the largest wins; with regions positive where a region is.
        labels: decides between softmax (largest) and sigmoid (regions painted in their order).
    """
    return _painted_regions(planes, labels) if labels.has_regions else _largest(planes, labels)


def _largest(planes: Iterator[Tensor], labels: LabelSet) -> Tensor:
    """Index of the largest of the planes at each pixel, the first of equal ones, by a running comparison."""
    best = next(planes).clone()
    kind = torch.uint8 if labels.largest_value <= _LARGEST_BYTE else torch.int32
    winner = torch.zeros(best.shape, dtype=kind, device=best.device)
    for head, plane in enumerate(planes, start=1):
        winner.masked_fill_(plane > best, head)
        torch.maximum(best, plane, out=best)
    return winner


def _painted_regions(planes: Iterator[Tensor], labels: LabelSet) -> Tensor:
    """Regions whose probability exceeds one half (logit above 0), painted in declared order, later over earlier."""
    painted: Tensor | None = None
    for value, plane in zip(labels.regions_class_order, planes, strict=True):
        if painted is None:
            painted = torch.zeros(plane.shape, dtype=torch.int32, device=plane.device)
        painted.masked_fill_(plane > 0, value)
    assert painted is not None, "a dataset with regions has at least one"
    return painted
