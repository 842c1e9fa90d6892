from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from autoseg.core.errors import TrainingStopped
from autoseg.data.model import LabelSet
from autoseg.training.loop import EpochResult
from autoseg.training.optimization import ScheduleSegment
from autoseg.training.step import MOST_SKIPPED_IN_A_ROW, Compute, TrainingState, train_step, update_average
from autoseg.training.validation import OnlineScores, class_dice, overlap_counts, pooled_dice, score_patches, smoothed
from tests.training.tiny_training import (
    CASES,
    COMPUTE,
    LABELS,
    RECIPE,
    Calls,
    fresh_state,
    loss,
    on_device,
    same_weights,
    sampling,
    train,
)


def recording(results: list[EpochResult]) -> Calls:
    return Calls(after_epoch=lambda result, _state: results.append(result))


def test_training_learns_and_reports_every_epoch() -> None:
    results: list[EpochResult] = []
    recipe = replace(RECIPE, epochs=6, steps_per_epoch=8, lr=0.05)
    state = train(fresh_state(recipe), recipe, callbacks=(recording(results),))
    assert [result.epoch for result in results] == list(range(6))
    losses = [result.loss for result in results]
    assert None not in losses
    assert losses[-1] < losses[0] - 0.3  # type: ignore[operator]
    assert state.is_finished
    assert state.ema_dice is not None
    assert state.ema_dice > 0.4


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(threads: int) -> None:
    assert same_weights(train(fresh_state()), train(fresh_state(), threads=threads))


def test_a_moved_end_ends_in_the_middle_of_an_epoch() -> None:
    results: list[EpochResult] = []

    def shorten(state: TrainingState) -> None:
        if state.step == 5:
            state.segment = state.segment.moved(5, 6)

    state = train(fresh_state(), callbacks=(Calls(shorten), recording(results)))
    assert (state.step, state.epoch, len(results), state.epochs) == (6, 2, 2, 2)


def test_every_stage_of_a_growing_patch_gets_its_share_of_the_epochs() -> None:
    recipe = replace(RECIPE, epochs=10, patch_growth=(0.4, 0.6, 0.8))
    state, epochs = fresh_state(recipe), [0] * 4
    while not state.is_finished:
        state.stage = state.due_stage
        before = state.epoch
        train(state, recipe)
        epochs[state.stage] = state.epoch - before
    assert epochs == [2, 3, 2, 3]


