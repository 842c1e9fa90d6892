from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from autoseg.core.errors import Interrupted, UsageError
from autoseg.core.machine import physical_cores
from autoseg.launch.devices import cache_folder, choose_device, choose_devices, use_cores
from autoseg.launch.interrupts import stoppable


def test_the_cpu_is_there() -> None:
    assert choose_device("cpu")[0] == torch.device("cpu")
    device, because = choose_device()
    assert device.type in because


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cpu:1", "cuda:99", ""])
def test_other_devices_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        choose_device(name)


def test_cuda_is_preferred_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"GPU {number}")
    assert choose_device()[0] == torch.device("cuda:0")
    assert "GPU 1" in choose_device("cuda:1")[1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device()[0] == torch.device("mps")


def test_all_gpus_work_side_by_side_unless_some_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"GPU {number}")
    devices, because = choose_devices()
    assert devices == tuple(torch.device("cuda", number) for number in range(3))
    assert because == "3 CUDA GPUs (GPU 0, GPU 1, GPU 2)"
    assert choose_devices("cuda:0, cuda:2")[0] == (torch.device("cuda:0"), torch.device("cuda:2"))
    assert choose_devices("cpu")[0] == (torch.device("cpu"),)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_devices()[0] == (torch.device("cuda:0"),)
    with pytest.raises(UsageError):
        choose_devices("cpu,tpu")


def test_threads_follow_the_cores_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert use_cores() == 1 == torch.get_num_threads()
        monkeypatch.setenv("OMP_NUM_THREADS", "")
        assert use_cores() == physical_cores()
        assert use_cores(1) == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU])
def test_a_signal_becomes_a_question_answered_later(number: signal.Signals) -> None:
    with stoppable() as check:
        check()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted, match=number.name):
            check()


def test_a_terminal_that_is_closed_stops_nothing_that_runs_with_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable() as check:
            os.kill(os.getpid(), signal.SIGHUP)
            check()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_stops_at_once() -> None:
    with stoppable():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_outside_the_main_thread_nothing_is_caught() -> None:
    checked: list[bool] = []

    def work() -> None:
        with stoppable() as check:
            check()
            checked.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert checked == [True]


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({"AUTOSEG_CACHE": "/a"}, "linux", "/a"),
        ({"XDG_CACHE_HOME": "/x"}, "linux", "/x/autoseg"),
        ({"HOME": "/h"}, "linux", "/h/.cache/autoseg"),
        ({"HOME": "/h"}, "darwin", "/h/Library/Caches/autoseg"),
        ({"HOME": "/h", "LOCALAPPDATA": "/l"}, "win32", "/l/autoseg"),
    ],
)
def test_the_cache_lies_where_the_system_has_caches(environment, platform, expected, monkeypatch) -> None:
    for name in ("AUTOSEG_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert cache_folder() == Path(expected)
