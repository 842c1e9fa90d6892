from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from autoseg.core.workers import Failure, Helper, Message, Returned, Worker, answers, map_supervised

TIMEOUT_S = 4.0  # enough to start a process on a busy machine


def square(number: int) -> int:
    return number * number


def kill_itself_at_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fault_at_two(number: int) -> int:
    if number == 2:
        raise ValueError("two is too many")
    return number


def no_memory_at_two(number: int) -> int:
    if number == 2:
        raise MemoryError
    return number


def exit_zero_at_two(number: int) -> int:
    if number == 2:
        os._exit(0)
    return number


def stop_at_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    return number


def stop_in_the_middle_of_an_answer(number: int) -> bytes:
    if number == 2:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGSTOP))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        return b"x" * (1 << 28)  # does not fit the pipe's buffer
    return b""


def die_while_answering(number: int) -> bytes:
    if number == 2:

        def send_some_of(connection, message):
            os.write(connection.fileno(), bytes(message[:1000]))
            os.kill(os.getpid(), signal.SIGKILL)

        Connection._send = send_some_of  # of this process, which ends here
    return b"x" * 100_000


def die_the_first_time(marker: str) -> str:
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return marker


def unpicklable(number: int) -> object:
    return lambda: number


def thread_variable(_number: int) -> str | None:
    import ctypes

    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    value = getenv(b"OMP_NUM_THREADS")
    return value.decode() if value else None


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def is_group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("jobs", [0, 1, 3])
def test_every_item_is_worked_on_once(jobs):
    outcomes = sorted(map_supervised(square, range(7), jobs), key=lambda outcome: outcome.index)
    assert [outcome.value for outcome in outcomes] == [0, 1, 4, 9, 16, 25, 36]
    assert all(outcome.failure is None for outcome in outcomes)


@pytest.mark.parametrize("jobs", [0, 1, 2])
def test_no_items_give_no_outcomes(jobs):
    assert list(map_supervised(square, [], jobs)) == []


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (kill_itself_at_two, "SIGKILL"),
        (exit_zero_at_two, "exit code 0"),
        (stop_at_two, "longer than"),
        (stop_in_the_middle_of_an_answer, "longer than"),
        (fault_at_two, "ValueError: two is too many"),
        (no_memory_at_two, "MemoryError"),
        (unpicklable, "pickle"),
        (die_while_answering, "SIGKILL"),
    ],
)
def test_whatever_happens_to_a_process_is_reported_and_the_rest_goes_on(function, named, capfd):
    start = time.monotonic()
    outcomes = {outcome.index: outcome for outcome in map_supervised(function, [1, 2, 3], 2, TIMEOUT_S)}
    assert time.monotonic() - start < 20
    assert set(outcomes) == {0, 1, 2}
    assert named in outcomes[1].failure
    if function is not unpicklable:
        assert outcomes[0].failure is None
        assert outcomes[2].failure is None
    assert ("twice" in outcomes[1].failure) == (function not in (fault_at_two, unpicklable))


def when(_item: int) -> tuple[float, float]:
    begin = time.monotonic()
    time.sleep(0.05)
    return begin, time.monotonic()


def test_items_never_take_more_memory_together_than_there_is():
    gib, room = 1 << 30, 1 << 28
    needs = [1 * gib, 1 * gib, 5 * gib, 1 * gib, 2 * gib]  # one is larger than all there is, and goes alone
    outcomes = map_supervised(when, range(5), 3, needs=needs, memory_bytes=3 * gib + 2 * room)
    times = {outcome.index: outcome.value for outcome in outcomes}
    assert min(times, key=times.get) == 2
    for instant, _ in times.values():
        at_work = [index for index, (begin, end) in times.items() if begin <= instant < end]
        assert sum(needs[index] for index in at_work) <= 3 * gib or at_work == [2]
        assert len(at_work) <= 2  # the memory of a process by itself counts, too


def test_an_exception_is_reported_without_processes_too():
    outcomes = list(map_supervised(fault_at_two, [1, 2], 0))
    assert outcomes[1].failure == "ValueError: two is too many"


def test_an_item_that_kills_its_process_once_is_tried_again(tmp_path):
    markers = [str(tmp_path / name) for name in "abc"]
    outcomes = list(map_supervised(die_the_first_time, markers, 2))
    assert sorted(outcome.value for outcome in outcomes) == markers


def test_processes_use_one_thread_for_linear_algebra():
    assert [outcome.value for outcome in map_supervised(thread_variable, [0], 1)] == ["1"]


def test_stopping_early_ends_the_processes_at_once():
    start = time.monotonic()
    outcomes = map_supervised(sleep, [0.0, 60.0, 60.0], 2)
    next(outcomes)
    outcomes.close()
    assert time.monotonic() - start < 10


