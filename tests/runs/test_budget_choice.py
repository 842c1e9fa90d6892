"""Which runs a budget is enough for, with simulated machines whose speed changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.workspace import RunFolder
from autoseg.runs.budget import SHARE_OF_BEGUN, BudgetChoice, RunGroup, choose_runs, queue_seconds, time_span
from autoseg.runs.run import Run

costs = st.lists(st.tuples(st.floats(1, 100), st.integers(1, 5)), min_size=1, max_size=4)
many = settings(max_examples=100, deadline=None)


def group(name: str, needed: float, folds: int, **facts) -> RunGroup:
    runs = (Run(name, fold, RunFolder(Path(f"/nowhere/{name}/fold_{fold}"))) for fold in range(folds))
    return RunGroup(name, dict.fromkeys(runs, needed), needed * folds, **facts)


def groups_of(kinds: Sequence[tuple[float, int]]) -> list[RunGroup]:
    return [group(f"kind_{index}", needed, folds) for index, (needed, folds) in enumerate(kinds)]


def complete(choice: BudgetChoice, groups: Sequence[RunGroup]) -> set[str]:
    return {own.configuration for own in groups if own.needed.keys() <= set(choice.runs)}


@many
@given(kinds=costs, seconds=st.floats(0, 1500), devices=st.integers(1, 3))
def test_what_is_chosen_fits_and_complete_configurations_come_first(kinds, seconds, devices):
    groups = groups_of(kinds)
    choice = choose_runs(groups, seconds, devices, must_train=True)
    assert sorted([*choice.runs, *choice.left_out]) == sorted(run for own in groups for run in own.needed)
    whole = complete(choice, groups)
    parts = {run.configuration for run in choice.runs} - whole
    assert choice.runs
    assert not (whole and parts)
    kept = [replace(own, needed={run: own.needed[run] for run in choice.runs if run in own.needed}) for own in groups]
    assert len(choice.runs) == 1 or max(sum(own.needed.values()) for own in kept) <= seconds * devices
    # the cheapest that is left out would not fit beside what is chosen
    ordered = sorted(groups, key=lambda one: one.work)
    if whole and len(whole) < len(groups):
        assert whole == {own.configuration for own in ordered[: len(whole)]}
        assert queue_seconds(ordered[: len(whole) + 1], devices) > seconds


@many
@given(kinds=costs, seconds=st.floats(0, 1500), more=st.floats(0, 500), devices=st.integers(1, 3))
def test_more_time_never_leaves_more_out(kinds, seconds, more, devices):
    groups = groups_of(kinds)
    little, much = (choose_runs(groups, own, devices, must_train=True) for own in (seconds, seconds + more))
    assert set(little.runs) <= set(much.runs)


@many
@given(kinds=costs, seconds=st.floats(0, 1500), devices=st.integers(1, 3))
def test_the_time_that_is_named_is_enough_for_what_was_left_out(kinds, seconds, devices):
    groups = groups_of(kinds)
    choice = choose_runs(groups, seconds, devices, must_train=True)
    done = set(choice.runs)
    left = [replace(own, needed={run: own.needed[run] for run in own.needed if run not in done}) for own in groups]
    left = [own for own in left if own.needed]
    later = choose_runs(left, choice.extra_seconds, devices, must_train=False)
    assert later.left_out == ()


def test_the_cheaper_configuration_is_completed_and_the_rest_is_named():
    groups = [group("3d_fullres", 60.0, 3), group("2d", 20.0, 3)]
    choice = choose_runs(groups, 200.0, 1, must_train=True)
    assert {run.configuration for run in choice.runs} == {"2d"}
    assert choice.sentence(200.0) == (
        "left out for lack of time: 3d_fullres (3 runs); --budget 7m would train them too"
    )
    assert choose_runs(groups, 240.0, 1, must_train=True).sentence(240.0) == ""
    assert [run.fold for run in choose_runs(groups, 45.0, 1, must_train=True).runs] == [0, 1]


def test_the_cheaper_one_is_the_one_with_less_work_whatever_a_measurement_says():
    spoiled = [group("2d", 90.0, 3), group("3d_fullres", 60.0, 3)]
    choice = choose_runs([replace(spoiled[0], work=1.0), replace(spoiled[1], work=2.0)], 300.0, 1, must_train=True)
    assert {run.configuration for run in choice.runs} == {"2d"}


def test_without_any_time_one_run_is_trained_and_none_once_one_is_done():
    groups = [group("2d", 20.0, 3)]
    assert len(choose_runs(groups, 0.0, 1, must_train=True).runs) == 1
    assert choose_runs(groups, 0.0, 1, must_train=False).runs == ()


def test_a_configuration_that_has_begun_is_completed_with_less():
    begun, other = group("3d_fullres", 60.0, 2, is_begun=True), group("2d", 20.0, 3)
    both = choose_runs([begun, other], 100.0, 1, must_train=False)
    assert {run.configuration for run in both.runs} == {"3d_fullres"}
    assert choose_runs([begun], 2 * 60.0 * SHARE_OF_BEGUN - 1, 1, must_train=False).left_out == (
        Run("3d_fullres", 1, RunFolder(Path())),
    )


def test_a_cascade_comes_with_its_first_stage_or_not_at_all():
    cascade = group("3d_cascade_fullres", 5.0, 2, first_stage="3d_lowres")
    groups = [cascade, group("3d_lowres", 30.0, 2)]
    little, enough = (choose_runs(groups, own, 1, must_train=True) for own in (65.0, 70.0))
    assert {run.configuration for run in little.runs} == {"3d_lowres"}
    assert [run.configuration for run in enough.runs] == ["3d_lowres"] * 2 + ["3d_cascade_fullres"] * 2
    assert queue_seconds([groups[1], cascade], 2) == 35.0
    assert queue_seconds([groups[1], replace(cascade, first_stage=None)], 4) == 30.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(81.0, "90s"), (120.0, "120s"), (121.0, "3m"), (3600.0, "1h"), (7300.0, "2h10m")]
)
def test_a_span_of_time_is_rounded_up(seconds, text):
    assert time_span(seconds) == text


@dataclass
class Machine:
    """Trains a queue by the choices made between runs; each run ends within a step of its share."""

    kinds: list[RunGroup]
    budget: float
    speeds: list[float]  # seconds that a second of the estimate takes, in equal parts of the budget
    now: float = 0.0

    def slowness(self) -> float:
        return self.speeds[min(len(self.speeds) - 1, int(self.now / self.budget * len(self.speeds)))]

    def train(self) -> tuple[list[Run], list[Run], list[Run]]:
        """The runs in the order in which they were trained, those that were too short, and those left out."""
        needs = {run: needed for own in self.kinds for run, needed in own.needed.items()}
        done: list[Run] = []
        short: list[Run] = []
        known = 1.0
        while True:
            choice = choose_runs(self.open_groups(done, known), self.budget - self.now, 1, must_train=not done)
            if not choice.runs:
                return done, short, list(choice.left_out)
            run = choice.runs[0]
            share = (self.budget - self.now) * needs[run] / sum(needs[own] for own in choice.runs)
            known = self.slowness()
            if share < SHARE_OF_BEGUN * known * needs[run] * (1 - 1e-9):
                short.append(run)
            self.now += share
            done.append(run)

    def open_groups(self, done: Sequence[Run], known: float) -> list[RunGroup]:
        """What is not done, with the seconds needed at the speed that is known."""
        begun = {run.configuration for run in done}
        left = [
            replace(
                own,
                needed={run: known * needed for run, needed in own.needed.items() if run not in done},
                is_begun=own.configuration in begun,
            )
            for own in self.kinds
        ]
        return [own for own in left if own.needed]


@many
@given(kinds=costs, budget=st.floats(20, 1500), speeds=st.lists(st.floats(0.3, 6.0), min_size=1, max_size=4))
def test_whatever_the_machine_does_the_budget_is_kept_and_used(kinds, budget, speeds):
    machine = Machine(groups_of(kinds), budget, speeds)
    done, _, left_out = machine.train()
    assert done
    assert machine.now <= budget * (1 + 1e-9)
    if machine.now < budget * (1 - 1e-6):  # a slower machine left too little for any of what is left
        at_least = min(own.needed[run] for own in machine.kinds for run in own.needed if run in left_out)
        assert budget - machine.now < at_least * max(speeds)


@many
@given(kinds=costs, budget=st.floats(20, 1500), slowness=st.floats(0.3, 6.0))
def test_only_runs_of_the_configuration_begun_with_a_wrong_estimate_may_be_short(kinds, budget, slowness):
    done, short, _ = Machine(groups_of(kinds), budget, [slowness]).train()
    assert {run.configuration for run in short} <= {done[0].configuration}
    assert len(short) <= 1 or slowness > 1


def test_a_machine_that_became_faster_takes_back_what_was_left_out_and_a_slower_one_drops_it():
    kinds = [group("2d", 20.0, 3), group("3d_fullres", 60.0, 3)]
    for budget, speeds, names in ((200.0, [0.5], {"2d", "3d_fullres"}), (300.0, [3.0], {"2d"})):
        done, _, _ = Machine(kinds, budget, speeds).train()
        assert {run.configuration for run in done} == names
        assert [run.configuration for run in done[:3]] == ["2d"] * 3
