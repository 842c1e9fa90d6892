"""A format whose images are folders takes an entry in the table and nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoseg.core.errors import UnreadableFile, UsageError
from autoseg.core.geometry import Geometry
from autoseg.data.check import check_case
from autoseg.data.inputs import ExpectedImages, find_inputs
from autoseg.data.layouts.detect import detect_dataset
from autoseg.data.model import Case
from autoseg.images.format import Format
from autoseg.images.formats.files import FORMATS, files_of, stem
from autoseg.images.image_errors import unreadable
from autoseg.images.readers import read_image, read_labels
from autoseg.images.volume import Volume
from autoseg.images.writers import write_image, write_labels
from autoseg.inference.manifest import hash_of_images
from autoseg.inference.outputs import output_name
from tests.images.examples import label_array

GRID = Geometry((4, 5, 6), (3.0, 1.0, 1.0))


def slices_of(path: Path) -> tuple[Path, ...]:
    return tuple(sorted(path.glob("*.npy")))


def verify(path: Path) -> None:
    if not slices_of(path):
        raise unreadable(path, "holds no slices")


def read(path: Path, _four_d: bool) -> Volume:
    return Volume(np.stack([np.load(file) for file in slices_of(path)])[None], GRID)


def write(path: Path, array, _geometry) -> None:
    path.mkdir()
    for index, plane in enumerate(array[0]):
        np.save(path / f"{index:04d}.npy", plane)


@pytest.fixture(autouse=True)
def slices(monkeypatch):
    entry = Format(endings=(".slices",), verify=verify, read=read, write=write, files=slices_of, is_folder=True)
    monkeypatch.setitem(FORMATS, "slices", entry)


def paired(root: Path) -> Path:
    for name in ("a", "b"):
        labels = label_array(GRID.shape, 1, seed=ord(name))
        write_image(root / "images" / f"{name}.slices", Volume(labels[None].astype(np.float32) * 9, GRID))
        write_labels(root / "labels" / f"{name}.slices", labels, GRID)
    return root


def test_a_folder_is_written_whole_and_read_back(tmp_path):
    image = tmp_path / "deep" / "case.slices"
    for highest in (300, 3):  # the second replaces the first
        labels = label_array(GRID.shape, highest)
        write_labels(image, labels, GRID)
        assert (read_labels(image).array == labels).all()
        assert [entry.name for entry in image.parent.iterdir()] == ["case.slices"]
    assert stem(image) == "case"
    assert [file.name for file in files_of(image)] == ["0000.npy", "0001.npy", "0002.npy", "0003.npy"]


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "case.slices").mkdir()
    with pytest.raises(UnreadableFile, match="no slices"):
        read_image([tmp_path / "case.slices"])


def test_folders_are_cases_of_a_dataset_and_every_slice_counts(tmp_path):
    described = {"labels": {"background": 0, "object": 1}}  # label values are counted by processes without this entry
    (paired(tmp_path) / "dataset.json").write_text(json.dumps(described))
    dataset = detect_dataset(tmp_path)
    assert [case.images for case in dataset.cases] == [("images/a.slices",), ("images/b.slices",)]
    before = check_case(dataset, dataset.cases[0])
    assert not before.is_refused
    np.save(tmp_path / "images" / "a.slices" / "0002.npy", np.zeros((5, 6), np.float32))
    assert check_case(dataset, dataset.cases[0]).content != before.content


def test_folders_are_segmented_one_by_one_or_all_in_a_folder(tmp_path):
    images = paired(tmp_path) / "images"
    for given, names in ((images, ["a", "b"]), (images / "b.slices", ["b"])):
        inputs = find_inputs([given], ExpectedImages(1))
        assert ([case.identifier for case in inputs.cases], inputs.failures) == (names, ())
    cases = inputs.cases
    assert output_name(cases[0], ".nii.gz") == "b.slices"
    before = hash_of_images(cases[0])
    np.save(images / "b.slices" / "0004.npy", np.zeros((5, 6), np.float32))
    assert hash_of_images(cases[0]) != before


def test_predictions_for_a_format_that_is_only_read_have_the_ending_of_the_model(monkeypatch):
    monkeypatch.setitem(FORMATS, "slices", replace(FORMATS["slices"], write=None))
    assert output_name(Case("b", ("b.slices",)), ".nii.gz") == "b.nii.gz"
    with pytest.raises(UsageError, match="can be written"):
        write_labels(Path("b.slices"), label_array(GRID.shape), GRID)
