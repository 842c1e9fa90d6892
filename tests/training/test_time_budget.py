from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.training.callbacks.time_budget import TimeBudget, fit_epochs
from autoseg.training.loop import EpochResult
from autoseg.training.optimization import ScheduleSegment
from autoseg.training.recipe import Recipe
from autoseg.training.step import TrainingState

RESULT = EpochResult(0, 0.0, None, 1.0, 0.0, 0.0)


class FakeTime:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def state_of(end: int, steps_per_epoch: int, step: int = 0) -> TrainingState:
    segment = ScheduleSegment(0, 0.0, end)
    return TrainingState(
        segment=segment,
        steps_per_epoch=steps_per_epoch,
        step=step,
        network=None,  # type: ignore[arg-type]
        optimizer=None,  # type: ignore[arg-type]
    )


@dataclass
class Pretended:
    """What a pretended training came to.

    Attributes:
        used: share of the budget.
        state: at the end.
        changes: of the schedule.
        stage_steps: steps of each stage.
    """

    used: float
    state: TrainingState
    changes: int
    stage_steps: list[int]


def simulate(
    recipe: Recipe,
    seconds: float,
    step: list[float],
    between: float,
    costs: tuple[tuple[float, ...], tuple[float, ...]] = ((1.0,), (1.0,)),
) -> Pretended:
    """Runs a pretended training with given step times (cycled over thirds of the run) until its end.

    Args:
        recipe: its epochs to begin with.
        seconds: of the budget.
        step: seconds of a step with the largest patch.
        between: seconds of the validation of an epoch with the largest patch.
        costs: of a step in each stage, expected and true.
    """
    clock = FakeTime()
    end = recipe.epochs * recipe.steps_per_epoch
    expected, true = costs
    state = replace(state_of(end, recipe.steps_per_epoch), stages=len(true))
    budget = TimeBudget(clock.now + seconds, 50, clock=clock, costs=expected)
    changes, stage_steps = 0, [0] * len(true)
    while not state.is_finished:
        state.stage = state.due_stage
        while state.step < state.end_of_epoch:
            part = min(len(step) - 1, int((clock.now - 100) / seconds * len(step)))
            clock.now += step[part] * true[state.stage]
            state.step += 1
            stage_steps[state.stage] += 1
            before = state.segment
            budget.after_step(state)
            changes += state.segment != before
            assert state.segment.at(state.step) >= before.at(state.step) - 1e-9
        clock.now += between * true[state.stage]
        state.epoch += 1
        state.epoch_begin = state.step
        budget.after_epoch(RESULT, state)
    return Pretended((clock.now - 100) / seconds, state, changes, stage_steps)


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.floats(60, 3000),
    guess=st.floats(0.3, 3.0),
    factors=st.lists(st.floats(0.6, 1.8), min_size=1, max_size=3),
    between=st.floats(0.0, 3.0),
)
def test_the_budget_is_used_and_kept_whatever_the_speed(
    seconds: float, guess: float, factors: list[float], between: float
) -> None:
    true_step = seconds / 1500
    recipe = fit_epochs(replace(Recipe(), steps_per_epoch=50, validation_steps=5), seconds, guess * true_step)
    pretended = simulate(recipe, seconds, [f * true_step for f in factors], between * true_step)
    assert 0.93 <= pretended.used <= 1.01


def test_an_even_speed_ends_close_to_the_deadline_with_few_changes() -> None:
    recipe = fit_epochs(replace(Recipe(), steps_per_epoch=50, validation_steps=5), 1000.0, 0.5)
    pretended = simulate(recipe, 1000.0, [0.5], 1.0)
    assert 0.97 <= pretended.used <= 1.0
    assert pretended.changes < 60
    assert pretended.state.epoch == pretended.state.epochs


