"""The channels of a cascade's first stage: where they are moved to, and how they are made worse."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage.morphology import ball, disk

from autoseg.augmentation.kinds import AUGMENTATIONS, DEFAULT
from autoseg.augmentation.pipeline import Sample, finish
from autoseg.augmentation.spec import AugmentationSpec
from autoseg.augmentation.transforms.first_stage import OPERATIONS, FirstStage, apply_changes, without_component

PLAIN = AugmentationSpec((6, 8, 7), (11, 12, 10), math.radians(30), False, (0, 1, 2), ())
CASCADE = replace(PLAIN, first_stage_values=(1, 2))
LABELED = replace(PLAIN, first_stage_values=(1, 2, 3))
REFERENCES = {
    "dilate": ndimage.binary_dilation,
    "erode": lambda mask, element: ndimage.binary_erosion(mask, element, border_value=1),
}
masks = arrays(np.bool_, st.tuples(*[st.integers(1, 9)] * 3)) | arrays(np.bool_, st.tuples(*[st.integers(1, 9)] * 2))


def generator(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def batch(spec: AugmentationSpec, size: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.randn(size, 2, *spec.initial_patch_size, generator=generator(7))
    coarse = torch.randint(0, 3, (size, 4, 4, 4), generator=generator(8)).float()
    labels = torch.nn.functional.interpolate(coarse[:, None], spec.initial_patch_size)[:, 0].to(torch.int16)
    return image, labels


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(1, 8))
def test_growing_and_shrinking_equal_a_ball_moved_over_the_mask(mask: np.ndarray, radius: int) -> None:
    element = (ball if mask.ndim == 3 else disk)(radius).astype(bool)
    expected = {name: reference(mask, element) for name, reference in REFERENCES.items()}
    expected["close"] = REFERENCES["erode"](expected["dilate"], element)
    expected["open"] = REFERENCES["dilate"](expected["erode"], element)
    for name, operation in OPERATIONS.items():
        before = mask.copy()
        np.testing.assert_array_equal(operation(mask, radius), expected[name], err_msg=name)
        np.testing.assert_array_equal(mask, before)


@settings(max_examples=60, deadline=None)
@given(arrays(np.int8, (5, 6, 7), elements=st.integers(0, 3)), st.integers(0, 1000))
def test_no_voxel_ever_has_two_labels(first_stage: np.ndarray, number: int) -> None:
    channels = np.stack([first_stage == value for value in (1, 2, 3)])
    changed = apply_changes(channels, FirstStage().draw(generator(number), LABELED, 1) or [])
    assert changed.sum(0).max() <= 1
    np.testing.assert_array_equal(channels, np.stack([first_stage == value for value in (1, 2, 3)]))


def test_what_a_label_gains_is_taken_from_the_others_and_what_it_loses_is_left_empty() -> None:
    channels = np.zeros((2, 9), np.bool_)
    channels[0, 2:4], channels[1, 4:8] = True, True
    channels = channels[:, None]
    grown = apply_changes(channels, [(0, OPERATIONS["dilate"], 2)])
    assert np.flatnonzero(grown[0]).tolist() == [0, 1, 2, 3, 4, 5]
    assert np.flatnonzero(grown[1]).tolist() == [6, 7]
    shrunk = apply_changes(channels, [(1, OPERATIONS["erode"], 1)])
    assert np.flatnonzero(shrunk[1]).tolist() == [5, 6]
    np.testing.assert_array_equal(shrunk[0], channels[0])


def test_only_small_components_are_left_out_each_as_likely() -> None:
    mask = np.zeros((10, 10), np.bool_)
    mask[0, 0], mask[2, 2:4], mask[4:8, 2:8] = True, True, True  # 1, 2 and 24 voxels of 100
    assert without_component(mask, 0.0).sum() == 26
    assert without_component(mask, 0.49).sum() == 26
    assert without_component(mask, 0.5).sum() == 25
    assert without_component(mask, 0.999).sum() == 25
    only_large = mask & (np.arange(10)[:, None] >= 4)
    np.testing.assert_array_equal(without_component(only_large, 0.3), only_large)
    corners = np.eye(10, dtype=np.bool_)
    assert not without_component(corners, 0.0).any()  # neighbors across corners are one component
    both = apply_changes(np.stack([mask, corners]), [(1, without_component, 0.2)])
    assert (both[0].sum(), both[1].sum()) == (27, 0)


def test_changes_are_drawn_as_often_as_they_should_be() -> None:
    spec = replace(CASCADE, first_stage_values=(1, 2, 3, 4))
    drawn = [FirstStage().draw(generator(number), spec, 1) or [] for number in range(3000)]
    removed = [[own for own in changes if own[1] is without_component] for changes in drawn]
    morphed = [changes[: len(changes) - len(gone)] for changes, gone in zip(drawn, removed, strict=True)]
    # 1 - 0.5 ** 4 of the samples chosen have at least one label chosen
    assert sum(map(bool, morphed)) / 3000 == pytest.approx(0.4 * 15 / 16, abs=0.04)
    assert sum(map(bool, removed)) / 3000 == pytest.approx(0.2 * 15 / 16, abs=0.04)
    assert sum(map(len, morphed)) / 3000 == pytest.approx(0.4 * 2, abs=0.08)
    flat = [morphing for changes in morphed for morphing in changes]
    assert {radius for _, _, radius in flat} == set(range(1, 9))
    assert {operation for _, operation, _ in flat} == set(OPERATIONS.values())
    assert {changes[0][0] for changes in morphed if len(changes) == 4} == {0, 1, 2, 3}  # in any order


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_every_augmentation_appends_a_channel_per_label(kind: str) -> None:
    image, labels = batch(CASCADE)
    given_previous = labels.clone()
    for number in range(6):
        new_image, new_labels = AUGMENTATIONS[kind](image, labels, CASCADE, generator(number), labels)
        assert new_image.shape == (3, 4, 6, 8, 7)
        assert new_image.dtype == torch.float32
        assert set(new_image[:, 2:].unique().tolist()) <= {0.0, 1.0}
        assert new_labels.shape == (3, 6, 8, 7)
    assert torch.equal(labels, given_previous)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_the_first_stage_goes_where_the_labels_go(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FirstStage, "draw", lambda *_: None)
    image, labels = batch(CASCADE, size=8)
    was_moved = False
    for number in range(4):
        new_image, new_labels = AUGMENTATIONS[kind](image, labels, CASCADE, generator(number), labels)
        expected = torch.stack([new_labels == 1, new_labels == 2], 1).float()
        assert torch.equal(new_image[:, 2:], expected)
        plain, _ = AUGMENTATIONS["none"](image, labels, CASCADE, generator(number), labels)
        was_moved |= not torch.equal(plain[:, 2:], expected)
    assert was_moved == (kind != "none")


def test_slices_of_thick_patches_move_alike() -> None:
    spec = replace(CASCADE, patch_size=(2, 8, 8), initial_patch_size=(2, 12, 12), is_dummy_2d=True)
    image, labels = batch(spec)
    new_image, new_labels = DEFAULT(image, labels, replace(spec, first_stage_values=(1,)), generator(1), labels)
    assert new_image.shape == (3, 3, 2, 8, 8)
    assert new_labels.shape == (3, 2, 8, 8)


def test_without_a_first_stage_the_random_numbers_are_those_of_before() -> None:
    first, second = generator(3), generator(3)
    assert str(DEFAULT.draw(first, CASCADE, 2)[:-1]) == str(DEFAULT.draw(second, PLAIN, 2)[:-1])
    assert not torch.equal(first.get_state(), second.get_state())


def test_unlisted_values_appear_nowhere() -> None:
    first_stage = torch.tensor([[[-1, 0, 1, 3]]])
    both, _ = finish([Sample(torch.zeros(1, 1, 4), torch.zeros(1, 4), first_stage[0])], CASCADE)
    assert both.tolist() == [[[[0, 0, 0, 0]], [[0, 0, 1, 0]], [[0, 0, 0, 0]]]]


@pytest.mark.oracle
@settings(max_examples=40, deadline=None)
@given(masks, st.integers(1, 8))
def test_operations_equal_those_of_nnunet(mask: np.ndarray, radius: int) -> None:
    operators = pytest.importorskip("batchgeneratorsv2.transforms.nnunet.random_binary_operator")
    element = torch.from_numpy((ball if mask.ndim == 3 else disk)(radius).astype(bool))
    for name, operation in (("dilate", "dilation"), ("erode", "erosion"), ("close", "closing"), ("open", "opening")):
        expected = getattr(operators, f"binary_{operation}_torch")(torch.from_numpy(mask), element)
        np.testing.assert_array_equal(OPERATIONS[name](mask, radius), expected.numpy(), err_msg=name)
