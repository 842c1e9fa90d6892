"""Models in one file: what is written is read again, bit for bit, and nothing else is read."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from autoseg.api.model import export_model, find_model, import_model, load_model
from autoseg.core.errors import IntegrityRefusal, MissingInput, NotEnoughResources, UsageError
from autoseg.models.bundle import find_bundle_model
from autoseg.networks.weights import read_tensors
from tests.models import hostile_content  # noqa: F401 (adds the hostile records)
from tests.models.hostile import HOSTILE, assemble, parts_of, record_text, rehashed, with_text
from tests.runs.trained import add_run, add_selection, cascade_plan, tiny_plan, trained_work_folder


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return export_model(trained_work_folder(tmp_path_factory.mktemp("good")))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def read_everything(path):
    find_bundle_model(path).verify()


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_file_is_refused_and_leaves_nothing(good, tmp_path, name):
    bad, home = tmp_path / "bad.autoseg", tmp_path / "home"
    HOSTILE[name](good, bad)
    with pytest.raises(IntegrityRefusal) as refused:
        read_everything(bad)
    assert refused.value.exit_code == 6
    assert all(letter.isprintable() for letter in refused.value.what)
    with pytest.raises(IntegrityRefusal):
        load_model(bad, device="cpu")
    with pytest.raises(IntegrityRefusal):
        import_model(bad, home)
    renamed = bad.rename(tmp_path / "bad.zip")
    with pytest.raises(IntegrityRefusal):
        load_model(renamed, device="cpu")
    assert [path.name for path in tmp_path.iterdir() if path != home] == ["bad.zip"]
    assert not home.exists() or list(home.iterdir()) == []


def test_a_full_disk_names_the_file_that_was_meant(tmp_path, monkeypatch):
    def full(*_args, **_options) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    work = trained_work_folder(tmp_path)
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(NotEnoughResources) as refused:
        export_model(work, tmp_path / "out" / "m.autoseg")
    assert refused.value.where == str(tmp_path / "out" / "m.autoseg")


def test_there_are_many_hostile_files_and_the_good_one_is_none_of_them(good, tmp_path):
    assert len(HOSTILE) >= 100
    header, data = parts_of(good)
    assemble(tmp_path / "again.autoseg", rehashed(header, data), data)
    read_everything(tmp_path / "again.autoseg")
    assert rehashed(header, data) == header


def test_bundles_of_before_are_refused_with_the_remedy(good, tmp_path):
    HOSTILE["a_bundle_of_before"](good, tmp_path / "old.autoseg")
    with pytest.raises(IntegrityRefusal, match="zip archive") as refused:
        load_model(tmp_path / "old.autoseg")
    assert "autoseg model export DATASET" in (refused.value.do or "")


def test_a_huge_header_is_refused_before_it_is_read(good, tmp_path):
    """The library would read 100 MB of header into memory."""
    HOSTILE["header_of_40_mebibytes"](good, tmp_path / "bad.autoseg")
    with pytest.raises(IntegrityRefusal, match="header is longer"):
        load_model(tmp_path / "bad.autoseg")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_byte_is_noticed(good, tmp_path, data):
    """Everything but the space that the library puts behind the header."""
    content = bytearray(good.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    bad = tmp_path / "bad.autoseg"
    bad.write_bytes(bytes(content))
    try:
        files = find_bundle_model(bad)
        files.verify()
    except IntegrityRefusal:
        return
    assert (files.record, files.content) == (find_bundle_model(good).record, find_bundle_model(good).content)


STRANGE = [None, -1, 0, 2, 1 << 70, 0.5, 1e300, "", "x", [], [-1], {}, {"a": 1}, True]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_record_is_refused_or_harmless(good, tmp_path, data):
    """A value anywhere in the record becomes something else; the answer is a model or a refusal, never a crash."""
    header, tensors = parts_of(good)
    record = json.loads(record_text(header))
    place, key = record, data.draw(st.sampled_from(sorted(record)))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.integers(0, 5)):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = data.draw(st.sampled_from(STRANGE))
    assemble(tmp_path / "bad.autoseg", with_text(header, json.dumps(record)), tensors)
    with suppress(IntegrityRefusal):
        read_everything(tmp_path / "bad.autoseg")


def test_weights_come_back_bit_for_bit(good):
    work = good.parents[1]
    for fold in find_model(good).record.members[0].folds:
        folder = work / "runs" / "3d_fullres" / f"fold_{fold}" / "checkpoint" / "00000001"
        before, after = read_tensors(folder / "weights.safetensors"), find_model(good).read("3d_fullres", fold)
        assert set(before) == set(after)
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("members", [{"3d_fullres": 1}, {"2d": 1, "3d_fullres": 2}, {"3d_cascade_fullres": 1, "2d": 1}])
def test_ensembles_predict_from_a_bundle_as_from_their_runs(tmp_path, members):
    plan = cascade_plan()
    work = trained_work_folder(tmp_path, plan, "3d_lowres")
    for index, name in enumerate(("2d", "3d_fullres", "3d_cascade_fullres")):
        for fold in (0, 1):
            add_run(work, plan, name, fold, seed=10 * index + fold)
    add_selection(work, plan, members)
    path = export_model(work)
    image = noise(6, 14, 17)
    here, there = load_model(work, device="cpu"), load_model(path, device="cpu")
    assert here.files.record == there.files.record
    volumes = [model.predict(image, (2.2, 0.9, 1.1)) for model in (here, there)]
    assert np.array_equal(*volumes)
    assert len(np.unique(volumes[0])) > 1


def test_configurations_and_folds_of_a_bundle_can_be_chosen(tmp_path):
    plan = cascade_plan()
    work = trained_work_folder(tmp_path, plan, "3d_lowres")
    for fold in (0, 1):
        add_run(work, plan, "3d_cascade_fullres", fold, seed=fold)
    add_selection(work, plan, {"3d_cascade_fullres": 1, "3d_lowres": 1})
    path = export_model(work)
    alone = find_bundle_model(path, "3d_cascade_fullres", (1,)).record
    assert [member.share for member in alone.members] == [1.0]
    assert (alone.members[0].folds, alone.stages[0].folds) == ((1,), (1,))
    assert alone.name != find_bundle_model(path).record.name
    with pytest.raises(UsageError, match="2d is not in the bundle"):
        find_bundle_model(path, "2d")
    with pytest.raises(UsageError, match="fold 4"):
        find_bundle_model(path, None, (4,))


def test_configurations_that_users_of_nnunet_name_go_through_a_bundle(tmp_path):
    plan = tiny_plan()
    name = "3d_fullres_bs5-v2"
    own = replace(plan.configurations["3d_fullres"], name=name)
    work = trained_work_folder(tmp_path, replace(plan, configurations={name: own}), name)
    assert find_model(export_model(work)).record.members[0].configuration == own


def test_equal_models_give_equal_files(tmp_path):
    work = trained_work_folder(tmp_path)
    first, second = (export_model(work, tmp_path / name) for name in ("a.autoseg", "b.autoseg"))
    assert first.read_bytes() == second.read_bytes()


def test_an_import_of_a_bundle_is_the_same_file(good, tmp_path):
    assert import_model(good, tmp_path).read_bytes() == good.read_bytes()


def test_any_program_with_safetensors_reads_a_bundle(good):
    with safe_open(good, framework="numpy") as file:
        record = json.loads(next(iter(file.metadata().values())))
        names = set(file.keys())
    assert record["model"]["provenance"]["dataset"] == "tiny"
    assert {name.rsplit("/", 1)[0] for name in names} == set(record["sha256"]) == {"3d_fullres/0", "3d_fullres/1"}


def test_a_bundle_that_is_not_there(tmp_path):
    with pytest.raises(MissingInput):
        find_bundle_model(tmp_path / "nowhere.autoseg")
