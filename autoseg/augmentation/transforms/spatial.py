"""Rotation and scaling about the center of the patch, in one resampling."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from autoseg.augmentation.draws import Limits, Probability, happens, uniform
from autoseg.augmentation.pipeline import Sample, Transform
from autoseg.augmentation.spec import AugmentationSpec
from autoseg.core.records import record

OUTSIDE = -1
"""Label of voxels read outside the given patch."""

_MARGIN = 2
"""Voxels of padding around labels: two neighbors of a position that is outside."""


@record
class Spatial(Transform):
    """Turns, by one angle per axis within the spec's largest turn, and scales, by one factor for all axes.

    `scales` are factors on the distance from the center at which voxels are read: above 1, objects become smaller. What
    is read outside the initial patch is 0 in the image and `OUTSIDE` in the labels.

    Source: nnU-Net v2's augmentation package, `transforms/spatial/spatial.py`; its trainer has the numbers.
    """

    reads_margin: ClassVar[bool] = True

    rotation_probability: Probability = 0.2
    scaling_probability: Probability = 0.2
    scales: Limits = (0.7, 1.4)

    def draw(self, generator: torch.Generator, spec: AugmentationSpec, _channels: int) -> Tensor | None:
        """A matrix (float64) in axis order: where a voxel of the result is read, from the center. 2 x 2 in dummy 2D."""
        is_turned = happens(generator, self.rotation_probability)
        is_scaled = happens(generator, self.scaling_probability)
        if not (is_turned or is_scaled):
            return None
        count = 3 if len(spec.patch_size) == 3 and not spec.is_dummy_2d else 1
        limit = spec.largest_turn
        angles = [uniform(generator, -limit, limit) if is_turned else 0.0 for _ in range(count)]
        scale = uniform(generator, *self.scales) if is_scaled else 1.0
        return rotation(angles) * scale

    def apply(self, sample: Sample, drawn: Tensor, spec: AugmentationSpec) -> None:
        """Resamples image and labels and cuts them to the patch."""
        sample.image = resample_image(sample.image.float(), drawn, spec.patch_size)
        sample.labels = resample_labels(sample.labels, drawn, spec.patch_size)
        if sample.first_stage is not None:
            sample.first_stage = resample_labels(sample.first_stage, drawn, spec.patch_size)


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


def resample_image(image: Tensor, matrix: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    """An image (c, *shape) read linearly at the transformed voxels of the patch: (c, *patch_size).

    Args:
        image: floating point.
        matrix: d x d; if d is 2 and the image has three axes, slices along the first are transformed alike.
        patch_size: of the result.
    """
    dimensions = len(matrix)
    plane, plane_size = image.shape[-dimensions:], patch_size[-dimensions:]
    # grid_sample measures positions in half extents of the input, and names the last axis first
    relative = matrix * torch.tensor(plane_size) / torch.tensor(plane)[:, None]
    theta = torch.cat((relative.flip(0, 1), torch.zeros(dimensions, 1)), 1).float()
    grid = F.affine_grid(theta[None], [1, 1, *plane_size], align_corners=False).to(image.device)
    resampled = F.grid_sample(image.reshape(1, -1, *plane), grid, align_corners=False)
    return resampled.reshape(image.shape[0], *patch_size)


def resample_labels(labels: Tensor, matrix: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    """Labels (*shape) read at the transformed voxels of the patch: (*patch_size); `matrix` as for the image.

    Only voxels whose neighbors differ are interpolated, and only among the labels of these neighbors, so that the cost
    does not grow with the number of labels; the result equals the arg-max over masks of all labels.
    """
    dimensions = len(matrix)
    plane, plane_size = labels.shape[-dimensions:], patch_size[-dimensions:]
    padded = F.pad(labels.reshape(-1, *plane), (_MARGIN, _MARGIN) * dimensions, value=OUTSIDE)
    index, fractions = _positions(matrix, plane, plane_size, labels.device)
    flat = padded.flatten(1)
    # index points at the lower neighbor along every axis; the others lie one stride further along some axes
    steps = itertools.product(*((0, stride) for stride in padded.stride()[1:]))
    corners = torch.stack([flat[:, sum(step) :].index_select(1, index) for step in steps])
    result = corners[0].clone()
    mixed = (corners != corners[0]).any(0)
    slices, voxels = mixed.nonzero(as_tuple=True)
    if len(voxels):
        result[slices, voxels] = _winner(corners[:, slices, voxels], [fraction[voxels] for fraction in fractions])
    return result.reshape(patch_size)


def _positions(
    matrix: Tensor, shape: tuple[int, ...], patch_size: tuple[int, ...], device: torch.device
) -> tuple[Tensor, list[Tensor]]:
    """For every voxel of the patch, the flat index of the neighbor below it in the padded volume, and its fractions.

    Positions outside are moved into the margin, where both neighbors along that axis are outside too.
    """
    index = torch.zeros(1, dtype=torch.int32, device=device)
    fractions = []
    for row, size in zip(matrix.tolist(), shape, strict=True):
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
