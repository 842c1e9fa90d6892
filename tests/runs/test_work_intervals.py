from __future__ import annotations

import threading
import time
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.runs import work_intervals as sittings
from autoseg.runs.work_intervals import SITTINGS_FILE, Sitting, read_sittings, sitting, wall_seconds

spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


@settings(max_examples=60, deadline=None)
@given(spans=spans, until=st.integers(0, 70))
def test_wall_time_counts_every_second_once_however_many_worked_in_it(spans, until):
    covered = {second for begin, end in spans for second in range(begin, min(end, until))}
    assert wall_seconds([Sitting(float(begin), float(end)) for begin, end in spans], float(until)) == len(covered)


def test_work_is_noted_from_its_begin_to_its_end(tmp_path: Path):
    begin = time.time()
    with sitting(tmp_path, begin - 10.0):
        pass
    with sitting(tmp_path, begin + 2000.0):
        pass
    first, second = read_sittings(tmp_path)
    assert (first.begin, second.begin) == (begin - 10.0, begin + 2000.0)
    assert begin <= first.end <= second.end <= time.time()
    # the second begins after its end, as if the clock had been set back: it counts nothing
    assert wall_seconds((first, second), float("inf")) == first.end - first.begin


def test_work_is_noted_while_it_goes_on(tmp_path: Path):
    with sitting(tmp_path, 1000.0, beat_seconds=0.001):
        noted = read_sittings(tmp_path)
        while read_sittings(tmp_path) == noted:  # would hang without a beat
            pass
        (tmp_path / SITTINGS_FILE).unlink()
        while not read_sittings(tmp_path):
            pass


def test_a_note_that_cannot_be_written_does_not_end_the_work(tmp_path: Path, monkeypatch):
    failed = threading.Event()

    def fail(_record: object, _path: Path) -> None:
        failed.set()
        raise OSError(28, "no space left")

    with sitting(tmp_path, 1000.0, beat_seconds=0.001):
        monkeypatch.setattr(sittings, "save", fail)
        failed.wait()
        failed.clear()
        failed.wait()
        monkeypatch.undo()
    assert len(read_sittings(tmp_path)) == 1


def test_a_damaged_note_counts_nothing(tmp_path: Path):
    (tmp_path / SITTINGS_FILE).write_text("{")
    assert read_sittings(tmp_path) == read_sittings(tmp_path / "absent") == ()
