"""Functions that do what no function under test may do, so that a test can see whether it is noticed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.images.image_errors import unreadable
from tests.fuzz.target import Target, Trial

FINE = b"fine"


def _die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _never_end() -> None:
    while True:
        pass


def _write_elsewhere() -> None:
    Path("evil").write_text("evil")


def _start_a_program() -> None:
    os.system("true")


def _refuse_as_damaged() -> None:
    raise unreadable(Path("x"), "is damaged")


_FAULTS: dict[str, Callable[[], Any]] = {
    "crash": _die,
    "hang": _never_end,
    "outside": _write_elsewhere,
    "outside by a program": _start_a_program,
    "memory": lambda: np.ones(1 << 28),
    "memory in use": lambda: np.ones(1 << 26),
    "traceback": lambda: {}["nothing"],
    "traceback of a warning": lambda: np.float32(3e38) * np.float32(10),
    "refused": _refuse_as_damaged,
    "equal": lambda: None,
}


def _misbehaving(name: str) -> Target:
    def call(folder: Path) -> None:
        if (folder / "x").read_bytes() != FINE:
            _FAULTS[name]()

    return Target(name, lambda: [{"x": FINE}], call)


def _differs(trial: Trial, _result: Any) -> str | None:
    return None if trial.is_whole else "has other voxels"


TARGETS: dict[str, Target] = {
    **{name: _misbehaving(name) for name in _FAULTS},
    "misread": Target("misread", lambda: [{"x": FINE}], lambda _folder: None, _differs),
    "advice": Target("advice", lambda: [{"x": FINE}], lambda _folder: _refuse_as_damaged()),
}
"""By the kind of outcome that each of them must have."""
