"""The augmentations as a recipe names them: shapes, types, labels, repeatability, order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.augmentation.kinds import AUGMENTATIONS, DEFAULT, TRANSFORMS, make_augmentation
from autoseg.augmentation.pipeline import center_crop
from autoseg.augmentation.spec import AugmentationSpec
from autoseg.augmentation.transforms.mirror import Mirror, mirror
from autoseg.augmentation.transforms.spatial import Spatial
from autoseg.core.errors import AutoSegError, RecordFault, UsageError
from autoseg.planning.lateral import LateralSwap
from tests.augmentation.patches import SPECS

CASCADES = {f"{name} cascade": replace(spec, first_stage_values=(1, 2, 3)) for name, spec in SPECS.items()}
SWAP = LateralSwap(1, (0, 2, 1, 3), (0, 2, 1, 3), (0,))
REFERENCES = {
    "3d": (SPECS["3d"], 42285.546908, 49891),
    "dummy 2d": (SPECS["dummy 2d"], 20150.761238, 20146),
    "2d": (SPECS["2d"], 8938.639628, 11412),
    "3d cascade": (CASCADES["3d cascade"], 69339.787379, 49868),
    "dummy 2d cascade": (CASCADES["dummy 2d cascade"], 29932.663528, 20170),
    "2d cascade": (CASCADES["2d cascade"], 14401.080678, 11419),
    "3d cascade, left and right": (replace(CASCADES["3d cascade"], swap=SWAP), 69367.787379, 49460),
}
"""Sums of absolute intensities and of labels over 40 seeds, as the first version of the pipeline gave them."""


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


@pytest.mark.parametrize("name", REFERENCES)
def test_the_default_augmentation_draws_and_gives_what_it_always_did(name: str) -> None:
    spec, expected, expected_labels = REFERENCES[name]
    given = torch.Generator().manual_seed(7)
    image = torch.randn(3, 2, *spec.initial_patch_size, generator=given)
    labels, first_stage = (
        torch.randint(-1, 4, (3, *spec.initial_patch_size), generator=given, dtype=torch.int16) for _ in range(2)
    )
    first_stage = first_stage if spec.first_stage_values else None
    total, total_labels = 0.0, 0
    for seed in range(40):
        new_image, new_labels = DEFAULT(image, labels, spec, torch.Generator().manual_seed(seed), first_stage)
        total += float(new_image.double().abs().sum())
        total_labels += int(new_labels.long().sum())
    assert total == pytest.approx(expected, rel=1e-6)
    assert total_labels == pytest.approx(expected_labels, abs=3)  # two labels may be equally near


def test_a_recipe_lists_transforms_with_their_settings() -> None:
    image, labels = batch(SPECS["3d"])
    settings = [{"name": "mirror", "probability": 1.0}, {"name": "noise", "probability": 1.0, "deviations": [0, 0]}]
    spec = replace(SPECS["3d"], masked_channels=())
    quiet, _ = make_augmentation(settings)(image, labels, spec, torch.Generator())
    mirrored = center_crop(image, spec.patch_size).flip((2, 3, 4))
    assert torch.equal(quiet, mirrored)
    settings[1]["deviations"] = [0.5, 0.5]
    noisy, _ = make_augmentation(settings)(image, labels, spec, torch.Generator())
    assert float((noisy - mirrored).std()) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ("defalut", UsageError, "default"),
        ([{"name": "nois"}], UsageError, "did you mean noise"),
        ([{"probability": 0.5}], UsageError, "unknown transform ''"),
        ([{"name": "noise", "probability": 1.5}], RecordFault, "probability"),
        ([{"name": "noise", "strength": 1.0}], RecordFault, "strength"),
        ([{"name": "noise", "deviations": [1.0, 0.5]}], RecordFault, "the smaller one first"),
    ],
)
def test_an_augmentation_that_cannot_be_is_refused(asked, error: type[AutoSegError], words: str) -> None:
    with pytest.raises(error) as found:
        make_augmentation(asked)
    assert words in f"{found.value} {found.value.do}"


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_every_transform_is_usable_without_settings(kind: str) -> None:
    image, labels = batch(SPECS["3d"])
    new_image, _ = make_augmentation([{"name": kind}])(image, labels, SPECS["3d"], torch.Generator().manual_seed(1))
    assert new_image.shape == (3, 2, *SPECS["3d"].patch_size)


def test_a_sample_does_not_depend_on_those_after_it() -> None:
    spec = SPECS["3d"]
    image, labels = batch(spec)
    for number in range(10):
        whole = DEFAULT(image, labels, spec, torch.Generator().manual_seed(number))
        first = DEFAULT(image[:1], labels[:1], spec, torch.Generator().manual_seed(number))
        torch.testing.assert_close(whole[0][:1], first[0])
        assert torch.equal(whole[1][:1], first[1])


def test_without_augmentation_the_middle_is_cut_and_masked() -> None:
    spec = SPECS["3d"]
    image, labels = batch(spec)
    new_image, new_labels = AUGMENTATIONS["none"](image, labels, spec, torch.Generator())
    middle, outside = center_crop(image, spec.patch_size), center_crop(labels, spec.patch_size) < 0
    assert torch.equal(new_image[:, 0], middle[:, 0])
    assert torch.equal(new_image[:, 1], middle[:, 1].masked_fill(outside, 0))
    assert torch.equal(new_labels, center_crop(labels, spec.patch_size).clamp(min=0))


def test_masked_channels_are_zero_outside_whatever_was_drawn() -> None:
    spec = replace(SPECS["2d"], masked_channels=(1,))
    image, _ = batch(spec)
    outside = torch.full((3, *spec.initial_patch_size), -1, dtype=torch.int8)
    for number in range(20):
        new_image, new_labels = DEFAULT(image, outside, spec, torch.Generator().manual_seed(number))
        assert not new_image[:, 1].any()
        assert bool(new_image[:, 0].any())
        assert not new_labels.any()


def test_image_and_labels_stay_together() -> None:
    spec = replace(SPECS["3d"], masked_channels=())
    labels = torch.zeros(4, *spec.initial_patch_size, dtype=torch.int16)
    labels[:, 3:6, 2:7, 4:] = 1
    image = 10 * labels[:, None].float()
    for number in range(20):
        new_image, new_labels = DEFAULT(image, labels, spec, torch.Generator().manual_seed(number))
        for one, mask in zip(new_image[:, 0], new_labels == 1, strict=True):
            assert one[mask].mean() > one[~mask].mean() + 3


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 2)).map(lambda axes: tuple(sorted(axes))))
def test_mirroring_twice_is_the_identity(axes: tuple[int, ...]) -> None:
    array = torch.randn(2, 3, 4, 5)
    mirrored = mirror(array, axes, 3)
    assert torch.equal(mirror(mirrored, axes, 3), array)
    assert torch.equal(mirrored.sum((1, 2, 3)).round(decimals=3), array.sum((1, 2, 3)).round(decimals=3))
    assert torch.equal(mirrored, array) == (not axes)


def test_only_allowed_axes_are_mirrored_half_of_the_time() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [Mirror().draw(generator, replace(SPECS["3d"], mirror_axes=(0, 2)), 1) or () for _ in range(2000)]
    assert {axis for axes in drawn for axis in axes} == {0, 2}
    for axis in (0, 2):
        assert sum(axis in axes for axes in drawn) / 2000 == pytest.approx(0.5, abs=0.05)


def test_most_samples_need_no_resampling() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [Spatial().draw(generator, SPECS["3d"], 1) is None for _ in range(2000)]
    assert sum(drawn) / 2000 == pytest.approx(0.64, abs=0.04)
