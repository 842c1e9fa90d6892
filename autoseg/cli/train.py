"""`autoseg train`: train what the plan holds; the same command again resumes."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoseg.cli.options import (
    dataset_argument,
    devices_option,
    dry_run_option,
    jobs_option,
    output_options,
    seed_option,
    work_option,
)
from autoseg.cli.output import Output, show_error
from autoseg.cli.select import show_selection
from autoseg.cli.train_board import show_queue, training_board
from autoseg.core.workspace import workspace_of

if TYPE_CHECKING:
    from autoseg.core.workspace import Workspace
    from autoseg.runs.train import RunReport, TrainOptions, TrainReport
    from autoseg.selection.record import Selection

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
        return seconds


@click.command()
@dataset_argument
@work_option
@click.option("--configuration", "configurations", multiple=True, help="2d, 3d_fullres, ...  [default: all]")
@click.option("--fold", "folds", multiple=True, type=click.IntRange(min=0), help="Number of a fold.  [default: all]")
@click.option("--recipe", help="default, cpu, or a YAML file.  [default: cpu for the preset cpu, else default]")
@click.option("--epochs", type=click.IntRange(min=1), help="Instead of the recipe's.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps per epoch, instead of the recipe's.")
@click.option("--budget", type=Duration(), help="Wall time for everything (20m, 8h); chooses the epochs.")
@click.option("--group-by", metavar="REGEX|CSV", help="Keep cases with the same match, or group of a table, together.")
@click.option("--stratify", is_flag=True, help="Spread cases with rare classes evenly over the folds.")
@click.option(
    "--probabilities-disk",
    type=click.FloatRange(min=0),
    metavar="GIB",
    help="For the out-of-fold probabilities that `select` uses; label maps are always kept.  [default: 10]",
)
@click.option("--fresh", is_flag=True, help="Discard the runs that exist, and begin again.")
@seed_option
@devices_option
@jobs_option
@dry_run_option
@output_options
def train(dataset: Path, work: Path | None, output: Output, **options: Any) -> int:
    """Train what the plan holds: configurations x folds; the same command again resumes.

    With several GPUs one run is trained on each. A budget is shared out over all runs and holds over interruptions.
    Once the last run of the plan is done, the configuration or ensemble that predicts is selected, and report.html
    written.
    """
    started = time.monotonic()
    from autoseg.core.machine import seconds_since_start
    from autoseg.launch.interrupts import stoppable
    from autoseg.runs.train import train as train_all

    workspace = workspace_of(dataset, work)
    chosen = _train_options(options, min(started, time.monotonic() - seconds_since_start()))
    if options["dry_run"]:
        return show_queue(workspace, chosen, output)
    output.log_to(workspace.logs, "train")
    with stoppable() as check_stop, training_board(output) as (of_cases, tell):
        report = train_all(workspace, chosen, check_stop, store_progress=of_cases, tell=tell)
    selection = None if report.exit_code else _conclude(workspace, chosen, output)
    return _show(report, selection, output)


def _conclude(workspace: Workspace, chosen: TrainOptions, output: Output) -> Selection | None:
    from autoseg.api.conclude import conclude

    with output.progress("Comparing") as progress:
        return conclude(workspace, seed=chosen.seed, jobs=chosen.jobs, progress=progress)


def _train_options(options: dict[str, Any], started: float) -> TrainOptions:
    from autoseg.runs.train import TrainOptions

    named = {} if options["probabilities_disk"] is None else {"probabilities_gib": options["probabilities_disk"]}
    return TrainOptions(
        configurations=options["configurations"],
        folds=options["folds"],
        recipe=options["recipe"],
        epochs=options["epochs"],
        steps=options["steps"],
        budget_seconds=options["budget"],
        started=started,
        is_fresh=options["fresh"],
        seed=options["seed"],
        device=options["device"],
        jobs=options["jobs"],
        group_by=options["group_by"],
        is_stratified=options["stratify"],
        **named,
    )


def _show(report: TrainReport, selection: Selection | None, output: Output) -> int:
    rows = []
    for run in report.runs:
        status = run.status
        dice = "" if status is None or status.foreground_dice is None else f"{status.foreground_dice:.4f}"
        cases = "" if status is None else status.validated_cases
        epochs = "" if status is None else f"{status.epochs}/{status.epochs_planned}"
        seconds = "" if status is None else f"{status.seconds:.0f}"
        rows.append((run.configuration, run.fold, run.state, epochs, seconds, dice, cases))
    columns = ("configuration", "fold", "state", "epochs", "seconds", "mean Dice", "cases validated")
    output.table(columns, rows, title="Runs")
    for case, why in report.failures.items():
        output.say(f"not trained on: {case}: {why}")
    if selection is not None:
        show_selection(selection, output)
    output.emit({**_document(report), "selected": None if selection is None else selection.name})
    if report.stop is not None:
        show_error(report.stop)
    else:
        for run in report.runs:
            if run.error is not None:
                show_error(run.error)
    return report.exit_code


def _document(report: TrainReport) -> dict[str, Any]:
    return {
        "device": report.device,
        "runs": [_run_document(run) for run in report.runs],
        "failed_cases": report.failures,
        "error": None if report.stop is None else str(report.stop),
    }


def _run_document(run: RunReport) -> dict[str, Any]:
    from autoseg.core.records import to_data

    status = {} if run.status is None else to_data(run.status)
    dice = status.pop("validation", None)
    mean = None if dice is None else {name: {"dice": value} for name, value in dice.items()}
    foreground = {"dice": status.pop("foreground_dice", None)}
    validation = None if mean is None else {"mean": mean, "foreground_mean": foreground}
    own = {"configuration": run.configuration, "fold": run.fold, "folder": run.folder}
    error = None if run.error is None else str(run.error)
    return {**own, **status, "state": run.state, "validation": validation, "error": error}
