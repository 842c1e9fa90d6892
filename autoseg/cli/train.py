"""`autoseg train`: train what the plan holds; the same command again resumes."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoseg.cli.options import (
    Real,
    dataset_argument,
    devices_option,
    dry_run_option,
    jobs_option,
    output_options,
    seed_option,
    whole,
    work_option,
)
from autoseg.cli.output import Output, show_error
from autoseg.cli.select import show_selection
from autoseg.cli.train_board import show_queue, training_board
from autoseg.core.limits import BUDGET_S, DISK_GIB, EPOCHS, FOLD, STEPS
from autoseg.core.workspace import workspace_of

if TYPE_CHECKING:
    from autoseg.api.train import Trained
    from autoseg.runs.run import RunResult

_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


class Duration(click.ParamType[float]):
    """A time span like 20m, 8h, 1h30m or 90s, in seconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds, or a usage error."""
        if isinstance(value, float):
            return value
        text = str(value).strip().lower()
        parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
        if "".join(number + unit for number, unit in parts) != text or seconds <= 0:
            self.fail(f"{value!r} is not a time span; write for example 20m, 8h or 1h30m", param, ctx)
        if (fault := BUDGET_S.fault(seconds)) is not None:
            self.fail(f"{value!r}: {fault}", param, ctx)
        return seconds


@click.command()
@dataset_argument
@work_option
@click.option(
    "--configuration", "configurations", multiple=True, help="2d, 3d_fullres, ..., repeatable.  [default: all]"
)
@click.option("--fold", "folds", multiple=True, type=whole(FOLD), help="Number of a fold, repeatable.  [default: all]")
@click.option(
    "--recipe",
    help="default, cpu, fast, or a YAML file.  [default: for the preset cpu, fast with --budget and cpu without; else "
    "default]",
)
@click.option("--epochs", type=whole(EPOCHS), help="Instead of the recipe's.")
@click.option("--steps", type=whole(STEPS), help="Steps per epoch, instead of the recipe's.")
@click.option(
    "--budget", "budget_seconds", type=Duration(), help="Wall time for everything (20m, 8h); chooses the epochs."
)
@click.option("--group-by", metavar="REGEX|CSV", help="Keep cases with the same match, or group of a table, together.")
@click.option("--stratify", "is_stratified", is_flag=True, help="Spread cases with rare classes evenly over the folds.")
@click.option(
    "--all-cases", "on_all_cases", is_flag=True, help="Keep no case back: one network of all of them, without scores."
)
@click.option(
    "--probabilities-disk",
    "probabilities_gib",
    type=Real(DISK_GIB),
    default=10.0,
    show_default=True,
    metavar="GIB",
    help="For the out-of-fold probabilities that `select` uses; label maps are always kept.",
)
@click.option("--fresh", "is_fresh", is_flag=True, help="Discard the runs that exist, and begin again.")
@seed_option
@devices_option
@click.option(
    "--executor",
    default="auto",
    show_default=True,
    help="inline (this process), processes (one per device), or auto: processes on several devices.",
)
@jobs_option
@dry_run_option
@output_options
def train(dataset: Path, work: Path | None, dry_run: bool, output: Output, **chosen: Any) -> int:
    """Train what the plan holds: configurations x folds; the same command again resumes.

    With several GPUs one run is trained on each. A budget is shared out over all runs and holds over interruptions.
    Once the last run of the plan is done, the configuration or ensemble that predicts is selected, and report.html
    written.
    """
    started = time.monotonic()
    from autoseg.api.train import finish, train_runs
    from autoseg.core.machine import seconds_since_start
    from autoseg.runs.queue import TrainOptions
    from autoseg.runs.train import TrainListeners

    workspace = workspace_of(dataset, work)
    # the budget counts from the start of the process: importing torch takes seconds on a slow disk
    options = TrainOptions(**chosen, started=min(started, time.monotonic() - seconds_since_start()))
    if dry_run:
        return show_queue(workspace, options, output)
    if workspace.root.is_dir():  # nothing is left in a folder that was named by mistake
        output.log_to(workspace.logs, "train")
    with training_board(output) as (on_cases, on_progress):
        report = train_runs(workspace, options, TrainListeners(on_cases=on_cases, on_progress=on_progress))
    with output.progress("Comparing") as on_comparing:
        trained = finish(workspace, report, options, on_comparing)
    return _show(trained, output)


def _show(trained: Trained, output: Output) -> int:
    report, selection = trained.report, trained.selection
    columns = ("configuration", "fold", "state", "epochs", "seconds", "mean Dice", "cases validated")
    output.table(columns, [_row(result) for result in report.results], title="Runs")
    for case, why in report.failures.items():
        output.say(f"not trained on: {case}: {why}")
    if report.note:
        output.say(report.note)
    if selection is not None:
        show_selection(selection, output)
    output.emit(
        {
            "device": report.device,
            "runs": [_run_document(result) for result in report.results],
            "failed_cases": report.failures,
            "left_out": [run.key for run in report.left_out],
            "error": None if report.stop is None else str(report.stop),
            "selected": None if selection is None else selection.name,
        }
    )
    for error in report.errors:
        show_error(error)
    return report.exit_code


def _row(result: RunResult) -> tuple[Any, ...]:
    run, status = result.run, result.run.status
    if status is None:
        return (run.configuration, run.fold, result.state, "", "", "", "")
    dice = "" if status.foreground_dice is None else f"{status.foreground_dice:.4f}"
    epochs, seconds = f"{status.epochs}/{status.epochs_planned}", f"{status.seconds:.0f}"
    return (run.configuration, run.fold, result.state, epochs, seconds, dice, status.validated_cases)


def _run_document(result: RunResult) -> dict[str, Any]:
    from autoseg.core.records import to_data

    run, status = result.run, result.run.status
    own = {"configuration": run.configuration, "fold": run.fold, "folder": str(run.folder.root)}
    known = {} if status is None else to_data(status)
    dice, foreground = known.pop("validation", None), known.pop("foreground_dice", None)
    validation = None
    if dice is not None:
        mean = {name: {"dice": value} for name, value in dice.items()}
        validation = {"mean": mean, "foreground_mean": {"dice": foreground}}
    error = None if result.error is None else str(result.error)
    return {**own, **known, "state": result.state, "validation": validation, "error": error}
