"""`autoseg evaluate`: score predictions against references."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoseg.cli.options import Real, jobs_option, output_options, overwrite_option
from autoseg.cli.output import Output
from autoseg.core.limits import TOLERANCE_MM

if TYPE_CHECKING:
    from autoseg.api.evaluate import Evaluation

SOME_FAILED = 4


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.argument("references", type=click.Path(path_type=Path))
@click.option("--tolerance", type=Real(TOLERANCE_MM), default=1.0, show_default=True, help="Of nsd, in mm.")
@click.option(
    "--dataset",
    type=click.Path(path_type=Path, exists=True),
    help="Folder or dataset.json that names the classes.  [default: what is found beside the files]",
)
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of evaluation.json and evaluation.csv.  [default: PREDICTIONS]",
)
@jobs_option
@overwrite_option
@output_options
def evaluate(
    predictions: Path,
    references: Path,
    tolerance: float,
    dataset: Path | None,
    folder: Path | None,
    jobs: int,
    overwrite: bool,
    output: Output,
) -> int:
    """Score PREDICTIONS against REFERENCES, matched by case name, per case and class.

    REFERENCES is a folder of label maps, or a dataset's folder. A missing prediction is listed as failed and gives no
    score.
    """
    from autoseg.api.evaluate import check_evaluation, write_evaluation
    from autoseg.api.evaluate import evaluate as evaluate_predictions
    from autoseg.core.records import to_data

    if not overwrite:
        check_evaluation(folder or predictions)
    with output.progress("Evaluating") as progress:
        evaluation = evaluate_predictions(
            predictions, references, dataset=dataset, tolerance_mm=tolerance, jobs=jobs, progress=progress
        )
    written = write_evaluation(evaluation, folder or predictions, overwrite=overwrite)
    _show(evaluation, output)
    output.say(f"per case: {written[0]}, {written[1].name}")
    output.emit(to_data(evaluation))
    return SOME_FAILED if evaluation.failures else 0


def _show(evaluation: Evaluation, output: Output) -> None:
    from autoseg.evaluation.metrics import METRICS

    rows = [(name, *_numbers(scores)) for name, scores in evaluation.mean.items()]
    rows.append(("foreground mean", *_numbers(evaluation.foreground_mean)))
    columns = ("class", *(metric.heading for metric in METRICS.values()))
    if evaluation.cases:
        output.table(columns, rows, title=f"Mean of {len(evaluation.cases)} cases (classes {evaluation.classes})")
    output.table(("case", "why it has no scores"), list(evaluation.failures.items()))
    for note in evaluation.notes:
        output.say(f"note: {note}")
    output.say("P is the prediction, R the reference of a class; - where undefined, and left out of means.")
    output.say("Surfaces are voxels with a face neighbor outside the object; distances are between their centers.")
    for name, definition in evaluation.definitions.items():
        output.say(f"  {METRICS[name].heading:<13} {definition}")


def _numbers(scores: dict[str, float | None]) -> list[str]:
    return ["-" if value is None else f"{value:.4f}" for value in scores.values()]
