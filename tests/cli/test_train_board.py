"""The board of a terminal, and the lines elsewhere."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

from autoseg.cli.output import Output
from autoseg.cli.train_board import training_board
from autoseg.core.progress import silent
from autoseg.core.workspace import RunFolder
from autoseg.runs.progress import QueueProgress, RunProgress
from autoseg.runs.run import Run


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_table_stays_below_the_log(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    Output().start_logging()
    before = logging.getLogger("autoseg").handlers[0].stream
    with training_board(Output()) as (on_cases, on_progress):
        on_cases(3, 7)
        logging.getLogger("autoseg").info("a line of the log")
        run = Run("3d_fullres", 2, RunFolder(Path("nowhere")))
        on_progress(QueueProgress((RunProgress(run, "training", 5, 50, 0.75),), None))
    shown = terminal.getvalue()
    assert "a line of the log" in shown
    assert shown.index("a line of the log") < shown.rindex("0 of 1 runs done")
    assert "5/50" in shown
    assert logging.getLogger("autoseg").handlers[0].stream is before is terminal
    logging.getLogger("autoseg").handlers.clear()


def test_elsewhere_runs_have_their_own_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with training_board(Output()) as (on_cases, on_progress):
        assert on_cases is not silent
        assert on_progress is None
    with training_board(Output(quiet=True)) as board:
        assert board == (silent, None)
