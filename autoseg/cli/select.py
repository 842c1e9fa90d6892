"""`autoseg select`: which configuration or ensemble predicts, and with which postprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoseg.cli.options import dataset_argument, jobs_option, output_options, seed_option, work_option
from autoseg.cli.output import Output, command_line
from autoseg.core.workspace import workspace_of

if TYPE_CHECKING:
    from autoseg.selection.record import CandidateScore, Selection


@click.command()
@dataset_argument
@work_option
@click.option(
    "--objective",
    default="default",
    show_default=True,
    help="default: the cheapest that is as good as the best within noise; dice: the highest mean Dice; "
    "nnunet: the best configuration or pair, as nnU-Net chooses; cost: the cheapest.",
)
@click.option("--configuration", "configurations", multiple=True, help="Compare these only.  [default: all]")
@click.option("--allow-missing", is_flag=True, help="Go on without runs that are not trained.")
@seed_option
@jobs_option
@output_options
def select(
    dataset: Path,
    work: Path | None,
    objective: str,
    configurations: tuple[str, ...],
    allow_missing: bool,
    output: Output,
    **options: int,
) -> int:
    """Choose the configuration or ensemble for DATASET, and its postprocessing, from cross-validation.

    Every configuration, every pair and a greedy ensemble are compared on the predictions of cases that the networks
    never saw. `autoseg predict DATASET` follows the result.
    """
    from autoseg.api.select import select as select_model
    from autoseg.core.records import to_data

    workspace = workspace_of(dataset, work)
    with output.progress("Comparing") as progress:
        selection = select_model(
            dataset,
            work=work,
            objective=objective,
            configurations=configurations,
            allow_missing=allow_missing,
            seed=options["seed"],
            jobs=options["jobs"],
            progress=progress,
        )
    output.log_to(workspace.logs, "select")
    show_selection(selection, output)
    output.say(f"\nwrote {workspace.selection}; {command_line('predict', work or dataset)} -i IMAGES -o OUT uses it")
    output.emit(to_data(selection))
    return 0


def show_selection(selection: Selection, output: Output) -> None:
    """Candidates, the choice, what to expect of it, and its postprocessing."""
    columns = ("candidate", "kind", "mean Dice", "95 % interval", "worse than the best by", "s per case", "GiB")
    count = len(selection.case_dice)
    output.table(columns, [_row(own, selection) for own in selection.candidates], title=f"Candidates on {count} cases")
    output.say(f"chosen: {selection.because}")
    if selection.nnunet_choice != selection.name:
        output.say(f"nnU-Net would choose {selection.nnunet_choice}")
    if selection.nested is not None:
        low, high = selection.nested.interval
        output.say(
            f"expected on new cases: mean Dice {selection.nested.dice:.4f} ({low:.4f} to {high:.4f}), each case scored "
            f"with what was chosen without it; on the cases it was chosen by: {selection.nested.naive_dice:.4f}"
        )
    rows = [(own.step.title, "yes" if own.is_accepted else "no", own.because) for own in selection.postprocessing]
    output.table(("postprocessing", "accepted", "why"), rows)
    for note in selection.notes:
        output.say(f"note: {note}")


def _row(candidate: CandidateScore, selection: Selection) -> tuple[str, ...]:
    difference = _cell(candidate.difference)
    if candidate.difference_interval is not None:
        difference += f" ({_interval(candidate.difference_interval)})"
    return (
        f"{candidate.name} *" if candidate.name == selection.name else candidate.name,
        candidate.kind,
        _cell(candidate.dice),
        "" if candidate.interval is None else _interval(candidate.interval),
        difference,
        "" if candidate.seconds_per_case is None else f"{candidate.seconds_per_case:.1f}",
        "" if candidate.memory_gib is None else f"{candidate.memory_gib:.2f}",
    )


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.4f} to {ends[1]:.4f}"
