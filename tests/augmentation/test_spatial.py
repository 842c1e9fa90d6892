"""Rotation and scaling: positions, interpolation of images and labels, and the crop that replaces them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from autoseg.augmentation.pipeline import Sample, center_crop
from autoseg.augmentation.spec import AugmentationSpec
from autoseg.augmentation.transforms.spatial import OUTSIDE, Spatial, resample_images, resample_labels, rotation


def apply_matrix(image: Tensor, labels: Tensor, matrix: Tensor, patch_size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return resample_images(image[None], matrix[None], patch_size)[0], read_labels(labels, matrix, patch_size)


def read_labels(labels: Tensor, matrix: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    return resample_labels(labels[None], matrix[None], patch_size)[0]


def matrix_of(angles: list[float], scale: float = 1.0) -> Tensor:
    return rotation(angles) * scale


def positions_of(matrix: Tensor, shape: tuple[int, ...], patch_size: tuple[int, ...]) -> Tensor:
    """Voxel positions (*patch_size, d) where each voxel of the result is read, from the definition."""
    steps = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in patch_size]
    grid = torch.stack(torch.meshgrid(*steps, indexing="ij"), -1)
    center = (torch.tensor(shape, dtype=torch.float64) - 1) / 2
    return grid @ matrix.T + center


def argmax_of_masks(labels: Tensor, matrix: Tensor, patch_size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The definition: every label interpolated as a mask, outside counted as -1, the first maximum wins.

    Second, where no other mask comes near the largest: between two voxels, two may be equal but for rounding.
    """
    padded = F.pad(labels, (2, 2) * labels.dim(), value=OUTSIDE)
    positions = positions_of(matrix, tuple(padded.shape), patch_size)
    positions = torch.minimum(positions.clamp(min=0), torch.tensor(padded.shape) - 1)
    grid = ((2 * positions + 1) / torch.tensor(padded.shape) - 1).flip(-1)
    values = sorted({OUTSIDE, *labels.unique().tolist()})
    masks = torch.stack([padded == value for value in values]).double()
    scores = F.grid_sample(masks[None], grid[None], align_corners=False)[0]
    best = torch.cat([scores, torch.full_like(scores[:1], -1)]).topk(2, dim=0).values
    return torch.tensor(values)[scores.argmax(0)], best[0] - best[1] > 1e-5


@settings(max_examples=25, deadline=None)
@given(
    angles=st.lists(st.floats(-3.0, 3.0), min_size=3, max_size=3),
    scale=st.floats(0.7, 1.4),
    number=st.integers(0, 1000),
    is_3d=st.booleans(),
)
@example(angles=[0.0, 0.0, 0.0], scale=1.0, number=0, is_3d=False)
def test_labels_equal_the_argmax_over_interpolated_masks(
    angles: list[float], scale: float, number: int, is_3d: bool
) -> None:
    generator = torch.Generator().manual_seed(number)
    shape, patch_size = ((7, 9, 8), (5, 7, 6)) if is_3d else ((11, 9), (8, 7))
    labels = torch.randint(-1, 5, shape, generator=generator, dtype=torch.int8)
    matrix = matrix_of(angles if is_3d else angles[:1], scale)
    mine = read_labels(labels, matrix, patch_size)
    reference, is_clear = argmax_of_masks(labels, matrix, patch_size)
    assert mine.dtype == torch.int8
    assert (mine.long() == reference)[is_clear].all()


@settings(max_examples=15, deadline=None)
@given(angles=st.lists(st.floats(-3.0, 3.0), min_size=3, max_size=3), scale=st.floats(0.7, 1.4))
def test_a_linear_image_is_read_at_the_defined_positions(angles: list[float], scale: float) -> None:
    shape, patch_size, matrix = (17, 15, 16), (5, 4, 6), matrix_of(angles, scale)
    steps = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij")
    image = torch.stack(steps)  # channel i holds the index along axis i
    result, labels = apply_matrix(image, torch.zeros(shape, dtype=torch.int8), matrix, patch_size)
    positions = positions_of(matrix, shape, patch_size).float().movedim(-1, 0)
    inside = labels == 0
    torch.testing.assert_close(result[:, inside], positions[:, inside], atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["2d", "3d", "slices"])
