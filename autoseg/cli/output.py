"""What the command line prints: one error box, tables, progress, or exactly one JSON document."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from autoseg.core.errors import AutoSegError
from autoseg.core.progress import Progress, silent

_PLAIN_PROGRESS_SECONDS = 10.0
_KEPT_LOG_RECORDS = 10_000

_early_records = MemoryHandler(_KEPT_LOG_RECORDS, flushLevel=logging.CRITICAL + 1)
_log_files: list[Path] = []


@dataclass(frozen=True, slots=True)
class Output:
    """How much is printed, and where.

    Attributes:
        json: stdout holds exactly one JSON document; everything else goes to stderr.
        quiet: no progress, no log lines below a warning.
        verbose: debug lines and tracebacks.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def start_logging(self) -> None:
        """Sends log lines to stderr; everything is also kept for the log file of the work folder."""
        logger = logging.getLogger("autoseg")
        for handler in [own for own in logger.handlers if own is not _early_records]:
            handler.close()  # the log file of an earlier command in this process
        logger.handlers.clear()
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        stream = logging.StreamHandler(sys.stderr)
        stream.setLevel(logging.DEBUG if self.verbose else logging.WARNING if self.quiet else logging.INFO)
        stream.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(stream)
        logger.addHandler(_early_records)

    def log_to(self, folder: Path, verb: str) -> Path:
        """Adds a log file `<verb>-<time>.log` in `folder`, with what was logged so far."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{verb}-{time.strftime('%Y%m%d-%H%M%S')}.log"
        handler = logging.FileHandler(path, delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger = logging.getLogger("autoseg")
        _early_records.setTarget(handler)
        _early_records.flush()
        logger.removeHandler(_early_records)
        logger.addHandler(handler)
        _log_files.append(path)
        return path

    def say(self, text: str = "") -> None:
        """A line of the command's result for people: on stdout, or nowhere when stdout is for JSON."""
        if not self.json:
            print(text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
        """A table for people: on stdout, or nowhere when stdout is for JSON."""
        if self.json or not rows:
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table

        drawn = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        for column in columns:
            drawn.add_column(column, overflow="fold")
        for row in rows:
            drawn.add_row(*("" if cell is None else str(cell) for cell in row))
        width = None if sys.stdout.isatty() else 160
        Console(width=width, highlight=False, markup=False, emoji=False).print(drawn)

    def emit(self, document: Any) -> None:
        """Prints the one JSON document of the command, if `--json` was given."""
        if self.json:
            print(json.dumps(document, indent=1, allow_nan=False))

    @contextmanager
    def progress(self, title: str) -> Iterator[Progress]:
        """A progress callback: a bar on a terminal, a plain line every ten seconds elsewhere."""
        if self.quiet:
            yield silent
        elif sys.stderr.isatty():
            with _bar(title) as callback:
                yield callback
        else:
            yield _PlainProgress(title)


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = [
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _PlainProgress:
    """Log lines instead of a bar: few enough to read, often enough to see that it lives."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.next_line = time.monotonic() + _PLAIN_PROGRESS_SECONDS

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() < self.next_line:
            return
        self.next_line = time.monotonic() + _PLAIN_PROGRESS_SECONDS
        logging.getLogger("autoseg").info("%s %d/%d", self.title, done, total)


def show_error(error: AutoSegError) -> None:
    """Prints the one box of an error on stderr: code, what is wrong, where, why, what to do next."""
    logging.getLogger("autoseg").debug("stopped by %s", error.code, exc_info=error)
    lines = [f"error {error.code}: {error.what}"]
    rows = (("where", error.where), ("why", error.why), ("do", error.do), ("more", f"autoseg explain {error.code}"))
    lines += [f"  {title:<6} {text}" for title, text in rows if text]
    if _log_files:
        lines.append(f"  {'log':<6} {_log_files[-1]}")
    print("\n".join(lines), file=sys.stderr)
