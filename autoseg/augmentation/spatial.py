"""Rotation and scaling about the center of the patch, in one resampling; a plain crop where neither was drawn."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from autoseg.augmentation.draws import happens, uniform

ROTATION_PROBABILITY = 0.2
SCALING_PROBABILITY = 0.2
SCALES = (0.7, 1.4)
"""Factors on the distance from the center at which voxels are read: above 1, objects become smaller."""

OUTSIDE = -1
"""Label of voxels read outside the given patch."""

_MARGIN = 2
"""Voxels of padding around labels: two neighbors of a position that is outside."""


@dataclass(frozen=True, slots=True)
class Affine:
    """A linear map about the patch center.

    Attributes:
        matrix: rows and columns in axis order (z, y, x or y, x): where a voxel of the result is read.
    """

    matrix: tuple[tuple[float, ...], ...]


def draw_affine(generator: torch.Generator, dimensions: int, largest_turn: float) -> Affine | None:
    """Rotation (probability 0.2, one angle per axis) and scaling (0.2, one factor for all axes); None if neither.

    Args:
        generator: on the CPU.
        dimensions: 3, or 2 for one angle in the plane.
        largest_turn: radians.

    Source: nnU-Net v2's augmentation package, `transforms/spatial/spatial.py`; its trainer has the numbers.
    """
    is_turned = happens(generator, ROTATION_PROBABILITY)
    is_scaled = happens(generator, SCALING_PROBABILITY)
    if not (is_turned or is_scaled):
        return None
    count = 3 if dimensions == 3 else 1
    angles = [uniform(generator, -largest_turn, largest_turn) if is_turned else 0.0 for _ in range(count)]
    scale = uniform(generator, *SCALES) if is_scaled else 1.0
    matrix = rotation(angles) * scale
    return Affine(tuple(tuple(row) for row in matrix.tolist()))


def rotation(angles: list[float]) -> Tensor:
    """The rotation matrix (float64) of one angle in the plane, or of three about the first, second and third axis."""
    if len(angles) == 1:
        return _turn(2, 0, 1, angles[0])
    about_first, about_second, about_third = angles
    return _turn(3, 0, 1, about_third) @ _turn(3, 2, 0, about_second) @ _turn(3, 1, 2, about_first)


def _turn(dimensions: int, first: int, second: int, angle: float) -> Tensor:
    matrix = torch.eye(dimensions, dtype=torch.float64)
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
    return matrix


def center_crop(batch: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    """The middle (..., *patch_size) of (..., *shape), as a view; each axis of the shape at least the patch's."""
    first = batch.dim() - len(patch_size)
    for axis, size in enumerate(patch_size, start=first):
        batch = batch.narrow(axis, batch.shape[axis] // 2 - size // 2, size)
    return batch


def apply_affine(image: Tensor, labels: Tensor, affine: Affine, patch_size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """One sample, transformed and cut to the patch.

    The image is interpolated linearly and is 0 outside. Every label, -1 outside among them, is interpolated linearly as
    a mask; the largest wins, of equal ones the lowest label.

    Args:
        image: (c, *shape) float32. With a 2D affine and a 3D sample, slices along the first axis are transformed alike.
        labels: (*shape) integers.
        affine: as drawn.
        patch_size: of the result.
    """
    dimensions = len(affine.matrix)
    plane, plane_size = image.shape[-dimensions:], patch_size[-dimensions:]
    channels = image.reshape(1, -1, *plane)
    resampled = F.grid_sample(channels, _grid(affine, plane, plane_size).to(image.device), align_corners=False)
    return resampled.reshape(image.shape[0], *patch_size), apply_affine_to_labels(labels, affine, patch_size)


def apply_affine_to_labels(labels: Tensor, affine: Affine, patch_size: tuple[int, ...]) -> Tensor:
    """The labels (*shape) of one sample, transformed and cut to the patch, as `apply_affine` has it."""
    dimensions = len(affine.matrix)
    read = resample_labels(labels.reshape(-1, *labels.shape[-dimensions:]), affine, patch_size[-dimensions:])
    return read.reshape(patch_size)


def _grid(affine: Affine, shape: tuple[int, ...], patch_size: tuple[int, ...]) -> Tensor:
    matrix = torch.tensor(affine.matrix, dtype=torch.float64)
    matrix = matrix * torch.tensor(patch_size) / torch.tensor(shape)[:, None]
    theta = torch.cat((matrix.flip(0, 1), torch.zeros(len(shape), 1)), 1).float()
    return F.affine_grid(theta[None], [1, 1, *patch_size], align_corners=False)


def resample_labels(labels: Tensor, affine: Affine, patch_size: tuple[int, ...]) -> Tensor:
    """Labels (n, *shape) read at the transformed voxels of the patch, each of the n slices alike: (n, *patch_size).

    Only voxels whose neighbors differ are interpolated, and only among the labels of these neighbors, so that the cost
    does not grow with the number of labels; the result equals the arg-max over masks of all labels.
    """
    shape = labels.shape[1:]
    padded = F.pad(labels, (_MARGIN, _MARGIN) * len(shape), value=OUTSIDE)
    index, fractions = _positions(affine, shape, patch_size, labels.device)
    flat = padded.flatten(1)
    steps = itertools.product(*((0, stride) for stride in padded.stride()[1:]))
    corners = torch.stack([flat[:, sum(step) :].index_select(1, index) for step in steps])
    result = corners[0].clone()
    mixed = (corners != corners[0]).any(0)
    slices, voxels = mixed.nonzero(as_tuple=True)
    if len(voxels):
        result[slices, voxels] = _winner(corners[:, slices, voxels], [fraction[voxels] for fraction in fractions])
    return result.reshape(-1, *patch_size)


def _positions(
    affine: Affine, shape: tuple[int, ...], patch_size: tuple[int, ...], device: torch.device
) -> tuple[Tensor, list[Tensor]]:
    """For every voxel of the patch, the flat index of the neighbor below it in the padded volume, and its fractions.

    Positions outside are moved into the margin, where both neighbors along that axis are outside too.
    """
    index = torch.zeros(1, dtype=torch.int32, device=device)
    fractions = []
    for row, size in zip(affine.matrix, shape, strict=True):
        position = torch.tensor((size - 1) / 2, dtype=torch.float32, device=device)
        for axis, (factor, extent) in enumerate(zip(row, patch_size, strict=True)):
            steps = torch.arange(extent, dtype=torch.float32, device=device) - (extent - 1) / 2
            position = position + (factor * steps).view([-1 if i == axis else 1 for i in range(len(shape))])
        below = position.floor()
        fractions.append((position - below).flatten())
        index = index * (size + 2 * _MARGIN) + below.clamp_(-_MARGIN, size).to(torch.int32).flatten().add_(_MARGIN)
    return index, fractions


def _winner(corners: Tensor, fractions: list[Tensor]) -> Tensor:
    """The label with the largest weight at each of n positions with 2^d neighbors: (n,) of corners (2^d, n)."""
    sides = [(1 - fraction, fraction) for fraction in fractions]
    weights = torch.stack([torch.stack(combination).prod(0) for combination in itertools.product(*sides)])
    best, winner = torch.zeros_like(weights[0]), torch.full_like(corners[0], OUTSIDE)
    for corner in corners:
        score = torch.where(corners == corner, weights, 0.0).sum(0)
        is_better = (score > best) | ((score == best) & (corner < winner))
        best, winner = torch.where(is_better, score, best), torch.where(is_better, corner, winner)
    return winner
