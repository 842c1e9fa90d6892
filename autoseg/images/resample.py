"""Resampling to another spacing, equal to nnU-Net's, as small matrix products along each axis.

Spline interpolation on a grid is separable and linear, so along one axis it is a matrix (voxels out x voxels in) that
depends on the two lengths alone. The matrices are read off scipy by letting it interpolate unit lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ANISOTROPY_THRESHOLD = 3.0
"""Largest / smallest spacing above which the coarsest axis is resampled apart. Source: nnU-Net v2 configuration.py."""

IMAGE_ORDER = 3
COARSE_ORDER = 0
"""Spline orders; across the slices of a coarse axis the nearest slice is taken. Source: nnU-Net v2 default planner."""

_NEGLIGIBLE_WEIGHT = 1e-10
"""Spline weights decay by a factor of 3.7 per voxel; below this they change no bit of a float32 result."""

_BAND_ROWS = 64
_BOUNDARY_BLOCK = 1 << 18

Shape3 = tuple[int, ...]


def resampled_shape(shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]) -> Shape3:
    """Voxels along each axis after resampling; at least one.

    Source: nnU-Net v2 preprocessing/resampling/default_resampling.py.
    """
    axes = zip(shape, spacing_mm, target_mm, strict=True)
    return tuple(max(1, round(spacing / target * voxels)) for voxels, spacing, target in axes)


def coarse_axis(spacing_mm: Sequence[float], target_mm: Sequence[float]) -> int | None:
    """The axis whose slices are too far apart to interpolate between, or None.

    The axis of the largest spacing, if that is more than three times the smallest, looking at the present spacing
    first and at the target only if the present one is not anisotropic. Two equally coarse axes count as none.

    Source: nnU-Net v2 preprocessing/resampling/default_resampling.py.
    """
    for spacing in (spacing_mm, target_mm):
        if max(spacing) / min(spacing) > ANISOTROPY_THRESHOLD:
            coarse = [axis for axis, value in enumerate(spacing) if value == max(spacing)]
            return coarse[0] if len(coarse) == 1 else None
    return None


@lru_cache(maxsize=256)
def axis_matrix(n_in: int, n_out: int, order: int) -> NDArray[np.float64]:
    """The matrix (n_out, n_in) that interpolates a line of `n_in` voxels at `n_out`; read-only.

    Voxels are cells: both lines span the same extent, and voxel i of the result lies at (i + 0.5) * n_in / n_out - 0.5.
    Beyond the ends the last voxel is repeated.

    Args:
        n_in: voxels before.
        n_out: voxels after.
        order: of the spline: 0 nearest, 1 linear or 3 cubic.

    Source: skimage.transform.resize (mode "edge"), which is scipy.ndimage.zoom in grid mode.
    """
    if n_in == n_out:
        matrix: NDArray[np.float64] = np.eye(n_in)
    elif order == IMAGE_ORDER:
        matrix = _cubic_matrix(n_in, n_out)
    else:
        from scipy import ndimage  # 0.15 s of imports that planning does not need

        matrix = ndimage.zoom(np.eye(n_in), (n_out / n_in, 1), order=order, mode="nearest", grid_mode=True)
    matrix.setflags(write=False)
    return matrix


def _cubic_matrix(n_in: int, n_out: int) -> NDArray[np.float64]:
    """Cubic B-spline interpolation of unit lines: scipy's prefilter, then the four basis weights of each position."""
    from scipy import ndimage

    edge = 12  # voxels by which scipy repeats both ends before it filters
    coefficients = ndimage.spline_filter1d(np.pad(np.eye(n_in), ((edge, edge), (0, 0)), mode="edge"), 3, axis=0)
    positions = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5 + edge
    first = np.floor(positions).astype(np.intp) - 1
    t = positions - np.floor(positions)
    weights = ((1 - t) ** 3 / 6, (4 - 6 * t**2 + 3 * t**3) / 6, (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6, t**3 / 6)
    matrix = np.zeros((n_out, n_in))
    for offset, weight in enumerate(weights):
        matrix += weight[:, None] * coefficients[first + offset]
    return matrix


def resample_image(
    image: NDArray[np.float32],
    new_shape: Sequence[int],
    spacing_mm: Sequence[float],
    target_mm: Sequence[float],
    order: int = IMAGE_ORDER,
) -> NDArray[np.float32]:
    """The image on a grid of `new_shape` voxels, each channel on its own, within the range of its input.

    Args:
        image: (c, z, y, x).
        new_shape: voxels (z, y, x); usually `resampled_shape`.
        spacing_mm: present spacing (z, y, x).
        target_mm: spacing of the result; together they decide whether slices are resampled apart.
        order: spline order: 3 for intensities, 1 for probabilities and logits.

    Raises:
        FloatingPointError: a number is not finite, or does not stay so.

    Source: nnU-Net v2 preprocessing/resampling/default_resampling.py.
    """
    if image.shape[1:] == tuple(new_shape):
        return image
    coarse = coarse_axis(spacing_mm, target_mm)
    resampled = np.empty((image.shape[0], *new_shape), np.float32)
    for channel, result in zip(image, resampled, strict=True):
        result[...] = _resample_channel(channel, tuple(new_shape), coarse, order)
    return resampled


def _resample_channel(
    channel: NDArray[np.float32], new_shape: Shape3, coarse: int | None, order: int
) -> NDArray[np.float32]:
    if coarse is not None:
        channel = channel.take(_nearest(channel.shape[coarse], new_shape[coarse]), axis=coarse)
    within = tuple(axis for axis in range(3) if axis != coarse)
    lowest, highest = channel.min(axis=within, keepdims=True), channel.max(axis=within, keepdims=True)
    resampled: NDArray[np.float32] = np.ascontiguousarray(channel, np.float32)
    for axis in sorted(within, key=lambda axis: new_shape[axis] / channel.shape[axis]):  # shrink first, it is cheaper
        if new_shape[axis] != resampled.shape[axis]:
            resampled = _interpolate(resampled, axis, new_shape[axis], order)
    if not (np.isfinite(resampled.min()) and np.isfinite(resampled.max())):  # clipping would hide an infinite one
        raise FloatingPointError("interpolation leaves the range of single precision")
    np.clip(resampled, lowest, highest, out=resampled)
    return resampled


class _Band(NamedTuple):
    """Some neighboring rows of an axis matrix and the only columns in which they are not zero."""

    rows: slice
    columns: slice
    weights: NDArray[np.float32]


@lru_cache(maxsize=256)
def _bands(n_in: int, n_out: int, order: int) -> tuple[_Band, ...]:
    matrix = axis_matrix(n_in, n_out, order)
    bands = []
    for first in range(0, n_out, _BAND_ROWS):
        rows = slice(first, min(first + _BAND_ROWS, n_out))
        used = np.flatnonzero(np.abs(matrix[rows]).max(axis=0) > _NEGLIGIBLE_WEIGHT)
        columns = slice(int(used[0]), int(used[-1]) + 1)
        bands.append(_Band(rows, columns, matrix[rows, columns].astype(np.float32)))
    return tuple(bands)


def _interpolate(volume: NDArray[np.float32], axis: int, n_out: int, order: int) -> NDArray[np.float32]:
    """The contiguous volume (z, y, x) interpolated along one axis, in one matrix product per band."""
    shape = (*volume.shape[:axis], n_out, *volume.shape[axis + 1 :])
    result = np.empty(shape, np.float32)
    # (before, axis, after): with nothing after, the axis is the last one and rows multiply from the right
    lines, target = (array.reshape(-1, array.shape[axis], _size_after(array, axis)) for array in (volume, result))
    with np.errstate(over="ignore", invalid="ignore"):  # BLAS sets flags for lanes that it fills up and does not use
        for rows, columns, weights in _bands(volume.shape[axis], n_out, order):
            if axis == 2:
                np.matmul(lines[:, columns, 0], weights.T, out=target[:, rows, 0])
            else:
                np.matmul(weights, lines[:, columns], out=target[:, rows])
    return result


def _size_after(array: NDArray[Any], axis: int) -> int:
    return int(np.prod(array.shape[axis + 1 :], dtype=np.int64))


def _nearest(n_in: int, n_out: int) -> NDArray[np.intp]:
    """The input voxel nearest to each output voxel."""
    nearest: NDArray[np.intp] = axis_matrix(n_in, n_out, COARSE_ORDER).argmax(axis=1)
    return nearest


class _Cells(NamedTuple):
    """For each output voxel along one axis: the two input voxels around it and their linear weights."""

    below: NDArray[np.intp]
    above: NDArray[np.intp]
    weight_below: NDArray[np.float64]
    weight_above: NDArray[np.float64]


def _cells(n_in: int, n_out: int) -> _Cells:
    matrix = axis_matrix(n_in, n_out, 1)
    below = (matrix > 0).argmax(axis=1)
    above = np.minimum(below + 1, n_in - 1)
    rows = np.arange(n_out)
    weight_below = matrix[rows, below]
    weight_above = np.where(above > below, matrix[rows, above], 0.0)
    return _Cells(below, above, weight_below, weight_above)


def resample_labels(
    labels: NDArray[Any], new_shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]
) -> NDArray[Any]:
    """The label map on a grid of `new_shape` voxels, without values that it did not hold.

    Each label's indicator is interpolated linearly and the largest wins; equal ones are settled by the nearest voxel
    if its label is among them, otherwise by the smallest label. Along a coarse axis the nearest slice is taken.
    Where all voxels around agree, there is nothing to interpolate: only voxels at boundaries are computed, with the
    operations in scipy's order, so that even ties come out as there.

    Args:
        labels: (z, y, x) integers; -1 takes part as a label.
        new_shape: voxels (z, y, x).
        spacing_mm: present spacing.
        target_mm: spacing of the result.

    Source: nnU-Net v2 preprocessing/resampling/default_resampling.py; batchgenerators 0.25.5 resize_segmentation.
    """
    if labels.shape == tuple(new_shape):
        return labels
    coarse = coarse_axis(spacing_mm, target_mm)
    if coarse is not None:
        labels = labels.take(_nearest(labels.shape[coarse], new_shape[coarse]), axis=coarse)
    cells = {
        axis: _cells(n_in, n_out)
        for axis, (n_in, n_out) in enumerate(zip(labels.shape, new_shape, strict=True))
        if n_in != n_out
    }
    nearest, uniform = labels, _uniform_cells(labels, tuple(cells))
    for axis, cell in cells.items():
        nearest = nearest.take(_nearest(labels.shape[axis], new_shape[axis]), axis=axis)
        uniform = uniform.take(cell.below, axis=axis)
    resampled = np.ascontiguousarray(nearest)
    flat = resampled.reshape(-1)
    boundary = np.flatnonzero(~uniform)
    for first in range(0, boundary.size, _BOUNDARY_BLOCK):
        voxels = boundary[first : first + _BOUNDARY_BLOCK]
        flat[voxels] = _winners(labels, cells, np.unravel_index(voxels, tuple(new_shape)), flat[voxels])
    return resampled


