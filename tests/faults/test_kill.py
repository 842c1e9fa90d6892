"""kill -9 at random moments: every rerun resumes, nothing unreadable stays, and training ends bit-equal."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from autoseg.core.files import TEMPORARY_MARK
from autoseg.data.synthetic import write_synthetic_dataset

RECIPE = """
epochs: 4
steps_per_epoch: 5
validation_steps: 1
precision: fp32
memory_format: contiguous
"""
PIN = """
3d_fullres: {patch_size: [8, 32, 32], features_per_stage: [4, 8, 8, 8]}
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kill") / "Dataset001_Synthetic"
    write_synthetic_dataset(folder, training_cases=5, test_cases=1, seed=3)
    (folder.parent / "recipe.yaml").write_text(RECIPE)
    (folder.parent / "pin.yaml").write_text(PIN)
    return folder


def commands(dataset: Path, work: Path) -> list[list[str]]:
    """plan, preprocess, train: what a user types, one after the other."""
    only = ["--configuration", "3d_fullres"]
    words = [
        ["plan", "--preset", "cpu", "--no-probe", "--pin", str(dataset.parent / "pin.yaml")],
        ["preprocess", *only],
        ["train", *only, "--fold", "0", "--recipe", str(dataset.parent / "recipe.yaml"), "--device", "cpu"],
    ]
    return [
        [sys.executable, "-m", "autoseg", verb, str(dataset), "--work", str(work), "--jobs", "1", "-q", *rest]
        for verb, *rest in words
    ]


def start(command: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def finish(command: list[str]) -> float:
    """Runs a command to its end and returns the seconds it took."""
    begin = time.monotonic()
    process = start(command)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()
    return time.monotonic() - begin


def kill_after(command: list[str], seconds: float) -> bool:
    """Kills a command and its workers after some time; whether it was still running."""
    process = start(command)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    assert process.returncode in (0, 75)
    return False


def weights_of(work: Path) -> dict[str, str]:
    files = sorted((work / "runs").glob("*/*/checkpoint/*/*.safetensors"))
    assert files
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def assert_everything_is_readable(work: Path) -> None:
    for path in work.rglob("*"):
        if path.is_dir() or any(part.startswith(TEMPORARY_MARK) for part in path.parts):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".npy":
            np.load(path, mmap_mode="r", allow_pickle=False)


def check_kills(dataset: Path, work: Path, reference: Path, kills: int) -> None:
    chance = random.Random(kills)
    durations = [finish(command) for command in commands(dataset, reference)]
    landed = 0
    for _ in range(5 * kills):
        index = landed % 3
        for earlier in commands(dataset, work)[:index]:
            finish(earlier)
        if kill_after(commands(dataset, work)[index], chance.uniform(0.1, 0.9) * durations[index]):
            landed += 1
            assert_everything_is_readable(work)
        else:  # it was faster than the first time: aim earlier, at a folder where there is work left to interrupt
            durations[index] *= 0.8
            shutil.rmtree(work)
        if landed == kills:
            break
    for command in commands(dataset, work):
        finish(command)
    assert landed == kills
    assert weights_of(work) == weights_of(reference)
    assert not list(work.rglob(f"{TEMPORARY_MARK}*"))


@pytest.mark.timeout(280)
def test_three_kills_leave_no_trace(dataset, tmp_path):
    check_kills(dataset, tmp_path / "killed", tmp_path / "reference", kills=3)


@pytest.mark.real
@pytest.mark.timeout(1500)
def test_twenty_kills_leave_no_trace(dataset, tmp_path):
    check_kills(dataset, tmp_path / "killed", tmp_path / "reference", kills=21)
