"""Threads that compute with some of a CPU's cores each."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def computing_threads(count: int, name: str) -> ThreadPoolExecutor:
    """Threads that share the cores which torch uses in this one; they end when nothing refers to the pool any more.

    All are started here, because telling torch the number of one thread's cores changes the number that threads made
    later begin with: it is set to what it was.
    """
    cores = torch.get_num_threads()
    have_started = threading.Barrier(count + 1)
    pool = ThreadPoolExecutor(count, name, _use, (max(1, cores // count),))
    for _ in range(count):
        pool.submit(have_started.wait)
    have_started.wait()
    torch.set_num_threads(cores)
    return pool


def _use(cores: int) -> None:
    """Lets this thread compute with so many cores."""
    torch.set_num_threads(cores)
    torch.get_num_threads()  # with the first question torch sets what threads begin with, and then never again
