from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from autoseg.core.records import from_json, to_json
from autoseg.data import survey as module
from autoseg.data.check import check_case
from autoseg.data.layouts.detect import detect_dataset
from autoseg.data.model import Dataset
from autoseg.data.survey import Survey, check_across, survey
from autoseg.data.synthetic import write_synthetic_dataset
from autoseg.images.volume import Volume
from autoseg.images.writers import write_image, write_labels
from tests.data.arrangements import GRID, NAMES, describe, image_of, labels_of, nnunet, paired

IMAGE, LABELS = "imagesTr/case_a_0000.nii.gz", "labelsTr/case_a.nii.gz"


def write_volume(path: Path, array: np.ndarray) -> None:
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(array.transpose(), np.diag([1.0, 1.0, 3.0, 1.0])).to_filename(path)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(4):
        labels = np.zeros((6, 9, 8), np.uint8)
        labels[2:4, 2:6, 2:6] = 1
        write_volume(
            tmp_path / "imagesTr" / f"case_{index}_0000.nii.gz", rng.normal(9, 1, (6, 9, 8)).astype(np.float32)
        )
        write_volume(tmp_path / "labelsTr" / f"case_{index}.nii.gz", labels)
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "thing": 1},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    return tmp_path


def test_every_case_is_checked_and_measured(folder):
    seen = []
    found = survey(detect_dataset(folder), None, jobs=1, progress=lambda done, total: seen.append((done, total)))
    assert [case.identifier for case in found.fingerprint.cases] == [f"case_{index}" for index in range(4)]
    assert found.fingerprint.cases[0].spacing_mm == pytest.approx((3, 1, 1))
    assert seen == [(done, 4) for done in range(5)]
    assert found.problems == ()


def test_the_survey_is_a_record_and_does_not_depend_on_the_number_of_processes(folder, monkeypatch):
    monkeypatch.setattr(module, "_FEW_BYTES", 0)
    one, two = (survey(detect_dataset(folder), None, jobs) for jobs in (1, 2))
    assert one == two
    assert from_json(Survey, to_json(one), "check.json") == one


def test_unchanged_cases_are_not_read_again(folder):
    dataset = detect_dataset(folder)
    first = survey(dataset, None, jobs=1)
    image = folder / "imagesTr" / "case_1_0000.nii.gz"
    stamp = image.stat()
    damaged = bytearray(image.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    image.write_bytes(damaged)
    os.utime(image, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert survey(dataset, first, jobs=1) == first  # the stamp says unchanged
    os.utime(image, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    second = survey(dataset, first, jobs=1)
    assert [problem.severity for problem in second.problems if problem.case == "case_1"] == ["refused"]
    assert [case.identifier for case in second.fingerprint.cases] == ["case_0", "case_2", "case_3"]


def test_files_are_read_again_when_labels_mean_something_else(folder):
    first = survey(detect_dataset(folder), None, jobs=1)
    description = json.loads((folder / "dataset.json").read_text())
    description["labels"] = {"background": 0, "other": 1, "third": 2}
    (folder / "dataset.json").write_text(json.dumps(description))
    assert survey(detect_dataset(folder), first, jobs=1).read_as != first.read_as


def test_a_case_whose_process_dies_is_refused_and_tried_again_the_next_time(folder, monkeypatch):
    dataset = detect_dataset(folder)
    monkeypatch.setattr(module, "_examine", _die_at_case_2)
    first = survey(dataset, None, jobs=1)
    (problem,) = first.problems
    assert (problem.case, problem.severity) == ("case_2", "refused")
    assert "exit code 3" in problem.what
    assert len(first.fingerprint.cases) == 3
    monkeypatch.undo()
    assert len(survey(dataset, first, jobs=1).fingerprint.cases) == 4


_examine = module._examine


def _die_at_case_2(dataset, task):
    if task[0].identifier == "case_2":
        os._exit(3)
    return _examine(dataset, task)


@pytest.mark.parametrize("name", ["hippocampus", "acdc_cardiac", "ms_lesion_mr", "axon_sem"])
@pytest.mark.real
def test_real_fingerprints_equal_the_reference(shared, name):
    reference = json.loads((shared / "golden" / "shared_data" / f"{name}.json").read_text())["fingerprint"]
    found = survey(detect_dataset(shared / "data" / name), None, jobs=2).fingerprint
    assert [list(case.shape_after_crop) for case in found.cases] == reference["shapes_after_crop"]
    assert [list(case.spacing_mm) for case in found.cases] == reference["spacings"]
    assert found.relative_size == pytest.approx(reference["median_relative_size_after_cropping"])
    for channel, expected in reference["foreground_intensity_properties_per_channel"].items():
        for field, value in expected.items():
            scale = abs(value) + expected["std"]
            assert getattr(found.intensities[int(channel)], field) == pytest.approx(value, abs=0.01 * scale)


def test_a_changed_spacing_beside_a_stack_is_noticed(tmp_path):
    root = nnunet(tmp_path / "tiny", ending=".tif")
    dataset = detect_dataset(root)
    first = survey(dataset, None, jobs=1)
    for folder in ("imagesTr", "labelsTr"):
        (root / folder / "case_a.json").write_text(json.dumps({"spacing": [7.0, 1.0, 1.5]}))
    second = survey(dataset, first, jobs=1)
    assert [case.spacing_mm[0] for case in first.fingerprint.cases] == [3.0, 3.0, 3.0]
    assert [case.spacing_mm[0] for case in second.fingerprint.cases] == [7.0, 3.0, 3.0]


def test_an_unfinished_survey_is_handed_out_and_goes_on(tmp_path, monkeypatch):
    """A run that stops between two cases loses only the case in work."""
    write_synthetic_dataset(tmp_path / "Dataset001_Synthetic", training_cases=3, test_cases=1, seed=5)
    dataset = detect_dataset(tmp_path / "Dataset001_Synthetic")
    monkeypatch.setattr(module, "KEEP_SECONDS", 0.0)
    kept = []
    whole = module.survey(dataset, None, jobs=0, keep=kept.append)
    assert [len(partial.cases) for partial in kept] == [1, 2, 3]
    seen = []
    assert survey(dataset, kept[1], jobs=1, progress=lambda done, _: seen.append(done)) == whole
    assert seen == [2, 3]


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
