from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoseg.core.geometry import Geometry
from autoseg.core.records import from_json, to_json
from autoseg.data import survey as module
from autoseg.data.check import check_case
from autoseg.data.fingerprint import fingerprint_hash
from autoseg.data.layouts.detect import detect_dataset
from autoseg.data.model import Dataset, Problem
from autoseg.data.survey import Survey, check_across, survey
from autoseg.data.synthetic import write_synthetic_dataset
from autoseg.images.orientation import turn_to
from autoseg.images.readers import read_labels
from autoseg.images.volume import Volume, plane_geometry
from autoseg.images.writers import write_image, write_labels
from autoseg.planning.planner import PlanOptions, make_plan
from tests.data.arrangements import CLASSES, GRID, NAMES, describe, image_of, labels_of, nnunet, paired
from tests.images.examples import forget_orientation

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
        labels[2, 2, 2 + index] = 0  # equal label maps would be pointed out
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


def test_unchanged_cases_are_not_decoded_again(folder, monkeypatch):
    dataset = detect_dataset(folder)
    first = survey(dataset, None, jobs=1)
    os.utime(folder / "imagesTr" / "case_1_0000.nii.gz")  # its bytes say unchanged
    monkeypatch.setattr(module, "_examine", _never)
    assert survey(dataset, first, jobs=0).fingerprint == first.fingerprint


def _never(_dataset, task):
    raise AssertionError(f"{task[0].identifier} was examined")


def settled(found: Survey, is_settled: bool = True) -> Survey:
    """The survey as if it had been made some seconds after the last change of a file."""
    cases = [
        replace(own, files=tuple(replace(stamp, is_settled=is_settled) for stamp in own.files)) for own in found.cases
    ]
    return replace(found, cases=tuple(cases))


