"""The integrity check: every fault is named with its file and code, and nothing is changed without being told."""

from __future__ import annotations

import errno
import gzip
import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.geometry import Geometry
from autoseg.data import check
from autoseg.data.check import check_case
from autoseg.data.layouts.detect import detect_dataset
from autoseg.data.model import Case, LabelSet, Problem, label_set_of
from autoseg.data.problems import PROBLEM_CODES
from autoseg.data.survey import check_across
from autoseg.images.compare import reoriented
from autoseg.images.volume import Volume
from autoseg.images.writers import write_image, write_labels
from tests.data.arrangements import CLASSES, GRID, NAMES, describe, image_of, labels_of, nnunet

IMAGE, LABELS = "imagesTr/case_a_0000.nii.gz", "labelsTr/case_a.nii.gz"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return nnunet(tmp_path / "tiny")


def problems_of(root: Path, name: str = "case_a") -> list[Problem]:
    dataset = detect_dataset(root)
    return list(check_case(dataset, next(case for case in dataset.cases if case.identifier == name)).problems)


def assert_one(problems: list[Problem], code: str, severity: str, file: str | None, *words: str) -> None:
    assert [(problem.code, problem.severity, problem.file) for problem in problems] == [(code, severity, file)]
    assert problems[0].case == "case_a"
    assert problems[0].do
    assert all(word in problems[0].what for word in words), problems[0].what


def write_voxels(root: Path, array: np.ndarray, file: str = IMAGE) -> None:
    write_image(root / file, Volume(array.astype(np.float32), GRID))


def test_a_sound_case_comes_with_its_voxels_and_training_values(root):
    dataset = detect_dataset(root)
    checked = check_case(dataset, dataset.cases[0])
    assert (checked.problems, checked.is_refused) == ((), False)
    assert checked.volume is not None
    assert checked.labels is not None
    assert (checked.volume.geometry.shape, checked.labels.dtype, len(checked.content)) == (GRID.shape, np.int8, 64)


@pytest.mark.parametrize("file", [IMAGE, LABELS])
@settings(deadline=None, max_examples=15)
@given(share=st.floats(0.0, 0.99))
def test_every_truncation_is_refused_by_file(file, share, tmp_path_factory):
    root = nnunet(tmp_path_factory.mktemp("cut"))
    content = (root / file).read_bytes()
    (root / file).write_bytes(content[: int(share * len(content))])
    dataset = detect_dataset(root)
    checked = check_case(dataset, dataset.cases[0])
    assert_one(list(checked.problems), "E0401", "refused", file)
    assert (checked.volume, checked.labels) == (None, None)


@pytest.mark.parametrize("file", [IMAGE, LABELS])
@settings(deadline=None, max_examples=15)
@given(where=st.floats(0.05, 0.99), bit=st.integers(0, 7))
def test_a_flipped_bit_in_compressed_data_is_refused_unless_it_changes_nothing(file, where, bit, tmp_path_factory):
    root = nnunet(tmp_path_factory.mktemp("flip"))
    content = bytearray((root / file).read_bytes())
    before = gzip.decompress(content)
    content[max(10, int(where * len(content)))] ^= 1 << bit
    (root / file).write_bytes(content)
    problems = problems_of(root)
    if problems:
        assert_one(problems, "E0401", "refused", file)
    else:  # runs of equal bytes can be compressed in several ways
        assert gzip.decompress(content) == before


def test_both_bad_files_of_a_case_are_named_in_one_pass(root):
    (root / IMAGE).write_bytes(b"x")
    (root / LABELS).write_bytes(b"x")
    assert [problem.file for problem in problems_of(root)] == [IMAGE, LABELS]


def test_every_bad_channel_is_named(tmp_path):
    root = nnunet(tmp_path / "tiny", channels=3)
    for index in (0, 2):
        (root / "imagesTr" / f"case_a_000{index}.nii.gz").write_bytes(b"x")
    files = [problem.file for problem in problems_of(root)]
    assert files == ["imagesTr/case_a_0000.nii.gz", "imagesTr/case_a_0002.nii.gz"]


