"""What this machine has - cores, memory, disk, processor - and what this process takes of it."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

BYTES_PER_GIB = 1 << 30

BUSY_LOAD = 1.0
"""Processes that may wait for a core before a machine counts as busy (assumption)."""

_CORES_TABLE = Path("/sys/devices/system/cpu")
_PROCESSOR_TABLE = Path("/proc/cpuinfo")
_TIME_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_LOCKS = Path("/proc/locks")
_MEMORY_LIMITS = (  # of the container this runs in, where there is one; psutil gives the machine's
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_KEPT_BLOCK_BYTES = 1 << 28
"""Larger blocks, such as sums of whole volumes, go back to the system at once."""

_LARGEST_OLDER_BLOCK_BYTES = 1 << 25
"""What older versions of glibc allow on 64 bits (HEAP_MAX_SIZE / 2 of malloc/arena.c)."""


def available_cores() -> int:
    """Cores that this process may use; hardware threads count."""
    return len(_usable_cores())


def physical_cores() -> int:
    """Physical cores among those that this process may use; hardware threads of one core count once.

    Not `psutil.cpu_count(logical=False)`: that counts the machine's, however few of them this process may use.
    """
    return max(1, min(len({_siblings(number) for number in _usable_cores()}), _quota()))


def is_busy() -> bool:
    """Whether more programs want to run, in the last minute, than there are cores beside this process; Windows: no."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > available_cores() + BUSY_LOAD


def memory_bytes() -> int:
    """Memory of the machine, or of the container or the process (ulimit) if they may have less."""
    import psutil

    limits = [int(text) for path in _MEMORY_LIMITS if path.is_file() and (text := path.read_text().strip()).isdigit()]
    return min([psutil.virtual_memory().total, *limits, *_process_limits()])


def available_memory_bytes() -> int:
    """Memory that programs can still have without swapping."""
    import psutil

    return min(psutil.virtual_memory().available, memory_bytes())


def resident_memory_bytes() -> int:
    """Memory that this process has now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def keep_freed_memory() -> None:
    """Lets the C library keep freed blocks for the next ones instead of giving them back; glibc only.

    A network frees and asks for the same feature maps again and again, and the system clears every page of them each
    time. Planned hippocampus network, bf16, one thread: 8,000 to 13,000 page faults of a tile become 0.
    """
    mallopt = _c_function("mallopt")
    if mallopt is None:
        return
    # older versions refuse large thresholds; to set the other one alone would only make matters worse
    if any(mallopt(_M_MMAP_THRESHOLD, size) for size in (_KEPT_BLOCK_BYTES, _LARGEST_OLDER_BLOCK_BYTES)):
        mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT_BLOCK_BYTES)


def return_freed_memory() -> None:
    """Gives freed blocks that were kept back to the system, so that `resident_memory_bytes` counts what is in use."""
    if (trim := _c_function("malloc_trim")) is not None:
        trim(0)


def is_running(process: int) -> bool:
    """Whether there is a process of this number, on this machine, that has not ended."""
    import psutil

    try:
        return psutil.Process(process).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def holder_of(lock: Path) -> str:
    """Who holds a lock file, in words; Linux knows the process."""
    try:
        number = lock.stat().st_ino
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return "another process"
    held = (line.split() for line in lines if f":{number} " in line and "->" not in line)
    process = next((words[4] for words in held if words[4].isdigit() and words[4] != "0"), None)
    return "another process" if process is None else f"process {process} on {platform.node()}"


def peak_memory_bytes(*, of_children: bool = False) -> int | None:
    """The most memory that this process has had, or any child of it that has ended; None on Windows.

    Not from psutil, which knows peaks on Windows only.
    """
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_CHILDREN if of_children else resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_disk_bytes(folder: Path) -> int:
    """Free space where `folder` is, or would be made."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def processor() -> str:
    """The processor's own name for itself, or at least its architecture; psutil has none."""
    if _PROCESSOR_TABLE.is_file():
        for line in _PROCESSOR_TABLE.read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def seconds_since_start() -> float:
    """Wall time since this process was started, the interpreter's own start included."""
    import psutil

    return max(0.0, time.time() - psutil.Process().create_time())


def _c_function(name: str) -> Callable[..., int] | None:
    """A function of the C library that this process runs with, on Linux; None if it has none of that name."""
    function: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    return function


def _process_limits() -> list[int]:
    if sys.platform == "win32":
        return []
    import resource

    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)]
    return [limit for limit in limits if limit != resource.RLIM_INFINITY]


def _usable_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _siblings(number: int) -> str:
    """Hardware threads of the physical core of a hardware thread: equal text for all of them."""
    try:
        return (_CORES_TABLE / f"cpu{number}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(number)


def _quota() -> int:
    """Whole cores that a container's time quota amounts to."""
    try:
        quota, period = _TIME_QUOTA.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or "max"
        return os.cpu_count() or 1
