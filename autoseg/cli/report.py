"""`autoseg report`: everything known about a dataset, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from autoseg.cli.options import dataset_argument, jobs_option, output_options, overwrite_option, whole, work_option
from autoseg.cli.output import Output
from autoseg.core.limits import PICTURES

_BYTES_PER_MB = 1e6


@click.command()
@dataset_argument
@work_option
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write.  [default: report.html in the work folder]",
)
@click.option(
    "--references",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of label maps to compare with instead of the dataset's own, e.g. complete ones for scribbles.",
)
@click.option(
    "--pictures",
    type=whole(PICTURES),
    default=50,
    show_default=True,
    help="Cases that get overlay pictures, worst first.",
)
@jobs_option
@overwrite_option
@output_options
def report(
    dataset: Path,
    work: Path | None,
    file: Path | None,
    references: Path | None,
    pictures: int,
    jobs: int,
    overwrite: bool,
    output: Output,
) -> int:
    """Write one HTML file about DATASET: data, plan, learning curves, candidates, and every case with its picture.

    Works at any stage after `autoseg plan`. The file opens offline, runs no script and requests nothing.
    """
    from autoseg.api.report import report as write_report

    options: dict[str, Any] = {
        "work": work,
        "output": file,
        "references": references,
        "pictures": pictures,
        "jobs": jobs,
        "overwrite": overwrite,
    }
    with output.progress("Drawing") as progress:
        path = write_report(dataset, **options, progress=progress)
    size = path.stat().st_size
    output.say(f"wrote {path} ({size / _BYTES_PER_MB:.1f} MB)")
    output.emit({"report": str(path), "bytes": size})
    return 0
