"""`autoseg preprocess`: fill the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoseg.cli.options import dataset_argument, jobs_option, output_options, work_option
from autoseg.cli.output import Output
from autoseg.core.workspace import workspace_of

if TYPE_CHECKING:
    from autoseg.preprocessing.fill import StoreResult

_SOME_CASES_FAILED = 4


@click.command()
@dataset_argument
@work_option
@click.option("--configuration", "configurations", multiple=True, help="Repeatable.  [default: all in the plan]")
@jobs_option
@output_options
def preprocess(dataset: Path, work: Path | None, configurations: tuple[str, ...], jobs: int, output: Output) -> int:
    """Fill the store of preprocessed cases; train does it by itself when needed."""
    from autoseg.api.preprocess import preprocess as preprocess_dataset

    workspace = workspace_of(dataset, work)
    if workspace.root.is_dir():  # nothing is left in a folder that was named by mistake
        output.log_to(workspace.logs, "preprocess")
    with output.progress("Preparing") as progress:
        results = preprocess_dataset(dataset, work=work, configurations=configurations, jobs=jobs, progress=progress)
    rows = [
        (name, len(result.done), len(result.reused), len(result.failures), result.folder)
        for name, result in results.items()
    ]
    output.table(("configuration", "prepared", "were there", "failed", "store"), rows)
    failures = {case: reason for result in results.values() for case, reason in result.failures.items()}
    output.table(("case", "why it failed"), sorted(failures.items()))
    output.emit({"configurations": {name: _document(result) for name, result in results.items()}})
    return _SOME_CASES_FAILED if failures else 0


def _document(result: StoreResult) -> dict[str, object]:
    return {
        "store": str(result.folder),
        "done": list(result.done),
        "reused": list(result.reused),
        "failures": result.failures,
    }
