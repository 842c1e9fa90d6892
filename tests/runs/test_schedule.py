from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.errors import Busy, Interrupted, NotEnoughResources, TrainingStopped
from autoseg.core.workspace import RunFolder
from autoseg.runs.queue import Queue
from autoseg.runs.run import Run, RunResult
from autoseg.runs.train import Schedule
from tests.runs.trained import cascade_plan

FULL, LOW, CASCADE = "3d_fullres", "3d_lowres", "3d_cascade_fullres"
ERRORS = {
    "done": None,
    "failed": TrainingStopped("it failed"),
    "busy": Busy("another process has it"),
    "interrupted": Interrupted("stopped"),
}


def queue(folds: int = 2, names: tuple[str, ...] = (FULL, LOW, CASCADE)) -> Queue:
    runs = tuple(
        Run(name, fold, RunFolder(Path(f"/nowhere/{name}/fold_{fold}"))) for name in names for fold in range(folds)
    )
    return Queue(cascade_plan(), None, None, None, (), runs, dict.fromkeys(runs, "new"))


def result(run: Run, state: str) -> RunResult:
    return RunResult(run, state, ERRORS[state])


@settings(max_examples=80, deadline=None)
@given(
    folds=st.integers(1, 4),
    workers=st.integers(1, 3),
    choices=st.lists(st.sampled_from(["done", "done", "failed", "busy"]), min_size=1, max_size=30),
    order=st.lists(st.integers(0, 5), min_size=1, max_size=10),
)
def test_every_run_is_reported_once_and_a_cascade_comes_after_its_first_stage(folds, workers, choices, order):
    schedule = Schedule(queue(folds))
    working: list[Run] = []
    begun: list[Run] = []
    while True:
        while len(working) < workers and (run := schedule.next_run()) is not None:
            if run.configuration == CASCADE:
                assert not any(own.configuration == LOW for own in (*working, *schedule.open_runs))
            schedule.start(run)
            working.append(run)
            begun.append(run)
        if not working:
            break
        run = working.pop(order[len(begun) % len(order)] % len(working))
        schedule.settle(result(run, choices[len(begun) % len(choices)]))
    results, stop = schedule.outcome()
    assert tuple(own.run for own in results) == schedule.queue.runs
    assert all(begun.count(run) <= 2 for run in schedule.queue.runs)
    assert isinstance(stop, Busy) == any(own.state == "busy" for own in results)


def test_a_run_that_another_process_has_comes_once_more_after_the_others():
    schedule = Schedule(queue())
    states = iter(["busy", "done", "done", "done", "done"])
    order = []
    while (run := schedule.next_run()) is not None and len(order) < 5:
        schedule.start(run)
        order.append(run.title)
        schedule.settle(result(run, next(states)))
    assert order == [
        "3d_fullres fold 0",
        "3d_fullres fold 1",
        "3d_lowres fold 0",
        "3d_lowres fold 1",
        "3d_cascade_fullres fold 0",
    ]
    assert [run.title for run in schedule.open_runs] == ["3d_fullres fold 0", "3d_cascade_fullres fold 1"]


def test_an_interruption_or_a_lack_of_resources_ends_the_queue():
    for error in (Interrupted("stopped"), NotEnoughResources("full")):
        schedule = Schedule(queue())
        first = schedule.next_run()
        schedule.start(first)
        schedule.settle(replace(result(first, "failed"), error=error))
        assert schedule.next_run() is None
        assert schedule.outcome()[1] is error


def test_what_cannot_be_begun_is_given_up_as_a_whole():
    schedule = Schedule(queue())
    for run in schedule.queue.runs[:4]:
        schedule.start(run)
        schedule.settle(result(run, "failed"))
    schedule.give_up("3d_cascade_fullres", TrainingStopped("no first stage"))
    results, stop = schedule.outcome()
    assert [own.state for own in results] == ["failed"] * 6
    assert stop is None
    assert schedule.open_runs == []


def test_the_error_of_an_only_run_is_the_commands():
    schedule = Schedule(queue(1, (FULL,)))
    schedule.settle(result(schedule.queue.runs[0], "failed"))
    assert schedule.outcome()[1] is ERRORS["failed"]


def test_a_first_stage_in_other_hands_is_noticed():
    schedule = Schedule(queue(1))
    assert schedule.is_busy_elsewhere("3d_lowres") is None
    for _ in range(2):
        schedule.settle(result(schedule.queue.runs[1], "busy"))
    assert schedule.is_busy_elsewhere("3d_lowres") is ERRORS["busy"]
