"""A bounded round of fuzzing with every change; `python -m tests.fuzz` does the same with as many inputs as asked."""

from __future__ import annotations

import pytest

from tests.fuzz.runner import run, shares
from tests.fuzz.targets import TARGETS

INPUTS = 5000
"""Of all targets together."""

SEED = 20261127


def test_there_are_enough_inputs():
    assert sum(shares(TARGETS, INPUTS).values()) >= INPUTS


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_is_refused_or_read_as_it_is(name):
    report = run({name: TARGETS[name]}, shares(TARGETS, INPUTS)[name], SEED)
    assert not report.findings, "\n".join(report.lines())
    assert report.counts[name]["equal"], "no input is accepted, so nothing is tried"
