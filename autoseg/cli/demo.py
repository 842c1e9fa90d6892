"""`autoseg demo`: the whole walk on a synthetic dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoseg.cli.options import device_option, jobs_option, output_options, seed_option
from autoseg.cli.output import Output, command_line
from autoseg.cli.train import Duration
from autoseg.cli.train_board import training_board

if TYPE_CHECKING:
    from autoseg.api.demo import DemoResult


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("autoseg-demo"),
    show_default=True,
    help="Folder for everything the demo makes.",
)
@click.option("--budget", type=Duration(), default="270s", show_default=True, help="Time for all of the training.")
@seed_option
@device_option
@jobs_option
@output_options
def demo(out: Path, budget: float, seed: int, device: str, jobs: int, output: Output) -> int:
    """Synthetic dataset -> plan -> train -> select -> predict -> evaluate -> report, in a few minutes on two cores.

    Two configurations are trained with three folds each. The same command again goes on where it was stopped.
    """
    from autoseg.api.demo import run_demo
    from autoseg.core.records import to_data
    from autoseg.launch.interrupts import stoppable
    from autoseg.runs.queue import TrainOptions
    from autoseg.runs.train import TrainListeners

    output.log_to(out / "logs", "demo")
    options = TrainOptions(budget_seconds=budget, jobs=jobs, seed=seed, device=device)
    with stoppable() as check_stop, training_board(output) as (on_cases, on_progress):
        result = run_demo(out, options, check_stop, TrainListeners(on_cases, on_progress=on_progress))
    _show(result, out, output)
    output.emit(
        {
            **to_data(result.scores),
            "dataset": str(result.dataset),
            "predictions": str(result.predictions),
            "overlays": [str(path) for path in result.overlays],
            "selected": result.selection.name,
            "report": str(result.report),
            "seconds": result.seconds,
        }
    )
    return 0


def _show(result: DemoResult, out: Path, output: Output) -> None:
    scores = result.scores
    rows = [(name, *(_cell(case[label]["dice"]) for label in scores.mean)) for name, case in scores.cases.items()]
    output.table(("Dice", *scores.mean), [*rows, ("mean", *(_cell(own["dice"]) for own in scores.mean.values()))])
    output.say(f"mean Dice over classes: {_cell(scores.foreground_mean['dice'])}   (synthetic phantoms, held out)")
    output.say(f"chosen from cross-validation: {result.selection.because}")
    total = sum(result.seconds.values())
    output.say(f"{total:.0f} s: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in result.seconds.items()))
    places = {
        "dataset": result.dataset,
        "plan, runs": result.dataset / "autoseg",
        "predictions": result.predictions,
        "scores": result.predictions / "evaluation.csv",
        "pictures": out / "overlays",
        "report": result.report,
    }
    output.say("\n" + "\n".join(f"{name:<13} {path}" for name, path in places.items()))
    output.say(f"\nyour own data: autoseg plan DATASET    why this plan: {command_line('explain', result.dataset)}")


def _cell(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
