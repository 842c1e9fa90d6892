"""The same files give the same cases in plan, predict and evaluate."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.errors import AutoSegError
from autoseg.data.inputs import ExpectedImages, find_inputs
from autoseg.data.layouts.detect import detect_dataset
from autoseg.data.model import Dataset
from autoseg.data.naming import by_name, has_label_words, label_files, partners, side_by_side, split_channel
from autoseg.planning.rules import whole_names

IMAGE_NAMES = {
    "same": "{}",
    "img": "img{}",
    "im": "im_{}",
    "image": "{}_image",
    "index": "{}_0000",
    "volume": "volume-{}",
}
LABEL_NAMES = {
    "same": "{}",
    "label": "label{}",
    "gt": "gt_{}",
    "mask": "{}_mask",
    "seg": "{}.seg",
    "slicer": "{}-label.seg",
}


def expected_of(dataset: Dataset) -> ExpectedImages:
    pairs = [(image, case.labels) for case in dataset.cases for image in case.images]
    whole = whole_names(dataset.cases).value
    return ExpectedImages(len(dataset.channels), dataset.four_d, whole, has_label_words(pairs))


def predicted(images: Path, dataset: Dataset) -> list[str]:
    """Names that predict gives to the cases of a folder, those that fail included."""
    found = find_inputs([images], expected_of(dataset))
    return sorted([case.identifier for case in found.cases] + [name for name, _ in found.failures])


def make(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


def declare(root: Path) -> None:
    """A dataset.json, so that no label file has to be read for its values."""
    table = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}
    (root / "dataset.json").write_text(json.dumps(table))


def named(pattern: str, name: str) -> str:
    """The name after the pattern; a word before a letter is set apart from it (img0001, img_a)."""
    return pattern.format(
        f"_{name}" if pattern[0].isalpha() and pattern[-3].isalpha() and not name[0].isdigit() else name
    )


bases = st.lists(
    st.one_of(
        st.from_regex(r"[a-z]{1,3}_[0-9]{4}", fullmatch=True),
        st.from_regex(r"[0-9]{1,5}", fullmatch=True),
        st.sampled_from(["é1", "Zoë_3", "a.b", "scan 7", "x_12"]),
    ),
    min_size=1,
    max_size=5,
    unique=True,
)
forms = st.sampled_from(["NFC", "NFD"])
endings = st.sampled_from([".nii.gz", ".NII.GZ", ".png", ".nrrd"])


@settings(deadline=None, max_examples=60)
@given(bases, st.sampled_from(list(IMAGE_NAMES)), st.sampled_from(list(LABEL_NAMES)), forms, forms, endings, endings)
def test_plan_predict_and_evaluate_name_cases_alike(
    tmp_path_factory, names, image, label, image_form, label_form, image_ending, label_ending
):
    root = tmp_path_factory.mktemp("set")
    images = [unicodedata.normalize(image_form, named(IMAGE_NAMES[image], n)) + image_ending for n in names]
    labels = [unicodedata.normalize(label_form, named(LABEL_NAMES[label], n)) + label_ending for n in names]
    make(root / "images", images)
    make(root / "labels", labels)
    declare(root)
    dataset = detect_dataset(root)
    planned = [case.identifier for case in dataset.cases]
    assert len(planned) == len(names)
    assert all(case.labels is not None for case in dataset.cases)
    assert predicted(root / "images", dataset) == planned
    written = by_name(Path(f"{name}.nii.gz") for name in planned)
    pairs = partners(written, label_files(root / "labels"))
    assert sorted(pairs) == planned
    assert {case: str(case_labels) for case, case_labels in pairs.items()} == {
        case.identifier: next(iter(by_name([Path(str(case.labels))]))) for case in dataset.cases
    }


@settings(deadline=None, max_examples=60)
@given(bases, st.sampled_from(["{}", "{}_img"]), st.sampled_from(["{}_masks", "{}.seg", "{}-label", "{}_cp_masks"]))
def test_files_side_by_side_are_the_same_cases_in_plan_and_predict(tmp_path_factory, names, image, label):
    root = tmp_path_factory.mktemp("set")
    make(root, [f"{image.format(name)}.tif" for name in names] + [f"{label.format(name)}.tif" for name in names])
    declare(root)
    dataset = detect_dataset(root)
    planned = [case.identifier for case in dataset.cases]
    assert planned == sorted(unicodedata.normalize("NFC", image.format(name)) for name in names)
    assert predicted(root, dataset) == planned
    assert sorted(partners(planned, label_files(root))) == planned


words = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "img", "label"]),
    st.sampled_from("ab1"),
    st.sampled_from(["", "_0001", "_mask", ".seg"]),
)


@settings(deadline=None, max_examples=80)
@given(st.sets(words, min_size=1, max_size=6), st.booleans())
def test_whatever_the_images_are_called_plan_and_predict_name_them_alike(
    tmp_path_factory, names, are_labels_named_alike
):
    root = tmp_path_factory.mktemp("set")
    make(root / "images", [f"{name}.tif" for name in names])
    make(root / "labels", [f"{name}{'' if are_labels_named_alike else '_gt'}.tif" for name in names])
    declare(root)
    dataset = detect_dataset(root)
    assert predicted(root / "images", dataset) == [case.identifier for case in dataset.cases] == sorted(names)


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,3}", fullmatch=True), st.sets(st.integers(0, 2), min_size=1), min_size=1),
    st.integers(1, 3),
)
def test_names_with_an_index_are_the_same_cases_in_plan_and_predict(tmp_path_factory, channels_of, channels):
    root = tmp_path_factory.mktemp("set")
    make(root / "imagesTr", [f"{case}_{i:04d}.nii.gz" for case, own in channels_of.items() for i in own])
    make(root / "labelsTr", [f"{case}.nii.gz" for case in channels_of])
    table = {"channel_names": {str(i): f"MR{i}" for i in range(channels)}, "labels": {"background": 0, "a": 1}}
    (root / "dataset.json").write_text(json.dumps({**table, "file_ending": ".nii.gz"}))
    dataset = detect_dataset(root)
    planned = [case.identifier for case in dataset.cases]
    names = predicted(root / "imagesTr", dataset)
    without_first = {case for case, own in channels_of.items() if channels == 1 and 0 not in own}
    assert [name for name in names if split_channel(name)[0] not in without_first] == [
        name for name in planned if name not in without_first
    ]


@settings(deadline=None, max_examples=100)
@given(st.sets(st.text("ab_-.1mask", min_size=1, max_size=8), max_size=6), st.sets(st.text("ab_.1seg", max_size=8)))
def test_every_image_gets_one_label_file_and_every_label_file_one_image(images, labels):
    found = partners(images, labels)
    assert set(found) <= images
    assert set(found.values()) <= labels
    assert len(set(found.values())) == len(found)
    assert all(found[name] == name for name in images & labels)


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("p0", "p0.seg"), {"p0": "p0.seg"}),
        (("p0", "p0-label", "notes"), {"p0": "p0-label"}),
        (("img0001", "label0001"), {"img0001": "label0001"}),
        (("a_seg", "a_seg_mask"), {"a_seg": "a_seg_mask"}),
        (("a", "b_mask"), {}),
    ],
)
def test_label_files_beside_their_images(names, pairs):
    assert side_by_side(names)[1] == pairs


def test_an_explicit_list_is_believed_although_its_names_end_in_four_digits(tmp_path):
    names = [f"amos_{number:04d}.nii.gz" for number in (1, 4, 7)]
    make(tmp_path / "imagesTr", names)
    make(tmp_path / "labelsTr", names)
    pairs = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    table = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"}, "training": pairs}
    (tmp_path / "dataset.json").write_text(json.dumps(table))
    dataset = detect_dataset(tmp_path)
    assert dataset.layout == "decathlon"
    planned = [case.identifier for case in dataset.cases]
    assert planned == ["amos_0001", "amos_0004", "amos_0007"] == predicted(tmp_path / "imagesTr", dataset)
    make(tmp_path / "new", ["amos_0000.nii.gz"])
    assert predicted(tmp_path / "new", dataset) == ["amos_0000"]


def test_listed_cases_are_named_by_their_images_and_by_their_labels_where_these_alone_differ(tmp_path):
    pairs = [{"image": f"img{n}.nii.gz", "label": f"label{n}.nii.gz"} for n in (1, 2)]
    (tmp_path / "manifest.json").write_text(json.dumps({"cases": pairs, "labels": {"background": 0, "a": 1}}))
    assert [case.identifier for case in detect_dataset(tmp_path).cases] == ["img1", "img2"]
    pairs = [{"image": f"{n}/ct.nii.gz", "label": f"labels/{n}.nii.gz"} for n in ("p", "q")]
    (tmp_path / "manifest.json").write_text(json.dumps({"cases": pairs, "labels": {"background": 0, "a": 1}}))
    assert [case.identifier for case in detect_dataset(tmp_path).cases] == ["p", "q"]


def test_numbered_frames_of_a_described_dataset_are_cases_where_the_labels_say_so(tmp_path):
    names = [f"frame_{number:04d}.png" for number in range(1, 4)]
    make(tmp_path / "imagesTr", names)
    make(tmp_path / "labelsTr", names)
    declare(tmp_path)
    dataset = detect_dataset(tmp_path)
    assert [case.identifier for case in dataset.cases] == ["frame_0001", "frame_0002", "frame_0003"]


def test_label_maps_predicted_into_the_folder_of_the_images_are_no_images(tmp_path):
    make(tmp_path, ["pat0_0000.nii.gz", "pat1_0000.nii.gz", "pat0.nii.gz"])
    found = find_inputs([tmp_path], ExpectedImages(1), lambda _folder: {"pat0.nii.gz"})
    assert [case.identifier for case in found.cases] == ["pat0", "pat1"]
    assert "predicted here before" in found.notes[0]


def test_a_label_file_beside_the_channels_of_its_case_is_no_image(tmp_path):
    make(tmp_path, ["p_0000.nii.gz", "p_0001.nii.gz", "p_seg.nii.gz", "q_0000.nii.gz", "q_0001.nii.gz"])
    found = find_inputs([tmp_path], ExpectedImages(2))
    assert ([case.identifier for case in found.cases], found.failures) == (["p", "q"], ())
    assert found.notes == ("p_seg.nii.gz is not segmented: label files of images",)


def test_a_dataset_given_to_predict_is_searched_for_its_images(tmp_path):
    make(tmp_path / "imagesTr", ["a_0000.nii.gz"])
    found = find_inputs([tmp_path], ExpectedImages(1))
    assert [case.identifier for case in found.cases] == ["a"]
    assert "imagesTr/" in found.notes[0]
    make(tmp_path / "imagesTs", ["b_0000.nii.gz"])
    assert [case.identifier for case in find_inputs([tmp_path], ExpectedImages(1)).cases] == ["b"]
    make(tmp_path / "other" / "deep", ["c.nii.gz"])
    with pytest.raises(AutoSegError, match="no image") as caught:
        find_inputs([tmp_path / "other"], ExpectedImages(1))
    assert "deep/" in str(caught.value.why)
    assert "imagesTs/" in str(caught.value.do)
