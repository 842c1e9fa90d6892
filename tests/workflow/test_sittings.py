from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.workflow.sittings import BEAT_SECONDS, SITTINGS_FILE, Sitting, read_sittings, sitting, wall_seconds

spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


class FakeTime:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@settings(max_examples=60, deadline=None)
@given(spans=spans, until=st.integers(0, 70))
def test_wall_time_counts_every_second_once_however_many_worked_in_it(spans, until):
    covered = {second for begin, end in spans for second in range(begin, min(end, until))}
    assert wall_seconds([Sitting(float(begin), float(end)) for begin, end in spans], float(until)) == len(covered)


def test_work_is_noted_from_its_begin_to_its_end(tmp_path: Path):
    clock = FakeTime()
    with sitting(tmp_path, 990.0, clock):
        clock.now = 1010.0
    assert read_sittings(tmp_path) == (Sitting(990.0, 1010.0),)
    with sitting(tmp_path, 2000.0, clock):
        clock.now = 2005.0
    assert read_sittings(tmp_path) == (Sitting(990.0, 1010.0), Sitting(2000.0, 2005.0))


def test_a_kill_hides_less_than_a_beat(tmp_path: Path):
    clock = FakeTime()
    with sitting(tmp_path, 1000.0, clock) as beat:
        for _ in range(20):
            clock.now += BEAT_SECONDS / 4
            beat()
            killed_here = wall_seconds(read_sittings(tmp_path), float("inf"))
            assert clock.now - 1000.0 - killed_here < BEAT_SECONDS
    assert wall_seconds(read_sittings(tmp_path), float("inf")) == 5 * BEAT_SECONDS


def test_a_clock_that_was_set_back_does_not_stop_the_notes(tmp_path: Path):
    clock = FakeTime()
    with sitting(tmp_path, 1000.0, clock) as beat:
        clock.now = 500.0
        beat()
        assert read_sittings(tmp_path) == (Sitting(1000.0, 500.0),)
    assert wall_seconds(read_sittings(tmp_path), 2000.0) == 0.0


def test_a_damaged_note_counts_nothing(tmp_path: Path):
    (tmp_path / SITTINGS_FILE).write_text("{")
    assert read_sittings(tmp_path) == read_sittings(tmp_path / "absent") == ()
