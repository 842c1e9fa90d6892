"""From logits to labels on the original grid, row by row: never all classes at full resolution at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.core.geometry import Shape, Spacing
from autoseg.core.progress import Progress, silent
from autoseg.data.model import LabelSet
from autoseg.images.crop import slices
from autoseg.images.resample import axis_matrix, coarse_axis
from autoseg.inference.accumulate import LogitRows, Tiling
from autoseg.inference.predictor import Predictor
from autoseg.preprocessing.prepare import Placement

_LARGEST_BYTE = 255


@dataclass(frozen=True, slots=True)
class Taps:
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


def axis_taps(n_in: int, n_out: int, order: int, device: torch.device | str = "cpu") -> Taps | None:
    """Which two input voxels make each output voxel, or None if nothing changes along this axis."""
    if n_in == n_out:
        return None
    matrix = axis_matrix(n_in, n_out, order)
    low = (matrix > 0).argmax(axis=1)
    high = np.minimum(low + 1, n_in - 1)
    fraction = np.where(high > low, matrix[np.arange(n_out), high], 0)
    high = np.where(fraction > 0, high, low)
    return Taps(
        torch.from_numpy(low).to(device),
        torch.from_numpy(high).to(device),
        torch.from_numpy(fraction.astype(np.float32)).to(device),
    )


@dataclass(frozen=True, slots=True)
class Resampling:
    """How a volume of logits becomes one of another shape.

    Attributes:
        shape: voxels (z, y, x) of the result.
        orders: interpolation order along z, y, x: 1, or 0 along a coarse axis.

    Source: nnU-Net v2 default_resampling.py (probabilities: order 1, order_z 0, separate-z rule).
    """

    shape: Shape
    orders: tuple[int, ...]


def resampling_of_logits(shape: Shape, spacing_mm: Spacing, target_mm: Spacing) -> Resampling:
    """The resampling of logits at `spacing_mm` to `shape` voxels at `target_mm`."""
    coarse = coarse_axis(spacing_mm, target_mm)
    return Resampling(tuple(shape), tuple(0 if axis == coarse else 1 for axis in range(3)))


Decide = Callable[[Iterator[Tensor]], Tensor]
"""Turns the planes (a, b) of one row, one per head and each at full resolution, into what is kept of the row."""


def labels_of_rows(
    rows: Iterable[LogitRows], tiling: Tiling, resampling: Resampling, labels: LabelSet
) -> NDArray[np.integer]:
    """Training values (z, y, x) decided from rows of logits as they come.

    Args:
        rows: all rows in order, as `Predictor.rows` gives them.
        tiling: the tiling they come from: their shape and direction.
        resampling: to the grid that the labels shall have.
        labels: decides between softmax (largest logit) and sigmoid (regions painted in their order).
    """
    decided = np.zeros(resampling.shape, dtype=label_kind(labels))
    rolled = np.moveaxis(decided, tiling.rolling_axis, 0)
    for index, kept in enumerate(_decided_rows(rows, tiling, resampling, partial(labels_of_planes, labels=labels))):
        rolled[index] = kept.cpu().numpy()
    return decided


def predict_case(
    predictor: Predictor,
    image: NDArray[np.float32],
    placement: Placement,
    labels: LabelSet,
    progress: Progress = silent,
) -> NDArray[np.integer]:
    """Training values (z, y, x) on the grid of the file that the image was read from.

    Args:
        predictor: networks and how to apply them.
        image: prepared (c, z, y, x), as preprocessing returns it.
        placement: what preprocessing did to the case.
        labels: classes of the plan.
        progress: told about finished tiles.

    Raises:
        NonFiniteLogits: a network returned an infinite or undefined value.
    """
    rows = predictor.rows(image, progress)
    tiling = predictor.tiling(image.shape[1:])
    return placement.restore_labels(labels_of_rows(rows, tiling, _resampling_of(placement), labels))


TakeRow = Callable[[int, Tensor], None]
"""Given the number of a row and the probabilities (heads, a, b) of its voxels, as they come."""


def predict_case_rows(
    predictor: Predictor,
    image: NDArray[np.float32],
    placement: Placement,
    labels: LabelSet,
    take_row: TakeRow,
    progress: Progress = silent,
) -> NDArray[np.integer]:
    """Training values (z, y, x) on the grid of the file; the probabilities behind them are handed on row by row.

    Args:
        predictor: networks and how to apply them.
        image: prepared (c, z, y, x), as preprocessing returns it.
        placement: what preprocessing did to the case.
        labels: classes of the plan.
        take_row: gets all rows of the crop (`placement.cropped_shape`, axes in the plan's order) along
            `predictor.tiling(shape).rolling_axis`, in order: probabilities (heads, a, b) by softmax, or by sigmoid
            where there are regions. Valid until the next row.
        progress: told about finished tiles.

    Raises:
        NonFiniteLogits: a network returned an infinite or undefined value.
    """
    tiling = predictor.tiling(image.shape[1:])
    decided = np.zeros(placement.cropped_shape, dtype=label_kind(labels))
    rolled = np.moveaxis(decided, tiling.rolling_axis, 0)
    rows = predictor.rows(image, progress)
    for index, planes in enumerate(_decided_rows(rows, tiling, _resampling_of(placement), _all_planes)):
        rolled[index] = labels_of_planes(iter(planes), labels).cpu().numpy()
        take_row(index, planes.sigmoid() if labels.has_regions else planes.softmax(0))
    return placement.restore_labels(decided)


def predict_case_probabilities(
    predictor: Predictor,
    image: NDArray[np.float32],
    placement: Placement,
    labels: LabelSet,
    progress: Progress = silent,
) -> tuple[NDArray[np.integer], NDArray[np.float16]]:
    """Training values (z, y, x) and probabilities (heads, z, y, x) on the grid of the file.

    The labels are those of `predict_case`. Outside the crop the background is certain; regions have no background
    head and are 0 there. All heads at full resolution are held in memory, in half precision.

    Args:
        predictor: networks and how to apply them.
        image: prepared (c, z, y, x), as preprocessing returns it.
        placement: what preprocessing did to the case.
        labels: classes of the plan.
        progress: told about finished tiles.
    """
    probabilities = np.zeros((predictor.heads, *placement.geometry.shape), dtype=np.float16)
    probabilities[0] = 0 if labels.has_regions else 1
    in_plan_order = probabilities.transpose(0, *(axis + 1 for axis in placement.axis_order))
    inside = in_plan_order[slices(placement.box)]
    rolled = np.moveaxis(inside, predictor.tiling(image.shape[1:]).rolling_axis + 1, 0)

    def take_row(index: int, row: Tensor) -> None:
        rolled[index] = row.to("cpu", torch.float16).numpy()

    return predict_case_rows(predictor, image, placement, labels, take_row, progress), probabilities


def _resampling_of(placement: Placement) -> Resampling:
    spacings = placement.prepared_spacing_mm, placement.cropped_spacing_mm
    return resampling_of_logits(placement.cropped_shape, *spacings)


def label_kind(labels: LabelSet) -> type[np.integer]:
    """The integer type that decided label maps have."""
    return np.uint8 if labels.largest_value <= _LARGEST_BYTE else np.int32


def _decided_rows(
    rows: Iterable[LogitRows], tiling: Tiling, resampling: Resampling, decide: Decide
) -> Iterator[Tensor]:
    """What `decide` makes of each row of the result along the rolling axis."""
    _, first, second = tiling.rolled_axes
    taps: tuple[Taps | None, Taps | None] | None = None
    for planes in _resampled_rows(rows, tiling, resampling):
        if taps is None:
            taps = (
                axis_taps(tiling.shape[first], resampling.shape[first], resampling.orders[first], planes.device),
                axis_taps(tiling.shape[second], resampling.shape[second], resampling.orders[second], planes.device),
            )
        yield decide(_resampled_planes(planes, taps))


def _resampled_rows(rows: Iterable[LogitRows], tiling: Tiling, resampling: Resampling) -> Iterator[Tensor]:
    """Logits (heads, a, b) of each row of the result, resampled along the rolling axis alone."""
    axis = tiling.rolling_axis
    taps = axis_taps(tiling.shape[axis], resampling.shape[axis], resampling.orders[axis])
    if taps is None:
        for block in rows:
            yield from block.values
        return
    below: Tensor | None = None  # the last row seen, kept because the ring that it came from is reused
    outputs = list(zip(taps.low.tolist(), taps.high.tolist(), taps.fraction.tolist(), strict=True))
    position = 0
    for block in rows:
        for index, current in enumerate(block.values, start=block.start):
            while position < len(outputs) and outputs[position][1] <= index:
                low, _, fraction = outputs[position]
                lower = current if low == index else below
                assert lower is not None, "taps are neighbors, so the lower one was the row before"
                yield current if low == index else torch.lerp(lower, current, fraction)
                position += 1
            below = current.clone()


def _resampled_planes(planes: Tensor, taps: tuple[Taps | None, Taps | None]) -> Iterator[Tensor]:
    for plane in planes:
        narrow = plane if taps[1] is None else taps[1].apply(plane, 1)
        yield narrow if taps[0] is None else taps[0].apply(narrow, 0)


def _all_planes(planes: Iterator[Tensor]) -> Tensor:
    return torch.stack(list(planes))


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