def test_a_missing_channel_and_a_bad_one_are_both_named(tmp_path):
    root = nnunet(tmp_path / "tiny", channels=2)
    (root / "imagesTr" / "case_a_0000.nii.gz").unlink()
    (root / "imagesTr" / "case_a_0001.nii.gz").write_bytes(b"x")
    assert [problem.code for problem in problems_of(root)] == ["E0203", "E0401"]


def test_a_missing_channel_refuses_its_case_alone(tmp_path):
    root = nnunet(tmp_path / "tiny", channels=2)
    (root / "imagesTr" / "case_a_0001.nii.gz").unlink()
    assert_one(problems_of(root), "E0203", "refused", "imagesTr/case_a_0001.nii.gz", "missing")
    assert problems_of(root, "case_b") == []


def test_a_missing_label_is_named_with_the_place_where_it_belongs(root):
    (root / LABELS).unlink()
    assert_one(problems_of(root), "E0204", "refused", None, LABELS)


def test_a_listed_label_that_is_missing_is_named(root):
    dataset = detect_dataset(root)
    (root / LABELS).unlink()
    assert_one(list(check_case(dataset, dataset.cases[0]).problems), "E0204", "refused", LABELS, "missing")


def test_a_label_file_that_is_the_image_is_pointed_out(root):
    (root / IMAGE).write_bytes((root / LABELS).read_bytes())
    assert_one(problems_of(root), "E0225", "warning", LABELS, "byte for byte")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_folders_pipes_and_devices_are_no_files_and_nobody_waits_for_their_end(make, root):
    dataset = detect_dataset(root)
    for file, code in ((IMAGE, "E0203"), (LABELS, "E0204")):
        (root / file).unlink()
        make(root / file)
        problems = check_case(dataset, dataset.cases[0]).problems
        assert (code, "refused", file) in [(problem.code, problem.severity, problem.file) for problem in problems]
    assert {problem.code for problem in problems} == {"E0203", "E0204"}


def test_channels_on_different_grids_are_refused(tmp_path):
    root = nnunet(tmp_path / "tiny", channels=2)
    other = replace(GRID, spacing_mm=(3.0, 1.0, 1.25))
    write_image(root / "imagesTr/case_a_0001.nii.gz", Volume(image_of("case_a"), other))
    assert_one(problems_of(root), "E0211", "refused", "imagesTr/case_a_0000.nii.gz", "case_a_0001", "1.25")


@pytest.mark.parametrize(
    ("grid", "word"),
    [
        (replace(GRID, shape=(4, 6, 4)), "voxels"),
        (replace(GRID, spacing_mm=(3.0, 1.0, 2.0)), "spacing"),
        (replace(GRID, origin_mm=(5.0, -2.0, 11.0)), "shifted"),
        (replace(GRID, direction=(0.0, 0.0, 1.0, -0.6, 0.8, 0.0, 0.8, 0.6, 0.0)), "directions"),
    ],
)
def test_labels_on_another_grid_are_refused_with_the_difference(grid, word, root):
    labels = labels_of("case_a")[:, :, : grid.shape[2]]
    write_labels(root / LABELS, labels, grid)
    problems = problems_of(root)
    assert [(problem.code, problem.severity) for problem in problems] == [("E0212", "refused")]
    assert word in problems[0].what
    assert "sitkNearestNeighbor" in problems[0].do


@pytest.mark.parametrize("shift", [1e-5, 5e-4])
def test_rounding_of_geometry_is_accepted_with_a_note(shift, root):
    write_labels(root / LABELS, labels_of("case_a"), replace(GRID, origin_mm=(5.0 + shift, -7.0, 11.0)))
    assert_one(problems_of(root), "E0213", "note", LABELS)


def test_labels_a_little_apart_are_matched_and_nobody_talks_of_forms(root):
    write_labels(root / LABELS, labels_of("case_a"), replace(GRID, origin_mm=(5.0 + 0.01, -7.0, 11.0)))
    problems = problems_of(root)
    assert_one(problems, "E0218", "note", LABELS, "voxels apart")
    assert "form" not in problems[0].what


