"""Wall time, CPU seconds, load and memory of a call, or of a command with all its children."""

from __future__ import annotations

import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import psutil

from autoseg.core.machine import BYTES_PER_GIB

Figures = dict[str, float]
"""Seconds "wall" and "cpu", the "load" average of the minute before, and "peak_gib" where it was asked for."""

MEMORY_INTERVAL_S = 0.5
"""Between two samples of the memory: reading it takes up to 0.1 s for each gibibyte, and peaks last for seconds."""


class CommandFailed(Exception):
    """A command ended with another code than 0; the text is what it printed last."""


def timed(call: Callable[[], object], wait: Callable[[], object] = lambda: None) -> Figures:
    """Figures of a call in this process; `wait` returns once the device has done what the call began."""
    load, begin, cpu = os.getloadavg()[0], time.perf_counter(), time.process_time()
    call()
    wait()
    return {"wall": time.perf_counter() - begin, "cpu": time.process_time() - cpu, "load": load}


def run_command(command: Sequence[str], environment: Mapping[str, str], *, peak: bool = False) -> tuple[Figures, str]:
    """Figures of a command, its start and its children included, and what it printed.

    Args:
        command: program and arguments.
        environment: all variables of the program.
        peak: whether to sample the memory of the whole tree of processes.

    Raises:
        CommandFailed: by its exit code.
    """
    load, begin, cpu = os.getloadavg()[0], time.perf_counter(), _children_seconds()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    figures: Figures = {}
    watch = threading.Thread(target=_watch_memory, args=(process.pid, figures), daemon=True)
    if peak:
        watch.start()
    printed, _ = process.communicate()
    figures |= {"wall": time.perf_counter() - begin, "cpu": _children_seconds() - cpu, "load": load}
    if process.returncode != 0:
        raise CommandFailed(f"{' '.join(command)} ended with {process.returncode}:\n{printed[-4000:]}")
    return figures, printed


def lines_of(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[str]:
    """The lines that a command prints, as they come.

    Raises:
        CommandFailed: by its exit code.
    """
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        yield from process.stdout or ()
    if process.returncode != 0:
        raise CommandFailed(f"{' '.join(command)} ended with {process.returncode}")


def tree_seconds() -> float:
    """CPU seconds so far of this process, of its children and of theirs, also of those that have ended."""
    own = psutil.Process()
    return sum(sum(_cpu_times(process)) for process in (own, *own.children(recursive=True)))


def _cpu_times(process: psutil.Process) -> tuple[float, ...]:
    try:
        return tuple(process.cpu_times())[:4]  # of the user and of the system, own and of children that were waited for
    except psutil.Error:
        return (0.0,)


def _children_seconds() -> float:
    """CPU seconds of all children that have ended; those of grandchildren count once they were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _watch_memory(root: int, figures: Figures) -> None:
    """Keeps the largest proportional set size of a tree of processes: shared pages count once."""
    figures["peak_gib"] = 0.0
    while psutil.pid_exists(root):
        figures["peak_gib"] = max(figures["peak_gib"], _tree_bytes(root) / BYTES_PER_GIB)
        time.sleep(MEMORY_INTERVAL_S)


def _tree_bytes(root: int) -> int:
    try:
        processes = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.Error:
        return 0
    return sum(_own_bytes(process) for process in processes)


def _own_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:  # it has just ended
        return 0