def test_an_interrupted_supervisor_leaves_quickly_and_alone(tmp_path):
    program = tmp_path / "interrupted.py"
    program.write_text(
        textwrap.dedent("""
        import signal
        import time
        from autoseg.core.workers import map_supervised

        if __name__ == "__main__":
            # what a shell has started in the background ignores interrupts, and so does all that it starts in turn
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for outcome in map_supervised(time.sleep, [0.0, 60.0, 60.0], 2):
                print("first", flush=True)
        """)
    )
    process = subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "first\n"
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    deadline = time.monotonic() + 5
    while is_group_alive(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


SCRIPT = """
from operator import neg
from autoseg.core.workers import map_supervised
print([outcome.value for outcome in map_supervised(neg, [1, 2], 1)])
import __main__
print(__main__.__file__, __main__.__spec__)
"""


def test_a_script_without_a_guard_starts_itself_only_once(tmp_path, repository):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ran = subprocess.run([sys.executable, script], cwd=repository, capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines() == ["[-1, -2]", f"{script} None"], ran.stderr


def count_to(number: int, send) -> int:
    for step in range(number):
        send(step)
    return number


def sleep_aloud(seconds: float, send) -> None:
    send(os.getpid())
    time.sleep(seconds)


def say_then_die(number: int, send) -> None:
    send(number)
    os.kill(os.getpid(), number)


def answers_of(worker: Worker) -> list[object]:
    found = []
    while worker.is_busy:
        found += [answer for _, answer in answers([worker], 0.2)]
    return found


def test_a_worker_sends_messages_before_it_returns_and_serves_again():
    worker = Worker(count_to)
    for number in (2, 0, 1):
        worker.call(number)
        assert answers_of(worker) == [*(Message(step) for step in range(number)), Returned(number)]
    worker.close(grace_s=10)
    assert worker.process.exitcode == 0


def test_the_death_of_a_worker_comes_after_its_messages_and_is_named():
    worker = Worker(say_then_die)
    worker.call(int(signal.SIGSEGV))
    message, failure = answers_of(worker)
    worker.close()
    assert message == Message(signal.SIGSEGV)
    assert isinstance(failure, Failure)
    assert "SIGSEGV" in failure.sentence


def test_a_worker_at_work_is_killed_after_its_grace():
    worker = Worker(sleep_aloud)
    worker.call(60)
    worker.answer()
    worker.close(grace_s=0.1)
    assert worker.process.exitcode == -signal.SIGKILL


def test_nothing_comes_of_workers_without_a_call():
    worker = Worker(count_to)
    assert list(answers([worker], 0)) == []
    worker.close()


PARENT = """
import os, signal
from autoseg.core.workers import Worker
from tests.core.test_workers import sleep_aloud
worker = Worker(sleep_aloud)
worker.call(60)
print(worker.answer().value, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_does_not_outlive_its_parent(repository):
    ran = subprocess.run([sys.executable, "-c", PARENT], cwd=repository, capture_output=True, text=True, check=False)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{int(ran.stdout)}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- a helper


def test_a_helper_returns_what_functions_return_and_tells_what_they_raise():
    with Helper() as helper:
        assert helper.call(square, 3) == 9
        raised = helper.call(fault_at_two, 2)
        assert isinstance(raised, Failure)
        assert "two is too many" in raised.sentence
        assert [outcome.value for outcome in helper.map(square, [1, 2, 3])] == [1, 4, 9]


def test_a_call_that_kills_its_helper_is_lost_alone():
    with Helper() as helper:
        outcomes = list(helper.map(kill_itself_at_two, [1, 2, 3]))
    assert [outcome.value for outcome in outcomes] == [1, None, 3]
    assert "SIGKILL" in str(outcomes[1].failure)
    assert "twice" in str(outcomes[1].failure)


def test_a_helper_that_is_killed_once_does_its_call_again(tmp_path):
    with Helper() as helper:
        assert helper.call(die_the_first_time, str(tmp_path / "marker")) == str(tmp_path / "marker")


def test_a_helper_that_hangs_is_replaced():
    with Helper(timeout_s=TIMEOUT_S) as helper:
        lost = helper.call(stop_at_two, 2)
        assert isinstance(lost, Failure)
        assert "longer than" in lost.sentence
        assert helper.call(stop_at_two, 3) == 3


def test_closing_a_helper_ends_its_call():
    helper = Helper()
    answers: list[object] = []
    calling = threading.Thread(target=lambda: answers.append(helper.call(sleep, 60.0)))
    calling.start()
    time.sleep(0.5)
    begin = time.monotonic()
    helper.close()
    calling.join()
    assert time.monotonic() - begin < 10
    assert isinstance(answers[0], Failure)
