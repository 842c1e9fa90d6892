"""Writing so that a reader sees the whole file or none of it, at whatever moment the machine stops."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import sys
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autoseg.core.errors import AutoSegError, IntegrityRefusal
from autoseg.core.machine import is_running

TEMPORARY_MARK = ".partial-"
"""Every unfinished file or folder carries this in its name; one that was left behind may be deleted."""

REPLACED_MARK = ".replaced-"
"""A folder that another one is about to replace carries this before its name; it is put back if that never came."""

_HASH_BLOCK_BYTES = 1 << 20
_LONGEST_NAME_BYTES = 255  # of a file, on all common file systems


def _numbered_by() -> str:
    """What gives processes their numbers: this machine, or a container on it. Elsewhere a number is another process."""
    container = ""
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
        container = namespace.replace("pid:[4026531836]", "")  # Linux's PROC_PID_INIT_INO: no container
    return hashlib.sha256(f"{platform.node()}{container}".encode()).hexdigest()[:8]


_HOST = _numbered_by()
_UNFINISHED = re.compile(rf"{re.escape(TEMPORARY_MARK)}(?:([0-9a-f]{{8}})-(\d+)-)?[0-9a-f]{{12}}-", re.ASCII)
_ABANDONED_AFTER_S = 86_400.0  # what another machine began, of whose processes nothing is known here (assumption)
_REPLACED = re.compile(rf"{re.escape(REPLACED_MARK)}([0-9a-f]{{8}})-(\d+)-(.+)", re.ASCII | re.DOTALL)
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def temporary_beside(path: Path) -> Path:
    """A name in the same folder as `path` that no other process uses, marked as unfinished.

    The ending of `path` is kept, because writers choose the format by it; the start of a long name is not. The
    process that writes is part of the name, so that others know whether it may still be at it.
    """
    mark = f"{TEMPORARY_MARK}{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:12]}-"
    rest = os.fsencode(path.name)[-(_LONGEST_NAME_BYTES - len(mark)) :]
    return path.with_name(mark + rest.decode(errors="ignore"))


@contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    """Lets errors in writing name the file that was meant; a full disk says no name at all."""
    try:
        yield
    except OSError as error:
        error.filename = str(error.filename or path).replace(str(temporary), str(path))
        raise


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
        with _naming(path, temporary):
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
    finally:
        with suppress(OSError):  # a disk that is read-only says so even of what is not there
            temporary.unlink()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; it becomes `path` when the block ends without an error, and vanishes otherwise.

    A folder already at `path` is replaced (`swap_in`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with _naming(path, temporary):
            temporary.mkdir()
            yield temporary
            for file in temporary.iterdir():
                if file.exists():  # unlike what a link of the user's leads to
                    sync(file)
            sync(temporary)
            swap_in(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def swap_in(temporary: Path, path: Path) -> None:
    """Moves a file or folder to `path`; what lies there is replaced.

    Folders change places in one step where the system can. Elsewhere the old one is moved aside under a name that
    `remove_leftovers` puts back: at whatever moment the machine stops, one of the two is there or can be restored.
    """
    aside = path.with_name(f"{REPLACED_MARK}{_HOST}-{os.getpid()}-{path.name}")
    if not temporary.is_dir() or not path.is_dir():
        temporary.replace(path)
    elif _exchange(temporary, path):
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        path.rename(aside)
        temporary.replace(path)
    sync(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Lets two entries of a file system change places in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


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


def is_taken(path: Path) -> bool:
    """Whether a name is given to anything, be it a link to what is not there (git-annex keeps files so)."""
    return path.exists() or path.is_symlink()


@contextmanager
def lease(path: Path, busy: AutoSegError) -> Iterator[None]:
    """Holds what a lock file stands for; it vanishes afterwards, and the lock of a killed process with the process.

    Args:
        path: of the lock file; its folder is made if needed.
        busy: raised if another process holds it.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise busy from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows deletes no open file
            path.unlink()
        lock.release()


def remove_leftovers(folder: Path) -> None:
    """Deletes unfinished files and folders that an interrupted writer left directly in `folder`.

    Those of a process that is alive stay: it is still at them. A folder that was moved aside, and whose successor never
    came, is put back.
    """
    if not folder.is_dir():
        return
    for entry in folder.glob(f"{REPLACED_MARK}*"):
        _put_back(entry)
    for entry in folder.glob(f"{TEMPORARY_MARK}*"):
        if not _is_abandoned(entry):
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _put_back(entry: Path) -> None:
    """Gives a folder that was moved aside its name again, or deletes it if its successor came."""
    match = _REPLACED.match(entry.name)
    if match is None or entry.is_symlink() or (match[1] == _HOST and is_running(int(match[2]))):
        return
    if not (place := entry.with_name(match[3])).exists():
        entry.rename(place)
    else:
        shutil.rmtree(entry, ignore_errors=True)


def _is_abandoned(entry: Path) -> bool:
    """Whether an unfinished file or folder is one of AutoSeg's, and nobody writes it any more."""
    match = _UNFINISHED.match(entry.name)
    if match is None or entry.is_symlink():
        return False
    host, process = match.groups()
    if host == _HOST:
        return not is_running(int(process))
    with suppress(FileNotFoundError):
        return host is None or time.time() - entry.stat().st_mtime > _ABANDONED_AFTER_S
    return False


def remove_made(path: Path, root: Path, marks: Collection[str]) -> None:
    """Deletes a folder that AutoSeg made; the one way to delete what has a name of its own.

    It vanishes at once for others who look, and so is never seen half deleted.

    Args:
        path: the folder; nothing is done where there is none.
        root: the work or output folder that it must lie in, links followed.
        marks: names of which it must hold one, unless it is empty.

    Raises:
        IntegrityRefusal: it is a link, lies elsewhere, or was not made by AutoSeg.
    """
    if not is_taken(path):
        return
    check_made(path, root, marks)
    doomed = temporary_beside(path)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def check_made(path: Path, root: Path, marks: Collection[str]) -> None:
    """Refuses to delete a folder, or what is in it, as `remove_made` does.

    Raises:
        IntegrityRefusal: it is a link, lies elsewhere, or was not made by AutoSeg.
    """
    if (fault := _fault_of_made(path, root.resolve(), marks)) is not None:
        raise IntegrityRefusal(
            f"{path.name} is not deleted", where=str(path), why=fault, do="move it away, and run the same command again"
        )


def _fault_of_made(path: Path, root: Path, marks: Collection[str]) -> str | None:
    """Why a folder is not one that AutoSeg made in `root`; None if it is."""
    place = path.parent.resolve() / path.name
    if path.is_symlink() or not path.is_dir():
        return "it is a link or a file, and no folder that AutoSeg made"
    if place == root or not place.is_relative_to(root):
        return f"it leads to {place}, which is outside {root}"
    entries = {entry.name for entry in path.iterdir()}
    if entries and not entries & set(marks):
        return f"it holds none of {', '.join(sorted(marks))}, so AutoSeg has not made it"
    return None
