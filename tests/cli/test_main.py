"""The frame of the command line: fast start, one box per error, helpful answers to typing errors."""

import os
import resource
import subprocess
import sys

import pytest

from autoseg.cli import main as main_module
from autoseg.cli.main import VERBS, WAITING
from autoseg.core.configs import shipped
from autoseg.core.errors import GeometryMismatch
from autoseg.runs.executors.executor import EXECUTORS

CPU_SECONDS_OF_HELP = 0.3


def test_help_is_fast_and_does_not_import_torch():
    program = (
        "import sys; sys.argv = ['autoseg', '--help']\n"
        "from autoseg.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'scipy', 'pydantic', 'rich', 'SimpleITK'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    assert spent <= CPU_SECONDS_OF_HELP


@pytest.mark.skipif(sys.platform != "linux", reason="the variables of GNU's OpenMP, which torch has on Linux")
@pytest.mark.parametrize(("own", "spins"), [({}, "0"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_wait_without_spinning_unless_the_user_says_how(repository, own, spins):
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    environment |= {"OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(repository), **own}
    ran = subprocess.run(
        [sys.executable, "-m", "autoseg", "doctor"], env=environment, capture_output=True, text=True, check=False
    )
    shown = [line.split("=")[1].strip() for line in ran.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    assert shown, "torch has loaded another OpenMP"
    assert set(shown) == {f"'{spins}'"}


def test_help_lists_every_verb(autoseg):
    ran = autoseg("--help")
    assert ran.code == 0
    assert all(verb in ran.stdout for verb in VERBS)


def test_help_shows_one_command_a_line(autoseg):
    lines = [line.split()[:2] for line in autoseg("--help").stdout.splitlines()]
    assert all(["autoseg", verb] in lines for verb in ("plan", "train", "select", "predict"))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(autoseg, verb):
    ran = autoseg(verb, "--help")
    assert ran.code == 0
    assert "Usage: autoseg" in ran.stdout


def test_help_names_every_preset_and_executor_there_is(autoseg):
    for verb, names in (("plan", shipped("presets")), ("train", EXECUTORS)):
        shown = autoseg(verb, "--help").stdout
        assert [name for name in names if name not in shown] == []


def test_a_mistyped_verb_is_answered_with_the_nearest(autoseg):
    ran = autoseg("plam")
    assert ran.code == 2
    assert "error E0101" in ran.stderr
    assert "'plan'" in ran.stderr
    assert "Verbs:" in autoseg("xyz").stderr


def test_an_unknown_option_is_one_box(autoseg):
    ran = autoseg("plan", "--presett", "cpu")
    assert ran.code == 2
    assert ran.stderr.count("error E0101") == 1
    assert "--preset" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_version(autoseg):
    assert "0.1" in autoseg("--version").stdout


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 5, "E0701"),
        (GeometryMismatch("shapes differ", where="a.nii", do="resample"), 3, "E0212"),
    ],
)
def test_what_stops_a_verb_becomes_an_exit_code(autoseg, monkeypatch, raised, code, text):
    def stop(**_):
        raise raised

    monkeypatch.setattr(main_module.cli, "main", stop)
    ran = autoseg("plan")
    assert ran.code == code
    assert text in ran.stderr
    assert "Traceback" not in ran.stderr
