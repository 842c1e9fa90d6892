"""Filters that act along each axis by itself, as small matrices: exact, fast on every device, and easy to test."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def multiply_along_axes(volume: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """The volume with every line along axis i replaced by matrices[i] @ line; None leaves an axis as it is."""
    for axis, matrix in enumerate(matrices):
        if matrix is None:
            continue
        operator = matrix.to(volume.device)
        if axis == volume.dim() - 1:
            volume = volume @ operator.T
        else:
            volume = (operator @ volume.flatten(axis + 1)).reshape(volume.shape)
    return volume


def reflected(index: int, n: int) -> int:
    """Where an index outside 0..n-1 lands when the line is mirrored at its first and last voxel."""
    if n == 1:
        return 0
    period = 2 * (n - 1)
    index %= period
    return min(index, period - index)


def gaussian_matrix(n: int, sigma: float, radius: int) -> Tensor:
    """The blur of a line of n voxels by a Gaussian cut at `radius` voxels, mirrored at the ends: (n, n) float32."""
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    weights /= weights.sum()
    rows = torch.arange(n).repeat_interleave(2 * radius + 1)
    columns = torch.tensor([reflected(i + step, n) for i in range(n) for step in range(-radius, radius + 1)])
    matrix = torch.zeros(n, n, dtype=torch.float64)
    matrix.index_put_((rows, columns), weights.repeat(n), accumulate=True)
    return matrix.float()


def coarsening_matrix(n: int, coarse: int) -> Tensor:
    """A line of n voxels read at `coarse` nearest voxels, then interpolated linearly back to n: (n, n) float32.

    Both as PyTorch's `interpolate` has them: "nearest-exact", then "linear" without aligned corners.
    """
    nearest = (2 * torch.arange(coarse) + 1) * n // (2 * coarse)
    position = ((torch.arange(n, dtype=torch.float64) + 0.5) * coarse / n - 0.5).clamp(min=0)
    lower = position.floor().long()
    upper = (lower + 1).clamp(max=coarse - 1)
    fraction = position - lower
    matrix = torch.zeros(n, n, dtype=torch.float64)
    matrix.index_put_((torch.arange(n), nearest[lower]), 1 - fraction, accumulate=True)
    matrix.index_put_((torch.arange(n), nearest[upper]), fraction, accumulate=True)
    return matrix.float()
