"""What AutoSeg tells its users when something is wrong: what, where, why, and what to type next."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class AutoSegError(Exception):
    """The root of every error meant for a user; the command line prints it as one box, without traceback.

    Args:
        what: one sentence saying what is wrong, with the values found.
        where: the file, folder, case or option concerned.
        why: the cause, as far as it is known.
        do: what the user types or changes next.
    """

    code: ClassVar[str] = "E0001"
    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, *, where: str | None = None, why: str | None = None, do: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.why = why
        self.do = do

    def __str__(self) -> str:
        parts = [self.what, self.where and f"({self.where})", self.why, self.do and f"-> {self.do}"]
        return " ".join(part for part in parts if part)


class UsageError(AutoSegError):
    """An option or argument is wrong or contradicts another."""

    code = "E0101"


class RecordFault(AutoSegError):
    """A JSON or YAML file does not hold what it should; every fault is listed with its path."""

    code = "E0102"


class MissingInput(AutoSegError):
    """A file or folder that the command needs is not there."""

    code = "E0103"


class DataRefused(AutoSegError):
    """Nothing usable is left of the data, or `--strict` forbids going on with the rest."""

    code = "E0201"
    exit_code = 3


class LeakingFolds(DataRefused):
    """The same image is trained on and validated with, under two names, so that scores would be too good."""

    code = "E0209"


class UnreadableFile(AutoSegError):
    """A file is damaged, truncated, of an unsupported kind, or its header cannot be true."""

    code = "E0401"
    exit_code = 3


class GeometryMismatch(AutoSegError):
    """Two arrays that must share a grid do not."""

    code = "E0212"
    exit_code = 3


class LabelFault(AutoSegError):
    """A label map holds values that the dataset does not declare."""

    code = "E0301"
    exit_code = 3


class IntensityOverflow(AutoSegError):
    """Intensities are so large that computing with them leaves the range of single precision."""

    code = "E0314"
    exit_code = 3


class PlanFault(AutoSegError):
    """A plan, pin or configuration cannot be used as it is."""

    code = "E0501"


class TrainingStopped(AutoSegError):
    """Training cannot go on, for example because the loss stays non-finite."""

    code = "E0601"


class NonFiniteLogits(AutoSegError):
    """A network answered with infinite or undefined values."""

    code = "E0602"
    exit_code = 4


class WrongNumerics(AutoSegError):
    """The device computes a network's convolutions wrongly in every precision and memory format allowed."""

    code = "E0603"
    exit_code = 4


class NotEnoughResources(AutoSegError):
    """Memory or disk does not suffice; nothing was left half done."""

    code = "E0701"
    exit_code = 5


class OutputFault(AutoSegError):
    """The work is done, but what it has to say could not be printed: its output was closed, or the disk is full."""

    code = "E0702"


class SystemFault(AutoSegError):
    """The system refused a file for a reason of its own: a damaged disk, a lost network drive, a loop of links."""

    code = "E0703"
    exit_code = 5


class IntegrityRefusal(AutoSegError):
    """A stored file does not match its hash, or a model file is not what it claims to be."""

    code = "E0801"
    exit_code = 6


class Interrupted(AutoSegError):
    """The user or the system stopped the command; the same command resumes."""

    code = "E0901"
    exit_code = 75


class InterruptedEarly(Interrupted):
    """The user or the system stopped the command before anything was worth keeping."""

    code = "E0902"
    exit_code = 130


class Busy(Interrupted):
    """Another process is at the same work; the same command goes on once it has ended."""

    code = "E0903"


class ProgramFault(AutoSegError):
    """AutoSeg itself is at fault: something happened that it does not expect. The log file says where."""

    code = "E0999"
    exit_code = 1


_FREE_SPACE = "free some space there, and run the same command again: what is done stays"
_RIGHTS = "change its rights or owner (ls -l), or choose another folder, and run the same command again"
_CHECK_PATH = "check the path; if it was moved or deleted meanwhile, run the same command again"
_REPAIR = "check the disk or network drive, and run the same command again"

_SYSTEM_ERRORS: dict[int, tuple[type[AutoSegError], str, str]] = {
    errno.ENOSPC: (NotEnoughResources, "the disk is full", _FREE_SPACE),
    errno.EDQUOT: (NotEnoughResources, "the disk quota is used up", _FREE_SPACE),
    errno.EFBIG: (NotEnoughResources, "the file would exceed the largest size allowed (ulimit -f)", _FREE_SPACE),
    errno.ENOMEM: (NotEnoughResources, "memory ran out", "close other programs, or lower --jobs or --max-ram"),
    errno.EMFILE: (
        NotEnoughResources,
        "this process may not open any more files",
        "raise the limit (ulimit -n 1024) or lower --jobs, and run the same command again; no file is damaged",
    ),
    errno.ENFILE: (
        NotEnoughResources,
        "the system may not open any more files",
        "close other programs, and run the same command again; no file is damaged",
    ),
    errno.EACCES: (UsageError, "the right to read, write or enter it is missing", _RIGHTS),
    errno.EPERM: (UsageError, "the system does not permit this", _RIGHTS),
    errno.EROFS: (UsageError, "the disk is read-only", "choose a folder on another disk (--work, -o)"),
    errno.ENOENT: (MissingInput, "a file or folder is not there, or not any more", _CHECK_PATH),
    errno.ENOTDIR: (UsageError, "a file is where a folder should be", _CHECK_PATH),
    errno.EISDIR: (UsageError, "a folder is where a file should be", _CHECK_PATH),
    errno.EEXIST: (UsageError, "something is there already under this name", "move it away, or choose another name"),
    errno.ENAMETOOLONG: (UsageError, "the name is longer than the file system allows", "choose a shorter one"),
    errno.ELOOP: (UsageError, "its symbolic links lead in a circle", "remove the link"),
    errno.EPIPE: (OutputFault, "nothing reads the output any more", "run the same command again"),
    errno.EBADF: (OutputFault, "the output is closed", "run the same command again with an open output"),
    errno.EIO: (SystemFault, "the disk could not read or write it", _REPAIR),
    errno.ESTALE: (SystemFault, "the network drive does not know it any more", _REPAIR),
}
"""What the system's refusals mean: kind of error, why, and what to do."""

