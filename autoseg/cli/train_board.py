"""What `autoseg train` shows while it works, and what it would do: one table of all runs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from autoseg.cli.output import Output
from autoseg.core.progress import Progress, silent

if TYPE_CHECKING:
    from rich.table import Table

    from autoseg.core.workspace import Workspace
    from autoseg.runs.forecast import RunForecast
    from autoseg.runs.progress import QueueProgress
    from autoseg.runs.queue import Queue, TrainOptions

_REFRESHES_PER_SECOND = 2


@contextmanager
def training_board(output: Output) -> Iterator[tuple[Progress, Callable[[QueueProgress], None] | None]]:
    """Callbacks for preprocessed cases and for where the runs stand.

    On a terminal this is a table of all runs that stays below the log lines. Elsewhere the cases get a line now and
    then, and the runs none, as every epoch and every run that is done has its own.
    """
    if output.quiet:
        yield silent, None
    elif sys.stderr.isatty():
        with _live_board() as board:
            yield board
    else:
        with output.progress("Preprocessing") as progress:
            yield progress, None


@contextmanager
def _live_board() -> Iterator[tuple[Progress, Callable[[QueueProgress], None]]]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    streams = [entry for entry in logging.getLogger("autoseg").handlers if type(entry) is logging.StreamHandler]
    before = sys.stderr
    with Live(console=Console(stderr=True), refresh_per_second=_REFRESHES_PER_SECOND) as live:
        for handler in streams:
            handler.setStream(sys.stderr)  # which the table has replaced by one that writes above it
        try:
            yield (
                lambda done, total: live.update(Text(f"Preparing cases {done}/{total}")),
                lambda now: live.update(draw_board(now)),
            )
        finally:
            for handler in streams:
                handler.setStream(before)


def draw_board(now: QueueProgress) -> Table:
    """The table of all runs, with the end of the whole below."""
    from rich import box
    from rich.table import Table

    from autoseg.runs.progress import clock_time

    done = sum(row.state == "done" for row in now.runs)
    end = f", ends about {clock_time(now.ends_at)}" if now.ends_at is not None else ""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=f"{done} of {len(now.runs)} runs done{end}")
    table.caption_justify = "left"
    for column in ("configuration", "fold", "state", "epoch", "Dice"):
        table.add_column(column, no_wrap=True)
    for row in now.runs:
        dice = "" if row.dice is None else f"{row.dice:.4f}"
        epoch = f"{row.epochs}/{row.epochs_planned}" if row.epochs else ""
        table.add_row(row.run.configuration, str(row.run.fold), row.state, epoch, dice)
    return table


def show_queue(workspace: Workspace, options: TrainOptions, output: Output) -> int:
    """Prints the queue with its hours and disk; nothing is written."""
    from autoseg.api.train import forecast_training

    queue, forecast = forecast_training(workspace, options)
    runs = [_run_document(own, queue) for own in forecast.runs]
    rows = [[_cell(value) for value in {**run, "hours": _clock(run["hours"])}.values()] for run in runs]
    columns = ("configuration", "fold", "train", "validate", "state", "epochs left", "h:mm", "disk GiB")
    output.table(columns, rows, title="Queue")
    recipe = queue.recipe
    side_by_side = f" on {forecast.devices} devices" if forecast.devices > 1 else ""
    output.say(f"{_clock(forecast.hours)} hours in all{side_by_side}: {forecast.because}")
    if forecast.left_out:
        output.say(forecast.left_out)
    output.say(
        f"{forecast.disk_gib:.2f} GiB of disk, {forecast.store_gib:.2f} of them for prepared cases; besides at most "
        f"{forecast.probabilities_gib:g} GiB of out-of-fold probabilities; {forecast.free_gib:.1f} GiB are free"
    )
    output.say("nothing was written (--dry-run)")
    output.emit(
        {
            "runs": runs,
            "epochs": recipe.epochs,
            "steps": recipe.steps_per_epoch,
            "budget_seconds": options.budget_seconds,
            "hours": round(forecast.hours, 4),
            "devices": forecast.devices,
            "left_out": forecast.left_out,
            "disk_gib": round(forecast.disk_gib, 4),
            "probabilities_gib": forecast.probabilities_gib,
            "free_gib": round(forecast.free_gib, 2),
        }
    )
    return 0


def _run_document(own: RunForecast, queue: Queue) -> dict[str, Any]:
    fold = queue.folds[own.run.fold]
    return {
        "configuration": own.run.configuration,
        "fold": own.run.fold,
        "train": len(fold.train),
        "validate": len(fold.val),
        "state": queue.stages[own.run],
        "epochs": own.epochs,
        "hours": round(own.hours, 4),
        "disk_gib": round(own.disk_gib, 4),
    }


def _clock(hours: float) -> str:
    minutes = round(60 * hours)
    return f"{minutes // 60}:{minutes % 60:02d}"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return "" if value is None else str(value)
