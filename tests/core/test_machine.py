"""What the machine says of itself, checked against a second source."""

import os
import shutil

import pytest

from autoseg.core import machine


def test_cores_are_those_the_process_may_use():
    assert machine.available_cores() == len(os.sched_getaffinity(0))


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


def test_free_disk_is_told_for_folders_not_yet_made(tmp_path):
    told = machine.free_disk_bytes(tmp_path / "not" / "yet")
    assert told == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


def test_the_processor_has_a_name():
    assert machine.processor()


def test_a_system_that_does_not_say_leaves_it_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_MEMORY_TABLE", tmp_path / "absent")
    monkeypatch.setattr(machine, "_PROCESSOR_TABLE", tmp_path / "absent")
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.memory_bytes() is None
    assert machine.available_memory_bytes() is None
    assert machine.available_cores() == os.cpu_count()
    assert machine.processor()


def test_a_table_without_the_line_leaves_it_unknown(tmp_path, monkeypatch):
    table = tmp_path / "table"
    table.write_text("MemTotal: 1 kB\n")
    monkeypatch.setattr(machine, "_MEMORY_TABLE", table)
    assert machine.available_memory_bytes() is None