@pytest.mark.parametrize("where", ["image", "weight", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(where: str) -> None:
    state = train(fresh_state(), replace(RECIPE, epochs=1))
    before = [value.clone() for value in state.network.state_dict().values()]
    image, labels = on_device(sampling()(0))
    chosen = loss
    if where == "image":
        image[0, 0, 0, 0, 0] = math.inf
    elif where == "weight":
        bad = next(state.network.parameters())
        bad.data[0] = math.nan
        before = [value.clone() for value in state.network.state_dict().values()]
    else:
        chosen = lambda logits, target: loss(logits, target) + torch.sqrt(logits[0].sum() * 0)  # noqa: E731
    step = state.step
    assert not math.isfinite(train_step(state, image, labels, chosen, RECIPE, COMPUTE))
    after = list(state.network.state_dict().values())
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(before, after, strict=True))
    assert state.step == step + 1


def test_repeated_losses_that_are_not_finite_stop_with_the_cases() -> None:
    recipe = replace(RECIPE, steps_per_epoch=50)
    state = fresh_state(recipe)
    next(state.network.parameters()).data[0] = math.nan
    with pytest.raises(TrainingStopped, match=f"in {MOST_SKIPPED_IN_A_ROW} steps in a row") as caught:
        train(state, recipe)
    assert "case_" in str(caught.value)
    assert len(state.events) == MOST_SKIPPED_IN_A_ROW - 1


def test_an_epoch_without_a_finite_step_still_counts() -> None:
    results: list[EpochResult] = []
    state = fresh_state(replace(RECIPE, epochs=1))
    next(state.network.parameters()).data[0] = math.nan
    train(state, replace(RECIPE, epochs=1), callbacks=(recording(results),))
    assert results[0].loss is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_every_precision_and_memory_format_steps(precision: str, memory_format: str) -> None:
    compute = Compute(torch.device("cpu"), precision, memory_format)
    state = fresh_state()
    state.network = compute.place_network(state.network, 3)
    image, labels = on_device(sampling()(0))
    reference = train_step(fresh_state(), image, labels, loss, RECIPE, COMPUTE)
    assert abs(float(train_step(state, compute.place_image(image), labels, loss, RECIPE, compute) - reference)) < 0.05


def test_the_average_moves_toward_the_weights() -> None:
    mean, current = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    expected = 0.75 * mean.weight.detach() + 0.25 * current.weight.detach()
    update_average(mean, current, 0.75)
    assert torch.allclose(mean.weight, expected)


def test_the_segment_knows_the_length() -> None:
    state = fresh_state()
    state.segment = ScheduleSegment(0, 0.0, 10)
    assert (state.epochs, state.end_of_epoch, state.is_finished) == (3, 4, False)


CLASSES = LabelSet({"background": (0,), "c": (3,), "a": (1,), "b": (2,)})
REGIONS = LabelSet({"background": (0,), "whole": (1, 2), "core": (2,)}, ignore=3, regions_class_order=(1, 2))


def test_regions_are_predicted_where_their_logit_is_positive_and_ignored_voxels_do_not_count() -> None:
    logits = torch.tensor([[[1.0, 1.0, -1.0, 0.5, -2.0], [2.0, -1.0, -1.0, 3.0, 0.0]]])
    labels = torch.tensor([[2, 0, 1, 3, 3]])
    assert overlap_counts(logits, labels, REGIONS).tolist() == [[1, 1], [1, 0], [1, 0]]
    ignored = torch.full_like(labels, 3)
    assert not bool(overlap_counts(logits, ignored, REGIONS).any())


def test_ignored_voxels_of_plain_labels_do_not_count() -> None:
    logits = F.one_hot(torch.tensor([[1, 1, 2, 0]]), 3).movedim(2, 1).float()
    label_set = LabelSet({"background": (0,), "a": (1,), "b": (2,)}, ignore=3)
    assert overlap_counts(logits, torch.tensor([[1, 3, 3, 1]]), label_set).tolist() == [[1, 0], [0, 0], [1, 0]]


def test_online_dice_pools_the_patches_in_the_order_of_the_classes() -> None:
    predicted, labels = torch.tensor([[0, 1, 1, 2]]), torch.tensor([[0, 1, 0, 2]])
    counts = overlap_counts(F.one_hot(predicted, 4).movedim(2, 1).float(), labels, CLASSES)
    assert counts.tolist() == [[0, 1, 1], [0, 1, 0], [0, 0, 0]]
    dice = pooled_dice(counts + counts)
    assert dice == (None, 2 / 3, 1.0)
    scores = OnlineScores(0.0, dice)
    assert scores.mean_dice == pytest.approx(5 / 6)
    assert class_dice(CLASSES.foreground, scores) == {"a": 2 / 3, "b": 1.0, "c": None}
    assert class_dice(("a",), None) == {"a": None}
    assert OnlineScores(0.0, (None,)).mean_dice is None


def test_no_validation_batches_give_no_scores() -> None:
    assert score_patches(fresh_state(), [], loss, COMPUTE, LABELS) is None


def test_the_smoothed_dice_starts_at_the_first_value() -> None:
    assert smoothed(None, 0.5) == 0.5
    assert smoothed(0.5, None) == 0.5
    assert smoothed(0.5, 1.0) == pytest.approx(0.55)


def test_batches_are_the_same_arrays_that_were_cut() -> None:
    batch = sampling()(0)
    assert batch.image.dtype == np.float32
    assert set(batch.cases) <= set(CASES)
