"""Problems that only show across cases: equal images, wrong numbers, files that belong to nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autoseg.data.check import check_across, check_case
from autoseg.data.layouts.detect import detect_dataset
from autoseg.data.model import Dataset
from autoseg.images.volume import Volume
from autoseg.images.writers import write_image, write_labels
from tests.data.arrangements import GRID, NAMES, describe, image_of, labels_of, nnunet, paired

IMAGE, LABELS = "imagesTr/case_a_0000.nii.gz", "labelsTr/case_a.nii.gz"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return nnunet(tmp_path / "tiny")


def contents_of(root: Path) -> tuple[Dataset, dict[str, str]]:
    dataset = detect_dataset(root)
    return dataset, {case.identifier: check_case(dataset, case).content for case in dataset.cases}


@pytest.mark.parametrize(("same_labels", "word"), [(True, "the same labels"), (False, "different labels")])
def test_equal_images_are_found_with_equal_and_with_other_labels(same_labels, word, root):
    (root / "imagesTr/case_b_0000.nii.gz").write_bytes((root / IMAGE).read_bytes())
    if same_labels:
        (root / "labelsTr/case_b.nii.gz").write_bytes((root / LABELS).read_bytes())
    problems = check_across(*contents_of(root))
    assert [(problem.code, problem.severity) for problem in problems] == [("E0208", "warning")]
    assert "case_a, case_b" in problems[0].what
    assert word in problems[0].what


def test_two_missing_images_are_no_duplicates(tmp_path):
    root = nnunet(tmp_path / "tiny", channels=2)
    for name in NAMES:
        (root / "imagesTr" / f"{name}_0000.nii.gz").unlink()
        (root / "imagesTr" / f"{name}_0001.nii.gz").write_bytes(b"x")
    assert check_across(*contents_of(root)) == ()


def test_a_wrong_number_of_cases_is_pointed_out(root):
    describe(root, numTraining=12)
    problems = check_across(detect_dataset(root), {})
    assert [problem.code for problem in problems] == ["E0205"]
    assert "12 training cases, 3" in problems[0].what


def test_files_that_belong_to_no_case_are_named_with_what_is_wrong(root):
    source = (root / IMAGE).read_bytes()
    for name in ("case_d.nii.gz", "case_a_0003.nii.gz", "case_e_0000.nii", "case_f.jpg"):
        (root / "imagesTr" / name).write_bytes(source)
    (root / "labelsTr/case_z.nii.gz").write_bytes(source)
    found = {problem.file: problem for problem in check_across(detect_dataset(root), {})}
    assert "declares the ending" in found["imagesTr/case_e_0000.nii"].what
    assert "JPEG" in found["imagesTr/case_f.jpg"].what
    assert found["imagesTr/case_d.nii.gz"].code == "E0207"
    assert "without an image" in found["labelsTr/case_z.nii.gz"].what
    assert {problem.severity for problem in found.values()} == {"warning"}


def test_a_channel_that_is_not_declared_is_named(tmp_path):
    root = nnunet(tmp_path / "tiny", channels=2)
    write_image(root / "imagesTr/case_a_0002.nii.gz", Volume(image_of("case_a").astype(np.float32), GRID))
    problems = check_across(detect_dataset(root), {})
    assert [problem.file for problem in problems] == ["imagesTr/case_a_0002.nii.gz"]
    assert "declares 2 channels" in problems[0].what


def test_a_lone_label_in_paired_folders_is_named(tmp_path):
    root = paired(tmp_path / "tiny")
    write_labels(root / "labels" / "lost.nii.gz", labels_of("lost"), GRID)
    assert [problem.file for problem in check_across(detect_dataset(root), {})] == ["labels/lost.nii.gz"]


def test_a_dataset_that_lists_its_cases_may_leave_files_out(root):
    describe(root, numTraining=1, dataset={"case_a": {"images": [IMAGE], "label": LABELS}})
    assert check_across(detect_dataset(root), {}) == ()


def test_cases_that_could_not_be_examined_are_no_duplicates(root):
    dataset, contents = contents_of(root)
    assert check_across(dataset, dict.fromkeys(contents, "")) == ()