@pytest.mark.parametrize(
    ("order", "flips", "codes"),
    [
        ((0, 1, 2), (True, False, False), "L-P-I"),
        ((0, 1, 2), (False, True, True), "R-A-S"),
        ((2, 1, 0), (False, False, False), "S-P-L"),
        ((1, 2, 0), (True, False, False), "S-L-A"),
    ],
)
def test_flipped_and_permuted_labels_are_turned_as_their_image_is_stored(order, flips, codes, root):
    stored = np.flip(labels_of("case_a").transpose(order), [axis for axis in range(3) if flips[axis]])
    write_labels(root / LABELS, stored, reoriented(GRID, order, flips))
    assert_one(problems_of(root), "E0214", "note", LABELS, f"stored {codes}, turned to L-P-S")
    dataset = detect_dataset(root)
    turned = check_case(dataset, dataset.cases[0])
    assert np.array_equal(turned.labels, labels_of("case_a"))


SFORM = np.array([[-1.5, 0, 0, -5], [0, -1, 0, 7], [0, 0, 3, 11], [0, 0, 0, 1]])  # of GRID
MIRRORED = SFORM * np.array([[-1], [1], [1], [1.0]])


def write_forms(path: Path, array: np.ndarray, qform: np.ndarray | None, sform: np.ndarray | None) -> None:
    """A NIfTI file with the codes 1 and 2, or 0 where a form is None."""
    image = nibabel.Nifti1Image(array.T, None)
    image.header["pixdim"][1:4] = GRID.spacing_mm[::-1]
    image.set_qform(qform, int(qform is not None))
    image.set_sform(sform, 2 * int(sform is not None))
    nibabel.save(image, path)


@pytest.mark.parametrize(
    ("of_image", "of_labels", "reason"),
    [
        ((SFORM, SFORM), (None, None), "the label file does not state where"),
        ((None, None), (SFORM, SFORM), "the image does not state where"),
        ((SFORM, MIRRORED), (SFORM, None), "another form"),
        ((SFORM, MIRRORED), (SFORM, SFORM), "another form"),
        ((SFORM, None), (SFORM, MIRRORED), "another form"),
    ],
)
def test_labels_without_a_place_or_on_the_other_form_are_matched_and_not_moved(root, of_image, of_labels, reason):
    write_forms(root / IMAGE, image_of("case_a")[0].astype(np.float32), *of_image)
    write_forms(root / LABELS, labels_of("case_a").astype(np.uint8), *of_labels)
    problems = [problem for problem in problems_of(root) if problem.code != "E0217"]
    assert_one(problems, "E0218", "note", LABELS, reason)
    dataset = detect_dataset(root)
    assert np.array_equal(check_case(dataset, dataset.cases[0]).labels, labels_of("case_a"))


def test_labels_without_a_place_but_with_another_spacing_are_refused(root):
    write_labels(root / LABELS, labels_of("case_a"), replace(GRID, spacing_mm=(3.0, 2.0, 1.5), has_orientation=False))
    assert_one(problems_of(root), "E0212", "refused", LABELS, "spacing")


def test_a_label_format_without_geometry_needs_the_shape_only(tmp_path):
    for name in NAMES:
        write_image(tmp_path / "images" / f"{name}.tif", Volume(image_of(name), GRID))
        write_labels(tmp_path / "labels" / f"{name}.tif", labels_of(name), replace(GRID, spacing_mm=(1.0, 1.0, 1.0)))
        (tmp_path / "labels" / f"{name}.json").unlink()
    assert_one(problems_of(tmp_path), "E0218", "note", "labels/case_a.tif", "3 x 1 x 1.5")


def test_a_4d_image_is_refused_where_the_dataset_says_nothing_of_channels(root):
    write_voxels(root, image_of("case_a", 3))
    assert_one(problems_of(root), "E0215", "refused", IMAGE, "4D")


def test_a_4d_label_map_is_refused(root):
    write_voxels(root, image_of("case_a", 3), LABELS)
    assert_one(problems_of(root), "E0215", "refused", LABELS, "4D")


def test_another_number_of_channels_is_refused(tmp_path):
    root = tmp_path
    flat = Geometry(shape=(1, 6, 5), spacing_mm=(999.0, 1.0, 1.0))
    write_image(root / "imagesTr" / "case_a_0000.png", Volume(image_of("case_a", 4)[:, :1], flat))
    write_labels(root / "labelsTr" / "case_a.png", labels_of("case_a")[:1], flat)
    describe(root, 3, file_ending=".png", numTraining=1)
    assert_one(problems_of(root), "E0216", "refused", "imagesTr/case_a_0000.png", "4 channels", "MR0, MR1, MR2")


