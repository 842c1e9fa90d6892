"""Records survive the file, and a bad file is reported fault by fault."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.core import records
from autoseg.core.errors import MissingInput, RecordFault
from autoseg.core.limits import name_fault, title_fault
from autoseg.core.records import (
    content_hash,
    from_data,
    from_json,
    load,
    read_json,
    read_table,
    save,
    save_sealed,
    to_data,
    to_json,
)
from autoseg.data.fingerprint import CaseStatistics, IntensityQuantiles
from autoseg.data.model import Case, Dataset, LabelSet

words = st.text(min_size=1, max_size=8)
names = st.text(min_size=1, max_size=8).filter(lambda name: name_fault(name) is None)
titles = words.filter(lambda title: title_fault(title) is None)
finite = st.floats(allow_nan=False, allow_infinity=False)
cases = st.builds(Case, identifier=names, images=st.lists(words, max_size=3).map(tuple), labels=st.none() | words)
label_sets = st.builds(
    LabelSet,
    classes=st.dictionaries(titles, st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple), max_size=3),
    ignore=st.none() | st.integers(0, 9),
    file_values=st.lists(st.integers(0, 999), max_size=3).map(tuple),
)
statistics = st.builds(
    CaseStatistics,
    identifier=names,
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    shape_after_crop=st.tuples(*[st.integers(1, 9)] * 3),
    spacing_mm=st.tuples(finite, finite, finite),
    relative_size=finite,
    quantiles=st.lists(st.lists(finite, max_size=2).map(tuple), max_size=2).map(tuple),
    class_voxels=st.none() | st.dictionaries(words, st.integers(0, 9), max_size=2),
)


@given(cases | label_sets | statistics)
def test_a_record_read_back_is_equal(record):
    assert from_json(type(record), to_json(record), "here") == record


@given(cases | label_sets)
def test_plain_data_describes_the_record(record):
    assert from_data(type(record), to_data(record), "here") == record


@given(st.lists(cases, min_size=2, max_size=2, unique=True))
def test_different_records_have_different_hashes(pair):
    assert content_hash(pair[0]) != content_hash(pair[1])
    assert content_hash(pair[0]) == content_hash(pair[0])


def test_the_hash_depends_on_the_order_of_its_parts():
    assert content_hash(1, 2) != content_hash(2, 1)


def test_every_fault_is_listed_with_its_path():
    text = json.dumps({"identifier": 3, "images": "a.nii", "labels": None})
    with pytest.raises(RecordFault, match=r"identifier: .*; images: ") as caught:
        from_json(Case, text, "cases.json")
    assert caught.value.where == "cases.json"


def test_a_flood_of_faults_is_cut():
    with pytest.raises(RecordFault, match="and 80 more"):
        from_json(Case, json.dumps({"identifier": "a", "images": list(range(100))}), "x")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_what_is_no_record_at_all_is_a_fault(text):
    with pytest.raises(RecordFault, match="not a valid Dataset"):
        from_json(Dataset, text, "dataset.json")


def test_files_are_saved_and_loaded(tmp_path):
    case = Case("a", ("a.nii.gz",))
    save(case, tmp_path / "deep" / "case.json")
    assert load(Case, tmp_path / "deep" / "case.json") == case
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["case.json"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingInput, match=r"plan\.json is missing"):
        load(Case, tmp_path / "plan.json")


def test_a_record_never_holds_nan():
    with pytest.raises(ValueError, match="JSON"):
        content_hash(float("nan"))


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": ', b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_holds_no_table_is_refused(tmp_path, content):
    file = tmp_path / "plans.json"
    file.write_bytes(content)
    with pytest.raises(RecordFault, match=r"plans\.json"):
        read_table(file)


def test_a_table_of_others_may_have_a_byte_order_mark_but_not_any_size(tmp_path, monkeypatch):
    file = tmp_path / "plans.json"
    with pytest.raises(MissingInput, match="no file"):
        read_table(file)
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_table(file) == {"a": 1}
    monkeypatch.setattr(records, "LARGEST_JSON_BYTES", 1)
    with pytest.raises(RecordFault, match="11 bytes"):
        read_table(file)


@pytest.mark.parametrize("name", ["../../outside", "a/b", ".", "", "a\x1b[31m", "x" * 250])
def test_a_name_that_leads_elsewhere_is_refused_with_its_entry(name):
    text = json.dumps({"identifier": name, "images": [], "labels": None})
    with pytest.raises(RecordFault, match="identifier: ") as caught:
        from_json(Case, text, "dataset.json")
    assert caught.value.where == "dataset.json"


BAD_JSON = {
    "a key twice": '{"identifier": "a", "identifier": "b", "images": []}',
    "deep": "[" * 100_000,
    "NaN": '{"identifier": "a", "images": NaN}',
    "5000 digits": '{"identifier": "a", "images": ' + "9" * 5000 + "}",
    "not UTF-8": b'{"identifier": "\xff", "images": []}',
    "cut": '{"identifier": "a", "ima',
    "another type": "[1, 2]",
    "empty": "",
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_json_that_means_two_things_or_none_is_refused(tmp_path, kind):
    text = BAD_JSON[kind]
    with pytest.raises(RecordFault):
        from_json(Case, text, "here")
    path = tmp_path / "bad.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if kind == "NaN":  # nnU-Net writes it for the statistics of what does not occur
        assert np.isnan(read_table(path)["images"])
    else:
        with pytest.raises(RecordFault):
            read_table(path)


def test_a_name_that_is_not_utf8_is_refused():
    with pytest.raises(RecordFault):
        from_json(Case, json.dumps({"identifier": "caf\udce9", "images": [], "labels": None}), "dataset.json")


@pytest.mark.parametrize("number", ["1e999", "9" * 400], ids=["exponent", "digits"])
def test_infinite_numbers_are_none_of_json(number):
    with pytest.raises(RecordFault):
        from_json(IntensityQuantiles, f'{{"mean": {number}, "mean_square": 1, "quantiles": ""}}', "here")


def test_whole_numbers_of_others_are_no_larger_than_a_float(tmp_path):
    (tmp_path / "dataset.json").write_text(f'{{"numTraining": {"9" * 400}}}')
    with pytest.raises(RecordFault, match="is no number of JSON"):
        read_json(tmp_path / "dataset.json")


def test_a_sealed_record_that_is_nested_without_end_was_changed(tmp_path):
    save_sealed(Case("a", ("a.png",), None), tmp_path / "case.json")
    data = json.loads((tmp_path / "case.json").read_text())
    (tmp_path / "case.json").write_text(json.dumps({**data, "images": "X"}).replace('"X"', "[" * 300 + "]" * 300))
    with pytest.raises(RecordFault, match="was changed since"):
        load(Case, tmp_path / "case.json")