_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")  # numpy's words for a disk that is full
_OUT_OF_MEMORY = (
    "OutOfMemoryError: ",
    "can't allocate memory",
    "can't start new thread",
    "bad_alloc",
    "failed to map segment from shared object",  # of a library that is about to be loaded
)
_LIBRARY_ERRORS = {os.strerror(number): number for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)}
"""Why the system could not load a library, in the words that the linker passes on."""


def error_for(error: BaseException) -> AutoSegError:
    """What any exception means to a user; an error of AutoSeg is its own answer.

    The one place that knows the kinds of OSError, and that memory, encodings and AutoSeg itself may be at fault.
    """
    if isinstance(error, AutoSegError):
        return error
    meant = _machine_error(error) or _error_of_text(error)
    if meant is None:
        what = f"AutoSeg is at fault: {type(error).__name__}: {error}"
        meant = ProgramFault(what, do="please report it with the traceback: it is in the log file, and -v shows it")
    meant.__cause__ = error
    return meant


def is_machine_fault(error: BaseException | None) -> bool:
    """Whether no memory, disk or file handle is left: no file is at fault then, and whatever comes next fails too."""
    return error is not None and isinstance(_machine_error(error) or error, NotEnoughResources)


def _machine_error(error: BaseException) -> AutoSegError | None:
    text = str(error)
    if isinstance(error, OSError):
        is_short = error.errno is None and _SHORT_WRITE.search(text)
        return _system_error(_os_error(errno.ENOSPC, error.filename) if is_short else error)
    if number := _number_in(error, text):
        return _system_error(_os_error(number, None))
    if isinstance(error, MemoryError) or any(mark in f"{type(error).__name__}: {text}" for mark in _OUT_OF_MEMORY):
        why = text.splitlines()[0] if text else None
        return NotEnoughResources("memory ran out", why=why, do="close other programs, or lower --jobs or --max-ram")
    return None


def _number_in(error: BaseException, text: str) -> int | None:
    """The number of the system's error that a library passes on as text, if it does."""
    if isinstance(error, ImportError):
        return next((number for why, number in _LIBRARY_ERRORS.items() if why in text), None)
    found = _RUST_ERROR.search(text)  # of safetensors and tokenizers
    return int(found[1]) if found else None


def _error_of_text(error: BaseException) -> AutoSegError | None:
    if isinstance(error, UnicodeError):
        what, do = "a name or a text is not UTF-8", "rename the file, or save the text as UTF-8"
        return UsageError(what, why=str(error), do=do)
    if isinstance(error, ImportError) and error.name and not error.name.startswith("autoseg"):
        return UsageError(f"the Python package {error.name} is missing or damaged", why=str(error), do="autoseg doctor")
    return None


def _system_error(error: OSError) -> AutoSegError:
    found = (name for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike))
    names = [os.fsdecode(name) for name in found]
    reason = error.strerror or str(error) or type(error).__name__
    unknown = (SystemFault, reason, _REPAIR) if error.errno else (UnreadableFile, reason, "get the file again")
    kind, why, do = _SYSTEM_ERRORS.get(error.errno or 0, unknown)
    what = f"{names[0].rsplit(os.sep, 1)[-1]}: {reason}" if names else reason
    return kind(what, where=" -> ".join(names) or None, why=_with_free_space(why, error, names), do=do)


def _os_error(number: int, path: str | None) -> OSError:
    return OSError(number, os.strerror(number), path)


def _with_free_space(why: str, error: OSError, names: list[str]) -> str:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or not names:
        return why
    folder = os.path.dirname(os.path.abspath(names[0]))  # noqa: PTH100, PTH120 - the name may be no path
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return why
    return f"{why}; {free / 2**20:.0f} MiB are free in {folder}"


@contextmanager
def for_users() -> Iterator[None]:
    """Turns what the machine refuses into the error that says so; decorates the functions of `autoseg.api`."""
    try:
        yield
    except Exception as error:
        meant = error_for(error)
        if meant is error or isinstance(meant, ProgramFault):
            raise
        raise meant from error