@settings(max_examples=40, deadline=None)
@given(
    guess=st.floats(0.3, 3.0),
    factors=st.lists(st.floats(0.6, 1.8), min_size=1, max_size=3),
    between=st.floats(0.0, 3.0),
    costs=st.lists(st.floats(0.1, 0.9), min_size=1, max_size=3).map(sorted),
    wrong=st.floats(0.7, 1.4),
)
def test_growing_patches_end_in_time_and_each_gets_its_share_of_the_steps(
    guess: float, factors: list[float], between: float, costs: list[float], wrong: float
) -> None:
    seconds, true_step = 1000.0, 0.5
    recipe = fit_epochs(replace(Recipe(), steps_per_epoch=50, validation_steps=5), seconds, guess * true_step)
    expected = tuple(min(1.0, wrong * cost) for cost in costs)
    stages = ((*expected, 1.0), (*costs, 1.0))
    pretended = simulate(recipe, seconds, [f * true_step for f in factors], between * true_step, stages)
    assert 0.9 <= pretended.used <= 1.02
    even = sum(pretended.stage_steps) / len(pretended.stage_steps)
    # a machine that slows down to a third in the end takes steps from the last stage alone
    assert all(0.3 * even <= steps <= 2.0 * even for steps in pretended.stage_steps)


@pytest.mark.parametrize("seconds", [1.0, 10.0, 100.0, 1e4])
def test_epochs_are_shortened_until_ten_fit(seconds: float) -> None:
    recipe = fit_epochs(Recipe(warmup_steps=100), seconds, 0.1)
    assert recipe.epochs >= 10 or seconds == 1.0
    assert 1 <= recipe.steps_per_epoch <= 250
    assert 1 <= recipe.validation_steps <= 50
    assert recipe.warmup_steps <= recipe.epochs * recipe.steps_per_epoch


def test_a_deadline_in_the_past_ends_at_once() -> None:
    clock = FakeTime()
    state = state_of(50, 5, step=1)
    TimeBudget(clock.now - 5, 10, clock=clock).after_step(state)
    assert state.segment.end == 1


def test_a_large_change_is_written_down() -> None:
    clock = FakeTime()
    state = state_of(10, 10)
    budget = TimeBudget(clock.now + 1000, 10, clock=clock)
    for _ in range(5):
        clock.now += 1
        state.step += 1
        budget.after_step(state)
    assert state.segment.end > 400
    assert "instead of 10" in state.events[0]


def test_time_is_kept_for_what_comes_after_in_proportion_to_the_speed() -> None:
    clock = FakeTime()
    state = state_of(100, 50)
    budget = TimeBudget(clock.now + 1000, 50, lambda step_seconds: 300 * step_seconds, clock)
    for _ in range(6):
        clock.now += 2
        state.step += 1
        budget.after_step(state)
    budget.plan(state)
    assert 180 < state.segment.end < 200  # (1000 - 600 seconds) / 2 seconds


def test_epochs_grow_when_the_first_guess_was_far_too_slow() -> None:
    recipe = fit_epochs(replace(Recipe(), steps_per_epoch=50, validation_steps=5), 1000.0, 20.0)
    assert recipe.steps_per_epoch == 4
    pretended = simulate(recipe, 1000.0, [0.5], 1.0)
    assert pretended.state.steps_per_epoch == 50
    assert pretended.state.epoch < 60
    assert 0.95 <= pretended.used <= 1.0


@settings(max_examples=60, deadline=None)
@given(slow=st.integers(1, 8), pause=st.floats(0.0, 40.0), guess=st.sampled_from([0.1, 10.0, 1000.0]))
def test_a_pause_of_the_machine_is_not_taken_for_its_speed(slow, pause, guess) -> None:
    recipe = fit_epochs(replace(Recipe(), steps_per_epoch=50, validation_steps=5), 100.0, guess)
    clock = FakeTime()
    state = state_of(recipe.epochs * recipe.steps_per_epoch, recipe.steps_per_epoch)
    budget = TimeBudget(clock.now + 100.0, 50, clock=clock)
    while not state.is_finished:
        while state.step < state.end_of_epoch:
            clock.now += 0.1 + pause * (state.step == slow)
            state.step += 1
            budget.after_step(state)
        state.epoch_begin = state.step
        budget.after_epoch(RESULT, state)
    assert 95.0 <= clock.now - 100.0 <= 100.2


def test_a_training_ends_at_its_most_steps_with_the_whole_schedule_behind_it() -> None:
    clock = FakeTime()
    state = state_of(10, 5)
    budget = TimeBudget(clock.now + 1000.0, 50, clock=clock, most_steps=60)
    while not state.is_finished:
        while state.step < state.end_of_epoch:
            clock.now += 0.1
            state.step += 1
            budget.after_step(state)
        state.epoch_begin = state.step
        budget.after_epoch(RESULT, state)
    assert state.step == 60
    assert state.segment.at(60) == pytest.approx(1.0)