def _uniform_cells(labels: NDArray[Any], axes: Sequence[int]) -> NDArray[np.bool_]:
    """Whether each voxel and its upper neighbors along `axes`, diagonals included, all hold the same label."""
    uniform = np.ones(labels.shape, np.bool_)
    for axis in axes:
        here = (slice(None),) * axis + (slice(None, -1),)
        above = (slice(None),) * axis + (slice(1, None),)
        same = labels[here] == labels[above]
        same &= uniform[above]
        uniform[here] &= same
    return uniform


def _winners(
    labels: NDArray[Any], cells: dict[int, _Cells], voxels: Sequence[NDArray[np.intp]], nearest: NDArray[Any]
) -> NDArray[Any]:
    """The label with the largest interpolated indicator at each of the output `voxels` (one index array per axis)."""
    corners: list[tuple[list[NDArray[np.intp]], NDArray[np.float64]]] = [([], np.ones(nearest.shape))]
    for axis in range(3):
        if axis not in cells:
            corners = [([*indices, voxels[axis]], weight) for indices, weight in corners]
            continue
        cell, position = cells[axis], voxels[axis]
        below = (cell.below[position], cell.weight_below[position])
        above = (cell.above[position], cell.weight_above[position])
        corners = [
            ([*indices, index], weight * factor) for indices, weight in corners for index, factor in (below, above)
        ]
    weights = [weight for _, weight in corners]
    candidates = [labels[tuple(indices)] for indices, _ in corners]
    scores = np.stack([_score(candidate, candidates, weights) for candidate in candidates])
    best = scores.max(axis=0)
    largest = np.iinfo(labels.dtype).max
    smallest_winner = np.where(scores == best, np.stack(candidates), largest).min(axis=0)
    return np.where(_score(nearest, candidates, weights) == best, nearest, smallest_winner)


def _score(
    label: NDArray[Any], candidates: Sequence[NDArray[Any]], weights: Sequence[NDArray[np.float64]]
) -> NDArray[np.float64]:
    score = np.zeros(label.shape)
    for candidate, weight in zip(candidates, weights, strict=True):
        score += np.where(candidate == label, weight, 0.0)
    return score
