from __future__ import annotations

import errno
import os
from dataclasses import replace

import numpy as np
import pytest

from autoseg.core.errors import IntegrityRefusal, MissingInput, NotEnoughResources
from autoseg.core.geometry import Geometry
from autoseg.images.volume import Volume
from autoseg.preprocessing import store
from autoseg.preprocessing.prepare import Preparation, prepare
from autoseg.preprocessing.store import is_intact, open_case, store_folder, write_case
from tests.planning.builders import fingerprint_of, plan_of
from tests.preprocessing.tiny_dataset import planned_tiny_dataset


@pytest.fixture
def prepared():
    image = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 3, (4, 5, 6)).astype(np.int8)
    preparation = Preparation((2, 0, 1), (1.0, 2.0, 1.0), ("zscore", "none"), (False, True), (None, None))
    return prepare(Volume(image, Geometry((4, 5, 6))), labels, preparation)


LOCATIONS = {1: np.array([[0, 1, 2], [1, 0, 0]], np.int16), -1: np.array([[5, 1, 1]], np.int16)}


def test_a_written_case_is_read_as_it_was(tmp_path, prepared):
    write_case(tmp_path / "a", "hash", prepared, LOCATIONS)
    case = open_case(tmp_path / "a")
    assert case.identifier == "a"
    assert isinstance(case.image, np.memmap)
    assert np.array_equal(case.image, prepared.image)
    assert np.array_equal(case.labels, prepared.labels)
    assert case.placement == prepared.placement
    assert {key: rows.tolist() for key, rows in case.locations.items()} == {
        key: rows.tolist() for key, rows in LOCATIONS.items()
    }
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_half_precision_takes_half_the_bytes_and_is_not_used_for_what_it_cannot_hold(tmp_path, prepared):
    large = replace(prepared, image=prepared.image * np.float32([[[[1e3]]], [[[1e5]]]]))
    for name, own in (("a", prepared), ("large", large)):
        write_case(tmp_path / name, "hash", own, LOCATIONS, "float16")
        assert is_intact(tmp_path / name, "hash")
    halved = open_case(tmp_path / "a").image
    assert halved.dtype == np.float16
    assert np.array_equal(halved, prepared.image.astype(np.float16))
    assert np.abs(halved - prepared.image).max() <= 2**-11 * np.abs(prepared.image).max()
    assert np.array_equal(open_case(tmp_path / "large").image, large.image)


def test_a_case_without_foreground_has_no_locations(tmp_path, prepared):
    write_case(tmp_path / "a", "hash", prepared, {})
    assert open_case(tmp_path / "a").locations == {}


