"""Models in one file: what is written is read again, bit for bit, and nothing else is read."""

from __future__ import annotations

import json
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoseg.api.model import export_model, find_model, install_model, load_model, origin_of
from autoseg.core.errors import IntegrityRefusal, MissingInput, UsageError
from autoseg.models.bundle import find_bundle_model, open_bundle
from autoseg.networks.weights import read_tensors
from tests.models.hostile import hashed, members_of, pack
from tests.models.hostile_content import HOSTILE
from tests.runs.trained import add_run, add_selection, cascade_plan, tiny_plan, trained_work_folder


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return export_model(trained_work_folder(tmp_path_factory.mktemp("good")))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def read_everything(path):
    open_bundle(path).verify()


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
        install_model(bad, home)
    renamed = bad.rename(tmp_path / "bad.zip")
    assert origin_of(renamed) == "bundle"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.zip", "home"]
    assert list(home.iterdir()) == []


def test_there_are_many_hostile_files_and_the_good_one_is_none_of_them(good, tmp_path):
    assert len(HOSTILE) >= 100
    pack(tmp_path / "again.autoseg", hashed(members_of(good)))
    read_everything(tmp_path / "again.autoseg")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_byte_is_noticed(good, tmp_path, data):
    """Everything but a few bytes that no reader looks at: times, versions and rights of members."""
    content = bytearray(good.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    bad = tmp_path / "bad.autoseg"
    bad.write_bytes(bytes(content))
    try:
        bundle = open_bundle(bad)
        bundle.verify()
    except IntegrityRefusal:
        return
    assert bundle.record == open_bundle(good).record
    assert bundle.archive.hashes == open_bundle(good).archive.hashes


STRANGE = [None, -1, 0, 2, 1 << 70, 0.5, 1e300, "", "x", [], [-1], {}, {"a": 1}, True]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_record_is_refused_or_harmless(good, tmp_path, data):
    """A value anywhere in model.json becomes something else; the answer is a model or a refusal, never a crash."""
    members = members_of(good)
    record = json.loads(members["model.json"])
    place, key = record, data.draw(st.sampled_from(sorted(record)))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.integers(0, 5)):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = data.draw(st.sampled_from(STRANGE))
    pack(tmp_path / "bad.autoseg", hashed({**members, "model.json": json.dumps(record).encode()}))
    with suppress(IntegrityRefusal):
        read_everything(tmp_path / "bad.autoseg")


def test_weights_come_back_bit_for_bit(good):
    work = good.parents[1]
    for fold, weights in enumerate(find_model(good).members[0].weights):
        folder = work / "runs" / "3d_fullres" / f"fold_{fold}" / "checkpoint" / "00000001"
        before, after = read_tensors(folder / "weights.safetensors"), weights.read()
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
    assert here.files.name == there.files.name
    assert list(here.files.stages) == list(there.files.stages)
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
    alone = find_bundle_model(path, "3d_cascade_fullres", (1,))
    assert [member.share for member in alone.members] == [1.0]
    assert (alone.members[0].folds, alone.stages["3d_lowres"].folds) == ((1,), (1,))
    assert alone.name != find_bundle_model(path).name
    with pytest.raises(UsageError, match="2d is not in the bundle"):
        find_bundle_model(path, "2d")
    with pytest.raises(UsageError, match="fold 4"):
        find_bundle_model(path, None, (4,))


def test_configurations_that_users_of_nnunet_name_go_through_a_bundle(tmp_path):
    plan = tiny_plan()
    name = "3d_fullres_bs5-v2"
    own = replace(plan.configurations["3d_fullres"], name=name)
    work = trained_work_folder(tmp_path, replace(plan, configurations={name: own}), name)
    assert find_model(export_model(work)).members[0].configuration == own


def test_equal_models_give_equal_files(tmp_path):
    work = trained_work_folder(tmp_path)
    first, second = (export_model(work, tmp_path / name) for name in ("a.autoseg", "b.autoseg"))
    assert first.read_bytes() == second.read_bytes()


def test_large_archives_keep_sizes_elsewhere_and_are_read_all_the_same(good, tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 2000)
    large = export_model(good.parents[1], tmp_path / "large.autoseg")
    assert b"PK\6\6" in large.read_bytes()
    read_everything(large)
    assert open_bundle(large).archive.content == open_bundle(good).archive.content
    for change in (b"PK\6\6,", b"PK\6\7\0\0\0\0"):
        (tmp_path / "bad.autoseg").write_bytes(large.read_bytes().replace(change, change[:-1] + b"\1"))
        with pytest.raises(IntegrityRefusal):
            read_everything(tmp_path / "bad.autoseg")


def test_any_zip_program_opens_a_bundle(good):
    with zipfile.ZipFile(good) as file:
        assert file.testzip() is None
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}


def test_a_bundle_that_is_not_there(tmp_path):
    with pytest.raises(MissingInput):
        open_bundle(tmp_path / "nowhere.autoseg")
