"""What happens between the steps of a training: history, checkpoints, logs and pictures."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path

import pytest

from autoseg.core.errors import Interrupted, UsageError
from autoseg.core.workspace import RunFolder
from autoseg.training.callbacks.base import RunContext, Throttle
from autoseg.training.callbacks.history import append_history, last_history, read_history, truncate_history
from autoseg.training.callbacks.kinds import CALLBACKS, make_callbacks
from autoseg.training.checkpoint import restore
from autoseg.training.loop import EpochResult
from autoseg.training.step import TrainingState
from tests.training.tiny_training import LABELS, RECIPE, Calls, fresh_state, same_weights, train


class Statuses:
    """Counts how often the run's status was saved."""

    def __init__(self) -> None:
        self.count = 0

    def save(self) -> None:
        self.count += 1


def context(folder: Path, statuses: Statuses | None = None) -> RunContext:
    return RunContext("a run", RunFolder(folder), LABELS.foreground, lambda: 12.0, (statuses or Statuses()).save)


def test_an_interrupted_training_leaves_what_it_goes_on_from(tmp_path: Path) -> None:
    def stop_at_six(state: TrainingState) -> None:
        if state.step == 6:
            raise Interrupted("stopped")

    statuses = Statuses()
    run = context(tmp_path, statuses)
    with pytest.raises(Interrupted):
        train(fresh_state(), callbacks=(*make_callbacks((), run), Calls(stop_at_six)))
    assert [entry["step"] for entry in read_history(run.folder.history)] == [4]
    assert statuses.count == 2
    state = fresh_state()
    restore(state, run.folder.checkpoint)
    assert (state.step, state.epoch, state.history_lines, state.seconds) == (6, 1, 1, 12.0)
    train(state, callbacks=tuple(make_callbacks((), run)))
    assert [entry["step"] for entry in read_history(run.folder.history)] == [4, 8, 12]
    assert same_weights(state, train(fresh_state()))


def test_what_was_not_as_usual_is_written_with_its_epoch(tmp_path: Path) -> None:
    def note(state: TrainingState) -> None:
        if state.step == 5:
            state.events.append("something happened")

    run = context(tmp_path)
    state = train(fresh_state(), callbacks=(Calls(note), *make_callbacks((), run)))
    assert [entry["events"] for entry in read_history(run.folder.history)] == [[], ["something happened"], []]
    assert state.events == []


@pytest.mark.parametrize("name", CALLBACKS)
def test_every_callback_that_a_recipe_can_name_works(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        train(fresh_state(), callbacks=tuple(make_callbacks((name,), context(tmp_path))))
    assert (tmp_path / "curves.png").exists() == (name == "curves")
    assert caplog.text.count("a run: epoch") == (RECIPE.epochs if name == "epoch_logger" else 0)


def test_a_gpu_that_waits_for_data_is_noted_and_once_it_is_said_what_helps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = replace(context(tmp_path), readers=2)
    history, _, logger = make_callbacks(("epoch_logger",), run)
    starved = EpochResult(0, 0.5, None, 10.0, 0.38, 0.01, busy_share=0.56789)
    with caplog.at_level(logging.INFO):
        for callback in (history, logger, logger):
            callback.after_epoch(starved, fresh_state())
        logger.after_epoch(replace(starved, busy_share=None), fresh_state())
    assert read_history(run.folder.history)[0]["busy_share"] == 0.5679
    assert caplog.text.count("38 % waiting for data, GPU 57 % busy") == 2
    assert caplog.text.count("as the 2 threads that cut and augment its batches do not keep up") == 1
    assert caplog.text.count("--jobs") == 1


def test_an_unknown_callback_is_named() -> None:
    with pytest.raises(UsageError, match="unknown callback 'curve'"):
        make_callbacks(("curve",), context(Path()))


def test_a_throttle_waits_in_proportion_to_the_cost() -> None:
    throttle = Throttle(0.2)
    assert throttle.is_due()
    throttle.run(lambda: time.sleep(0.02))
    assert not throttle.is_due()
    throttle.last -= throttle.cost / throttle.share
    assert throttle.is_due()


def test_history_survives_a_torn_line_and_is_cut_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run" / "history.jsonl"
    assert read_history(path) == []
    entries = [{"epoch": i} for i in range(4)]
    for entry in entries:
        append_history(path, entry)
    path.write_text(path.read_text() + '{"epo')
    assert read_history(path) == entries
    truncate_history(path, 2)
    assert read_history(path) == entries[:2]
    assert path.read_text().count("\n") == 2


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


LINES = [json.dumps({"epoch": epoch, "loss": 1.0}).encode() + b"\n" for epoch in range(4)]


BAD_LINES = [b'{"ep\xffch": 2}\n', b"3\n", b'{"step": 1}\n', b'{"epoch": NaN}\n', b"[" * 9999 + b"\n", b"\n"]


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_damaged_line_of_history_costs_that_line(tmp_path, bad):
    path = tmp_path / "history.jsonl"
    path.write_bytes(b"".join([*LINES[:2], bad, *LINES[3:], b'{"epoch": 4']))
    assert [entry["epoch"] for entry in read_history(path)] == [0, 1, 3]
    assert last_history(path)["epoch"] == 3
    truncate_history(path, 3)  # the damaged one counts, as the checkpoint has counted it
    assert path.read_bytes() == b"".join([*LINES[:2], bad])
    assert last_history(path)["epoch"] == 1
