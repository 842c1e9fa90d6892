"""One run of the queue, from whichever process: what concerns it alone ends up in its result, not in an exception."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from autoseg.core.errors import (
    AutoSegError,
    Busy,
    DataRefused,
    Interrupted,
    ProgramFault,
    error_for,
)
from autoseg.core.files import check_made, lease, remove_made, temporary_beside
from autoseg.core.progress import Progress
from autoseg.core.workspace import RunFolder, work_folder_of
from autoseg.runs.budget import FORMER_FILE, INTERVALS_FILE, heartbeat
from autoseg.runs.cascade import OUT_OF_FOLD_FOLDER, check_first_stage
from autoseg.runs.forecast import does_not_fit
from autoseg.runs.queue import Queue, RunTask
from autoseg.runs.run import Run, RunResult, check_same_cases, check_same_plan, differing
from autoseg.runs.training import train_and_validate

_log = logging.getLogger(__name__)


def execute(task: RunTask, device: torch.device, check_stop: Callable[[], None], progress: Progress) -> RunResult:
    """Trains and validates one run, unless another process is at it; never raises what concerns the run alone.

    Args:
        task: the run with everything prepared for it.
        device: to compute on.
        check_stop: raises Interrupted when the user wants to stop.
        progress: called with the steps done.
    """
    run, options = task.run, task.options
    try:
        with _lease(run.folder):
            if options.is_fresh:
                discard(run.folder)
            if not task.cases.train:
                raise DataRefused("no case is left to train on", where=str(run.folder.root), do="see the failed cases")
            is_noted = options.budget_seconds is not None
            with heartbeat(run.folder.root, task.begin) if is_noted else nullcontext(), _resource_errors(run, device):
                train_and_validate(task, device, check_stop, progress)
            return RunResult(run, "done")
    except Busy as error:
        return RunResult(run, "busy", error)
    except Interrupted as error:
        return RunResult(run, "interrupted", error)
    except AutoSegError as error:
        _log.error("%s failed: %s", run.title, error)
        return RunResult(run, "failed", error)


def result_of_done(run: Run, queue: Queue, seed: int) -> RunResult:
    """The result of a run that was done before, if it is what the command would make of it.

    With another recipe or seed, or without cases that came later, it stays, and a warning says so.
    """
    try:
        check_same_plan(run, queue.plan, queue.contents)
        check_same_cases(run, queue.folds[run.fold])
        record = run.record()
        check_first_stage(run)
    except AutoSegError as error:
        return RunResult(run, "failed", error)
    if changes := differing(queue.recipe, seed, record):
        _log.warning("%s is done, with other options (%s); --fresh trains it again", run.title, "; ".join(changes))
    if missing := sorted({*queue.folds[run.fold].train} - {*record.train}):
        more = f" and {len(missing) - 1} more" * (len(missing) > 1)
        _log.warning("%s is done, without %s%s; --fresh trains it again", run.title, missing[0], more)
    return RunResult(run, "done")


def discard(folder: RunFolder) -> None:
    """Deletes what AutoSeg wrote about a run (`--fresh`), and nothing else: other files in its folder stay.

    Raises:
        IntegrityRefusal: the folder leads out of the work folder, or holds no run.
    """
    own = (folder.checkpoint, folder.validation, folder.history, folder.curves, folder.plan)
    others = (folder.root / name for name in (OUT_OF_FOLD_FOLDER, INTERVALS_FILE, FORMER_FILE))
    written = [entry for entry in (folder.state, *own, *others, folder.recipe) if entry.exists()]
    marks, work = {entry.name for entry in written}, work_folder_of(folder.root)
    kept = sorted({entry.name for entry in folder.root.iterdir()} - marks) if folder.root.is_dir() else []
    if not kept:
        remove_made(folder.root, work, marks)
        return
    check_made(folder.root, work, marks)
    doomed = temporary_beside(folder.root)
    doomed.mkdir()
    # What says that the run is done comes before what says that it has begun: an interruption in between leaves a run
    # that goes on with less.
    for entry in written:
        entry.rename(doomed / entry.name)
    remove_made(doomed, work, marks)
    _log.info("%s: not written by AutoSeg and kept: %s", folder.root, ", ".join(kept))


def _lease(folder: RunFolder) -> AbstractContextManager[None]:
    """Holds a run for this process."""
    busy = Busy(
        "another process is training this run",
        where=str(folder.root),
        do="wait for it, or run the same command again once it has ended",
    )
    # Beside the run's folder, not in it: `--fresh` replaces the folder while the lock is held.
    return lease(folder.root.with_name(f".{folder.root.name}.lock"), busy)


@contextmanager
def _resource_errors(run: Run, device: torch.device) -> Iterator[None]:
    """What the machine refuses becomes an error for users."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        too_large = does_not_fit(run.title, device, error)
        too_large.where = str(run.folder.root)
        raise too_large from error
    except Exception as error:
        meant = error_for(error)
        if isinstance(meant, ProgramFault) or meant is error:
            raise
        meant.where = meant.where or str(run.folder.root)
        raise meant from error
