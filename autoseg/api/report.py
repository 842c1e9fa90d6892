"""`autoseg report` for notebooks and the command line: everything known about a dataset, in one file."""

from __future__ import annotations

from pathlib import Path

from autoseg.core.errors import for_users
from autoseg.core.progress import Progress, silent
from autoseg.core.workspace import workspace_of
from autoseg.report.cases import PICTURES
from autoseg.report.collect import write_report
from autoseg.report.written import writing


@for_users()
def report(
    dataset: str | Path,
    *,
    work: str | Path | None = None,
    output: str | Path | None = None,
    references: str | Path | None = None,
    pictures: int = PICTURES,
    jobs: int = 1,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Path:
    """Writes one HTML file about a dataset, at whatever stage it is, and returns its path.

    Args:
        dataset: folder of the dataset, or its work folder.
        work: work folder; by default `autoseg` inside the dataset's.
        output: the file; by default report.html in the work folder.
        references: folder of label maps to compare with instead of the dataset's own: complete ones for scribbles.
        pictures: cases that get overlay pictures, worst first.
        jobs: worker processes.
        overwrite: whether a file that AutoSeg did not write, or that changed since, may be replaced.
        progress: called with finished cases.

    Raises:
        MissingInput: the dataset is not planned yet.
        UsageError: there is a file that AutoSeg did not write, or that changed since.
    """
    workspace = workspace_of(Path(dataset), None if work is None else Path(work))
    path = workspace.report if output is None else Path(output)
    with writing(path, overwrite=overwrite, takes_unknown=output is None):
        return write_report(
            workspace,
            out=path,
            references=None if references is None else Path(references),
            pictures=pictures,
            jobs=jobs,
            progress=progress,
        )