def test_samples_resampled_together_are_those_resampled_alone(kind: str) -> None:
    patch, initial = {"2d": ((9, 8), (13, 12)), "3d": ((6, 8, 7), (9, 12, 11)), "slices": ((3, 9, 9), (3, 13, 13))}[
        kind
    ]
    spec = AugmentationSpec(patch, initial, 0.6, kind == "slices", (), ())
    generator = torch.Generator().manual_seed(3)
    always = Spatial(rotation_probability=1.0)
    drawn = [always.draw(generator, spec, 2) for _ in range(5)]

    def samples() -> list[Sample]:
        given = torch.Generator().manual_seed(4)
        maps = torch.randint(-1, 4, (2, 5, *initial), generator=given, dtype=torch.int16)
        return [Sample(*own) for own in zip(torch.randn(5, 2, *initial, generator=given), *maps, strict=True)]

    alone, together = samples(), samples()
    for sample, matrix in zip(alone, drawn, strict=True):
        always.apply(sample, matrix, spec)
    always.apply_to_all(together, drawn, spec)  # type: ignore[arg-type]
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one.image, other.image)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.first_stage, other.first_stage)  # type: ignore[arg-type]


def test_outside_the_image_is_zero_and_the_label_minus_one() -> None:
    image, labels = torch.ones(1, 8, 8), torch.ones(8, 8, dtype=torch.int16)
    result, read = apply_matrix(image, labels, matrix_of([0.0], 2.0), (8, 8))
    assert read[0, 0] == OUTSIDE
    assert result[0, 0, 0] == 0
    assert read[4, 4] == 1
    assert result[0, 4, 4] == 1


def test_equally_near_labels_give_the_lower_one() -> None:
    labels = torch.tensor([[3, 1, 3, 1]] * 4, dtype=torch.int8)
    shifted = read_labels(labels, torch.eye(2, dtype=torch.float64), (4, 3))  # read half way between two columns
    assert shifted.unique().tolist() == [1]


def test_the_identity_is_the_crop() -> None:
    image, labels = torch.randn(2, 9, 8, 11), torch.randint(-1, 3, (9, 8, 11), dtype=torch.int8)
    result, read = apply_matrix(image, labels, matrix_of([0.0, 0.0, 0.0]), (5, 6, 7))
    torch.testing.assert_close(result, center_crop(image, (5, 6, 7)), atol=1e-5, rtol=0)
    assert torch.equal(read, center_crop(labels, (5, 6, 7)))


def test_a_quarter_turn_turns_the_slices_of_a_stack_alike() -> None:
    image, labels = torch.randn(2, 3, 6, 6), torch.randint(0, 4, (3, 6, 6), dtype=torch.int8)
    result, read = apply_matrix(image, labels, matrix_of([math.pi / 2]), (3, 6, 6))
    torch.testing.assert_close(result, image.rot90(-1, (2, 3)), atol=1e-4, rtol=0)
    assert torch.equal(read, labels.rot90(-1, (1, 2)))


def test_a_factor_above_one_makes_objects_smaller() -> None:
    labels = torch.zeros(40, 40, dtype=torch.int8)
    labels[10:30, 10:30] = 1
    counts = [int(read_labels(labels, matrix_of([0.3], s), (24, 24)).sum()) for s in (0.8, 1.0, 1.3)]
    assert counts[0] > counts[1] > counts[2]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_rotation_and_scaling_are_drawn_as_often_and_far_as_they_should(dimensions: int) -> None:
    generator = torch.Generator().manual_seed(1)
    spec = AugmentationSpec((8,) * dimensions, (8,) * dimensions, 0.5, False, (), ())
    drawn = [Spatial().draw(generator, spec, 1) for _ in range(4000)]
    share = sum(matrix is not None for matrix in drawn) / len(drawn)
    assert share == pytest.approx(1 - 0.8 * 0.8, abs=0.03)
    matrices = torch.stack([matrix for matrix in drawn if matrix is not None])
    scales = torch.linalg.det(matrices) ** (1 / dimensions)
    assert 0.7 <= float(scales.min()) < 0.72
    assert 1.38 < float(scales.max()) < 1.4001
    is_scaled = (scales - 1).abs() > 1e-9
    assert float(is_scaled.double().mean()) == pytest.approx(0.2 / 0.36, abs=0.04)
    assert float(scales[is_scaled].mean()) == pytest.approx(1.05, abs=0.02)
    tilt = (matrices / scales[:, None, None])[:, 0, 0]
    assert float(tilt.min()) >= math.cos(0.5) ** (dimensions - 1) - 1e-9
    assert float((tilt < 1 - 1e-9).double().mean()) == pytest.approx(0.2 / 0.36, abs=0.04)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=3))
@settings(max_examples=20, deadline=None)
def test_the_crop_has_equal_margins_but_for_one_voxel(axes: list[tuple[int, int]]) -> None:
    patch_size, margins = tuple(size for size, _ in axes), tuple(margin for _, margin in axes)
    shape = tuple(size + margin for size, margin in axes)
    marked = torch.zeros(2, *shape)
    center_crop(marked, patch_size).fill_(1)
    assert center_crop(marked, patch_size).shape == (2, *patch_size)
    for axis, margin in enumerate(margins, start=1):
        line = marked.amax([i for i in range(marked.dim()) if i != axis])
        assert abs(2 * int(line.argmax()) - margin) <= 1
