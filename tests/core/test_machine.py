"""What the machine says of itself, checked against a second source."""

import os
import platform
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from autoseg.core import machine


def test_cores_are_those_the_process_may_use():
    assert machine.available_cores() == len(os.sched_getaffinity(0))
    assert 1 <= machine.physical_cores() <= machine.available_cores()


def test_hardware_threads_of_one_core_count_once(tmp_path, monkeypatch):
    for number in range(8):
        table = tmp_path / f"cpu{number}" / "topology" / "thread_siblings_list"
        table.parent.mkdir(parents=True)
        table.write_text(f"{number // 2},{number // 2 + 4}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr(machine, "_CORES_TABLE", tmp_path)
    monkeypatch.setattr(machine, "_TIME_QUOTA", tmp_path / "absent")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert machine.physical_cores() == 4


@pytest.mark.parametrize(("quota", "cores"), [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 8)])
def test_a_containers_share_of_the_time_counts_as_whole_cores(tmp_path, monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(machine, "_CORES_TABLE", tmp_path)  # where no core names its siblings, each counts
    monkeypatch.setattr(machine, "_TIME_QUOTA", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(quota)
    assert machine.physical_cores() == cores


def test_memory_is_at_most_the_machines():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < machine.available_memory_bytes() <= machine.memory_bytes() <= total


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    limit.write_text("1073741824\n")
    monkeypatch.setattr(machine, "_MEMORY_LIMITS", (limit,))
    assert machine.memory_bytes() == machine.BYTES_PER_GIB


def test_no_limit_is_no_limit(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    limit.write_text("max\n")
    monkeypatch.setattr(machine, "_MEMORY_LIMITS", (limit,))
    assert machine.memory_bytes() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_memory_in_use_grows_with_what_is_held():
    machine.return_freed_memory()  # which an earlier prediction in this process may have kept
    before = machine.resident_memory_bytes()
    held = np.ones(1 << 25, dtype=np.uint8)
    grown = machine.resident_memory_bytes() - before
    assert held.nbytes * 0.9 < grown < held.nbytes * 1.5
    assert machine.peak_memory_bytes() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_free_disk_is_known_for_folders_not_yet_made(tmp_path):
    free = machine.free_disk_bytes(tmp_path / "not" / "yet")
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


def test_the_processor_has_a_name(tmp_path, monkeypatch):
    assert machine.processor()
    monkeypatch.setattr(machine, "_PROCESSOR_TABLE", tmp_path / "absent")
    assert machine.processor()


def test_the_process_was_started_a_while_ago():
    first = machine.seconds_since_start()
    time.sleep(0.05)
    assert 0 < first < first + 0.04 < machine.seconds_since_start() < 1e6


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept_until_it_is_returned():
    code = """
import resource
import numpy as np
from autoseg.core.machine import keep_freed_memory, resident_memory_bytes, return_freed_memory
keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        [np.ones(1 << 20) for _ in range(8)]  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
kept = resident_memory_bytes()
return_freed_memory()
print((kept - resident_memory_bytes()) >> 20)
"""
    faults, mebibytes = subprocess.run(
        (sys.executable, "-c", code), capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(faults) < 1000  # of 80,000
    assert int(mebibytes) > 50
