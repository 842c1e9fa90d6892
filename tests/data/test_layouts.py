"""Recognizing layouts."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoseg.core.errors import DataRefused, MissingInput, RecordFault, UsageError
from autoseg.core.geometry import Geometry
from autoseg.core.records import from_json, to_json
from autoseg.data.check import check_case
from autoseg.data.layouts.description import Description
from autoseg.data.layouts.detect import LAYOUTS, UnknownLayout, detect_dataset
from autoseg.data.layouts.layout import Found, Layout
from autoseg.data.model import Case, Dataset
from autoseg.data.survey import check_across
from autoseg.images.volume import Volume
from autoseg.images.writers import write_image, write_labels
from tests.data.arrangements import (
    ARRANGEMENTS,
    CLASSES,
    GRID,
    NAMES,
    cellpose,
    decathlon,
    describe,
    image_of,
    labels_of,
    listed_nnunet,
    manifest_csv,
    nnunet,
    paired,
    write_channels,
)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_every_layout_gives_the_same_cases_and_training_labels(arrangement, tmp_path):
    dataset = detect_dataset(ARRANGEMENTS[arrangement](tmp_path / "tiny"))
    assert dataset.layout == arrangement.split(",")[0]
    assert tuple(case.identifier for case in dataset.cases) == NAMES
    contents = {}
    for case in dataset.cases:
        checked = check_case(dataset, case)
        assert checked.problems == ()
        assert checked.volume is not None
        np.testing.assert_array_equal(checked.volume.array, image_of(case.identifier))
        np.testing.assert_array_equal(checked.labels, labels_of(case.identifier))
        contents[case.identifier] = checked.content
    assert check_across(dataset, contents) == ()


@pytest.mark.parametrize("arrangement", [name for name in ARRANGEMENTS if name != "cellpose"])
def test_two_channels_arrive_in_order_from_every_layout_that_has_them(arrangement, tmp_path):
    dataset = detect_dataset(ARRANGEMENTS[arrangement](tmp_path / "tiny", channels=2))
    assert len(dataset.channels) == 2
    assert dataset.four_d == (arrangement == "decathlon")
    for case in dataset.cases:
        checked = check_case(dataset, case)
        assert checked.problems == ()
        assert checked.volume is not None
        np.testing.assert_array_equal(checked.volume.array, image_of(case.identifier, 2))


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_a_dataset_survives_being_saved(arrangement, tmp_path):
    dataset = detect_dataset(ARRANGEMENTS[arrangement](tmp_path / "tiny"))
    assert from_json(Dataset, to_json(dataset), "saved") == dataset


@pytest.mark.parametrize(
    "folders", [("images", "masks"), ("scans", "masks"), ("Pictures", "GT"), ("imagesTr", "labelsTr")]
)
def test_paired_folders_are_known_by_several_names(folders, tmp_path):
    dataset = detect_dataset(paired(tmp_path / "tiny", folders=folders))
    assert dataset.layout == "paired"
    assert folders[0] in dataset.layout_reason
    assert dataset.labels.classes == {"background": (0,), "class_1": (1,), "class_2": (2,)}


def test_pairs_without_description_may_carry_channel_indices(tmp_path):
    root = nnunet(tmp_path / "tiny")
    (root / "dataset.json").unlink()
    dataset = detect_dataset(root)
    assert (dataset.layout, tuple(case.identifier for case in dataset.cases)) == ("paired", NAMES)


def test_frame_numbers_are_no_channels_where_labels_carry_them_too(tmp_path):
    for index in range(3):
        write_image(tmp_path / "images" / f"film_{index:04d}.png", Volume(image_of(str(index))[:, :1], _flat()))
        write_labels(tmp_path / "labels" / f"film_{index:04d}.png", labels_of(str(index))[:1], _flat())
    dataset = detect_dataset(tmp_path)
    assert [case.identifier for case in dataset.cases] == ["film_0000", "film_0001", "film_0002"]


def test_a_label_may_carry_a_suffix_in_its_own_folder(tmp_path):
    root = paired(tmp_path / "tiny")
    for name in NAMES:
        (root / "labels" / f"{name}.nii.gz").rename(root / "labels" / f"{name}_mask.nii.gz")
    assert tuple(case.identifier for case in detect_dataset(root).cases) == NAMES


def test_paired_folders_may_name_their_classes(tmp_path):
    root = paired(tmp_path / "tiny")
    describe(root, numTraining=None, file_ending=None)
    dataset = detect_dataset(root)
    assert (dataset.layout, tuple(dataset.labels.classes), dataset.channels) == ("paired", tuple(CLASSES), ("MR0",))


def test_folders_without_common_names_are_refused_with_examples(tmp_path):
    root = paired(tmp_path / "tiny")
    for name in NAMES:
        (root / "labels" / f"{name}.nii.gz").rename(root / "labels" / f"other_{name}.nii.gz")
    with pytest.raises(DataRefused, match="no file names in common") as caught:
        detect_dataset(root)
    assert "case_a" in caught.value.what
    assert "other_case_a" in caught.value.what


@pytest.mark.parametrize("suffix", ["_masks", "_mask", "_seg", "_cp_masks", "_label"])
def test_labels_lie_beside_images_under_several_suffixes(suffix, tmp_path):
    dataset = detect_dataset(cellpose(tmp_path / "tiny", suffix=suffix, ending=".tif"))
    assert dataset.layout == "cellpose"
    assert suffix in dataset.layout_reason
    assert [case.labels for case in dataset.cases] == [f"{name}{suffix}.tif" for name in NAMES]


def test_other_outputs_of_cellpose_are_no_images_and_a_lone_mask_is_named(tmp_path):
    root = cellpose(tmp_path / "tiny", ending=".tif")
    (root / "case_a_flows.tif").write_bytes((root / "case_a.tif").read_bytes())
    (root / "lost_masks.tif").write_bytes((root / "case_a_masks.tif").read_bytes())
    dataset = detect_dataset(root)
    assert tuple(case.identifier for case in dataset.cases) == NAMES
    assert "lost_masks.tif" in {problem.file for problem in check_across(dataset, {})}


def test_object_ids_become_one_class_and_the_reason_says_so(tmp_path):
    flat = Geometry(shape=(1, 12, 12), spacing_mm=(999.0, 1.0, 1.0))
    for name in NAMES:
        write_image(tmp_path / f"{name}.tif", Volume(np.full((1, *flat.shape), 9, np.float32), flat))
        write_labels(tmp_path / f"{name}_masks.tif", np.arange(144).reshape(flat.shape) // 2, flat)
    dataset = detect_dataset(tmp_path)
    assert dataset.labels.has_instances
    assert "object" in dataset.layout_reason
    checked = check_case(dataset, dataset.cases[0])
    assert checked.labels is not None
    assert sorted(np.unique(checked.labels)) == [0, 1]
    assert [problem.code for problem in check_across(dataset, {})] == ["E0306"]


def test_rgb_images_hold_three_declared_channels_in_one_file(tmp_path):
    flat = _flat()
    for name in NAMES:
        write_image(tmp_path / "imagesTr" / f"{name}_0000.png", Volume(image_of(name, 3)[:, :1], flat))
        write_labels(tmp_path / "labelsTr" / f"{name}.png", labels_of(name)[:1], flat)
    describe(tmp_path, 3, file_ending=".png")
    dataset = detect_dataset(tmp_path)
    assert not dataset.four_d
    assert "one file with all channels" in dataset.layout_reason
    checked = check_case(dataset, dataset.cases[0])
    assert checked.problems == ()
    assert checked.volume is not None
    assert checked.volume.array.shape == (3, 1, 6, 5)


def test_undeclared_rgb_images_are_recognized_as_such(tmp_path):
    for name in NAMES:
        write_image(tmp_path / "images" / f"{name}.png", Volume(image_of(name, 3)[:, :1], _flat()))
        write_labels(tmp_path / "masks" / f"{name}.png", labels_of(name, (0, 255))[:1], _flat())
    dataset = detect_dataset(tmp_path)
    assert dataset.channels == ("R", "G", "B")
    assert dataset.labels.file_values == (0, 255)
    assert dataset.labels.foreground == ("class_255",)


def test_a_fourth_axis_holds_the_channels_where_no_other_index_exists(tmp_path):
    for name in NAMES:
        write_image(tmp_path / "imagesTr" / f"{name}_0000.nii.gz", Volume(image_of(name, 2), GRID))
        write_labels(tmp_path / "labelsTr" / f"{name}.nii.gz", labels_of(name), GRID)
    describe(tmp_path, 2)
    dataset = detect_dataset(tmp_path)
    assert dataset.four_d
    assert check_case(dataset, dataset.cases[0]).problems == ()


def test_an_old_description_with_a_training_list_is_still_nnunet_by_its_files(tmp_path):
    root = nnunet(tmp_path / "tiny")
    training = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in NAMES]
    describe(root, channel_names=None, modality={"0": "MR"}, file_ending=None, training=training)
    assert detect_dataset(root).layout == "nnunet"


def test_hidden_files_and_side_cars_are_no_cases(tmp_path):
    root = nnunet(tmp_path / "tiny", ending=".tif")
    (root / "imagesTr" / "._case_a_0000.tif").write_bytes(b"resource fork")
    assert (root / "imagesTr" / "case_a_0000.json").is_file()
    dataset = detect_dataset(root)
    assert tuple(case.identifier for case in dataset.cases) == NAMES
    assert check_across(dataset, {}) == ()


def test_images_without_channel_index_are_refused_with_a_remedy(tmp_path):
    root = nnunet(tmp_path / "tiny")
    for file in (root / "imagesTr").iterdir():
        file.rename(file.with_name(file.name.replace("_0000", "")))
    with pytest.raises(DataRefused, match="_0000") as caught:
        detect_dataset(root)
    assert "rename" in str(caught.value.do)


@pytest.mark.parametrize("name", ["a/b", "..", " a", "a\\b", ""])
def test_a_case_name_must_be_a_file_name(name, tmp_path):
    describe(tmp_path, dataset={name: {"images": ["x.nii.gz"], "label": "y.nii.gz"}})
    with pytest.raises(RecordFault, match="no usable case name"):
        detect_dataset(tmp_path)


@pytest.mark.parametrize("table", [{}, {"a": {}}, {"a": {"images": [], "label": "b"}}, {"a": {"images": ["b"]}}])
def test_a_faulty_table_of_cases_is_refused(table, tmp_path):
    describe(tmp_path, dataset=table)
    with pytest.raises(RecordFault, match="dataset"):
        detect_dataset(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_description_that_is_no_table_is_refused(text, tmp_path):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(RecordFault, match=r"JSON|table"):
        detect_dataset(tmp_path)


def test_faulty_decathlon_entries_are_all_listed(tmp_path):
    root = decathlon(tmp_path / "tiny")
    data = json.loads((root / "dataset.json").read_text())
    listed = list(data["training"])
    data["training"] = [*listed, {"image": 3}, "x"]
    (root / "dataset.json").write_text(json.dumps(data))
    with pytest.raises(RecordFault, match="training") as caught:
        detect_dataset(root)
    assert all(word in caught.value.what for word in ("training[3]", "training[4]"))
    data["training"] = [*listed, listed[0]]
    (root / "dataset.json").write_text(json.dumps(data))
    with pytest.raises(RecordFault, match=r"'case_c' is listed twice"):
        detect_dataset(root)


def test_an_empty_training_list_is_refused(tmp_path):
    describe(tmp_path, training=[])
    with pytest.raises(RecordFault, match="lists no case"):
        detect_dataset(tmp_path)


def test_a_manifest_file_can_be_given_itself(tmp_path):
    root = manifest_csv(tmp_path / "tiny", channels=2)
    (root / "manifest.csv").rename(root / "mine.csv")
    text = (root / "mine.csv").read_text().replace("image_0", "image_CT").replace("image_1", "image_PET")
    (root / "mine.csv").write_text(text.replace(",", ";"))
    dataset = detect_dataset(root / "mine.csv")
    assert (dataset.channels, dataset.root, dataset.name) == (("CT", "PET"), str(root), "mine")
    assert all(check_case(dataset, case).problems == () for case in dataset.cases)


def test_numbered_image_columns_are_ordered_by_their_number(tmp_path):
    root = manifest_csv(tmp_path / "tiny", channels=2)
    rows = [line.split(",") for line in (root / "manifest.csv").read_text().splitlines()]
    swapped = [",".join([row[0], row[2], row[1], row[3]]) for row in rows]
    (root / "manifest.csv").write_text("\n".join(swapped))
    dataset = detect_dataset(root)
    assert dataset.cases[0].images == ("somewhere/case_a_0000.nii.gz", "somewhere/case_a_0001.nii.gz")


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    root = paired(tmp_path / "tiny")
    listed = Path.iterdir

    def iterdir(self):
        if self.name == "labels":
            raise PermissionError(13, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(MissingInput, match="labels may not be read"):
        detect_dataset(root)


def test_a_manifest_may_leave_out_case_names_and_be_a_list_or_a_table_of_cases(tmp_path):
    files = write_channels(tmp_path, "case_a", 1, ".nii.gz")
    write_labels(tmp_path / "truth.nii.gz", labels_of("case_a"), GRID)
    entry = {"image": files[0], "label": "truth.nii.gz"}
    own = "case_a_0000"
    for content, name in (([entry], own), ({"first": entry}, "first"), ({"training": [entry]}, own)):
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        assert [case.identifier for case in detect_dataset(tmp_path).cases] == [name]


@pytest.mark.parametrize(
    ("file", "text", "word"),
    [
        ("manifest.csv", "case,file\na,b\n", "columns"),
        ("manifest.csv", "case,image,label\n", "lists no case"),
        ("manifest.csv", "case,image,label\na,,b\n", "cases[0]"),
        ("manifest.csv", "case,image,label\na,b,c\n" + "x" * 200_000, "line"),
        ("manifest.json", "3", "list of cases"),
        ("manifest.json", '{"cases": 3}', "cases: Input should be a valid array"),
        ("manifest.json", '{"cases": [], "labels": {}}', "lists no case"),
        ("manifest.json", "[", "JSON"),
    ],
)
def test_a_faulty_manifest_is_refused(file, text, word, tmp_path):
    (tmp_path / file).write_text(text)
    with pytest.raises(RecordFault, match=r".") as caught:
        detect_dataset(tmp_path)
    assert word in caught.value.what


def test_a_manifest_may_say_that_a_fourth_axis_holds_the_channels(tmp_path):
    write_image(tmp_path / "a.nii.gz", Volume(image_of("a", 2), GRID))
    write_labels(tmp_path / "a_seg.nii.gz", labels_of("a"), GRID)
    table = {"cases": [{"image": "a.nii.gz", "label": "a_seg.nii.gz"}], "four_d": True}
    (tmp_path / "manifest.json").write_text(json.dumps(table))
    dataset = detect_dataset(tmp_path)
    assert (dataset.four_d, dataset.channels) == (True, ("channel_0", "channel_1"))
    assert check_case(dataset, dataset.cases[0]).problems == ()
    table["channel_names"] = {"0": "T1", "1": "T2"}
    (tmp_path / "manifest.json").write_text(json.dumps(table))
    assert detect_dataset(tmp_path).channels == ("T1", "T2")


def test_every_entry_of_a_manifest_that_is_documented_is_read_and_others_are_named(tmp_path):
    write_image(tmp_path / "a.nii.gz", Volume(image_of("a"), GRID))
    write_labels(tmp_path / "b.nii.gz", labels_of("a", (0, 1, 2, 9)), GRID)
    cases = [{"id": "p", "image": "a.nii.gz", "mask": "b.nii.gz", "fold": 0}]
    table = {"cases": cases, "labels": CLASSES, "ignore": 9, "numTraining": 2, "file_ending": ".nrrd", "weights": 1}
    (tmp_path / "manifest.json").write_text(json.dumps(table))
    dataset = detect_dataset(tmp_path)
    assert [(case.identifier, case.labels) for case in dataset.cases] == [("p", "b.nii.gz")]
    assert (dataset.labels.file_values, dataset.labels.ignore) == ((0, 1, 2, 9), 3)
    assert (dataset.file_ending, dataset.announced_cases) == (".nrrd", 2)
    assert check_case(dataset, dataset.cases[0]).problems == ()
    assert [problem.code for problem in check_across(dataset, {})] == ["E0205", "E0305", "E0222", "E0222"]
    assert ["weights" in dataset.notes[0], "fold" in dataset.notes[1]] == [True, True]
    (tmp_path / "manifest.json").write_text(json.dumps({"cases": cases, "ignore": 9}))
    with pytest.raises(RecordFault, match="ignore needs the classes"):
        detect_dataset(tmp_path)


def test_columns_that_are_not_read_are_named(tmp_path):
    root = manifest_csv(tmp_path / "tiny")
    lines = (root / "manifest.csv").read_text().splitlines()
    (root / "manifest.csv").write_text("\n".join([lines[0] + ",split", *(f"{line},train" for line in lines[1:])]))
    assert detect_dataset(root).notes == ("of the cases, these are not read: split",)


def test_a_file_ending_that_no_image_has_is_corrected_and_no_file_renamed(tmp_path):
    root = nnunet(tmp_path / "tiny")
    describe(root, file_ending=".nii")
    with pytest.raises(DataRefused, match="no image named") as caught:
        detect_dataset(root)
    assert '"file_ending": ".nii.gz"' in str(caught.value.do)
    assert "rename" not in str(caught.value.do)
    describe(root, file_ending=".NII.GZ")
    assert len(detect_dataset(root).cases) == len(NAMES)


def test_images_that_are_not_read_are_the_reason_why_nothing_is_paired(tmp_path):
    root = paired(tmp_path / "tiny")
    for file in (root / "images").iterdir():
        file.rename(file.with_name(file.name.replace(".nii.gz", ".jpg")))
    with pytest.raises(DataRefused, match="images/ holds no file that can be read") as caught:
        detect_dataset(root)
    assert "JPEG" in str(caught.value.why)
    assert "original" in str(caught.value.do)


def test_labels_that_nobody_can_read_leave_the_classes_unknown(tmp_path):
    root = paired(tmp_path / "tiny")
    for file in (root / "labels").iterdir():
        file.write_bytes(b"nothing")
    (root / "labels" / "case_b.nii.gz").write_bytes(b"")
    with pytest.raises(DataRefused, match="none of the 3 label files can be read") as caught:
        detect_dataset(root)
    assert "case_b.nii.gz is empty" in str(caught.value.why)
    assert "(and 1 more files)" in str(caught.value.why)


def test_an_unknown_folder_is_answered_with_its_content_and_all_layouts(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UnknownLayout) as caught:
        detect_dataset(tmp_path)
    assert (caught.value.code, caught.value.exit_code) == ("E0202", 3)
    assert "photos/ (1 x .jpg)" in str(caught.value.why)
    assert all(layout.example in str(caught.value.do) for layout in LAYOUTS.values())


def test_a_folder_of_dicom_slices_is_named_with_what_converts_them(tmp_path):
    (tmp_path / "patient").mkdir()
    for number in range(3):
        (tmp_path / "patient" / f"1.2.840.{number}").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(UnknownLayout) as caught:
        detect_dataset(tmp_path)
    assert "3 files such as 1.2.840.0 are not used: DICOM" in str(caught.value.why)
    assert "dcm2niix" in str(caught.value.do)


def test_of_two_images_of_one_name_the_other_is_named(tmp_path):
    root = paired(tmp_path / "tiny")
    (root / "images" / "case_a.nrrd").write_bytes(b"")
    problems = check_across(detect_dataset(root), {})
    assert [problem.what for problem in problems] == [
        "case_a.nrrd has the name of case_a.nii.gz, which is read instead"
    ]


def test_an_empty_folder_is_called_empty(tmp_path):
    with pytest.raises(UnknownLayout, match="nothing"):
        detect_dataset(tmp_path)


def test_a_layout_can_be_forced(tmp_path):
    root = nnunet(tmp_path / "tiny")
    assert detect_dataset(root, "paired").layout == "paired"
    with pytest.raises(UnknownLayout, match="no cellpose dataset"):
        detect_dataset(root, "cellpose")
    with pytest.raises(UsageError, match="nnunet"):
        detect_dataset(root, "nnunett")


def test_a_path_that_does_not_exist_or_is_no_dataset_is_named(tmp_path):
    with pytest.raises(MissingInput, match="nowhere"):
        detect_dataset(tmp_path / "nowhere")
    file = tmp_path / "a.json"
    file.write_text("{}")
    with pytest.raises(UnknownLayout, match="no folder but a file"):
        detect_dataset(file, "nnunet")
    with pytest.raises(UnknownLayout, match="no folder but a file"):
        detect_dataset(nnunet(tmp_path / "tiny") / IMAGE)


def test_listed_paths_are_kept_as_they_are_and_variables_are_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("SOMEWHERE", str(tmp_path))
    root = listed_nnunet(tmp_path / "tiny")
    data = json.loads((root / "dataset.json").read_text())
    data["dataset"]["case_a"]["images"] = ["$SOMEWHERE/tiny_elsewhere/case_a_0000.nii.gz"]
    (root / "dataset.json").write_text(json.dumps(data))
    dataset = detect_dataset(root)
    assert Path(str(dataset.cases[1].labels)).is_absolute()
    problems = check_case(dataset, dataset.cases[0]).problems
    assert [problem.code for problem in problems] == ["E0203"]
    assert "not replaced" in problems[0].what


def test_a_layout_is_one_entry_and_its_dataset_is_completed_and_checked(tmp_path, monkeypatch):
    def detect(root: Path) -> Found | None:
        folders = sorted(file.parent.name for file in root.glob("*/scan.nii.gz"))
        cases = tuple(Case(name, (f"{name}/scan.nii.gz",), f"{name}/truth.nrrd") for name in folders)
        return Found(cases, "one folder per case", Description()) if cases else None

    for name in NAMES:
        write_image(tmp_path / name / "scan.nii.gz", Volume(image_of(name), GRID))
        write_labels(tmp_path / name / "truth.nrrd", labels_of(name), GRID)
    monkeypatch.setitem(LAYOUTS, "folders", Layout(detect, "case/scan.nii.gz and case/truth.nrrd"))
    dataset = detect_dataset(tmp_path)
    assert (dataset.layout, dataset.channels, dataset.file_ending) == ("folders", ("image",), ".nrrd")
    assert dataset.labels.foreground == ("class_1", "class_2")
    assert dataset.layout_reason.startswith("one folder per case; the label files hold the values 1, 2")
    assert [check_case(dataset, case).problems for case in dataset.cases] == [()] * 3
    assert check_across(dataset, {}) == ()


IMAGE = "imagesTr/case_a_0000.nii.gz"


def _flat() -> Geometry:
    return Geometry(shape=(1, *GRID.shape[1:]), spacing_mm=(999.0, 1.0, 1.0))


def test_cases_whose_names_no_record_could_hold_are_left_out_by_name(tmp_path):
    root = nnunet(tmp_path / "tiny")
    bad = os.fsdecode(b"caf\xe9")
    for folder in ("imagesTr", "labelsTr"):
        for file in sorted((root / folder).glob(f"{NAMES[0]}*")):
            file.rename(file.with_name(file.name.replace(NAMES[0], bad)))
    dataset = detect_dataset(root)
    assert [case.identifier for case in dataset.cases] == list(NAMES[1:])
    assert from_json(Dataset, to_json(dataset), "here") == dataset
    (refused,) = [entry for entry in check_across(dataset, {}) if entry.severity == "refused"]
    assert refused.case == "caf\\udce9"
    json.dumps([entry.file for entry in check_across(dataset, {})], ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("file_ending", "./" + "../" * 7 + "precious.nii.gz"),
        ("file_ending", ".exe"),
        ("labels", {"background": 0, "\x1b[8mhidden": 1}),
        ("labels", {"background": 0, "a\u202eb": 1}),
        ("channel_names", {"0": "\x1b[5mT1"}),
        ("dataset", {"../outside": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}),
        ("dataset", {".hidden": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}),
    ],
)
def test_names_that_lead_elsewhere_or_are_obeyed_by_terminals_are_refused_with_their_entry(tmp_path, entry, value):
    root = nnunet(tmp_path / "tiny")
    description = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**description, entry: value}))
    with pytest.raises(RecordFault, match=entry) as caught:
        detect_dataset(root)
    assert caught.value.where == str(root / "dataset.json")


def test_a_record_with_two_cases_of_one_name_is_refused(tmp_path):
    dataset = detect_dataset(nnunet(tmp_path))
    twice = replace(dataset, cases=(*dataset.cases, dataset.cases[0]))
    with pytest.raises(RecordFault, match="several cases of the name case_a"):
        from_json(Dataset, to_json(twice), "dataset.json")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_manifest_is_read_with_the_line_ends_of_every_system(tmp_path, end):
    file = manifest_csv(tmp_path) / "manifest.csv"
    expected = detect_dataset(tmp_path)
    file.write_bytes(file.read_text().replace("\n", end).encode())
    assert detect_dataset(tmp_path) == expected


def test_a_first_line_that_is_no_row_is_named(tmp_path):
    file = manifest_csv(tmp_path) / "manifest.csv"
    file.write_text(f"{'x' * 200_000}{file.read_text()}")
    with pytest.raises(RecordFault, match="line 1 cannot be read"):
        detect_dataset(tmp_path)
