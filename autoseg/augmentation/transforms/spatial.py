"""Rotation and scaling about the center of the patch, in one resampling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from itertools import groupby
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

MOST_VOXELS = {True: 1 << 16, False: 1 << 24}
"""Voxels resampled at once on a CPU, whose caches hold them, and on a GPU, which takes as long for a small patch as for
a hundred (assumption)."""

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
        self.apply_to_all([sample], [drawn], spec)

    def apply_to_all(self, samples: Sequence[Sample], drawn: Sequence[Tensor], spec: AugmentationSpec) -> None:
        """The same for several samples, as many at once as are faster together."""
        by_shape = groupby(zip(samples, drawn, strict=True), key=lambda pair: pair[0].labels.shape)
        for shape, pairs in by_shape:
            rest = list(pairs)
            count = max(1, MOST_VOXELS[samples[0].image.device.type == "cpu"] // math.prod(shape))
            for begin in range(0, len(rest), count):
                together, matrices = zip(*rest[begin : begin + count], strict=True)
                _resample(together, torch.stack(matrices), spec.patch_size)


def _resample(samples: Sequence[Sample], matrices: Tensor, patch_size: tuple[int, ...]) -> None:
    """Samples of equal shape, each with its matrix."""
    images = resample_images(_stacked([own.image for own in samples]).float(), matrices, patch_size)
    labels = resample_labels(_stacked([own.labels for own in samples]), matrices, patch_size)
    for sample, *own in zip(samples, images, labels, strict=True):
        sample.image, sample.labels = own
    maps = [own.first_stage for own in samples if own.first_stage is not None]
    if maps:
        for sample, first_stage in zip(samples, resample_labels(_stacked(maps), matrices, patch_size), strict=True):
            sample.first_stage = first_stage


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0][None]


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


def resample_images(images: Tensor, matrices: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    """Images (n, c, *shape) read linearly at the transformed voxels of the patch: (n, c, *patch_size).

    Args:
        images: floating point.
        matrices: (n, d, d); if d is 2 and images have three axes, slices along the first are transformed alike.
        patch_size: of the result.
    """
    count, dimensions = matrices.shape[:2]
    plane, plane_size = images.shape[-dimensions:], patch_size[-dimensions:]
    # grid_sample measures positions in half extents of the input, and names the last axis first
    relative = matrices * torch.tensor(plane_size) / torch.tensor(plane)[:, None]
    theta = torch.cat((relative.flip(1, 2), torch.zeros(count, dimensions, 1)), 2).float().to(images.device)
    grid = F.affine_grid(theta, [count, 1, *plane_size], align_corners=False)
    resampled = F.grid_sample(images.reshape(count, -1, *plane), grid, align_corners=False)
    return resampled.reshape(count, images.shape[1], *patch_size)


def resample_labels(labels: Tensor, matrices: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    """Labels (n, *shape) read at the transformed voxels of the patch: (n, *patch_size); `matrices` as for images.

    Only voxels whose neighbors differ are interpolated, and only among the labels of these neighbors, so that the cost
    does not grow with the number of labels; the result equals the arg-max over masks of all labels.
    """
    count, dimensions = matrices.shape[:2]
    plane, plane_size = labels.shape[-dimensions:], patch_size[-dimensions:]
    # slices that are transformed alike come first, so that one list of positions, of all samples, serves them all
    by_slice = labels.reshape(count, -1, *plane).transpose(0, 1)
    padded = F.pad(by_slice, (_MARGIN, _MARGIN) * dimensions, value=OUTSIDE)
    index, fractions = _positions(matrices, plane, plane_size, labels.device)
    flat = padded.flatten(1)
    # index points at the lower neighbor along every axis; the others lie one stride further along some axes
    steps = itertools.product(*((0, stride) for stride in padded.stride()[2:]))
    corners = torch.stack([flat[:, sum(step) :].index_select(1, index) for step in steps])
    result = corners[0].clone()
    mixed = (corners != corners[0]).any(0)
    slices, voxels = mixed.nonzero(as_tuple=True)
    if len(voxels):
        result[slices, voxels] = _winner(corners[:, slices, voxels], [fraction[voxels] for fraction in fractions])
    return result.reshape(-1, count, *plane_size).transpose(0, 1).reshape(count, *patch_size)


def _positions(
    matrices: Tensor, shape: tuple[int, ...], patch_size: tuple[int, ...], device: torch.device
) -> tuple[Tensor, list[Tensor]]:
    """For every voxel of n patches, the flat index of the neighbor below it in n padded volumes, and its fractions.

    Positions outside are moved into the margin, where both neighbors along that axis are outside too.
    """
    rest = (1,) * len(shape)
    index = torch.arange(len(matrices), dtype=torch.int32, device=device).view(-1, *rest)
    factors = matrices.float().to(device).view(*matrices.shape, *rest)
    fractions = []
    for row, size in enumerate(shape):
        position = torch.tensor((size - 1) / 2, dtype=torch.float32, device=device)
        for axis, extent in enumerate(patch_size):
            steps = torch.arange(extent, dtype=torch.float32, device=device) - (extent - 1) / 2
            position = position + factors[:, row, axis] * steps.view(
                [-1 if i == axis else 1 for i in range(len(shape))]
            )
        below = position.floor()
        fractions.append((position - below).flatten())
        index = index * (size + 2 * _MARGIN) + below.clamp_(-_MARGIN, size).to(torch.int32).add_(_MARGIN)
    return index.flatten(), fractions


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
