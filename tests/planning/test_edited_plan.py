"""A plan.json that was edited by hand: what contradicts itself is refused when it is read, with the entry named."""

from __future__ import annotations

import json

import pytest

from autoseg.core.errors import RecordFault
from autoseg.core.records import from_json, to_json
from autoseg.planning.plan import Plan
from tests.planning.builders import fingerprint_of, plan_of

EDITS = {
    "no classes": ("classes", {}),
    "an empty class": ("classes", {"background": [0], "organ": []}),
    "a value left out": ("classes", {"background": [0], "organ": [2]}),
    "regions without an order": ("classes", {"background": [0], "organ": [1, 2], "core": [2]}),
    "too many values in files": ("file_values", [0, 1, 2]),
    "a value in files twice": ("file_values", [1, 1]),
    "a negative value in files": ("file_values", [0, -1]),
}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of(fingerprint_of([(1.0, 1.0, 1.0)] * 4, [(32, 40, 40)] * 4))


@pytest.mark.parametrize(("entry", "value"), EDITS.values(), ids=EDITS)
def test_labels_that_contradict_themselves_are_refused(plan, entry, value):
    data = json.loads(to_json(plan))
    data["labels"][entry] = value
    with pytest.raises(RecordFault, match="labels"):
        from_json(Plan, json.dumps(data), "plan.json")


@pytest.mark.parametrize("name", ["../../../outside", "a/b", ".."])
def test_configurations_cannot_lead_out_of_the_work_folder(plan, name):
    text = to_json(plan).replace('"2d"', json.dumps(name))
    with pytest.raises(RecordFault):
        from_json(Plan, text, "plan.json")


@pytest.mark.parametrize("ending", ["./../../precious.nii.gz", "", ".exe", "nii.gz"])
def test_label_files_get_a_known_ending(plan, ending):
    data = {**json.loads(to_json(plan)), "file_ending": ending}
    with pytest.raises(RecordFault, match="file_ending"):
        from_json(Plan, json.dumps(data), "plan.json")
