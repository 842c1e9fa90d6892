"""Readers see a whole file or none, whatever happens to the writer."""

import errno
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256

import pytest

from autoseg.core.errors import IntegrityRefusal
from autoseg.core.files import (
    TEMPORARY_MARK,
    atomic_file,
    atomic_folder,
    remove_leftovers,
    remove_made,
    sha256_of_file,
    temporary_beside,
    write_atomic,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "plan.json"
    write_atomic(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as temporary:
        temporary.write_text(f"half {1 / 0}")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["plan.json"]


def test_bytes_and_text_are_written_whole(tmp_path):
    write_atomic(tmp_path / "new" / "a", b"\x00\x01")
    assert (tmp_path / "new" / "a").read_bytes() == b"\x00\x01"


def test_the_temporary_name_keeps_the_ending(tmp_path):
    temporary = temporary_beside(tmp_path / "a.nii.gz")
    assert temporary.name.endswith("a.nii.gz")
    assert temporary.name.startswith(TEMPORARY_MARK)


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    target = tmp_path / "case"
    for content in ("one", "two"):
        with atomic_folder(target) as folder:
            (folder / "image").write_text(content)
            assert not (target / "image").exists() or (target / "image").read_text() == "one"
    assert (target / "image").read_text() == "two"
    assert names(tmp_path) == ["case"]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    with atomic_folder(tmp_path / "case") as folder:
        (folder / "image").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "case") as folder:
        (folder / "image").write_text(f"half {1 / 0}")
    assert (tmp_path / "case" / "image").read_text() == "old"
    assert names(tmp_path) == ["case"]


def test_hash_of_a_file_longer_than_a_block(tmp_path):
    content = b"x" * (3 << 20)
    (tmp_path / "big").write_bytes(content)
    assert sha256_of_file(tmp_path / "big") == sha256(content).hexdigest()


LEAVE = """
import sys
from pathlib import Path
from autoseg.core.files import temporary_beside
temporary_beside(Path(sys.argv[1], "a")).mkdir()
temporary_beside(Path(sys.argv[1], "b")).write_text("half")
"""


def test_leftovers_of_ended_processes_are_removed_and_nothing_else(tmp_path):
    subprocess.run([sys.executable, "-c", LEAVE, str(tmp_path)], check=True)
    (tmp_path / f"{TEMPORARY_MARK}0123456789ab-of-version-0.1").write_text("half")
    assert len(names(tmp_path)) == 3
    at_work = temporary_beside(tmp_path / "c")
    at_work.write_text("half")
    kept = ["kept", f"{TEMPORARY_MARK}notes.txt", at_work.name]
    for name in kept[:2]:
        (tmp_path / name).write_text("whole")
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "nowhere")
    assert names(tmp_path) == sorted(kept)


def test_the_same_number_in_a_container_is_another_process(tmp_path):
    inside = ["unshare", "--user", "--map-root-user", "--pid", "--fork", sys.executable, "-c", LEAVE, str(tmp_path)]
    try:
        subprocess.run(inside, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no container can be made here")
    own = temporary_beside(tmp_path / "c").name.removeprefix(TEMPORARY_MARK).split("-")[0]
    assert own not in {name.removeprefix(TEMPORARY_MARK).split("-")[0] for name in names(tmp_path)}
    remove_leftovers(tmp_path)
    assert len(names(tmp_path)) == 2  # whether its process is alive is not known here
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["x" * 255, "\N{GREEK SMALL LETTER ALPHA}" * 127, "x" * 244 + ".nii.gz"])
def test_the_longest_names_can_be_written(tmp_path, name):
    write_atomic(tmp_path / name, "whole")
    assert names(tmp_path) == [name]


def test_an_error_names_the_file_that_was_meant(tmp_path):
    with pytest.raises(OSError, match=r"plan\.json") as caught, atomic_file(tmp_path / "plan.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "plan.json")
    with pytest.raises(FileNotFoundError) as missing, atomic_folder(tmp_path / "run") as folder:
        (folder / "nowhere" / "a").write_text("x")
    assert missing.value.filename == str(tmp_path / "run" / "nowhere" / "a")


def test_only_what_was_made_in_the_folder_is_deleted(tmp_path):
    work, outside = tmp_path / "work", tmp_path / "outside"
    for folder in (work / "runs" / "run", outside / "run", work / "users"):
        folder.mkdir(parents=True)
        (folder / "recipe.json").write_text("{}")
    (work / "users" / "recipe.json").rename(work / "users" / "notes.txt")
    (work / "link").symlink_to(outside / "run")
    (work / "elsewhere").symlink_to(outside)
    for path in (work / "link", work / "elsewhere" / "run", work / ".." / "outside" / "run", work / "users", work):
        with pytest.raises(IntegrityRefusal):
            remove_made(path, work, ("recipe.json",))
    assert (outside / "run" / "recipe.json").exists()
    assert (work / "users" / "notes.txt").exists()
    remove_made(work / "runs" / "run", work, ("recipe.json",))
    remove_made(work / "nowhere", work, ("recipe.json",))
    assert names(work / "runs") == []


WRITER = """
import sys
from pathlib import Path
from autoseg.core.files import write_atomic
count = 0
while True:
    count += 1
    write_atomic(Path(sys.argv[1]), f"{count}\\n" * 20000)
"""


def test_kill_9_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "state.json"
    for round_number in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.03 * round_number)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        lines = path.read_text().splitlines()
        assert len(lines) == 20000
        assert len(set(lines)) == 1


KILLED = """
import os, shutil, sys
from pathlib import Path
from autoseg.core import files
folder, way = Path(sys.argv[1]), sys.argv[2]
if way == "aside":
    files._exchange = lambda one, other: False
outcomes = set()
for last in range(60):
    shutil.rmtree(folder, ignore_errors=True)
    case = folder / "case"
    case.mkdir(parents=True)
    for name in ("image", "labels"):
        (case / name).write_text("old")
    child = os.fork()
    if not child:
        calls = []
        def count(event, _arguments):
            if event.startswith(("os.", "shutil.", "ctypes.")):
                calls.append(event)
                if len(calls) > last:
                    os._exit(9)
        sys.addaudithook(count)
        with files.atomic_folder(case) as temporary:
            for name in ("image", "labels"):
                (temporary / name).write_text("new")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    files.remove_leftovers(folder)
    found = {path.name: path.read_text() for path in case.iterdir()}
    assert found.keys() == {"image", "labels"} and len(set(found.values())) == 1, (last, found)
    assert [path.name for path in folder.iterdir()] == ["case"], (last, list(folder.iterdir()))
    outcomes.add((code, found["image"]))
    if not code:
        break
assert outcomes == {(9, "old"), (9, "new"), (0, "new")}, outcomes
print(last, "kills")
"""


@pytest.mark.parametrize("way", ["exchange", "aside"])
def test_a_kill_at_any_system_call_leaves_the_old_folder_or_the_new_one(tmp_path, way):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "store"), way]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout.split()[0]) > 8
