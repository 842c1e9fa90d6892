"""What must not happen is noticed when it happens, the same inputs come again, and no change of bytes fails."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.errors import AutoSegError
from autoseg.core.records import from_json
from autoseg.data.fingerprint import Fingerprint
from autoseg.data.model import Dataset
from autoseg.data.survey import Survey
from autoseg.inference.manifest import PredictionManifest
from autoseg.models.bundle import BundleRecord
from autoseg.planning.plan import Plan
from autoseg.runs.run import FoldScores, RunRecord, RunStatus
from autoseg.selection.record import Selection
from tests.fuzz import misbehaving
from tests.fuzz.changes import MUTATORS, mutators_for
from tests.fuzz.child import Batch, make_trial
from tests.fuzz.runner import keep_findings, run, run_batch
from tests.fuzz.targets import TARGETS

KINDS = (
    BundleRecord,
    Dataset,
    Fingerprint,
    FoldScores,
    Plan,
    PredictionManifest,
    RunRecord,
    RunStatus,
    Selection,
    Survey,
)


@pytest.mark.parametrize("name", misbehaving.TARGETS)
def test_what_must_not_happen_is_noticed(name):
    number = 0 if name == "advice" else 1
    (outcome,) = run_batch(Batch(name, 0, range(number, number + 1), table=misbehaving.__name__))
    assert (outcome.number, outcome.kind) == (number, name.split()[0])


def test_inputs_behind_one_that_kills_the_process_are_tried():
    outcomes = run_batch(Batch("crash", 0, range(4), table=misbehaving.__name__))
    assert [outcome.kind for outcome in outcomes] == ["equal", "crash", "crash", "crash"]


def test_findings_are_kept_with_what_makes_them_again(tmp_path):
    table = {"traceback": misbehaving.TARGETS["traceback"]}
    report = run(table, 4, 0, table=misbehaving.__name__)
    (place,) = {path.parent for path in keep_findings(report, table, tmp_path)}
    kept = sorted(place.iterdir())
    assert len(kept) == 3
    for folder in kept:
        about = json.loads((folder / "finding.json").read_text())
        assert about["kind"] == "traceback"
        assert "--only" in about["again"]
        assert "KeyError" in (folder / "trace.txt").read_text()
        assert (folder / "input" / "x").read_bytes() != misbehaving.FINE


def test_the_same_seed_and_number_make_the_same_input():
    target = TARGETS["state.json"]
    seeds = target.seeds()
    first, again = ([make_trial(target, seeds, 5, number).files for number in range(40)] for _ in range(2))
    assert first == again
    assert first != [make_trial(target, seeds, 6, number).files for number in range(40)]


@settings(deadline=None)
@given(st.sampled_from(sorted(MUTATORS)), st.binary(max_size=300), st.integers(0, 1000))
def test_every_change_takes_any_bytes(ending, content, seed):
    for mutator in mutators_for(f"x{ending}"):
        assert isinstance(mutator.change(random.Random(seed), content), bytes)


_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_NAMES = st.text(max_size=3) | st.sampled_from(["version", "name", "cases", "labels", "plan", "configurations"])
_DOCUMENTS = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4)
)


@settings(deadline=None)
@given(st.sampled_from(KINDS), _DOCUMENTS)
def test_any_json_is_a_record_or_refused(kind, document):
    refusal = None
    try:
        from_json(kind, json.dumps(document), "here")
    except AutoSegError as error:
        refusal = error
    assert refusal is None or refusal.where == "here"