def test_a_case_is_intact_only_with_the_same_content_and_every_byte(tmp_path, prepared):
    folder = tmp_path / "a"
    assert not is_intact(folder, "hash")
    write_case(folder, "hash", prepared, LOCATIONS)
    assert is_intact(folder, "hash")
    assert not is_intact(folder, "other")
    for name in ("image.npy", "labels.npy", "locations.npy"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert not is_intact(folder, "hash")
        (folder / name).write_bytes(content)
    (folder / "case.json").write_text("{")
    assert not is_intact(folder, "hash")
    write_case(folder, "hash", prepared, LOCATIONS)  # replaces the damaged one
    assert is_intact(folder, "hash")


@pytest.mark.parametrize("damage", ["truncate", "remove", "header", "swap", "unlisted"])
def test_a_damaged_case_is_refused_when_opened(tmp_path, prepared, damage):
    folder = tmp_path / "a"
    write_case(folder, "hash", prepared, LOCATIONS)
    image = folder / "image.npy"
    content = image.read_bytes()
    if damage == "truncate":
        image.write_bytes(content[:-8])
    elif damage == "remove":
        image.unlink()
    elif damage == "header":
        image.write_bytes(b"\0" * 128 + content[128:])
    elif damage == "swap":
        image.write_bytes(content.replace(b"(2, 6,", b"(6, 2,"))
    else:
        record = (folder / "case.json").read_text()
        (folder / "case.json").write_text(record.replace('"image.npy"', '"picture.npy"'))
        image.rename(folder / "picture.npy")
    with pytest.raises(IntegrityRefusal, match="damaged"):
        open_case(folder)


def test_an_absent_case_is_a_missing_input(tmp_path):
    with pytest.raises(MissingInput):
        open_case(tmp_path / "nobody")


def test_two_dimensions_share_the_store_only_if_all_slice_distances_are_the_target(tmp_path):
    same = planned_tiny_dataset(tmp_path / "same", slices_mm=(3.0,))
    varied = planned_tiny_dataset(tmp_path / "varied")
    for planned, shared in ((same, True), (varied, False)):
        folders = {
            name: store_folder(tmp_path, planned.plan, planned.plan.configurations[name], planned.fingerprint)
            for name in ("2d", "3d_fullres")
        }
        assert (folders["2d"] == folders["3d_fullres"]) is shared


def test_a_store_is_named_as_before_orientations_unless_a_case_is_turned(tmp_path):
    fingerprint = fingerprint_of([(3.0, 1.0, 1.0)] * 4, [(20, 60, 50)] * 4)
    stored = [replace(case, orientation="LPS") for case in fingerprint.cases]
    uniform = replace(fingerprint, cases=tuple(stored), orientation="LPS")
    turned = replace(uniform, cases=(*stored[:3], replace(stored[3], orientation="RAS", turned_to="LPS")))
    names = set()
    for own in (fingerprint, uniform, turned):
        plan = plan_of(own)
        assert plan.orientation == own.orientation
        names.add(store_folder(tmp_path, plan, plan.configurations["3d_fullres"], own).name)
    assert len(names) == 2
    assert "1d2e59579565edf7" in names  # of a version without orientations


def test_the_store_depends_on_how_cases_are_prepared_and_not_on_names(tmp_path):
    planned = planned_tiny_dataset(tmp_path)
    plan, own = planned.plan, planned.plan.configurations["3d_fullres"]

    def folder(plan=plan, configuration=own):
        return store_folder(tmp_path, plan, configuration, planned.fingerprint)

    assert folder(configuration=replace(own, patch_size=(8, 8, 8), batch_size=7)) == folder()
    classes = {f"new {name}": values for name, values in plan.labels.classes.items()}
    assert folder(plan=replace(plan, labels=replace(plan.labels, classes=classes))) == folder()
    count = len(plan.labels.file_values)
    ignoring = replace(plan.labels, ignore=count, file_values=(*plan.labels.file_values, count))
    assert folder(plan=replace(plan, labels=ignoring)) != folder()
    assert folder(configuration=replace(own, spacing_mm=(9.0, 1.0, 1.0))) != folder()
    assert folder(configuration=replace(own, normalization=("ct",))) != folder()
    assert folder(plan=replace(plan, store_type="float16")) != folder()
    brighter = replace(plan.intensities[0], mean=99.0)
    assert folder(plan=replace(plan, intensities=(brighter,))) == folder()  # z-score does not look at them


def test_a_case_is_not_called_damaged_where_files_ran_out(tmp_path, prepared, monkeypatch):
    write_case(tmp_path / "a", "hash", prepared, LOCATIONS)

    def refuse(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr(store, "map_array", refuse)
    with pytest.raises(NotEnoughResources, match="Too many open files"):
        open_case(tmp_path / "a")


@pytest.mark.parametrize("header", [b"{'descr': '<f4',\n(", b"{'shape': 1}", b"\xff" * 20, b"{" * 300])
def test_an_array_whose_header_is_damaged_is_named(tmp_path, prepared, header):
    write_case(tmp_path / "a", "hash", prepared, LOCATIONS)
    path = tmp_path / "a" / "image.npy"
    content = path.read_bytes()
    path.write_bytes(content[:10] + header.ljust(len(content) - 10)[: len(content) - 10])
    with pytest.raises(IntegrityRefusal, match="damaged"):
        open_case(tmp_path / "a")
