"""What this machine has: cores, memory, disk, processors that compute bfloat16 by themselves."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

BYTES_PER_GIB = 1 << 30

_MEMORY_TABLE = Path("/proc/meminfo")
_PROCESSOR_TABLE = Path("/proc/cpuinfo")
_MEMORY_LIMITS = (  # of the container this runs in, where there is one
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Memory of the machine, or of the container if that is less; None where the system does not say."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    limits = [int(text) for path in _MEMORY_LIMITS if path.is_file() and (text := path.read_text().strip()).isdigit()]
    return min([total, *limits])


def available_memory_bytes() -> int | None:
    """Memory that programs can still have without swapping; None where the system does not say (Linux does)."""
    if not _MEMORY_TABLE.is_file():
        return None
    for line in _MEMORY_TABLE.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) * 1024, memory_bytes() or 1 << 62)
    return None


def free_disk_bytes(folder: Path) -> int:
    """Free space where `folder` is, or would be made."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def processor() -> str:
    """The processor's own name for itself, or at least its architecture."""
    if _PROCESSOR_TABLE.is_file():
        for line in _PROCESSOR_TABLE.read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
