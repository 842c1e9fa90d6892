"""Writing so that a reader sees the whole file or none of it, at whatever moment the machine stops."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_MARK = ".partial-"
"""Every unfinished file or folder carries this in its name; one that was left behind may be deleted."""

_HASH_BLOCK_BYTES = 1 << 20


def temporary_beside(path: Path) -> Path:
    """A name in the same folder as `path` that no other process uses, marked as unfinished.

    The ending of `path` is kept, because writers choose the format by it.
    """
    return path.with_name(f"{TEMPORARY_MARK}{uuid.uuid4().hex[:12]}-{path.name}")


def sync(path: Path) -> None:
    """Forces a file or folder onto the disk; without it a rename can survive a power cut that its content does not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it becomes `path` when the block ends without an error, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; it becomes `path` when the block ends without an error, and vanishes otherwise.

    A folder already at `path` is replaced (`swap_in`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        swap_in(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def swap_in(temporary: Path, path: Path) -> None:
    """Moves a file or folder to `path`; what lies there is replaced.

    A folder is moved aside first and deleted last, so that a stop in between leaves either the old or the new one
    under a complete name.
    """
    outdated = temporary_beside(path) if temporary.is_dir() and path.exists() else None
    if outdated is not None:
        path.rename(outdated)
    temporary.replace(path)
    sync(path.parent)
    if outdated is not None:
        shutil.rmtree(outdated, ignore_errors=True)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes a whole file at once; readers see the old content or the new, never a part."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, hexadecimal, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Deletes unfinished files and folders that an interrupted writer left directly in `folder`."""
    if not folder.is_dir():
        return
    for entry in folder.glob(f"{TEMPORARY_MARK}*"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
