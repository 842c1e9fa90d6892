"""Options that mean the same for every verb."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from autoseg.cli.output import Output
from autoseg.core.limits import JOBS, SEED, Bounds
from autoseg.core.machine import available_cores

F = TypeVar("F", bound=Callable[..., Any])


class Real(click.FloatRange):
    """A finite number between two bounds; click's own range lets NaN pass."""

    def __init__(self, bounds: Bounds) -> None:
        super().__init__(bounds.low, bounds.high)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or a usage error with the bounds."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


def whole(bounds: Bounds) -> click.IntRange:
    """A whole number between two bounds."""
    return click.IntRange(int(bounds.low), int(bounds.high))


dataset_argument = click.argument("dataset", type=click.Path(path_type=Path))

work_option = click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="AUTOSEG_WORK",
    help="Work folder.  [default: DATASET/autoseg]",
)
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    envvar="AUTOSEG_DEVICE",
    help="auto, cpu, cuda, cuda:N or mps.",
)
devices_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    envvar="AUTOSEG_DEVICE",
    help="auto (all GPUs), cpu, cuda, cuda:N or mps; several with commas.",
)
jobs_option = click.option(
    "--jobs",
    type=whole(JOBS),
    default=available_cores,
    show_default="number of cores",
    envvar="AUTOSEG_JOBS",
    help="Worker processes.",
)
seed_option = click.option(
    "--seed", type=whole(SEED), default=0, show_default=True, envvar="AUTOSEG_SEED", help="Random seed."
)
overwrite_option = click.option(
    "--overwrite",
    is_flag=True,
    envvar="AUTOSEG_OVERWRITE",
    help="Replace files that AutoSeg did not write, or that were changed since.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")


def output_options(command: F) -> F:
    """Adds `--json`, `-q` and `-v`; the command receives them as one `output: Output`."""

    @click.option("--json", "as_json", is_flag=True, envvar="AUTOSEG_JSON", help="One JSON document on stdout.")
    @click.option("-q", "--quiet", is_flag=True, envvar="AUTOSEG_QUIET", help="Only problems and results.")
    @click.option("-v", "--verbose", is_flag=True, envvar="AUTOSEG_VERBOSE", help="Every detail, tracebacks included.")
    @wraps(command)
    def wrapped(*args: Any, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> Any:
        output = Output(json=as_json, quiet=quiet, verbose=verbose)
        output.start_logging()
        return command(*args, output=output, **options)

    return wrapped  # type: ignore[return-value]  # the wrapper takes over the command's parameters