def test_gray_with_alpha_is_named(tmp_path):
    from PIL import Image

    flat = Geometry(shape=(1, 6, 5), spacing_mm=(999.0, 1.0, 1.0))
    gray = image_of("case_a")[0, 0].astype(np.uint8)
    (tmp_path / "imagesTr").mkdir()
    Image.fromarray(np.stack([gray, np.full_like(gray, 255)], -1)).save(tmp_path / "imagesTr/case_a_0000.png")
    write_labels(tmp_path / "labelsTr" / "case_a.png", labels_of("case_a")[:1], flat)
    describe(tmp_path, file_ending=".png", numTraining=1)
    assert_one(problems_of(tmp_path), "E0217", "note", "imagesTr/case_a_0000.png", "alpha")


@pytest.mark.parametrize("value", [3, 255, -1, 65535])
def test_undeclared_label_values_are_refused_with_their_counts(value, root):
    labels = labels_of("case_a")
    labels[0, 0, :3] = value
    write_labels(root / LABELS, labels, GRID)
    assert_one(problems_of(root), "E0301", "refused", LABELS, f"{value} (3 voxels)", "declared: 0, 1, 2")


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_labels_that_are_no_whole_numbers_are_refused(value, root):
    labels = labels_of("case_a").astype(np.float32)
    labels[0, 0, 0] = value
    write_voxels(root, labels[None], LABELS)
    assert_one(problems_of(root), "E0302", "refused", LABELS)


def test_float_labels_of_whole_numbers_are_accepted(root):
    write_voxels(root, labels_of("case_a")[None] + 1e-5, LABELS)
    assert problems_of(root) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_many_non_finite_voxels_refuse_the_case(value, root):
    image = image_of("case_a")
    image[0, 0, 0, 0] = value  # 1 of 120 voxels
    write_voxels(root, image)
    assert_one(problems_of(root), "E0312", "refused", IMAGE, "1 voxel", "0.83%")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_few_non_finite_voxels_become_the_smallest_finite_value_with_a_warning(value, tmp_path):
    grid = Geometry(shape=(8, 16, 16))
    image = np.random.default_rng(0).normal(size=(1, *grid.shape)).astype(np.float32)
    image[0, 3, 4, 5] = value
    write_image(tmp_path / "imagesTr/case_a_0000.nii.gz", Volume(image, grid))
    labels = np.random.default_rng(1).integers(0, 3, grid.shape)
    write_labels(tmp_path / "labelsTr/case_a.nii.gz", labels, grid)
    describe(tmp_path, numTraining=1)
    dataset = detect_dataset(tmp_path)
    checked = check_case(dataset, dataset.cases[0])
    assert_one(list(checked.problems), "E0311", "warning", IMAGE, "1 voxel")
    assert checked.volume is not None
    assert checked.volume.array[0, 3, 4, 5] == image[np.isfinite(image)].min()
    assert np.isfinite(checked.volume.array).all()


def test_a_channel_of_nothing_but_nan_is_refused(root):
    write_voxels(root, np.full((1, *GRID.shape), np.nan))
    assert_one(problems_of(root), "E0312", "refused", IMAGE, "100.00%")


def test_constant_images_and_empty_labels_are_warnings(tmp_path):
    root = nnunet(tmp_path / "tiny", channels=2)
    write_voxels(root, np.full((1, *GRID.shape), 7.0), "imagesTr/case_a_0001.nii.gz")
    write_labels(root / LABELS, np.zeros(GRID.shape, int), GRID)
    problems = problems_of(root)
    assert [(problem.code, problem.severity) for problem in problems] == [("E0313", "warning"), ("E0303", "warning")]
    assert problems[0].file == "imagesTr/case_a_0001.nii.gz"


@pytest.mark.parametrize(("drawn", "code"), [((9,), "E0307"), ((0, 9), "E0303"), ((0,), "E0303"), ((1, 9), None)])
def test_label_maps_without_annotation_or_foreground_are_told_apart(drawn, code, root):
    describe(root, labels={"background": 0, "a": 1, "ignore": 9})
    labels = np.full(GRID.shape, drawn[0])
    labels[0] = drawn[-1]
    write_labels(root / LABELS, labels, GRID)
    assert [(problem.code, problem.severity) for problem in problems_of(root)] == ([(code, "warning")] if code else [])


