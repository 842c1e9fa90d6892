"""What is printed: always a box and never a traceback, on whatever standard output is."""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.cli import main as main_module
from autoseg.cli.output import command_line
from tests.data.arrangements import paired

COMMAND = f'"{sys.executable}" -m autoseg explain E0401'


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    ran = subprocess.run(line, shell=True, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert "Traceback" not in ran.stderr
    return ran


@settings(deadline=None, max_examples=25)
@given(st.lists(st.text("ab '\"$`\\!*(&;~-#é", min_size=1, max_size=8), min_size=1, max_size=4))
def test_a_printed_command_is_read_by_a_shell_as_the_words_it_stands_for(names):
    line = command_line("train", *map(Path, names), "--work", Path("w w"))
    ran = shell(f"autoseg() {{ for word; do printf '%s\\0' \"$word\"; done; }}; {line}")
    words = ran.stdout.split("\0")[:-1]
    assert words[0] == "train"
    assert [Path(word) for word in words[1:-2]] == [Path(name) for name in names]
    assert not any(word.startswith("-") for word in words[1:-2])
    assert words[-2:] == ["--work", "w w"]


def test_the_next_command_of_plan_can_be_pasted(autoseg, tmp_path):
    root = paired(tmp_path / "my data's $HOME set (1)")
    ran = autoseg("plan", root, "--preset", "cpu", "--no-probe", "--work", tmp_path / "w w")
    line = next(line for line in ran.stdout.splitlines() if line.startswith("next: "))
    next_one, why = line.removeprefix("next: ").split("    why: ")
    assert shlex.split(next_one) == ["autoseg", "train", str(root), "--work", str(tmp_path / "w w")]
    assert shlex.split(why) == ["autoseg", "explain", str(root), "--work", str(tmp_path / "w w")]


def test_a_log_file_that_cannot_be_written_is_missing_and_nothing_else(autoseg, tmp_path, monkeypatch):
    def read_only(handler: logging.FileHandler) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), handler.baseFilename)

    root = paired(tmp_path / "data")
    monkeypatch.setattr("logging.FileHandler._open", read_only)
    ran = autoseg("plan", root, "--preset", "cpu", "--no-probe")
    assert (ran.code, "there will be no log file" in ran.stderr) == (0, True)
    ran = autoseg("train", root, "--configuration", "unknown")
    assert (ran.code, "error E0101" in ran.stderr, "  log " in ran.stderr) == (2, True, False)


@pytest.mark.parametrize(("line", "code"), [(f"{COMMAND} >&-", 2), (f"{COMMAND} > /dev/full", 5)])
def test_a_closed_or_full_output_is_said_on_stderr(line, code):
    ran = shell(line)
    assert ran.returncode == code
    assert "E0702" in ran.stderr


def test_nothing_is_written_into_a_file_that_has_the_number_of_a_closed_stream(tmp_path):
    program = (
        "import os, sys; from autoseg.cli.main import run; run(['explain', 'E0401']); "
        "f = open(sys.argv[1], 'w'); os.write(1, b'lost')"
    )
    target = tmp_path / "file"
    shell(f'{sys.executable} -c "{program}" {target} >&- 2>&-')
    assert target.read_text() == ""


def test_letters_that_the_encoding_lacks_are_replaced(tmp_path):
    missing = "h\N{LATIN SMALL LETTER E WITH ACUTE}patique"
    ran = shell(f"{COMMAND.replace('E0401', missing)}", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert ran.returncode == 2
    assert "h\\xe9patique" in ran.stderr


def stopped_by(monkeypatch, error: BaseException):
    def stop(**_):
        raise error

    monkeypatch.setattr(main_module.cli, "main", stop)


def test_the_unexpected_is_a_box_that_blames_the_program(autoseg, monkeypatch):
    stopped_by(monkeypatch, ZeroDivisionError("division by zero"))
    ran = autoseg("plan")
    assert ran.code == 1
    assert "E0999" in ran.stderr
    assert "AutoSeg is at fault" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "/x/plan.json"), RuntimeError("odd"), KeyboardInterrupt()]
)
def test_an_error_is_one_json_document_too(autoseg, monkeypatch, error):
    stopped_by(monkeypatch, error)
    ran = autoseg("plan", "--json")
    document = json.loads(ran.stdout)["error"]
    assert document["exit_code"] == ran.code
    assert set(document) == {"code", "what", "where", "why", "do", "exit_code"}


def test_names_do_not_reach_the_terminal_as_commands(autoseg):
    ran = autoseg("explain", "/nowhere/\x1b]0;title\x07\u202edesaeler")
    assert ran.code == 2
    assert not any(letter in ran.stderr for letter in "\x1b\x07\u202e")
    assert "\\x1b]0;title" in ran.stderr
