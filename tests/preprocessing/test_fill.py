from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoseg.core.errors import Busy, Interrupted, NotEnoughResources
from autoseg.preprocessing import fill
from autoseg.preprocessing.fill import fill_store
from autoseg.preprocessing.store import is_intact, open_case, store_recipe, write_case
from tests.preprocessing.tiny_dataset import Planned, planned_tiny_dataset, write_volume


@pytest.fixture
def planned(tmp_path):
    return planned_tiny_dataset(tmp_path)


def run(planned: Planned, **options: object) -> fill.StoreResult:
    return fill_store(
        planned.dataset,
        planned.fingerprint,
        store_recipe(planned.plan, planned.plan.configurations["3d_fullres"], planned.fingerprint),
        planned.workspace.store,
        **options,  # type: ignore[arg-type]
    )


IDENTIFIERS = tuple(f"case_{index}" for index in range(4))


def test_every_case_is_prepared_once_and_reused_afterwards(planned):
    seen = []
    first = run(planned, jobs=2, progress=lambda done, total: seen.append((done, total)))
    assert first.done == IDENTIFIERS
    assert first.failures == {}
    assert seen == [(done, 4) for done in range(5)]
    second = run(planned)
    assert (second.done, second.reused) == ((), IDENTIFIERS)
    case = open_case(first.folder / "case_2")
    assert case.image.shape[1:] == case.labels.shape == case.placement.prepared_shape
    for value, voxels in case.locations.items():
        assert (case.labels[tuple(voxels.T)] == value).all()


def test_a_damaged_case_is_prepared_anew(planned):
    folder = run(planned).folder
    image = folder / "case_1" / "image.npy"
    expected = image.read_bytes()
    image.write_bytes(expected[:200] + b"\1" + expected[201:])
    again = run(planned)
    assert again.done == ("case_1",)
    assert image.read_bytes() == expected


def test_a_case_that_cannot_be_prepared_is_reported_and_the_rest_is_done(planned, caplog):
    changed = planned.folder / "imagesTr" / "case_0_0000.nii.gz"
    write_volume(changed, np.ones((6, 12, 10), np.float32))
    truncated = planned.folder / "imagesTr" / "case_1_0000.nii.gz"
    truncated.write_bytes(truncated.read_bytes()[:-20])
    planned = replace(planned, dataset=replace(planned.dataset, cases=planned.dataset.cases[:3]))
    with caplog.at_level(logging.WARNING):
        result = run(planned)
    assert result.done == ("case_2",)
    assert set(result.failures) == {"case_0", "case_1", "case_3"}
    assert "changed" in result.failures["case_0"]
    assert "not in the dataset" in result.failures["case_3"]
    assert {entry.name for entry in result.folder.iterdir()} == {"case_2", "store.json"}


def test_too_small_a_disk_is_refused_before_anything_is_done(planned, monkeypatch):
    usage = fill.shutil.disk_usage(planned.folder)._replace(free=1000)
    monkeypatch.setattr(fill.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(NotEnoughResources, match="4 cases need about"):
        run(planned)


def test_a_disk_that_becomes_full_stops_cleanly_and_the_next_run_goes_on(planned, monkeypatch):
    def write(folder, *arguments):
        if folder.name == "case_2":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_case(folder, *arguments)

    monkeypatch.setattr(fill, "write_case", write)
    with pytest.raises(NotEnoughResources, match="No space left"):
        run(planned, jobs=0)
    monkeypatch.undo()
    result = run(planned)
    assert set(result.reused) | set(result.done) == set(IDENTIFIERS)
    assert "case_2" in result.done


FILL = textwrap.dedent("""
    import sys
    from pathlib import Path
    from autoseg.api.preprocess import preprocess

    if __name__ == "__main__":
        result = preprocess(Path(sys.argv[1]), configurations=["3d_fullres"])["3d_fullres"]
        print(len(result.done), len(result.reused), result.failures)
""")


def start_filling(planned: Planned, program: Path) -> subprocess.Popen[str]:
    program.write_text(FILL)
    command = [sys.executable, str(program), str(planned.workspace.root)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_killed_at_any_moment_it_leaves_whole_cases_and_the_next_run_finishes(tmp_path):
    planned = planned_tiny_dataset(tmp_path / "data", cases=12)
    store = planned.workspace.store
    for seed in range(3):
        process = start_filling(planned, tmp_path / "fill.py")
        deadline = time.monotonic() + 20
        while len(list(store.glob("*/case_*"))) <= 3 * seed and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        contents = {case.identifier: case.content for case in planned.fingerprint.cases}
        for folder in store.glob("*/case_*"):
            assert is_intact(folder, contents[folder.name])
    result = run(planned)
    assert len(result.done) + len(result.reused) == 12
    assert not list(result.folder.glob(".partial-*"))


def test_two_processes_fill_one_store_without_doing_work_twice(planned, tmp_path):
    processes = [start_filling(planned, tmp_path / f"fill{index}.py") for index in range(2)]
    printed = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
    assert printed == ["0 4 {}", "4 0 {}"]


HOLD = """
import sys, time
from pathlib import Path
from autoseg.preprocessing.fill import hold_store
with hold_store(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
    """A store that another process holds, and the number of that process."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "store")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    yield tmp_path / "store", holder.pid
    holder.kill()
    holder.communicate()


def test_a_store_that_is_held_for_ever_is_given_up_and_the_holder_named(held, monkeypatch):
    monkeypatch.setattr(fill, "LONGEST_WAIT_S", 0.5)
    with pytest.raises(Busy, match=f"process {held[1]} ") as caught, fill.hold_store(held[0]):
        pass
    assert caught.value.exit_code == 75


def test_waiting_for_a_store_can_be_interrupted(held):
    def stop():
        raise Interrupted("stopped")

    with pytest.raises(Interrupted), fill.hold_store(held[0], stop):
        pass
