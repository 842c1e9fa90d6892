"""Postprocessing is accepted where it helps cases that had no part in the decision, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autoseg.core.geometry import Geometry
from autoseg.data.model import LabelSet
from autoseg.evaluation.confusion import overlaps
from autoseg.evaluation.statistics import foreground_mean
from autoseg.inference.postprocessing import PostprocessingStep, postprocess
from autoseg.selection.postprocessing import (
    PostprocessingSearch,
    PredictedCase,
    case_dice,
    class_dice,
    predicted_case,
)
from tests.selection.examples import IGNORE, REGIONS, THREE

SHAPE = (3, 12, 12)
ONE = LabelSet({"background": (0,), "one": (1,)})
SPACING = (2.0, 1.0, 1.5)


def case_of(prediction, reference, name="a") -> PredictedCase:
    return predicted_case(name, prediction, reference, Geometry(prediction.shape, SPACING))


def searched(predictions, references, labels, folds=2) -> PostprocessingSearch:
    cases = [case_of(*both, f"case_{i}") for i, both in enumerate(zip(predictions, references, strict=True))]
    search = PostprocessingSearch(cases, np.arange(len(cases)) % folds, labels)
    search.run()
    return search


def truth(classes=1) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, 2:8, 2:8] = 1
    if classes > 1:
        labels[1, 3:7, 3:6] = 2
    return labels


def accepted(search) -> list[PostprocessingStep]:
    return [trial.step for trial in search.trials if trial.is_accepted]


MAPS = hnp.arrays(np.uint8, (2, 4, 5), elements=st.integers(0, 2))
VARIANTS = [
    PostprocessingStep("largest_component", ("two",)),
    *(PostprocessingStep("minimum_volume", ("two",), volume) for volume in (1.0, 6.0, 9.1, 30.0)),
]


@given(MAPS, hnp.arrays(np.uint8, (2, 4, 5), elements=st.integers(0, 3)))
@settings(max_examples=60, deadline=None)
def test_scores_from_components_are_those_of_the_label_map_after_the_step(prediction, reference) -> None:
    case = case_of(prediction, reference)
    found = [class_dice(case, [step], IGNORE)[0] for step in VARIANTS]
    assert found[1:] == pytest.approx(class_dice(case, VARIANTS[1:], IGNORE), nan_ok=True)
    for step, dice in zip(VARIANTS, found, strict=True):
        after = case_of(postprocess(prediction, [step], IGNORE, SPACING), reference)
        assert dice == pytest.approx(case_dice(after, IGNORE)[1], nan_ok=True)


@given(MAPS, MAPS)
@settings(max_examples=30, deadline=None)
def test_cutting_to_the_foreground_loses_nothing(prediction, reference) -> None:
    case = case_of(prediction, reference)
    assert (case.label_map == prediction).all()
    assert case.label_map.dtype == prediction.dtype
    assert (case.open()[1].sum(), case.open()[1].max(initial=0)) == (reference.sum(), reference.max())
    scores = overlaps(prediction, reference, THREE)
    expected = [np.nan if own.dice is None else own.dice for own in scores.values()]
    assert np.allclose(case_dice(case, THREE), expected, equal_nan=True)


def test_an_island_in_every_case_makes_the_largest_component_accepted() -> None:
    predictions = []
    for index in range(6):
        labels = truth()
        labels[0, 10, index : index + 3] = 1
        predictions.append(labels)
    search = searched(predictions, [truth()] * 6, ONE)
    assert accepted(search) == [PostprocessingStep("largest_component", ("one",))]
    assert foreground_mean(search.dice) == pytest.approx(1.0)
    assert foreground_mean(search.nested) == pytest.approx(1.0)
    first = search.trials[0]
    assert first.before < first.after == pytest.approx(1.0)
    assert first.nested_gain == pytest.approx(first.after - first.before)
    assert "no part in the decision" in first.because


def test_small_islands_beside_two_true_pieces_need_a_minimum_volume() -> None:
    two_pieces = truth()
    two_pieces[:, 2:8, 4:5] = 0
    predictions = []
    for index in range(6):
        labels = two_pieces.copy()
        labels[0, 10, index] = 1
        predictions.append(labels)
    search = searched(predictions, [two_pieces] * 6, ONE)
    assert [step.kind for step in accepted(search)] == ["minimum_volume"]
    assert accepted(search)[0].minimum_mm3 == pytest.approx(2 * 2.0 * 1.0 * 1.5)
    assert foreground_mean(search.dice) == pytest.approx(1.0)


def test_a_step_that_helps_one_fold_and_hurts_the_other_is_not_accepted() -> None:
    predictions, references = [], []
    for index in range(8):
        reference = truth()
        labels = truth()
        labels[0, 10, 0:4] = 1
        if index % 2:  # in this fold the islands are true
            reference[0, 10, 0:4] = 1
        else:
            labels[0, 10, 5:9] = 1
        predictions.append(labels)
        references.append(reference)
    search = searched(predictions, references, ONE)
    largest = search.trials[0]
    assert largest.after > largest.before  # on all cases it helps
    assert largest.nested_gain <= 0  # but not where it was not looked at
    assert not largest.is_accepted
    assert "but" in largest.because
    assert (search.dice == [case_dice(case, ONE) for case in search.cases]).all()


def test_a_perfect_prediction_is_left_alone() -> None:
    search = searched([truth(2)] * 4, [truth(2)] * 4, THREE)
    assert accepted(search) == []
    assert {trial.because for trial in search.trials} == {"it changes nothing"}
    assert [trial.step.classes for trial in search.trials[:2]] == [("one", "two"), ("one",)]


def test_the_whole_is_not_cut_where_a_class_would_lose() -> None:
    reference = truth()
    reference[0, 10, 0:2] = 2  # the only voxels of class two are far from the rest
    predictions = []
    for _ in range(4):
        labels = reference.copy()
        labels[2, 10, 6:11] = 1
        predictions.append(labels)
    search = searched(predictions, [reference] * 4, THREE)
    whole, one = search.trials[0], search.trials[1]
    assert not whole.is_accepted
    assert (one.step.classes, one.is_accepted) == (("one",), True)
    assert search.dice.min() == pytest.approx(1.0)


def test_a_region_is_cleaned_together_with_what_it_holds() -> None:
    predictions = []
    for _ in range(4):
        labels = truth(2)
        labels[0, 10, 0:3] = 2
        predictions.append(labels)
    search = searched(predictions, [truth(2)] * 4, REGIONS)
    assert accepted(search)[0].classes == ("whole", "core")
    assert search.dice.min() == pytest.approx(1.0)
    again = PostprocessingSearch(list(search.cases), search.groups, REGIONS)
    again.run()
    assert accepted(again) == []


def test_cleaning_a_region_that_would_harm_another_is_refused() -> None:
    reference = truth(2)
    reference[0, 10, 0:2] = 2
    predictions = []
    for _ in range(4):
        labels = truth(2)
        labels[0, 10, 0:2] = 2
        labels[1, 2:8, 2:8] = 1  # the core is found in the small piece only
        labels[0:2, 10, 5:11] = 1
        predictions.append(labels)
    search = searched(predictions, [reference] * 4, REGIONS)
    whole = next(trial for trial in search.trials if trial.step.classes == ("whole",))
    assert whole.after > whole.before
    assert not whole.is_accepted
    assert "other classes lose" in whole.because


def test_ignored_voxels_have_no_say() -> None:
    predictions, references = [], []
    for _ in range(4):
        labels, reference = truth(), truth()
        labels[0, 10, 0:3] = 1
        reference[0, 10] = 3
        predictions.append(labels)
        references.append(reference)
    search = searched(predictions, references, IGNORE)
    assert accepted(search) == []


def test_without_a_defined_score_or_a_second_group_nothing_is_accepted() -> None:
    empty = np.zeros(SHAPE, np.uint8)
    assert searched([empty] * 3, [empty] * 3, ONE).trials == []
    wrong = truth()
    wrong[0, 10, 0:3] = 1
    alone = searched([wrong], [truth()], ONE, folds=1)
    assert accepted(alone) == []
    only_false = searched([wrong] * 4, [empty] * 4, ONE)
    assert accepted(only_false) == []


@given(
    st.lists(st.tuples(MAPS, MAPS), min_size=2, max_size=5),
    st.sampled_from([THREE, REGIONS, IGNORE]),
    st.integers(1, 3),
)
@settings(max_examples=30, deadline=None)
def test_what_is_accepted_never_lowers_the_mean_and_is_what_the_steps_do(pairs, labels, folds) -> None:
    predictions, references = zip(*pairs, strict=True)
    before = [case_dice(case_of(*both), labels) for both in pairs]
    search = searched(predictions, references, labels, folds)
    assert not foreground_mean(search.dice) < foreground_mean(np.array(before)) - 1e-9
    for case, prediction, reference in zip(search.cases, predictions, references, strict=True):
        expected = postprocess(prediction, accepted(search), labels, SPACING)
        assert (case.label_map == expected).all()
        scores = overlaps(expected, reference, labels)
        own = search.dice[search.cases.index(case)]
        assert np.allclose(own, [np.nan if s.dice is None else s.dice for s in scores.values()], equal_nan=True)


@pytest.mark.parametrize("corner", [(1, 2, 3), (0, 2, 3)])
def test_the_edge_of_what_is_looked_at_is_that_of_the_image_or_empty(corner) -> None:
    labels = np.zeros((6, 9, 9), np.uint8)
    labels[tuple(slice(first, first + 3) for first in corner)] = 1
    case = predicted_case("a", labels, labels, Geometry(labels.shape, (1.0, 1.0, 1.0)))
    inside, _ = case.open()
    assert inside[0].any() == (corner[0] == 0)  # a step that removes what touches the border decides as on the whole
    assert not inside[-1].any()
    assert not inside[:, 0].any()
    assert np.array_equal(case.label_map, labels)
