"""Running the command line inside the test process, with its exit code and both streams."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from autoseg.cli.main import main


@dataclass(frozen=True)
class Ran:
    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        return json.loads(self.stdout)


@pytest.fixture
def autoseg(capsys, monkeypatch) -> Callable[..., Ran]:
    """`autoseg(*words)` is `autoseg words ...` typed in a shell."""

    def run(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["autoseg", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        streams = capsys.readouterr()
        return Ran(int(stopped.value.code or 0), streams.out, streams.err)

    return run
