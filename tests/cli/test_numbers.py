"""Numbers with which nothing can be done: refused where the option is declared, with the option and its bounds."""

from __future__ import annotations

import pytest

from autoseg.api.evaluate import evaluate
from autoseg.api.predict import predict
from autoseg.core.errors import UsageError
from autoseg.runs.queue import TrainOptions

REAL = ("nan", "inf", "-inf", "1e308", "-1", "-1e-300")
WHOLE = ("-1", str(10**30), "1" * 5000, "nan", "1.5", "1e3")
OPTIONS = {
    "--memory": ("plan DATA", (*REAL, "0", "1e-6")),
    "--tolerance": ("evaluate DATA DATA", REAL),
    "--overlap": ("predict DATA -i DATA -o OUT", (*REAL, "1", "0.999999999")),
    "--max-ram": ("predict DATA -i DATA -o OUT", (*REAL, "0", "1e-300")),
    "--budget": ("train DATA", ("nan", "inf", "1e400h", "-5m", "0s", "0.0000001s", "9" * 400 + "h")),
    "--probabilities-disk": ("train DATA", REAL),
    "--epochs": ("train DATA", (*WHOLE, "0")),
    "--steps": ("train DATA", (*WHOLE, "0")),
    "--seed": ("train DATA", WHOLE),
    "--jobs": ("train DATA", (*WHOLE, "0")),
    "--fold": ("train DATA", WHOLE),
    "--pictures": ("report DATA", WHOLE),
}
TRIES = [(option, verb, value) for option, (verb, values) in OPTIONS.items() for value in values]


@pytest.mark.parametrize(("option", "verb", "value"), TRIES)
def test_an_impossible_number_is_a_usage_error_that_names_the_option(autoseg, tmp_path, option, verb, value):
    words = [word.replace("DATA", str(tmp_path)).replace("OUT", str(tmp_path / "out")) for word in verb.split()]
    ran = autoseg(*words, option, value)
    assert ran.code == 2
    assert option in ran.stderr
    assert "Traceback" not in ran.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("option", "bounds"), [("--overlap", "0<=x<=0.95"), ("--seed", "0<=x<=4294967295")])
def test_the_bounds_are_said(autoseg, tmp_path, option, bounds):
    verb = "predict" if option == "--overlap" else "train"
    more = ["-i", tmp_path, "-o", tmp_path / "out"] if verb == "predict" else []
    assert bounds in autoseg(verb, tmp_path, *more, option, 10**12).stderr


def test_functions_refuse_them_too(tmp_path):
    for call in (
        lambda: predict(tmp_path, tmp_path, tmp_path / "out", overlap=float("nan")),
        lambda: predict(tmp_path, tmp_path, tmp_path / "out", max_ram_gib=float("inf")),
        lambda: evaluate(tmp_path, tmp_path, tolerance_mm=1e308),
        lambda: TrainOptions(epochs=10**30),
        lambda: TrainOptions(seed=-1),
        lambda: TrainOptions(budget_seconds=float("nan")),
    ):
        with pytest.raises(UsageError, match="not in the range"):
            call()
