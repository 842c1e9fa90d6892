"""Around a training run: one process at a time, and a machine that is too small said in the user's words."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from autoseg.core.errors import Interrupted, NotEnoughResources
from autoseg.core.workspace import RunFolder
from autoseg.runs.records import RunStatus
from autoseg.runs.setup import Job


class Busy(Interrupted):
    """Another process trains this run."""


@contextmanager
def lease(folder: RunFolder) -> Iterator[None]:
    """Holds a run for this process; the lock of a killed one is released by the system."""
    from filelock import FileLock, Timeout

    folder.root.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.root.with_name(f".{folder.root.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise Busy(
            "another process is training this run",
            where=str(folder.root),
            do="wait for it, or run the same command again once it has ended",
        ) from error
    try:
        yield
    finally:
        lock.release()


def with_clear_errors(work: Callable[[Job], RunStatus], job: Job) -> RunStatus:
    """Does a run; a lack of memory or disk space becomes an error for users."""
    try:
        return work(job)
    except torch.OutOfMemoryError as error:
        raise NotEnoughResources(
            f"{job.title} does not fit into the memory of {job.device}",
            where=str(job.folder.root),
            why=str(error).splitlines()[0],
            do="plan with a smaller --memory or --preset cpu, then train with --fresh",
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NotEnoughResources(
            f"the disk became full while {job.title} was trained",
            where=str(job.folder.root),
            do="free some space; the same command goes on from the last checkpoint",
        ) from error