def test_an_image_of_an_unsupported_kind_is_refused(root):
    dataset = detect_dataset(root)
    (root / "a.jpg").write_bytes(b"")
    checked = check_case(dataset, Case("case_a", ("a.jpg",), LABELS))
    assert_one(list(checked.problems), "E0401", "refused", "a.jpg", "JPEG")


def test_labels_are_mapped_to_training_values_and_the_mapping_is_noted(root):
    write_labels(root / LABELS, labels_of("case_a", (0, 200, 210)), GRID)
    describe(root, labels={"background": 0, "a": 200, "b": 210})
    dataset = detect_dataset(root)
    checked = check_case(dataset, dataset.cases[0])
    np.testing.assert_array_equal(checked.labels, labels_of("case_a"))
    notes = check_across(dataset, {})
    assert [(note.code, note.severity) for note in notes] == [("E0305", "note")]
    assert "0, 200, 210" in notes[0].what


def test_the_content_changes_with_any_byte_and_its_first_half_stands_for_the_image(root):
    dataset = detect_dataset(root)
    before = check_case(dataset, dataset.cases[0]).content
    assert check_case(dataset, dataset.cases[0]).content == before
    write_labels(root / LABELS, labels_of("case_b"), GRID)
    after = check_case(dataset, dataset.cases[0]).content
    assert (after[:32] == before[:32], after[32:] == before[32:]) == (True, False)
    write_voxels(root, image_of("case_b"))
    assert check_case(dataset, dataset.cases[0]).content[:32] != before[:32]


def test_the_content_includes_side_cars_and_detached_voxels(tmp_path):
    root = nnunet(tmp_path / "tiny", ending=".tif")
    dataset = detect_dataset(root)
    before = check_case(dataset, dataset.cases[0]).content
    (root / "imagesTr/case_a.json").write_text(json.dumps({"spacing": [2.0, 1.0, 1.5]}))
    assert check_case(dataset, dataset.cases[0]).content[:32] != before[:32]
    root = nnunet(tmp_path / "detached", ending=".mhd")
    dataset = detect_dataset(root)
    assert check_case(dataset, dataset.cases[0]).problems == ()
    before = check_case(dataset, dataset.cases[0]).content
    (root / "imagesTr/case_a_0000.zraw").write_bytes((root / "imagesTr/case_b_0000.zraw").read_bytes())
    assert check_case(dataset, dataset.cases[0]).content[:32] != before[:32]
    (root / "imagesTr/case_a_0000.mhd").write_text("damaged")
    assert [problem.code for problem in check_case(dataset, dataset.cases[0]).problems] == ["E0401"]


def test_regions_and_ignore_values_pass_the_check(root):
    labels = labels_of("case_a", (0, 1, 2, 9))
    write_labels(root / LABELS, labels, GRID)
    table = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 9}
    describe(root, labels=table, regions_class_order=[1, 2])
    dataset = detect_dataset(root)
    checked = check_case(dataset, dataset.cases[0])
    assert checked.labels is not None
    assert checked.problems == ()
    assert sorted(np.unique(checked.labels)) == [0, 1, 2, 3]


def test_every_code_is_explained():
    for code, explanation in PROBLEM_CODES.items():
        assert code.startswith("E0")
        assert explanation.meaning.endswith(".")
        assert explanation.remedy


def test_labels_without_a_declared_table_of_values_pass_unchanged(root):
    dataset = replace(
        detect_dataset(root), labels=LabelSet(dict(label_set_of({"background": (0,), "a": (1,), "b": (2,)}).classes))
    )
    assert len(CLASSES) == len(dataset.labels.classes)
    np.testing.assert_array_equal(check_case(dataset, dataset.cases[0]).labels, labels_of("case_a"))


def test_a_case_that_the_disk_could_not_read_is_looked_at_again(tmp_path, monkeypatch):
    dataset = detect_dataset(nnunet(tmp_path / "tiny"))
    case = dataset.cases[0]
    monkeypatch.setattr(check, "sha256_of_file", _cannot_read)
    checked = check_case(dataset, case)
    assert checked.is_refused
    assert checked.content == ""
    monkeypatch.undo()
    assert check_case(dataset, case).content


def _cannot_read(path):
    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
