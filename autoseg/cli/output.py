"""What the command line prints: one error box, tables, progress, or exactly one JSON document."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import IO, Any, cast

from autoseg.core.errors import AutoSegError, OutputFault, error_for
from autoseg.core.limits import printable
from autoseg.core.progress import Progress, silent

_PLAIN_PROGRESS_SECONDS = 10.0
_KEPT_LOG_RECORDS = 10_000

_early_records = MemoryHandler(_KEPT_LOG_RECORDS, flushLevel=logging.CRITICAL + 1)
_log_files: list[Path] = []
_stdout_faults: list[OSError] = []


class _Stream(io.TextIOBase):
    """Standard output as it is now; one that is closed or full is noted, as the work is worth more than its report."""

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute in typeshed
        """Of the stream, by which rich chooses how it draws lines."""
        return getattr(sys.stdout, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return sys.stdout is not None and sys.stdout.isatty()

    def write(self, text: str) -> int:
        """Writes at once."""
        try:
            if sys.stdout is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError as error:
            if not _stdout_faults:
                _stdout_faults.append(error)
            _discard_output()
        return len(text)


def _discard_output() -> None:
    """Sends standard output nowhere; what is left in its buffer would else be tried again when Python ends."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class _PrintableLines(logging.Formatter):
    """Log lines without control characters, which file and class names may bring along."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; a traceback has more of them."""
        return printable(super().format(record), kept="\n\t")


class _LogFile(logging.FileHandler):
    """A log file that costs its lines, but not the work, where it cannot be opened."""

    is_lost = False

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a line; the first one opens the file."""
        if self.is_lost:
            return
        try:
            super().emit(record)
        except OSError as error:
            self.is_lost = True
            with suppress(ValueError):
                _log_files.remove(Path(self.baseFilename))
            logging.getLogger("autoseg").warning("there will be no log file: %s", error)


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
        stream.setFormatter(_PrintableLines("%(message)s"))
        logger.addHandler(stream)
        logger.addHandler(_early_records)

    def log_to(self, folder: Path, verb: str) -> Path:
        """Adds a log file `<verb>-<time>.log` in `folder`, with what was logged so far."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{verb}-{time.strftime('%Y%m%d-%H%M%S')}.log"
        handler = _LogFile(path, delay=True, encoding="utf-8", errors="backslashreplace")
        handler.setFormatter(_PrintableLines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger = logging.getLogger("autoseg")
        _early_records.setTarget(handler)
        _early_records.flush()
        logger.removeHandler(_early_records)
        if not handler.is_lost:
            logger.addHandler(handler)
            _log_files.append(path)
        return path

    def say(self, text: str = "") -> None:
        """A line of the command's result for people: on stdout, or nowhere when stdout is for JSON."""
        if not self.json:
            print(printable(text, kept="\n\t"), file=_Stream())

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
        """A table for people: on stdout, or nowhere when stdout is for JSON."""
        if self.json or not rows:
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table

        drawn = Table(
            title=None if title is None else printable(title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False
        )
        for column in columns:
            drawn.add_column(column, overflow="fold")
        for row in rows:
            drawn.add_row(*("" if cell is None else printable(str(cell), kept="\n") for cell in row))
        stream = _Stream()
        width = None if stream.isatty() else 160
        Console(file=cast("IO[str]", stream), width=width, highlight=False, markup=False, emoji=False).print(drawn)

    def emit(self, document: Any) -> None:
        """Prints the one JSON document of the command, if `--json` was given."""
        if self.json:
            print(json.dumps(document, indent=1, allow_nan=False), file=_Stream())

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


def command_line(*words: str | Path) -> str:
    """A command of AutoSeg as it can be pasted into a shell, whatever the paths are called."""
    safe = (f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words)
    return shlex.join(["autoseg", *safe])


def show_error(error: AutoSegError) -> None:
    """Prints the one box of an error on stderr: code, what is wrong, where, why, what to do next."""
    logging.getLogger("autoseg").debug("stopped by %s", error.code, exc_info=error)
    lines = [f"error {error.code}: {printable(error.what, kept=chr(10))}"]
    where = None if error.where is None else printable(error.where)
    rows = (("where", where), ("why", error.why), ("do", error.do), ("more", f"autoseg explain {error.code}"))
    lines += [f"  {title:<6} {printable(text, kept=chr(10))}" for title, text in rows if text]
    if _log_files:
        lines.append(f"  {'log':<6} {printable(str(_log_files[-1]))}")
    with suppress(OSError, ValueError):  # nowhere is left to say it
        print("\n".join(lines), file=sys.stderr, flush=True)


def show_last_error(error: AutoSegError, *, as_json: bool) -> int:
    """Prints the box of the error that ends a command, with `--json` as the one document too; returns the exit code."""
    show_error(error)
    parts = {name: getattr(error, name) for name in ("code", "what", "where", "why", "do", "exit_code")}
    Output(json=as_json).emit({"error": parts})
    return error.exit_code


def prepare_streams() -> None:
    """Makes whatever was given as standard streams usable: closed ones, and encodings that lack letters.

    A file that is opened next would else get the number of a closed stream, and what is printed by a library or a
    worker process would be written into it.
    """
    _stdout_faults.clear()
    _log_files.clear()
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.raiseExceptions = False  # a log line that cannot be written is not worth a traceback


def output_fault() -> AutoSegError | None:
    """Why what was printed did not reach anybody; None if it did."""
    if not _stdout_faults:
        return None
    cause = error_for(_stdout_faults[0])
    fault = OutputFault(
        "the work is done, but what it printed was lost", where="standard output", why=cause.what, do=cause.do
    )
    fault.exit_code = cause.exit_code  # type: ignore[misc]  # 5 of a full disk, else 2
    return fault
