"""Layouts and checks on real data."""

from __future__ import annotations

import shutil

import pytest

from autoseg.data.check import check_case
from autoseg.data.layouts.detect import UnknownLayout, detect_dataset
from autoseg.data.survey import check_across

pytestmark = pytest.mark.real

SETS = {
    "acdc_cardiac": (50, 1, 4),
    "axon_sem": (8, 1, 3),
    "chase_vessels": (20, 3, 2),
    "dsb2018_nuclei": (109, 3, 2),
    "hippocampus": (203, 1, 3),
    "ms_lesion_mr": (4, 4, 2),
    "openkbp_ct": (40, 1, 8),
    "vnc_em2d": (6, 1, 5),
    "vnc_em3d": (12, 1, 5),
}
"""Cases, channels and classes."""


@pytest.mark.parametrize("name", SETS)
def test_every_case_is_sound(name, shared):
    dataset = detect_dataset(shared / "data" / name)
    assert (dataset.layout, dataset.announced_cases) == ("nnunet", len(dataset.cases))
    assert (len(dataset.cases), len(dataset.channels), len(dataset.labels.classes)) == SETS[name]
    contents = {}
    for case in dataset.cases:
        checked = check_case(dataset, case)
        assert checked.problems == ()
        contents[case.identifier] = checked.content
    assert check_across(dataset, contents) == ()


def test_scribbles_with_an_ignore_label_are_sound(shared, tmp_path):
    source = shared / "data" / "acdc_cardiac"
    shutil.copy(source / "scribble_labels.json", tmp_path / "labels.json")
    (tmp_path / "imagesTr").symlink_to(source / "imagesTr")
    (tmp_path / "labelsTr").symlink_to(source / "scribblesTr")
    text = (source / "dataset.json").read_text()
    (tmp_path / "dataset.json").write_text(text.replace('"LV": 3', '"LV": 3,\n  "ignore": 4'))
    dataset = detect_dataset(tmp_path)
    assert dataset.labels.ignore == 4
    assert all(check_case(dataset, case).problems == () for case in dataset.cases[:5])


def test_labels_beside_images_are_found(shared):
    dataset = detect_dataset(shared / "data" / "nrrd_examples")
    assert (dataset.layout, len(dataset.cases)) == ("cellpose", 3)
    assert all(check_case(dataset, case).problems == () for case in dataset.cases)


def test_nuclei_numbered_one_by_one_become_one_class(shared, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for file in sorted((shared / "data" / "dsb2018_nuclei" / "instancesTr").iterdir())[:20]:
        (tmp_path / "masks" / file.name).symlink_to(file)
        image = shared / "data" / "dsb2018_nuclei" / "imagesTr" / f"{file.stem}_0000.png"
        (tmp_path / "images" / file.name).symlink_to(image)
    dataset = detect_dataset(tmp_path)
    assert (dataset.layout, dataset.labels.has_instances, dataset.channels) == ("paired", True, ("R", "G", "B"))
    assert all(check_case(dataset, case).problems == () for case in dataset.cases)


@pytest.mark.parametrize("name", ["dicom_examples", "totalseg_example"])
def test_folders_that_are_no_training_sets_are_not_recognized(name, shared):
    with pytest.raises(UnknownLayout, match="layouts"):
        detect_dataset(shared / "data" / name)
