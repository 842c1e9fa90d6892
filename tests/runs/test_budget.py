from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.runs import budget
from autoseg.runs.budget import INTERVALS_FILE, WorkInterval, fair_shares, heartbeat, read_intervals, wall_seconds

spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


@settings(max_examples=60, deadline=None)
@given(spans=spans, until=st.integers(0, 70))
def test_wall_time_counts_every_second_once_however_many_worked_in_it(spans, until):
    covered = {second for begin, end in spans for second in range(begin, min(end, until))}
    assert wall_seconds([WorkInterval(float(begin), float(end)) for begin, end in spans], float(until)) == len(covered)


def test_work_is_noted_from_its_begin_to_its_end(tmp_path: Path):
    begin = time.time()
    with heartbeat(tmp_path, begin - 10.0):
        pass
    with heartbeat(tmp_path, begin + 2000.0):
        pass
    first, second = read_intervals(tmp_path)
    assert (first.begin, second.begin) == (begin - 10.0, begin + 2000.0)
    assert begin <= first.end <= second.end <= time.time()
    # the second begins after its end, as if the clock had been set back: it counts nothing
    assert wall_seconds((first, second), float("inf")) == first.end - first.begin


def test_work_is_noted_while_it_goes_on(tmp_path: Path):
    with heartbeat(tmp_path, 1000.0, seconds=0.001):
        noted = read_intervals(tmp_path)
        while read_intervals(tmp_path) == noted:  # would hang without a heartbeat
            pass
        (tmp_path / INTERVALS_FILE).unlink()
        while not read_intervals(tmp_path):
            pass


def test_a_note_that_cannot_be_written_does_not_end_the_work(tmp_path: Path, monkeypatch):
    failed = threading.Event()

    def fail(_record: object, _path: Path) -> None:
        failed.set()
        raise OSError(28, "no space left")

    with heartbeat(tmp_path, 1000.0, seconds=0.001):
        monkeypatch.setattr(budget, "save", fail)
        failed.wait()
        failed.clear()
        failed.wait()
        monkeypatch.undo()
    assert len(read_intervals(tmp_path)) == 1


def test_a_damaged_note_counts_nothing(tmp_path: Path):
    (tmp_path / INTERVALS_FILE).write_text("{")
    assert read_intervals(tmp_path) == read_intervals(tmp_path / "absent") == ()


def test_what_an_earlier_version_noted_still_counts(tmp_path: Path):
    (tmp_path / "sittings.json").write_text('{"sittings": [{"begin": 10.0, "end": 25.0}]}')
    assert read_intervals(tmp_path) == (WorkInterval(10.0, 25.0),)
    with heartbeat(tmp_path, 100.0):
        pass
    assert len(read_intervals(tmp_path)) == 2


@settings(max_examples=80, deadline=None)
@given(
    seconds=st.floats(0, 1e4),
    runs=st.lists(st.tuples(st.floats(0, 1e3), st.sampled_from([1.0, 2.5])), min_size=1, max_size=12),
)
def test_shares_use_the_budget_up_and_favor_the_run_that_had_least(seconds, runs) -> None:
    spent, weights = zip(*runs, strict=True)
    shares = fair_shares(seconds, spent, weights)
    assert sum(shares) == pytest.approx(seconds, abs=1e-6)
    totals = [(own + share) / weight for own, share, weight in zip(spent, shares, weights, strict=True)]
    level = min(totals)
    for (own, weight), share, total in zip(runs, shares, totals, strict=True):
        assert share >= 0
        assert total == pytest.approx(level, abs=1e-6) or (share == 0 and own / weight >= level)


def test_a_run_that_was_interrupted_ends_with_the_same_total_as_the_others() -> None:
    assert fair_shares(30.0, [2.0, 0.0, 0.0, 0.0], [5.0] * 4) == (6.0, 8.0, 8.0, 8.0)
    assert fair_shares(-5.0, [2.0, 0.0], [1.0, 1.0]) == (0.0, 0.0)
