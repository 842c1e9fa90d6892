"""When a file has to be read again: what the file system says of it, and when that is not to be trusted.

A stamp is size, time of the last change of the content, and time of the last change of anything (`ctime`), which only
the system sets: copying a file over with its old time, or setting the time back, leaves another `ctime`. File systems
tick, so a file may change twice within one tick; a stamp that was taken less than `SETTLED_SECONDS` after the last
change is therefore not trusted, and the bytes are hashed (git's rule for its index). Not noticed is what changes bytes
without the file system: a faulty disk, writing to the device, or a system that does not keep `ctime` (Windows) where
time and size of a file were restored on purpose. `autoseg plan` with a new work folder hashes everything.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

SETTLED_SECONDS = 2.0
"""The coarsest tick of a file system in use (FAT); the others are finer."""


@dataclass(frozen=True, slots=True)
class FileStamp:
    """A file as it was when it was read; equal settled stamps mean that it need not be read again.

    Attributes:
        path: relative to a root, or absolute.
        size: bytes; -1 if the file was missing.
        mtime_ns: time of the last change of its content.
        ctime_ns: time of the last change of content, name or rights; earlier versions did not note it.
        is_settled: whether the last change lay so far back that no other one can bear the same times.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int = 0
    is_settled: bool = field(default=False, compare=False)


Stamps = tuple[FileStamp, ...]


def are_unchanged(before: Stamps, now: Stamps) -> bool:
    """Whether files are as they were, by their stamps alone; where it is not certain, their bytes have to be hashed."""
    return bool(before) and all(own.is_settled for own in before) and before == now


def stamp(root: Path, file: str) -> FileStamp:
    """A file as it is now."""
    try:
        status = (root / file).stat()
    except OSError:
        return FileStamp(file, -1, 0)
    last = max(status.st_mtime_ns, status.st_ctime_ns)
    is_settled = last + SETTLED_SECONDS * 1e9 < time.time_ns()
    return FileStamp(file, status.st_size, status.st_mtime_ns, status.st_ctime_ns, is_settled)
