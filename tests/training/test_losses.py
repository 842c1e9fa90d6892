"""Losses against reference values, and the laws of Dice, masks and deep supervision."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from autoseg.data.model import LabelSet
from autoseg.training.losses import (
    LOSSES,
    deep_supervision_targets,
    deep_supervision_weights,
    dice_and_binary_cross_entropy,
    dice_and_cross_entropy,
    dice_ce,
    make_objective,
    region_masks,
)

TOLERANCE = 1e-5
PLAIN = LabelSet(classes={"background": (0,), "a": (1,), "b": (2,)})
REGIONS = LabelSet(classes={"background": (0,), "whole": (1, 2), "core": (2,)}, ignore=3, regions_class_order=(1, 2))


@pytest.fixture(scope="module")
def arrays(golden_vectors: Path) -> dict[str, Tensor]:
    with np.load(golden_vectors / "losses.npz") as stored:
        return {name: torch.from_numpy(array) for name, array in stored.items()}


@pytest.fixture(scope="module")
def reference(golden_vectors: Path) -> dict[str, dict[str, float]]:
    return json.loads((golden_vectors / "losses.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("has_ignore", [False, True])
def test_dice_and_cross_entropy_equals_the_reference(
    arrays: dict[str, Tensor], reference: dict[str, dict[str, float]], batch_dice: bool, has_ignore: bool
) -> None:
    labels = arrays["labels_ignore" if has_ignore else "labels"][:, 0]
    loss = dice_and_cross_entropy(arrays["logits"], labels, 4 if has_ignore else None, batch_dice)
    key = f"dice_ce.{'ignore.' if has_ignore else ''}batch_dice={batch_dice}"
    assert float(loss) == pytest.approx(reference["losses"][key], abs=TOLERANCE)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("has_ignore", [False, True])
def test_dice_and_binary_cross_entropy_equals_the_reference(
    arrays: dict[str, Tensor], reference: dict[str, dict[str, float]], batch_dice: bool, has_ignore: bool
) -> None:
    masks = arrays["regions_ignore" if has_ignore else "regions"].bool()
    annotated = ~masks[:, 3] if has_ignore else None
    loss = dice_and_binary_cross_entropy(arrays["region_logits"], masks[:, :3], annotated, batch_dice)
    key = f"dice_bce.{'ignore.' if has_ignore else ''}batch_dice={batch_dice}"
    assert float(loss) == pytest.approx(reference["losses"][key], abs=TOLERANCE)


def test_deep_supervision_weights_equal_the_reference(reference: dict[str, dict[str, list[float]]]) -> None:
    for n, weights in reference["deep_supervision_weights"].items():
        assert deep_supervision_weights(int(n)) == pytest.approx(weights, abs=1e-12)
    assert deep_supervision_weights(1) == (1.0,)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=2, max_size=3))
def test_coarse_labels_are_those_of_nearest_exact_interpolation(axes: list[tuple[int, int]]) -> None:
    labels = torch.randint(0, 5, (2, *(size * factor for size, factor in axes)))
    shape = [size for size, _ in axes]
    expected = F.interpolate(labels[:, None].float(), shape, mode="nearest-exact")[:, 0].long()
    assert torch.equal(deep_supervision_targets(labels, [shape])[0], expected)


def test_outputs_are_summed_with_their_weights() -> None:
    labels = torch.randint(0, 3, (2, 4, 8, 8))
    outputs = [torch.randn(2, 3, 4, 8, 8), torch.randn(2, 3, 2, 4, 4), torch.randn(2, 3, 1, 2, 2)]
    objective = make_objective("dice_ce", PLAIN, False)
    coarse = deep_supervision_targets(labels, [(2, 4, 4)])[0]
    expected = 2 / 3 * dice_ce(outputs[0], labels, PLAIN, False) + 1 / 3 * dice_ce(outputs[1], coarse, PLAIN, False)
    assert torch.allclose(objective(outputs, labels), expected)
    single = objective(outputs[0], labels)
    assert torch.allclose(single, dice_ce(outputs[0], labels, PLAIN, False))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("label_set", [PLAIN, REGIONS], ids=["labels", "regions"])
def test_the_loss_is_float32_with_finite_gradients_for_bfloat16_logits(loss, label_set: LabelSet) -> None:  # type: ignore[no-untyped-def]
    logits = torch.randn(2, label_set.head_count, 4, 6, 6, dtype=torch.bfloat16, requires_grad=True)
    value = loss(logits, torch.randint(0, 3, (2, 4, 6, 6)), label_set, True)
    value.backward()
    assert value.dtype == torch.float32
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("label_set", [PLAIN, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_a_certain_and_right_answer_is_better_than_a_wrong_or_an_unsure_one(
    loss, label_set: LabelSet, batch_dice: bool
) -> None:  # type: ignore[no-untyped-def]
    labels = torch.randint(0, 3, (2, 4, 6, 6))
    masks = region_masks(labels, label_set)
    if not label_set.has_regions:
        masks = torch.cat((labels[:, None] == 0, masks), 1)
    right = 40 * masks.float() - 20
    best, unsure, worst = (float(loss(own, labels, label_set, batch_dice)) for own in (right, 0 * right, -right))
    assert best < unsure < worst
    assert worst - best > 0.5


def test_dice_and_cross_entropy_lies_between_minus_one_and_infinity() -> None:
    labels = torch.randint(0, 3, (2, 4, 6, 6))
    right = 40 * F.one_hot(labels, 3).movedim(-1, 1).float() - 20
    assert float(dice_ce(right, labels, PLAIN, False)) == pytest.approx(-1, abs=1e-3)
    assert float(dice_ce(-right, labels, PLAIN, False)) > 1


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("label_set", [LabelSet(PLAIN.classes, ignore=3), REGIONS], ids=["labels", "regions"])
def test_voxels_that_are_not_annotated_have_no_gradient(loss, label_set: LabelSet) -> None:  # type: ignore[no-untyped-def]
    labels = torch.randint(0, 4, (2, 5, 6, 6))
    logits = torch.randn(2, label_set.head_count, 5, 6, 6, requires_grad=True)
    loss(logits, labels, label_set, False).backward()
    assert logits.grad is not None
    ignored = (labels == 3)[:, None].expand_as(logits)
    assert not logits.grad[ignored].any()
    assert bool(logits.grad[~ignored].all())


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("label_set", [LabelSet(PLAIN.classes, ignore=3), REGIONS], ids=["labels", "regions"])
def test_a_batch_without_any_annotation_gives_a_finite_loss(loss, label_set: LabelSet) -> None:  # type: ignore[no-untyped-def]
    logits = torch.randn(1, label_set.head_count, 3, 3, 3, requires_grad=True)
    value = loss(logits, torch.full((1, 3, 3, 3), 3), label_set, False)
    value.backward()
    assert bool(torch.isfinite(value))


def test_region_masks_are_unions_of_values_and_outside_is_background() -> None:
    labels = torch.tensor([[-1, 0, 1, 2, 3]])
    assert region_masks(labels, REGIONS).tolist() == [
        [[False, False, True, True, False], [False, False, False, True, False]]
    ]
    logits = torch.randn(1, 3, 5)
    outside = dice_and_cross_entropy(logits, torch.tensor([[-1, 0, 1, 2, 2]]), None, False)
    assert torch.equal(outside, dice_and_cross_entropy(logits, torch.tensor([[0, 0, 1, 2, 2]]), None, False))


def test_batch_dice_of_one_sample_is_plain_dice() -> None:
    logits, labels = torch.randn(1, 3, 4, 5), torch.randint(0, 3, (1, 4, 5))
    assert torch.allclose(dice_ce(logits, labels, PLAIN, True), dice_ce(logits, labels, PLAIN, False))
