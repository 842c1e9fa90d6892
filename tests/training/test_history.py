from __future__ import annotations

from pathlib import Path

from autoseg.training.callbacks.history import append_history, last_history, read_history


def test_the_newest_epoch_is_found_at_the_end_of_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert last_history(path) is None
    for epoch in range(40):
        append_history(path, {"epoch": epoch, "events": ["x" * 5000]})
    newest = last_history(path)
    assert newest == read_history(path)[-1]
    assert newest["epoch"] == 39


def test_a_line_that_a_killed_writer_left_unfinished_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    append_history(path, {"epoch": 0})
    with path.open("a") as stream:
        stream.write('{"epoch": 1')
    assert last_history(path) == {"epoch": 0}
    path.write_text("")
    assert last_history(path) is None
