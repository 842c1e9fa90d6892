"""Images to segment."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.errors import MissingInput
from autoseg.data.inputs import ExpectedImages, find_inputs, relative
from autoseg.data.naming import split_channel


def make(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def found(paths: list[Path], channels: int, four_d: bool = False) -> tuple[dict[str, list[str]], dict[str, str]]:
    inputs = find_inputs(paths, ExpectedImages(channels, four_d))
    return {case.identifier: [Path(image).name for image in case.images] for case in inputs.cases}, dict(
        inputs.failures
    )


def test_one_file_per_channel_in_the_order_of_the_index(tmp_path):
    folder = make(tmp_path, "b_0001.nii.gz", "b_0000.nii.gz", "a_0000.nii.gz", "a_0001.nrrd", "notes.txt")
    assert found([folder], 2) == (
        {"a": ["a_0000.nii.gz", "a_0001.nrrd"], "b": ["b_0000.nii.gz", "b_0001.nii.gz"]},
        {},
    )


def test_paths_are_kept_as_they_were_given(tmp_path):
    folder = make(tmp_path, "a.nii.gz")
    cases = find_inputs([folder / "a.nii.gz"], ExpectedImages(1)).cases
    assert (cases[0].images, cases[0].labels) == ((str(folder / "a.nii.gz"),), None)


@pytest.mark.parametrize("name", ["a.nii.gz", "a_0000.nii.gz"])
def test_one_channel_needs_no_index(name, tmp_path):
    assert found([make(tmp_path, name)], 1) == ({"a": [name]}, {})


def test_frames_that_start_at_one_are_cases_of_their_own(tmp_path):
    cases, failures = found([make(tmp_path, "film_0001.png", "film_0002.png")], 1)
    assert (sorted(cases), failures) == (["film_0001", "film_0002"], {})


def test_channels_beyond_those_of_the_model_fail_their_case_alone(tmp_path):
    cases, failures = found([make(tmp_path, "a_0000.nii", "a_0001.nii", "b_0000.nii")], 1)
    assert list(cases) == ["b"]
    assert "0001" in failures["a"]


def test_a_missing_channel_fails_its_case_alone(tmp_path):
    names = ("a_0000.nii", "a_0002.nii", "b_0000.nii", "b_0001.nii", "b_0002.nii")
    cases, failures = found([make(tmp_path, *names)], 3)
    assert list(cases) == ["b"]
    assert "missing: a_0001" in failures["a"]


@pytest.mark.parametrize("name", ["a.png", "a_0000.tif"])
def test_a_picture_may_hold_all_channels(name, tmp_path):
    assert found([make(tmp_path, name)], 3) == ({"a": [name]}, {})


def test_a_volume_holds_all_channels_only_where_the_model_was_trained_so(tmp_path):
    folder = make(tmp_path, "a.nii.gz")
    assert found([folder], 3, four_d=True) == ({"a": ["a.nii.gz"]}, {})
    cases, failures = found([folder], 3)
    assert cases == {}
    assert "a_0000, a_0001, a_0002" in failures["a"]


def test_two_files_for_one_image_fail(tmp_path):
    one, two = make(tmp_path / "one", "a.nii.gz", "b.nii.gz"), make(tmp_path / "two", "a.nii.gz")
    cases, failures = found([one, two], 1)
    assert list(cases) == ["b"]
    assert "two files" in failures["a"]


def test_a_case_with_and_without_index_fails(tmp_path):
    assert "both" in found([make(tmp_path, "a.nii.gz", "a_0000.nii.gz")], 1)[1]["a"]


def test_a_file_given_twice_counts_once(tmp_path):
    folder = make(tmp_path, "a.nii.gz")
    assert found([folder, folder / "a.nii.gz"], 1) == ({"a": ["a.nii.gz"]}, {})


def test_an_unsupported_file_fails_alone_when_named_and_is_passed_over_in_folders(tmp_path):
    folder = make(tmp_path, "a.nii.gz", "b.jpg")
    assert found([folder], 1) == ({"a": ["a.nii.gz"]}, {})
    assert "not supported" in found([folder / "a.nii.gz", folder / "b.jpg"], 1)[1]["b.jpg"]


def test_nothing_to_segment_is_an_error(tmp_path):
    with pytest.raises(MissingInput, match="no image"):
        find_inputs([make(tmp_path / "empty")], ExpectedImages(1))
    with pytest.raises(MissingInput, match="nowhere"):
        find_inputs([tmp_path / "nowhere"], ExpectedImages(1))


@settings(deadline=None, max_examples=50)
@given(st.text("ab_01.", min_size=1, max_size=8), st.integers(0, 9999))
def test_a_channel_index_is_found_at_the_end_only(name, index):
    assert split_channel(f"{name}_{index:04d}") == (name, index)
    assert split_channel(f"{name}_{index:04d}x")[1] is None


def test_images_whose_names_no_record_could_hold_fail_by_name(tmp_path):
    names = [os.fsdecode(b"caf\xe9.png"), "a\x1b[31m.png", ".._0000.png", "x" * 240 + ".png", "good.png"]
    found = find_inputs([make(tmp_path, *names)], ExpectedImages(1, False))
    assert [case.identifier for case in found.cases] == ["good"]
    assert len(found.failures) == 3  # one that begins with a dot is hidden, and no image
    assert all("its name" in reason for _, reason in found.failures)
    json.dumps(found.failures, ensure_ascii=False).encode()


def test_paths_are_written_alike_on_every_system(tmp_path):
    assert relative(tmp_path / "a" / "b", tmp_path) == "a/b"
    assert relative(tmp_path, tmp_path / "a") == str(tmp_path)