@pytest.mark.parametrize("when", ["within a tick", "later"])
def test_a_change_of_the_same_size_with_the_time_set_back_is_noticed(folder, when):
    dataset = detect_dataset(folder)
    first = survey(dataset, None, jobs=1)
    first = settled(first, when == "later")  # however long it took to come here
    image = folder / "imagesTr" / "case_1_0000.nii.gz"
    stamp = image.stat()
    damaged = bytearray(image.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    image.write_bytes(damaged)
    os.utime(image, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    second = survey(dataset, first, jobs=0)
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
    for side_car in ("imagesTr/case_a_0000.json", "labelsTr/case_a.json"):
        (root / side_car).write_text(json.dumps({"spacing": [7.0, 1.0, 1.5]}))
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


def copied_labels(root: Path) -> list[Problem]:
    return [found for found in survey(detect_dataset(root), None, jobs=1).problems if found.code == "E0226"]


def test_a_label_map_copied_under_another_name_is_found(root):
    assert copied_labels(root) == []
    (root / "labelsTr/case_b.nii.gz").write_bytes((root / LABELS).read_bytes())
    (found,) = copied_labels(root)
    assert (found.severity, found.what) == ("warning", "case_a, case_b have the same label map, byte for byte")


def test_equal_label_maps_of_equal_images_or_without_foreground_are_no_copies(root):
    (root / "labelsTr/case_b.nii.gz").write_bytes((root / LABELS).read_bytes())
    (root / "imagesTr/case_b_0000.nii.gz").write_bytes((root / IMAGE).read_bytes())
    assert copied_labels(root) == []
    empty = read_labels(root / LABELS)
    for case in ("case_a", "case_c"):
        write_labels(root / f"labelsTr/{case}.nii.gz", np.zeros_like(empty.array), empty.geometry)
    assert (root / LABELS).read_bytes() == (root / "labelsTr/case_c.nii.gz").read_bytes()
    assert copied_labels(root) == []


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


def test_files_of_kinds_that_are_not_read_are_named_once_for_each_kind_with_what_helps(root):
    kinds = {"s1.dcm": "dcm2niix", "brain.mgz": "mri_convert", "old.hdr": "fslchfiletype", "photo.webp": "PNG"}
    for name in (*kinds, "s2.dcm", "half.nii.gz.part", "notes.txt", ".hidden.dcm"):
        (root / "imagesTr" / name).write_bytes(b"1234")
    (root / "imagesTr" / "IM0001").write_bytes(bytes(128) + b"DICM")
    found = {problem.file: problem for problem in check_across(detect_dataset(root), {})}
    assert set(found) == {
        f"imagesTr/{name}" for name in ("IM0001", "brain.mgz", "old.hdr", "photo.webp", "half.nii.gz.part")
    }
    assert "3 files such as IM0001" in found["imagesTr/IM0001"].what
    for name, word in kinds.items():
        assert any(word in problem.do for problem in found.values()), name


def test_links_to_nothing_and_folders_named_as_images_are_not_passed_over_in_silence(root):
    """As an annex of which only a part was fetched leaves them, and archives that were unpacked into folders."""
    for folder, name in (("imagesTr", "late_0000"), ("labelsTr", "late")):
        (root / folder / f"{name}.nii.gz").symlink_to(f"../.git/annex/objects/{name}")
        (root / folder / f"{name}_b.nii.gz").mkdir()
    found = {problem.file: problem for problem in check_across(detect_dataset(root), {})}
    assert set(found) == {"imagesTr/late_0000.nii.gz", "imagesTr/late_0000_b.nii.gz"}
    assert "2 files such as late_0000.nii.gz" in found["imagesTr/late_0000.nii.gz"].what
    assert "datalad get" in found["imagesTr/late_0000.nii.gz"].do
    assert "folder up" in found["imagesTr/late_0000_b.nii.gz"].do


def test_rare_values_that_nothing_declares_are_pointed_out_as_classes(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        labels = labels_of(NAMES[0])
        labels[labels > 0] = 255
        labels[tuple(np.argwhere(labels)[0])] = 64 + 64 * (number > 0)
        write_image(tmp_path / "images" / f"c{number}.nii.gz", Volume(labels[None].astype(np.float32) + number, GRID))
        write_labels(tmp_path / "labels" / f"c{number}.nii.gz", labels, GRID)
    found = [problem for problem in survey(detect_dataset(tmp_path), None, jobs=1).problems if problem.code == "E0317"]
    assert [problem.severity for problem in found] == ["warning"]
    assert "64 (1 voxels in 1 of 3 cases), 128 (2 voxels in 2 of 3 cases)" in found[0].what
    for number in range(3):
        write_labels(tmp_path / "labels" / f"c{number}.nii.gz", (labels > 0) * (255 if number else 1), GRID)
    found = [problem for problem in survey(detect_dataset(tmp_path), None, jobs=1).problems if problem.code == "E0317"]
    assert [problem.what.rpartition(": ")[2] for problem in found] == ["1 in 1 cases, 255 in 2 cases"]
    description = {"labels": {"background": 0, "class_1": 1, "class_64": 64, "edge": 128, "class_255": 255}}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    assert all(problem.code != "E0317" for problem in survey(detect_dataset(tmp_path), None, jobs=1).problems)


def test_files_of_a_case_with_an_unusable_name_need_no_other_remark(root):
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (root / folder / f"case_a{ending}").rename(root / folder / f"con{chr(7)}{ending}")
    dataset = detect_dataset(root)
    assert [problem.code for problem in check_across(dataset, {})] == ["E0205", "E0223"]


def test_a_class_that_no_case_shows_or_only_one_is_named(root):
    describe(root, labels={**CLASSES, "rare": 3, "never": 4})
    labels = labels_of(NAMES[0])
    labels[0, :2, :2] = 3
    write_labels(root / "labelsTr" / f"{NAMES[0]}.nii.gz", labels, GRID)
    problems = survey(detect_dataset(root), None, jobs=1).problems
    found = {problem.code: problem for problem in problems}
    assert (found["E0308"].what, found["E0308"].severity) == ("no case shows never (label value 4)", "warning")
    assert (found["E0309"].what, found["E0309"].case) == ("rare is in this case only", NAMES[0])
    assert len(problems) == 2


SEGMENTS = """NRRD0004
type: uint8
dimension: 3
sizes: 12 10 8
space: left-posterior-superior
space directions: (1,0,0) (0,1,0) (0,0,2)
encoding: raw
"""


def segmented(root: Path, values: dict[str, dict[str, int]]) -> list[Problem]:
    """Problems of cases (12 x 10 x 8) whose label files name their values as 3D Slicer does."""
    for folder in (root / "imagesTr", root / "labelsTr"):
        folder.mkdir(parents=True)
    for case, names in values.items():
        fields = [
            f"Segment{index}_{field}:={text}\n"
            for index, (name, value) in enumerate(names.items())
            for field, text in (("ID", f"Segment_{index}"), ("LabelValue", value), ("Name", name))
        ]
        labels = np.zeros((8, 10, 12), np.uint8)
        labels[2:6, 2:4], labels[2:6, 5:7] = 1, 2
        (root / f"labelsTr/{case}.nrrd").write_bytes((SEGMENTS + "".join(fields) + "\n").encode() + labels.tobytes())
        image = np.random.default_rng(len(case)).normal(size=labels.shape).astype(np.float32)
        grid = read_labels(root / f"labelsTr/{case}.nrrd").geometry
        write_image(root / f"imagesTr/{case}_0000.nrrd", Volume(image[None], grid))
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "Liver": 1, "spleen": 2}}
    (root / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nrrd", "numTraining": len(values)}))
    return [
        found for found in survey(detect_dataset(root), None, jobs=1).problems if found.code not in ("E0208", "E0226")
    ]


def test_segments_that_are_named_as_other_classes_refuse_their_case(tmp_path):
    right, exchanged = {"liver": 1, "spleen": 2}, {"liver": 2, "spleen": 1}
    (found,) = segmented(tmp_path, {"a": right, "bb": right, "ccc": exchanged})
    assert (found.code, found.severity, found.case) == ("E0315", "refused", "ccc")
    assert found.what.startswith("1 is spleen in the file, spleen is 2; 2 is liver in the file, liver is 1")


def test_values_that_label_files_name_differently_are_pointed_out(tmp_path):
    (found,) = segmented(tmp_path, {"a": {"Segment_1": 1, "rest": 9}, "bb": {"Segment 1": 1}, "ccc": {"Segment_2": 1}})
    assert (found.code, found.severity) == ("E0316", "warning")
    assert found.what == "label value 1 is Segment_1 in a and 1 more, Segment_2 in ccc"


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_palettes_that_differ_are_pointed_out(tmp_path, ending):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for index, colors in enumerate(([0, 0, 0, 255, 0, 0], [0, 0, 0, 255, 0, 0], [0, 0, 0, 0, 0, 255])):
        numbers = np.random.default_rng(index).integers(0, 2, (16, 16)).astype(np.uint8)
        Image.fromarray(numbers * 90).save(tmp_path / f"images/{index}{ending}")
        labels = Image.fromarray(numbers, "P")
        labels.putpalette(colors)
        labels.save(tmp_path / f"labels/{index}{ending}")
    problems = survey(detect_dataset(tmp_path), None, jobs=1).problems
    (found,) = (found for found in problems if found.severity == "warning")
    assert (found.code, found.what) == ("E0316", "label value 1 is #ff0000 in 0 and 1 more, #0000ff in 2")


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


ASYMMETRIC = Geometry((6, 9, 8), (3.0, 1.0, 2.0), (4.0, 5.0, 6.0))


def oriented_case(folder: Path, name: str, codes: str | None, label_codes: str = "LPS") -> None:
    """A case of the same voxels at the same places for all letters; None: its files do not say how it lies."""
    rng = np.random.default_rng(len(name))
    labels = np.zeros((6, 9, 8), np.uint8)
    labels[2:4, 2:6, 1:5] = 1
    labels[2, 2, len(name)] = 0  # equal label maps would be pointed out
    image = Volume(rng.normal(9, 1, (1, 6, 9, 8)).astype(np.float32), ASYMMETRIC)
    image.array[:, :1] = image.array[:, :, -2:] = 0
    stored = turn_to(ASYMMETRIC, codes).apply(image)
    label_map = turn_to(ASYMMETRIC, label_codes).apply(Volume(labels, ASYMMETRIC))
    files = folder / "imagesTr" / f"{name}_0000.nii.gz", folder / "labelsTr" / f"{name}.nii.gz"
    write_image(files[0], stored)
    write_labels(files[1], label_map.array, label_map.geometry)
    for file in files if codes is None else ():
        forget_orientation(file)


def oriented(folder: Path, codes: dict[str, str | None]) -> Dataset:
    for name, own in codes.items():
        oriented_case(folder, name, own)
    describe(folder, channel_names={"0": "MRI"}, labels={"background": 0, "thing": 1}, numTraining=len(codes))
    return detect_dataset(folder)


def without_files(found: Survey) -> list[object]:
    """Statistics of the cases, apart from what tells the files themselves."""
    return [replace(case, content="", orientation=None, turned_to=None) for case in found.fingerprint.cases]


def test_cases_stored_otherwise_are_measured_as_if_they_were_stored_as_most_are(tmp_path):
    mixed = survey(oriented(tmp_path / "mixed", {"a": "LPS", "bb": "RAS", "ccc": "SPL", "dddd": "LPS"}), None, jobs=1)
    alike = survey(oriented(tmp_path / "alike", dict.fromkeys(("a", "bb", "ccc", "dddd"), "LPS")), None, jobs=1)
    assert without_files(mixed) == without_files(alike)
    assert [case.foreground for case in mixed.cases] == [case.foreground for case in alike.cases]
    assert mixed.fingerprint.intensities == alike.fingerprint.intensities
    assert (mixed.fingerprint.orientation, alike.fingerprint.orientation) == ("LPS", "LPS")
    assert [case.orientation for case in mixed.fingerprint.cases] == ["LPS", "RAS", "SPL", "LPS"]
    assert [case.turned_to for case in mixed.fingerprint.cases] == [None, "LPS", "LPS", None]
    assert [(found.case, found.severity) for found in mixed.problems if found.code == "E0221"] == [
        ("bb", "note"),
        ("ccc", "note"),
    ]
    assert not alike.problems
    assert fingerprint_hash(mixed.fingerprint) != fingerprint_hash(alike.fingerprint)


def test_what_is_known_is_used_only_if_it_was_measured_along_the_axes_of_most(tmp_path):
    first = survey(oriented(tmp_path, {"a": "RAS", "bb": "LPS"}), None, jobs=1)
    assert first.fingerprint.orientation == "RAS"  # of equally many the first
    again = survey(detect_dataset(tmp_path), first, jobs=1)
    assert again == first
    more = oriented(tmp_path, {"ccc": "LPS", "dddd": "SPL"})
    added = survey(more, first, jobs=1)
    assert added == survey(more, None, jobs=1)
    assert added.fingerprint.orientation == "LPS"
    assert [case.turned_to for case in added.fingerprint.cases] == ["LPS", None, None, "LPS"]


def test_an_unknown_orientation_is_a_state_of_its_own(tmp_path):
    mixed = survey(oriented(tmp_path / "mixed", {"a": "RAS", "bb": None, "ccc": "RAS"}), None, jobs=1)
    assert [case.orientation for case in mixed.fingerprint.cases] == ["RAS", None, "RAS"]
    assert mixed.fingerprint.cases[1].turned_to is None
    found = [entry for entry in mixed.problems if entry.case == "bb"]
    assert [(entry.code, entry.severity) for entry in found] == [("E0220", "warning")]
    assert "no orientation stated" in found[0].what
    unknown = survey(oriented(tmp_path / "unknown", {"a": None, "bb": None}), None, jobs=1)
    assert unknown.fingerprint.orientation is None
    assert [(entry.code, entry.case, entry.severity) for entry in unknown.problems] == [("E0219", None, "note")]
    assert "a, bb" in unknown.problems[0].what


def test_nobody_is_told_that_pictures_have_no_orientation(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        picture = rng.integers(0, 255, (1, 1, 9, 8)).astype(np.uint8)
        write_image(tmp_path / "images" / f"{name}.png", Volume(picture, plane_geometry((9, 8))))
        write_labels(tmp_path / "labels" / f"{name}.png", (picture[0] > 99).astype(np.uint8), plane_geometry((9, 8)))
    found = survey(detect_dataset(tmp_path), None, jobs=1)
    assert found.fingerprint.orientation is None
    assert not {entry.code for entry in found.problems} & {"E0219", "E0220", "E0221"}


def test_pictures_among_volumes_are_refused_and_so_are_volumes_among_pictures(tmp_path):
    for part in ("images", "labels"):
        for name in "abc":
            write_labels(
                tmp_path / part / f"{name}.nii.gz", np.arange(120, dtype=np.uint8).reshape(GRID.shape) % 2, GRID
            )
        write_labels(
            tmp_path / part / "p.png", np.arange(20, dtype=np.uint8).reshape(1, 4, 5) % 2, plane_geometry((4, 5))
        )
    dataset = detect_dataset(tmp_path)
    first = survey(dataset, None, 1)
    for found in (first, survey(dataset, first, 1)):
        assert [problem.case for problem in found.problems if problem.code == "E0224"] == ["p"]
        assert [case.identifier for case in found.fingerprint.cases] == ["a", "b", "c"]
    few = replace(dataset, cases=tuple(case for case in dataset.cases if case.identifier == "p"))
    assert [case.identifier for case in survey(few, first, 1).fingerprint.cases] == ["p"]


def test_voxels_too_large_to_compute_with_refuse_a_case_by_their_number(tmp_path):
    array = np.arange(120, dtype=np.float32).reshape(GRID.shape)
    array[0, 0, :2] = np.finfo(np.float32).min
    for name in "ab":
        write_image(
            tmp_path / "images" / f"{name}.nii.gz", Volume(array[None] if name == "a" else array[None] * 0 + 1, GRID)
        )
        write_labels(tmp_path / "labels" / f"{name}.nii.gz", (array > 30).astype(np.uint8), GRID)
    found = survey(detect_dataset(tmp_path), None, 1)
    (fault,) = (problem for problem in found.problems if problem.code == "E0314")
    assert (fault.case, "2 of 120 voxels" in fault.what) == ("a", True)
    assert [case.identifier for case in found.fingerprint.cases] == ["b"]


def tilted_case(folder: Path, name: str, degrees: float, codes: str | None = None) -> None:
    """A thick stack across the heart: turned by so many degrees about the front, and stored along other axes."""
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    grid = Geometry((4, 9, 8), (9.0, 1.0, 1.0), direction=(-sine, 0.0, cosine, 0.0, 1.0, 0.0, cosine, 0.0, sine))
    array = np.random.default_rng(len(name)).normal(9, 1, (1, *grid.shape)).astype(np.float32)
    turn = turn_to(grid, codes)
    write_image(folder / "imagesTr" / f"{name}_0000.nii.gz", turn.apply(Volume(array, grid)))
    labels = turn.apply(Volume((array[0] > 9).astype(np.uint8), grid))
    write_labels(folder / "labelsTr" / f"{name}.nii.gz", labels.array, labels.geometry)


def test_stacks_that_lie_oblique_stay_stacks_although_the_nearest_axes_differ(tmp_path):
    for name, degrees, codes in (("a", 35, None), ("bb", 41, None), ("ccc", 50, None), ("dddd", 38, "RAS")):
        tilted_case(tmp_path, name, degrees, codes)
    describe(tmp_path, channel_names={"0": "MRI"}, labels={"background": 0, "thing": 1}, numTraining=4)
    found = survey(detect_dataset(tmp_path), None, jobs=1)
    assert [case.orientation for case in found.fingerprint.cases] == ["LPS", "LPS", "SPR", "RAS"]
    assert [case.turned_to for case in found.fingerprint.cases] == [None, None, None, "LPS"]
    assert {case.shape for case in found.fingerprint.cases} == {(4, 9, 8)}
    assert found.fingerprint.orientation == "LPS"
    assert found.fingerprint.direction == pytest.approx((-0.616, 0, 0.788, 0, 1, 0, 0.788, 0, 0.616), abs=2e-3)
    plan = make_plan(detect_dataset(tmp_path), found.fingerprint, PlanOptions())
    assert plan.direction == found.fingerprint.direction
    because = next(own.because for own in plan.decisions if own.name == "orientation")
    assert because.startswith("1 of 4 cases is stored R-A-S and turned to L-P-S; 1 of 4 cases is oblique")
    stack = Geometry((4, 9, 8), (9.0, 1.0, 1.0), direction=plan.direction)
    for codes in ("RAS", "SAL", "IPL"):
        stored = turn_to(stack, codes).grid(stack)
        assert plan.turn(stored).grid(stored).shape == stack.shape
    assert survey(detect_dataset(tmp_path), found, jobs=1) == found
    tilted_case(tmp_path, "eeeee", 52)
    tilted_case(tmp_path, "ffffff", 49)
    tilted_case(tmp_path, "ggggggg", 47)
    more = survey(detect_dataset(tmp_path), found, jobs=1)
    assert more.fingerprint.orientation == "SPR"
    assert more == survey(detect_dataset(tmp_path), None, jobs=1)
