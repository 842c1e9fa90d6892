"""The augmentations as a recipe names them: shapes, types, labels, repeatability, order."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.augmentation.kinds import AUGMENTATIONS
from autoseg.augmentation.mirror import apply_mirror, draw_mirror
from autoseg.augmentation.pipeline import augment, crop_only, draw
from autoseg.augmentation.spatial import center_crop
from autoseg.augmentation.spec import AugmentationSpec

SPECS = {
    "3d": AugmentationSpec((6, 8, 7), (11, 12, 10), math.radians(30), False, (0, 1, 2), (1,)),
    "dummy 2d": AugmentationSpec((2, 8, 8), (2, 12, 12), math.pi, True, (0, 1, 2), ()),
    "2d": AugmentationSpec((8, 9), (13, 13), math.pi, False, (0, 1), (0, 1)),
}


def batch(spec: AugmentationSpec, size: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    image = torch.randn(size, 2, *spec.initial_patch_size, generator=generator)
    labels = torch.randint(-1, 4, (size, *spec.initial_patch_size), generator=generator, dtype=torch.int8)
    return image, labels


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize("name", SPECS)
def test_every_augmentation_gives_finite_patches_of_known_labels(kind: str, name: str) -> None:
    spec = SPECS[name]
    image, labels = batch(spec)
    given_image, given_labels = image.clone(), labels.clone()
    for number in range(12):
        new_image, new_labels = AUGMENTATIONS[kind](image, labels, spec, torch.Generator().manual_seed(number))
        assert new_image.shape == (3, 2, *spec.patch_size)
        assert new_labels.shape == (3, *spec.patch_size)
        assert new_image.dtype == torch.float32
        assert new_labels.dtype == torch.int8
        assert bool(torch.isfinite(new_image).all())
        assert set(new_labels.unique().tolist()) <= {0, 1, 2, 3}
    assert torch.equal(image, given_image)
    assert torch.equal(labels, given_labels)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize("name", SPECS)
def test_the_same_generator_state_gives_the_same_batch(kind: str, name: str) -> None:
    spec = SPECS[name]
    image, labels = batch(spec)
    for number in range(4):
        first = AUGMENTATIONS[kind](image, labels, spec, torch.Generator().manual_seed(number))
        second = AUGMENTATIONS[kind](image, labels, spec, torch.Generator().manual_seed(number))
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])


def test_a_sample_does_not_depend_on_those_after_it() -> None:
    spec = SPECS["3d"]
    image, labels = batch(spec)
    for number in range(10):
        whole = augment(image, labels, spec, torch.Generator().manual_seed(number))
        first = augment(image[:1], labels[:1], spec, torch.Generator().manual_seed(number))
        torch.testing.assert_close(whole[0][:1], first[0])
        assert torch.equal(whole[1][:1], first[1])


def test_without_augmentation_the_middle_is_cut_and_masked() -> None:
    spec = SPECS["3d"]
    image, labels = batch(spec)
    new_image, new_labels = crop_only(image, labels, spec, torch.Generator())
    middle, outside = center_crop(image, spec.patch_size), center_crop(labels, spec.patch_size) < 0
    assert torch.equal(new_image[:, 0], middle[:, 0])
    assert torch.equal(new_image[:, 1], middle[:, 1].masked_fill(outside, 0))
    assert torch.equal(new_labels, center_crop(labels, spec.patch_size).clamp(min=0))


def test_masked_channels_are_zero_outside_whatever_was_drawn() -> None:
    spec = replace(SPECS["2d"], masked_channels=(1,))
    image, _ = batch(spec)
    outside = torch.full((3, *spec.initial_patch_size), -1, dtype=torch.int8)
    for number in range(20):
        new_image, new_labels = augment(image, outside, spec, torch.Generator().manual_seed(number))
        assert not new_image[:, 1].any()
        assert bool(new_image[:, 0].any())
        assert not new_labels.any()


def test_image_and_labels_stay_together() -> None:
    spec = replace(SPECS["3d"], masked_channels=())
    labels = torch.zeros(4, *spec.initial_patch_size, dtype=torch.int16)
    labels[:, 3:6, 2:7, 4:] = 1
    image = 10 * labels[:, None].float()
    for number in range(20):
        new_image, new_labels = augment(image, labels, spec, torch.Generator().manual_seed(number))
        for one, mask in zip(new_image[:, 0], new_labels == 1, strict=True):
            assert one[mask].mean() > one[~mask].mean() + 3


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 2)).map(lambda axes: tuple(sorted(axes))))
def test_mirroring_twice_is_the_identity(axes: tuple[int, ...]) -> None:
    array = torch.randn(2, 3, 4, 5)
    mirrored = apply_mirror(array, axes, 3)
    assert torch.equal(apply_mirror(mirrored, axes, 3), array)
    assert torch.equal(mirrored.sum((1, 2, 3)).round(decimals=3), array.sum((1, 2, 3)).round(decimals=3))
    assert torch.equal(mirrored, array) == (not axes)


def test_only_allowed_axes_are_mirrored_half_of_the_time() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_mirror(generator, (0, 2)) for _ in range(2000)]
    assert {axis for axes in drawn for axis in axes} == {0, 2}
    for axis in (0, 2):
        assert sum(axis in axes for axes in drawn) / 2000 == pytest.approx(0.5, abs=0.05)


def test_most_samples_need_no_resampling() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [draw(generator, SPECS["3d"], 1).affine is None for _ in range(2000)]
    assert sum(drawn) / 2000 == pytest.approx(0.64, abs=0.04)
