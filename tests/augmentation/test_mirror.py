"""Mirrored labels: lateral ones change places where left becomes right, and only there."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.augmentation.kinds import AUGMENTATIONS, DEFAULT
from autoseg.augmentation.spec import AugmentationSpec
from autoseg.augmentation.transforms.mirror import Mirror, mirror, mirror_labels
from autoseg.planning.lateral import LateralSwap

SWAP = LateralSwap(1, (0, 2, 1, 3), (0, 2, 1, 3), (0,))
SPEC = AugmentationSpec(
    (6, 8, 6), (6, 8, 6), math.radians(1), False, (0, 1, 2), (), first_stage_values=(1, 2, 3), swap=SWAP
)
EXCHANGED = torch.tensor([0, 2, 1, 3, -1], dtype=torch.int8)

AXES = st.lists(st.integers(0, 2), unique=True).map(tuple)


@given(AXES, st.integers(0, 99), st.sampled_from([torch.int8, torch.int16, torch.float32]))
@settings(max_examples=30, deadline=None)
def test_labels_change_places_only_along_the_axis_from_left_to_right(
    axes: tuple[int, ...], seed: int, kind: torch.dtype
) -> None:
    labels = torch.randint(-1, 4, (2, 3, 4, 5), generator=torch.Generator().manual_seed(seed)).to(kind)
    before = labels.clone()
    mirrored = mirror_labels(labels, axes, 3, SWAP)
    flipped = mirror(labels, axes, 3)
    expected = EXCHANGED[flipped.long()].to(kind) if 1 in axes else flipped
    assert torch.equal(mirrored, expected)
    assert mirrored.dtype == kind
    assert torch.equal(mirror_labels(mirrored, axes, 3, SWAP), before)
    assert torch.equal(mirror_labels(labels, axes, 3, None), flipped)


def test_patches_mirrored_from_left_to_right_have_their_labels_exchanged() -> None:
    image, labels = torch.zeros(64, 1, 6, 8, 6), torch.ones(64, 6, 8, 6, dtype=torch.int8)
    generator = torch.Generator().manual_seed(3)
    place = [isinstance(transform, Mirror) for transform in DEFAULT.transforms].index(True)
    mirrored = [DEFAULT.draw(generator, SPEC, 1)[place] or () for _ in image]
    _, new_labels = AUGMENTATIONS["default"](image, labels, SPEC, torch.Generator().manual_seed(3), labels)
    for axes, sample in zip(mirrored, new_labels, strict=True):
        assert int(sample.max()) == (2 if 1 in axes else 1)
    assert 16 < sum(1 in axes for axes in mirrored) < 48


@pytest.mark.parametrize("kind", ["default", "batchgenerators"])
def test_the_first_stage_s_labels_change_places_with_the_others(kind: str) -> None:
    if kind == "batchgenerators":
        pytest.importorskip("batchgenerators")
    image, labels = torch.zeros(40, 1, 6, 8, 6), torch.ones(40, 6, 8, 6, dtype=torch.int8)
    new_image, new_labels = AUGMENTATIONS[kind](image, labels, SPEC, torch.Generator().manual_seed(0), labels)
    found = set()
    for channels, sample in zip(new_image[:, 1:], new_labels, strict=True):
        value, other = int(sample.max()), 3 - int(sample.max())
        found.add(value)
        assert set(sample.unique().tolist()) <= {0, value}
        assert not bool(channels[other - 1].any())
        assert not bool(channels[2].any())
    assert found == {1, 2}


def test_without_augmentation_nothing_changes_places() -> None:
    labels = torch.ones(2, 6, 8, 6, dtype=torch.int8)
    _, new_labels = AUGMENTATIONS["none"](torch.zeros(2, 1, 6, 8, 6), labels, SPEC, torch.Generator(), labels)
    assert torch.equal(new_labels, labels)
