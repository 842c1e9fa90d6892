"""The synthetic dataset: deterministic, hard in the ways it says, readable by anybody."""

import json

import nibabel
import numpy as np
import pytest

from autoseg.data.synthetic import CLASSES, phantom, write_synthetic_dataset


@pytest.fixture(scope="module")
def phantoms():
    return [phantom(np.random.default_rng([7, number])) for number in range(8)]


def test_equal_generators_give_equal_phantoms(phantoms):
    volume, labels = phantom(np.random.default_rng([7, 0]))
    assert np.array_equal(volume.array, phantoms[0][0].array)
    assert np.array_equal(labels, phantoms[0][1])
    assert volume.geometry == phantoms[0][0].geometry


def test_every_phantom_holds_every_class(phantoms):
    for _, labels in phantoms:
        assert set(np.unique(labels)) == set(CLASSES.values())
        assert np.bincount(labels.ravel()).min() > 100


def test_spacings_and_shapes_vary_and_are_anisotropic(phantoms):
    assert len({volume.geometry.spacing_mm for volume, _ in phantoms}) == len(phantoms)
    assert len({labels.shape for _, labels in phantoms}) > 3
    for volume, _ in phantoms:
        assert 2.3 < volume.geometry.spacing_mm[0] / volume.geometry.spacing_mm[1] < 3.4


def test_the_lesion_shows_in_the_second_channel_only(phantoms):
    for volume, labels in phantoms:
        organ, lesion = (volume.array[:, labels == value].mean(1) for value in (1, 2))
        assert abs(lesion[0] / organ[0] - 1) < 0.2
        assert lesion[1] / organ[1] > 1.3


def test_the_lesion_lies_within_the_organ(phantoms):
    for _, labels in phantoms:
        rows = np.argwhere(labels == 2)
        around = np.argwhere(labels == 1)
        assert (rows.min(0) >= around.min(0)).all()
        assert (rows.max(0) <= around.max(0)).all()


def test_air_is_exactly_zero_and_the_body_is_not(phantoms):
    for volume, labels in phantoms:
        outside = (volume.array == 0).all(0)
        assert 0.2 < outside.mean() < 0.7
        assert not outside[labels > 0].any()


def test_files_hold_what_was_drawn(tmp_path):
    folder = write_synthetic_dataset(tmp_path / "set", training_cases=2, test_cases=1, seed=3)
    volume, labels = phantom(np.random.default_rng([3, False, 1]))
    stored = nibabel.load(folder / "labelsTr" / "phantom_tr001.nii.gz")
    assert np.array_equal(np.asarray(stored.dataobj).T, labels)
    assert stored.header.get_zooms() == pytest.approx(volume.geometry.spacing_mm[::-1])
    image = nibabel.load(folder / "imagesTr" / "phantom_tr001_0001.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj).T, volume.array[1])
    assert sorted(path.name for path in (folder / "labelsTs").iterdir()) == ["phantom_ts000.nii.gz"]
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 2


def test_a_dataset_already_there_is_kept(tmp_path):
    folder = write_synthetic_dataset(tmp_path, training_cases=1, test_cases=1)
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    write_synthetic_dataset(tmp_path, training_cases=1, test_cases=1)
    assert written == {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}


def test_more_cases_leave_the_first_ones_as_they_are(tmp_path):
    write_synthetic_dataset(tmp_path / "a", training_cases=1, test_cases=1)
    write_synthetic_dataset(tmp_path / "b", training_cases=2, test_cases=1)
    for name in ("labelsTr/phantom_tr000.nii.gz", "labelsTs/phantom_ts000.nii.gz"):
        one, other = (nibabel.load(tmp_path / folder / name) for folder in "ab")
        assert np.array_equal(one.dataobj, other.dataobj)
